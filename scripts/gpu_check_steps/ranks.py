"""Step h: two ranks over NCCL make one rank's adapter from the same global batch."""
import array
import json
import socket

from .software import gpus
from .training import metrics, settings_of, step_seconds

NUM_RANKS = 2


def free_port():
    """A port whose next one is free too: ranks meet at MASTER_PORT + 1."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                return port
            except (OSError, OverflowError):
                continue


def trained(step, name, num_ranks):
    """A training by so many ranks, four micro-batches in a global one; its folder, or None if it failed."""
    output = step.work / name
    accumulated = 4 // num_ranks
    arguments = ["--quiet", "--device", "cuda", *settings_of(step, output=output, grad_accum_steps=accumulated)]
    arguments += ["--set", "train.max_steps=3" if step.is_small else "train.max_steps=12"]
    variables = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables if num_ranks > 1 else {}
        started.append(step.start([step.binary("weft"), "train", *arguments], own))
    done = [step.finish(process, step.left_seconds() / 2) for process in started]
    problems = [one.problem(f"rank {i} of {num_ranks}") for i, one in enumerate(done) if one.status != 0]
    for problem in problems:
        step.fail(problem)
    return None if problems else output


def numbers(output):
    """An adapter's bytes, and its tensors' f32 numbers in one list."""
    file = (output / "adapter/adapter_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    kinds = {tensor.get("dtype") for name, tensor in json.loads(file[8:start]).items() if name != "__metadata__"}
    return file, array.array("f", file[start:]) if kinds == {"F32"} else array.array("f")


def run(step):
    count = len(gpus()[0])
    if count < NUM_RANKS:
        return step.skip(f"{count} GPU here, and two ranks need {NUM_RANKS}")
    outputs = [trained(step, name, ranks) for name, ranks in (("one", 1), ("two", NUM_RANKS))]
    if None in outputs:
        return
    (one, ones), (two, twos) = map(numbers, outputs)
    if one != two:
        apart = max((abs(a - b) for a, b in zip(ones, twos)), default=float("nan"))
        step.fail(f"the adapters differ, by up to {apart:.1e}, the largest number is {max(map(abs, ones), default=0):.1e}")
    seconds = [step_seconds(metrics(output)[0]) for output in outputs]
    step.details(step_seconds={"one": seconds[0], "two": seconds[1]}, is_equal=one == two)
    equal = "two ranks' adapter has the bits of one rank's" if one == two else "two ranks trained"
    step.figure(equal, f"{seconds[0]:.4f} s a step, with two ranks {seconds[1]:.4f} s")
