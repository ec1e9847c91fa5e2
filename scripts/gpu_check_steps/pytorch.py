"""Step f: PyTorch with PEFT and flash attention on the steps that step e has measured Weft at, minutes before.

Both sides alternating would cost twice the time. Instead Weft's first configuration is measured again at the end: how far
it moved says how much of a ratio may be the GPU's clock.
"""
import importlib.util
import json
import sys

from .shapes import Config, configs
from .speed import measured
from .step import ROOT

AGAIN_SECONDS = 25  # kept for Weft's second measurement
MODULES = ("torch", "peft")


def key(row):
    recomputed = row["recomputed"] if "recomputed" in row else row["checkpointing"]
    return Config(row["sequences"], row["tokens"], row["objective"], recomputed)


def benchmark(step):
    """The lines of JSON of gpu_benchmark.py: the ceilings, then PyTorch's measurements."""
    out, limit = step.work / "benchmark.jsonl", step.left_seconds() - AGAIN_SECONDS
    script = [sys.executable, str(ROOT / "scripts/gpu_benchmark.py"), step.binary("weft"), "--sides", "pytorch", "--quick"]
    script += ["--out", str(out), "--limit", f"{limit:.0f}", *(["--tiny"] if step.is_small else [])]
    done = step.command(script, limit_seconds=limit + 15)
    if done.status:
        step.fail(done.problem("gpu_benchmark.py"))
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def ratios(step, results):
    """A row for each configuration that PyTorch was measured at, with Weft's seconds of step e."""
    earlier = {key(row): row for row in step.earlier.get("e", {}).get("details", {}).get("rows", [])}
    rows = []
    for result in results:
        row, weft = key(result)._asdict(), earlier.get(key(result))
        keys = ("step_seconds", "tokens_per_second", "operations_per_second", "allocated", "reserved", "smi_bytes", "error")
        row |= {"pytorch": {name: result[name] for name in keys if name in result}}
        if weft and "step_seconds" in result:
            row |= {"weft_step_seconds": weft["step_seconds"], "ratio": result["step_seconds"] / weft["step_seconds"]}
        rows.append(row)
    return rows


def drift(step):
    """Weft's first configuration measured again, divided by step e's."""
    first = configs(step.is_small)[0]
    before = [row for row in step.earlier.get("e", {}).get("details", {}).get("rows", []) if key(row) == first]
    again = measured(step, first) if before and step.left_seconds() > 5 else None
    return again["step_seconds"] / before[0]["step_seconds"] if again else None


def run(step):
    if missing := [name for name in MODULES if not importlib.util.find_spec(name)]:
        return step.skip(f"python3 here has no {' and no '.join(missing)}")
    ceilings, *results = benchmark(step) or [{}]
    rows = ratios(step, results)
    step.details(ceilings={name: ceilings.get(name) for name in ("gpu", "matrix_rates", "copy_rate", "error")}, rows=rows)
    measured_rows = [row for row in rows if "step_seconds" in row["pytorch"]]
    if not measured_rows:
        return step.fail("PyTorch was measured at no configuration")
    for row in rows:
        if "error" in row["pytorch"]:
            step.details(pytorch_errors=[*step.result["details"].get("pytorch_errors", []), row["pytorch"]["error"][-200:]])
    moved = None if step.is_small else drift(step)
    step.details(drift=moved)
    at = [f"{row['ratio']:.2f} ({key(row).name()})" for row in measured_rows if "ratio" in row]
    speed = f"PyTorch's seconds over Weft's: {', '.join(at) or 'none'}"
    speed += f"; Weft again: {moved:.2f} of its first seconds" if moved else ""
    step.figure(f"{len(measured_rows)} of {len(configs(step.is_small))} configurations", "" if step.is_small else speed)
