"""Draws a run's curve: training loss (mean of 20 steps), held-out loss and gradient norm over the steps.

usage: plot_metrics.py RUN/metrics.jsonl OUT.svg        (pip install -r scripts/requirements.txt)
"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

WINDOW = 20


def main(metrics, out):
    rows = [json.loads(line) for line in open(metrics)]
    steps = [r for r in rows if "loss" in r]
    held_out = [r for r in rows if "held_out_nll_bound" in r]
    smooth = lambda key: [
        sum(r[key] for r in steps[max(0, i - WINDOW + 1) : i + 1]) / min(i + 1, WINDOW) for i in range(len(steps))
    ]
    figure, (losses, norms) = plt.subplots(1, 2, figsize=(9, 3.2))
    x = [r["step"] for r in steps]
    losses.plot(x, smooth("loss"), label=f"training loss, mean of {WINDOW} steps", color="#9ab")
    losses.plot(
        [r["step"] for r in held_out],
        [r["held_out_nll_bound"] for r in held_out],
        "o-",
        label="held-out bound, nats per answer token",
        color="#c33",
    )
    losses.set_xlabel("step")
    losses.legend(fontsize=8)
    norms.plot(x, smooth("grad_norm"), color="#567")
    norms.set_xlabel("step")
    norms.set_title("gradient norm before clipping", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


main(*sys.argv[1:])
