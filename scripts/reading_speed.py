"""Reads 100,000 generated rows with one or two builds of weft in turn, and prints their times and peak memory.

usage: reading_speed.py WEFT [OTHER] [--rows N] [--runs N] [--base DIR]

Half of the rows are chats of a system turn and up to three questions, half are pairs. `weft data` reads them, renders the
base's chat template and tokenizes, without the cache of tokens. With two builds the runs alternate, so that whatever else
the machine does slows both, and the last line has the ratio of each pair of runs. Python's standard library is enough.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

WORDS = "the of a model text mask token step answer why how long is it number between seven twelve Paris river λ 日本 naïve".split()


def sentence(draw, longest):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, longest)))


def chat(draw):
    turns = [{"role": "system", "content": sentence(draw, 12)}]
    for _ in range(draw.randint(1, 3)):
        turns += [{"role": "user", "content": sentence(draw, 12)}, {"role": "assistant", "content": sentence(draw, 20)}]
    return {"messages": turns, "source": "generated"}


def pair(draw):
    return {"prompt": sentence(draw, 40), "completion": sentence(draw, 50), "id": draw.randrange(10**9)}


def write_rows(folder, rows):
    draw = random.Random(7)
    for name, make, count in (("chats", chat, rows // 2), ("pairs", pair, rows - rows // 2)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(make(draw), ensure_ascii=False) + "\n" for _ in range(count))
    recipe = '[data]\nmax_seq_len = 4096\n[[data.sources]]\npath = "chats.jsonl"\n[[data.sources]]\npath = "pairs.jsonl"\n'
    (folder / "recipe.toml").write_text(recipe + '[train]\noutput = "run"\n')


def read(weft, folder, base):
    """Seconds and peak resident bytes of one reading."""
    command = [weft, "data", "recipe.toml", "--examples", "0", "--json"]
    command += ["--set", f"model.path={pathlib.Path(base).resolve()}"] if base else []
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env={**os.environ, "WEFT_CACHE": ""})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{weft} exits with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--base", help="a checkpoint's folder; default: tiny-base")
    options = parser.parse_args()
    builds = [os.path.abspath(build) for build in (options.weft, options.other) if build]
    measured = [[] for _ in builds]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_rows(folder, options.rows)
        for build in builds:
            read(build, folder, options.base)  # the files are in memory afterwards
        for run in range(options.runs):
            turns = list(zip(builds, measured))
            for build, readings in turns if run % 2 == 0 else turns[::-1]:
                readings.append(read(build, folder, options.base))
    print("| build | median | shortest | longest | peak resident |\n| --- | --- | --- | --- | --- |")
    for build, readings in zip(builds, measured):
        seconds, peaks = zip(*readings)
        times = [statistics.median(seconds), min(seconds), max(seconds)]
        print(f"| {build} | " + " | ".join(f"{t:.2f} s" for t in times) + f" | {max(peaks) / 1e6:.0f} MB |")
    if len(builds) == 2:
        first, second = measured
        for what, i in (("time", 0), ("memory", 1)):
            ratios = sorted(b[i] / a[i] for a, b in zip(first, second))
            median = statistics.median(ratios)
            print(f"{what}, second to first: {median:.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f} in {len(ratios)} pairs)")


if __name__ == "__main__":
    main()
