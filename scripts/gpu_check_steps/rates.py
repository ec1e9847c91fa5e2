"""Step g: `weft bench --profile`: each kernel's seconds, rate and bandwidth, and the three furthest from their bounds."""
from .shapes import Config, batches

NAMED = 3


def lost_seconds(kernel):
    """What a step would gain if the kernel reached what the measured matmul rate and bandwidth allow."""
    return kernel["seconds"] - kernel["bound_seconds"]


def profiled(step, config):
    """One configuration's kernels; None if it failed."""
    done = step.weft(*config.bench(step.is_small, 1), "--profile")
    told = done.json_lines()
    if done.status or not told:
        return step.fail(done.problem(f"weft bench --profile of {config.name()}"))
    kernels = told[-1].get("kernels")
    if not kernels:
        return step.fail(f"weft bench --profile of {config.name()} told of no kernels")
    slowest = sorted(kernels, key=lost_seconds, reverse=True)[:NAMED]
    return config._asdict() | {"kernels": kernels, "slowest": [kernel["kernel"] for kernel in slowest]}


def in_words(kernel, step_seconds):
    rates = f"{kernel['tflops']:.1f} TFLOP/s, {kernel['gbps']:,.0f} GB/s"
    return f"{kernel['kernel']} ({rates}, {lost_seconds(kernel) / step_seconds:.0%} of the step lost)"


def run(step):
    if "--profile" not in step.weft("bench", "--help").out:
        return step.skip("this weft has no `bench --profile`")
    rows = []
    for batch in batches(step.is_small):
        if row := profiled(step, Config(*batch, "weft", False)):
            rows.append(row)
            step.details(rows=rows)
    if not rows:
        return
    first = rows[0]
    by_name = {kernel["kernel"]: kernel for kernel in first["kernels"]}
    total = sum(kernel["seconds"] for kernel in first["kernels"])
    slowest = [in_words(by_name[name], total) for name in first["slowest"]]
    name = Config(*[first[key] for key in Config._fields]).name()
    step.figure(f"{len(first['kernels'])} kernels", f"slowest beside their bounds at {name}: {'; '.join(slowest)}")
