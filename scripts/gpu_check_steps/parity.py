"""Step c: every golden family below tests/golden, whole and LoRA, in f32 and bf16, and greedy samples in f32."""
from .step import ROOT, short


def comparisons(family):
    """What is compared of a family: a name, a dtype, and the arguments that say so."""
    references = {"whole": (family / "objectives.safetensors", [])}
    references["LoRA"] = (family / "lora/objectives.safetensors", ["--adapter", family / "lora/adapter"])
    for what, (reference, adapter) in references.items():
        for dtype in ("f32", "bf16") if reference.exists() else ():
            yield what, dtype, ["--dtype", dtype, "--reference", reference, *adapter]
    sampling = family / "sampling.safetensors"
    if sampling.exists():
        yield "samples", "f32", ["--sampling", sampling, "--cases", sampling.with_suffix(".json")]


def compare(step, family, what, dtype, arguments):
    """One comparison's row."""
    name = f"{family.name} {what} in {dtype}"
    done = step.weft("parity", "--device", "cuda", "--json", "--model", family, *arguments, limit_seconds=30)
    row = {"family": family.name, "what": what, "dtype": dtype, "seconds": round(done.seconds, 2)}
    lines = done.json_lines()
    if not lines:
        step.fail(done.problem(f"weft parity of {name}"))
        return row
    told = lines[-1]
    worst = max(told["rows"], key=lambda row: row["error"])
    if told["past"]:
        step.fail(f"{name}: {told['past']} quantities are past the tolerance, the worst is {worst['name']} by {short(worst['error'])}")
    return row | {"quantities": len(told["rows"]), "past": told["past"], "worst": worst, "names_past": told["names_past"]}


def run(step):
    families = sorted(path.parent for path in (ROOT / "tests/golden").glob("*/config.json"))
    rows = []
    for family in families:
        for comparison in comparisons(family):
            rows.append(compare(step, family, *comparison))
            step.details(comparisons=rows)
    done = [row for row in rows if "worst" in row]
    worst = {
        dtype: max((row["worst"]["error"] for row in done if row["dtype"] == dtype and row["what"] != "samples"), default=None)
        for dtype in ("f32", "bf16")
    }
    told = [f"{len(done)} comparisons of {', '.join(family.name for family in families)}"]
    told += [f"worst in {dtype} {short(error)}" for dtype, error in worst.items() if error is not None]
    samples = sum(row["quantities"] for row in done if row["what"] == "samples" and not row["past"])
    step.figure(", ".join([*told, f"{samples} samples equal"]))
    if not rows:
        step.fail("tests/golden has no family")
