"""What scripts/gpu_check runs on the GPU machine: its steps, in order, one module each. Python's standard library only."""
from typing import NamedTuple

DEADLINE_SECONDS, REHEARSAL_SECONDS = 480, 900  # of a whole run; CI's two cores may be busy
REHEARSAL_NAME = "Emulated CUDA device"  # what tests/cuda_emulator calls its devices


class Entry(NamedTuple):
    """A step of a run. Its module has `run(step)`, which works in a process of its own."""

    letter: str
    module: str
    title: str
    limit_seconds: float
    rehearsal_limit_seconds: float


STEPS = [
    Entry("a", "software", "driver, GPU and libraries", 30, 120),
    Entry("b", "kernels", "kernels against the f64 oracle", 100, 300),
    Entry("c", "parity", "PyTorch's golden numbers", 60, 300),
    Entry("d", "training", "quick start, GPU against CPU", 70, 300),
    Entry("e", "speed", "training steps, weft bench", 150, 300),
    Entry("f", "pytorch", "PyTorch, PEFT, flash attention", 170, 300),
    Entry("g", "rates", "rates by kernel", 60, 300),
    Entry("h", "ranks", "two ranks over NCCL", 60, 300),
]
