"""The training steps that steps e to g measure, in the order of what matters most."""
from typing import NamedTuple

MODEL = "LLaDA-8B, LoRA of rank 128 on q, k, v, bf16"


class Config(NamedTuple):
    """A training step of `weft bench` and of gpu_benchmark.py."""

    sequences: int
    tokens: int
    objective: str
    recomputed: bool

    def name(self):
        layers = "every layer recomputed" if self.recomputed else "everything saved"
        return f"{self.sequences} x {self.tokens:,} {self.objective.upper() if self.objective == 'sft' else 'WeFT'}, {layers}"

    def bench(self, is_small, steps):
        """The arguments of `weft`."""
        arguments = ["bench", "--quiet", "--json", "--device", "cuda", "--dtype", "bf16", "--warm-up", 1 if is_small else 2, "--steps", steps]
        arguments += ["--shape", "P" if is_small else "llada-8b", "--objective", self.objective]
        arguments += ["--sequences", self.sequences, "--tokens", self.tokens]
        return [*arguments, "--activation-memory-gb", 0 if self.recomputed else 1000]


def batches(is_small):
    """Sequences and tokens of a step."""
    return [(1, 32), (2, 16)] if is_small else [(1, 4096), (8, 512)]


def configs(is_small):
    """Everything that is measured."""
    return [
        Config(*batch, objective, recomputed)
        for batch in batches(is_small)
        for recomputed in (False, True)
        for objective in ("weft", "sft")
    ]
