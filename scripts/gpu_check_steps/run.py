"""Runs the steps one after the other, each in a process group of its own, and writes OUT/gpu_check.json after each."""
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from . import DEADLINE_SECONDS, REHEARSAL_NAME, REHEARSAL_SECONDS, STEPS
from .build import folder_of
from .step import ROOT, Step, move_to_log, write_json
from .table import print_table

GRACE_SECONDS = 5  # that a killed process group may take to go
LEAST_SECONDS = 3  # that a step is begun with


def run(args):
    """Every step; the exit status."""
    out, binaries = args.out.resolve(), (args.binaries or folder_of(args.small)).resolve()
    if not (binaries / "weft").exists():
        sys.exit(f"error: {binaries} has no weft: `scripts/gpu_check build{' --dev' * args.small}` makes it")
    out.mkdir(parents=True, exist_ok=True)
    manifest = binaries / "manifest.json"
    report = {
        "format": 1,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "is_small": args.small,
        "is_rehearsal": False,
        "gpu": None,
        "manifest": json.loads(manifest.read_text()) if manifest.exists() else {},
        "steps": {},
    }
    limits = {entry.letter: entry.rehearsal_limit_seconds if args.small else entry.limit_seconds for entry in STEPS}
    limits |= {letter: float(seconds) for letter, seconds in (limit.split("=") for limit in args.limit)}
    ends_at = time.monotonic() + (args.deadline or (REHEARSAL_SECONDS if args.small else DEADLINE_SECONDS))
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped by SIGTERM"))
    work = Path(tempfile.mkdtemp(prefix="gpu_check-"))
    try:
        with open(out / "gpu_check.log", "w") as log:
            for entry in STEPS:
                if entry.letter in args.steps:
                    settings = {"is_small": args.small, "binaries": str(binaries)}
                    limit = min(limits[entry.letter], ends_at - time.monotonic())
                    result = run_step(entry, limit, work, settings | {"earlier": report["steps"]}, log)
                    report["steps"][entry.letter] = {"title": entry.title} | result
                report["gpu"] = report["steps"].get("a", {}).get("details", {}).get("gpu")
                report["is_rehearsal"] = report["gpu"] == REHEARSAL_NAME
                report["seconds"] = round(time.monotonic() - started, 1)
                write_json(out / "gpu_check.json", report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print_table(report)
    return int(any(step["result"] == "failed" for step in report["steps"].values()))


def run_step(entry, limit_seconds, work, settings, log):
    """One step's result, whatever it does."""
    folder, started = work / entry.letter, time.monotonic()
    folder.mkdir()
    print(f"{entry.letter}. {entry.title} ...", end=" ", flush=True)
    result = {"result": "skipped", "figure": "no time was left", "speed": "", "problems": [], "details": {}}
    if limit_seconds >= LEAST_SECONDS:
        job = {"letter": entry.letter, "limit_seconds": limit_seconds, "ends_at": started + limit_seconds}
        write_json(folder / "job.json", settings | job)
        log.write(f"\n==== {entry.letter}. {entry.title}: at most {limit_seconds:.0f} s\n")
        log.flush()
        result = watch(folder, limit_seconds, log) or result
    result |= {"seconds": round(time.monotonic() - started, 1), "limit_seconds": round(limit_seconds, 1)}
    print(result["result"], f"in {result['seconds']} s", *result["problems"], sep="\n    " if result["problems"] else " ")
    return result


def watch(folder, limit_seconds, log):
    """Runs `gpu_check step FOLDER` and kills its process group at the limit; the result that it saved last."""
    command = [sys.executable, str(ROOT / "scripts/gpu_check"), "step", str(folder)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    problem = None
    try:
        status = child.wait(limit_seconds)
        if status:
            problem = f"the step's process ended with status {status}; the log has its last words"
    except subprocess.TimeoutExpired:
        problem = f"took longer than {limit_seconds:.0f} s and was killed"
    finally:
        kill_group(child)
    left_behind = sorted(folder.glob("*.out")) + sorted(folder.glob("*.err"))
    if left_behind:
        stdout, sys.stdout = sys.stdout, log
        move_to_log(left_behind)
        sys.stdout = stdout
    saved = folder / "result.json"
    empty = {"result": "failed", "figure": "", "speed": "", "problems": [], "details": {}}
    result = json.loads(saved.read_text()) if saved.exists() else empty
    if problem:
        result["result"] = "failed"
        result["problems"].append(problem)
    return result


def kill_group(child):
    """Ends a step's processes; one that the driver holds in the kernel is waited for a little, then left."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass


def run_one(folder):
    """A step's work, in the process that `watch` started; the exit status."""
    step = Step(folder)
    module = next(entry.module for entry in STEPS if entry.letter == step.letter)
    step.save()
    try:
        importlib.import_module(f"{__package__}.{module}").run(step)
    except Exception as problem:  # what was measured until here stays
        traceback.print_exc()
        step.fail(f"{type(problem).__name__}: {problem}")
    return 0
