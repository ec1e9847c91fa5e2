"""Step b: the kernels' tests on the GPU, against an f64 oracle."""
import re

from .build import TESTS


def run(step):
    passed = 0
    for name in TESTS:
        if not (step.binaries / name).exists():
            step.fail(f"{step.binaries} has no {name}")
            continue
        done = step.command([step.binary(name)], {"WEFT_DEVICE": "cuda"})
        text = done.out + done.err
        passed += sum(int(n) for n in re.findall(r"test result: \w+\. (\d+) passed", text))
        failed, skipped = re.findall(r"^test (\S+) \.\.\. FAILED", text, re.MULTILINE), text.count("SKIPPED: ")
        if failed:
            step.fail(f"{name}: {', '.join(failed)} failed")
        elif done.status:
            step.fail(done.problem(name))
        if skipped:
            step.fail(f"{name}: {skipped} tests found no GPU")
        step.details(passed=passed)
        step.figure(f"{passed} tests passed")
