"""Step e: `weft bench` of LLaDA-8B's shape: step time, tokens/s, the share of the measured matmul rate, peak memory."""
from .memory import MemoryWatch
from .shapes import Config, batches, configs

STEPS, COMMAND_SECONDS = 3, 60  # measured steps, after those of warm-up; one configuration's limit
GOAL_SHARE, GOAL_BYTES = 0.5, 40e9  # at the longest sequences, WeFT


def row_of(config, told, watched_bytes):
    """What is kept of a line of `weft bench`."""
    keys = ("step_seconds", "tokens_per_second", "gemm_gflops", "gemm_share", "phases", "device")
    row = config._asdict() | {key: told[key] for key in keys}
    row |= {"peak_bytes": told["peak_gpu_bytes"], "planned_bytes": told["planned_gpu_bytes"]}
    return row | {"smi_bytes": watched_bytes, "predicted_seconds": told["planned_step_seconds"]}


def measured(step, config, steps=STEPS):
    """One configuration's row; None if it failed."""
    with MemoryWatch() as watch:
        limit = None if step.is_small else COMMAND_SECONDS
        done = step.weft(*config.bench(step.is_small, 1 if step.is_small else steps), limit_seconds=limit)
    told = done.json_lines()
    if done.status or not told:
        return step.fail(done.problem(f"weft bench of {config.name()}"))
    return row_of(config, told[-1], watch.bytes)


def summary(step, rows):
    """The row that the goals are about: WeFT at the longest sequences, the faster of saved and recomputed."""
    longest = batches(step.is_small)[0]
    best = [row for row in rows if (row["sequences"], row["tokens"]) == longest and row["objective"] == "weft"]
    if not best:
        return step.figure(f"{len(rows)} configurations")
    best = min(best, key=lambda row: row["step_seconds"])
    name = Config(best["sequences"], best["tokens"], best["objective"], best["recomputed"]).name()
    step.details(goals={"share": best["gemm_share"] >= GOAL_SHARE, "memory": best["peak_bytes"] < GOAL_BYTES})
    planned = best["peak_bytes"] / best["planned_bytes"]
    worst = max(abs(row["peak_bytes"] / row["planned_bytes"] - 1) for row in rows)
    speed = f"{name}: {best['step_seconds']:.3f} s, {best['tokens_per_second']:,.0f} tokens/s, {best['gemm_share']:.0%} of "
    speed += f"{best['gemm_gflops'] / 1e3:,.0f} TFLOP/s, {best['peak_bytes'] / 1e9:.1f} GB ({planned:.0%} of the plan)"
    step.figure(f"{len(rows)} configurations, memory within {worst:.1%} of the plan", speed)


def run(step):
    rows = []
    for config in configs(step.is_small):
        if step.left_seconds() < 5:
            step.fail(f"no time was left for {config.name()}")
        elif row := measured(step, config):
            rows.append(row)
            step.details(rows=rows)
            summary(step, rows)
            if row["peak_bytes"] > row["planned_bytes"]:
                step.fail(f"{config.name()}: {row['peak_bytes']:,} bytes, and {row['planned_bytes']:,} were planned")
