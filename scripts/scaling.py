"""Measures a WeFT step against sequence length and batch, prints a Markdown table and draws it.

usage: scaling.py WEFT OUT.svg        (the binary; pip install -r scripts/requirements.txt)
"""
import json
import subprocess
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

LENGTHS = [(1, tokens) for tokens in (256, 512, 1024, 2048, 4096, 8192)]
BATCHES = [(sequences, 512) for sequences in (1, 2, 4, 8, 16)]


def measure(weft, sequences, tokens):
    command = [weft, "bench", "--objective", "weft", "--json", "--warm-up", "1", "--steps", "3"]
    command += ["--sequences", str(sequences), "--tokens", str(tokens)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(weft, out):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, cases, label in zip(axes, (LENGTHS, BATCHES), ("tokens of one sequence", "sequences of 512 tokens")):
        print(f"\n| {label} | step | per 1,000 tokens | floor per 1,000 tokens | peak resident |\n| --- | --- | --- | --- | --- |")
        x, seconds, floors, memory = [], [], [], []
        for sequences, tokens in cases:
            m = measure(weft, sequences, tokens)
            thousands = sequences * tokens / 1000
            x.append(tokens if cases is LENGTHS else sequences)
            seconds.append(m["step_seconds"] / thousands)
            floors.append(m["floor_seconds"] / thousands)
            memory.append(m["peak_rss_bytes"] / 1e9)
            print(f"| {x[-1]:,} | {m['step_seconds']:.2f} s | {seconds[-1]:.2f} s | {floors[-1]:.2f} s | {memory[-1]:.2f} GB |", flush=True)
        axis.plot(x, seconds, "o-", color="#c33", label="seconds per 1,000 tokens")
        axis.plot(x, floors, "--", color="#c99", label="arithmetic at the machine's rate")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        right = axis.twinx()
        right.plot(x, memory, "s-", color="#567", label="peak resident, GB")
        right.set_ylim(bottom=0)
        lines = axis.get_lines() + right.get_lines()
        axis.legend(lines, [line.get_label() for line in lines], fontsize=7)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
