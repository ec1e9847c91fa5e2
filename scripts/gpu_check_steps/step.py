"""What a step works with: its settings, the commands that it runs, and the result that it saves after every change."""
import json
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LOG_BYTES = 200_000  # the end of a command's output that the log gets; the log has to stay small enough to bring back
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NCCL_COMM_ID")


def write_json(path, value):
    """Writes a file in one go: a reader meets the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


class Done(NamedTuple):
    """A command that ended."""

    status: int | None  # None: it was killed at its limit
    out: str
    err: str
    seconds: float

    def problem(self, name):
        """What went wrong, in a sentence."""
        if self.status is None:
            return f"{name} took longer than {self.seconds:.0f} s"
        lines = [line for line in (self.err + self.out).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("error", "emulated CUDA", "emulated NVRTC")) or "panicked" in line]
        last = (told or lines or ["it said nothing"])[-1].replace(f"{ROOT}/", "")
        return f"{name} ended with status {self.status}: {last[:600]}"

    def json_lines(self):
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


class Step:
    """A step's work folder holds job.json, which `run` wrote, and result.json, which `run` reads even if it kills the step."""

    def __init__(self, work):
        job = json.loads((work / "job.json").read_text())
        self.work, self.letter, self.is_small = work, job["letter"], job["is_small"]
        self.binaries, self.earlier = Path(job["binaries"]), job["earlier"]  # the results of the steps before
        self.ends_at, self.limit_seconds = job["ends_at"], job["limit_seconds"]
        self.num_commands = 0
        self.result = {"result": "passed", "figure": "", "speed": "", "problems": [], "details": {}}

    def save(self):
        write_json(self.work / "result.json", self.result)

    def details(self, **values):
        """Adds to the JSON."""
        self.result["details"] |= values
        self.save()

    def figure(self, text, speed=""):
        """What the table says; `speed` is the part that an emulated GPU has no say in."""
        self.result |= {"figure": text, "speed": speed}
        self.save()

    def fail(self, problem):
        self.result["result"] = "failed"
        self.result["problems"].append(problem)
        self.save()

    def skip(self, reason):
        self.result |= {"result": "skipped", "figure": reason}
        self.save()

    def left_seconds(self):
        """Until the step is killed."""
        return self.ends_at - time.monotonic()

    def binary(self, name):
        return str(self.binaries / name)

    def start(self, command, environment=None):
        """Starts a command, its output in files of the work folder; (process, its files' paths)."""
        self.num_commands += 1
        paths = [self.work / f"{self.num_commands:03}.{kind}" for kind in ("out", "err")]
        settings = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        settings |= {"WEFT_CACHE": str(self.work.parent / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | (environment or {})
        print("$", *command, flush=True)  # the log is this process's output
        with open(paths[0], "wb") as out, open(paths[1], "wb") as err:
            process = subprocess.Popen(command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        return process, paths

    def finish(self, started, limit_seconds=None):
        """Waits for what `start` gave, and moves its output to the log."""
        (process, paths), begun = started, time.monotonic()
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        out, err = (path.read_text(errors="replace") for path in paths)
        seconds = time.monotonic() - begun
        move_to_log(paths)
        print(f"  {'killed' if status is None else f'status {status}'} after {seconds:.2f} s", flush=True)
        return Done(status, out, err, seconds)

    def command(self, command, environment=None, limit_seconds=None):
        return self.finish(self.start(command, environment), limit_seconds)

    def weft(self, *arguments, limit_seconds=None, **environment):
        return self.command([self.binary("weft"), *map(str, arguments)], environment, limit_seconds)


def move_to_log(paths):
    """Prints the ends of outputs, and removes their files."""
    for path in paths:
        text = path.read_bytes()[-LOG_BYTES:].decode(errors="replace")
        print(text, end="" if text.endswith("\n") or not text else "\n", flush=True)
        path.unlink()


def short(number):
    """Two digits: 1.2e-05."""
    return f"{number:.1e}"
