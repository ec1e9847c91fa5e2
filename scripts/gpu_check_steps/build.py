"""Builds what the GPU machine needs into one folder: `weft`, the kernels' test binaries, and a manifest."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .step import ROOT

TESTS = ("oracle", "bias", "degenerate", "nf4", "predict")
LIMIT_BYTES = 60 << 20  # what is quickly sent to the machine


def folder_of(is_rehearsal):
    """Where the binaries lie: those for a GPU, or the daily profile's for a rehearsal."""
    return ROOT / ("target/gpu_check" if is_rehearsal else "gpu_check")


def executables(profile):
    """The paths of `weft` and of the tests' binaries by name, as cargo tells them."""
    weft = ["cargo", "build", "--locked", "--bin", "weft"]
    tests = ["cargo", "test", "--locked", "--no-run", "-p", "weft-kernels", *(f"--test={name}" for name in TESTS)]
    paths = {}
    for command in (weft, tests):
        command = [*command, *profile, "--message-format=json-render-diagnostics"]
        for line in subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
            message = json.loads(line)
            if message.get("executable"):
                paths[message["target"]["name"]] = Path(message["executable"])
    return {name: paths[name] for name in ("weft", *TESTS)}


def newest_glibc(binary):
    """The newest version of glibc whose symbols a binary asks for."""
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)\b", binary.read_bytes())
    return max((int(major), int(minor)) for major, minor in versions)


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def build(is_rehearsal):
    """Fills the folder anew; the exit status."""
    folder = folder_of(is_rehearsal)
    paths = executables([] if is_rehearsal else ["--release"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, path in paths.items():
        subprocess.run(["strip", "-o", folder / name, path], check=True)
    files = {name: os.path.getsize(folder / name) for name in paths}
    total = sum(files.values())
    manifest = {
        "commit": output("git", "rev-parse", "HEAD"),
        "has_changes": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "profile": "dev" if is_rehearsal else "release",
        "rustc": output("rustc", "--version"),
        "weft": output(folder / "weft", "-V"),
        "glibc": "{}.{}".format(*max(newest_glibc(folder / name) for name in paths)),
        "files": files,
        "bytes": total,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{folder.relative_to(ROOT)}: {total / (1 << 20):.1f} MiB, needs glibc {manifest['glibc']} or newer")
    if total > LIMIT_BYTES:
        sys.exit(f"error: that is more than {LIMIT_BYTES >> 20} MiB, too much to take along")
    return 0
