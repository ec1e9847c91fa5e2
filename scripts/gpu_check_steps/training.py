"""Step d: the quick start on the GPU beside the CPU, losses compared step by step."""
import json
import statistics

# Largest relative difference of a step's loss. Both devices compute in f32 and add in other orders; while the learning
# rate warms up, that is all. Later AdamW has widened the differences, and a token's mask may have flipped.
WARM_UP_STEPS = 20
TOLERANCES = {"early": 1e-3, "late": 5e-2}
SETTINGS = ["train.max_steps=40", "train.eval_every=20", "eval.limit=8", "eval.samples=0", "data.held_out_rows=64"]
SMALL = ["train.max_steps=3", "train.micro_batch_size=2", "data.train_rows=32", "data.held_out_rows=4"]
SMALL += ["eval.limit=1", "eval.samples=0", "sampler.gen_length=16", "sampler.block_length=16", "sampler.diffusion_steps=2"]


def settings_of(step, **others):
    """The quick start's changed settings as arguments."""
    chosen = [*(SMALL if step.is_small else SETTINGS), "train.checkpoint_every=0"]
    chosen += [f"train.{name}={value}" for name, value in others.items()]
    return [argument for setting in chosen for argument in ("--set", setting)]


def metrics(output):
    """A run's steps, and its held-out losses."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], [l["held_out_nll_bound"] for l in lines if "held_out_nll_bound" in l]


def step_seconds(steps):
    """The median step, the first ones left out."""
    return statistics.median([line["step_seconds"] for line in steps][len(steps) // 4 :])


def trained(step, device):
    """A training on a device: its steps and held-out losses; None if it failed."""
    output = step.work / device
    done = step.weft("train", "--quiet", "--device", device, *settings_of(step, output=output))
    if done.status:
        return step.fail(done.problem(f"weft train on {device}"))
    return metrics(output)


def run(step):
    gpu, cpu = trained(step, "cuda"), trained(step, "cpu")
    if not gpu or not cpu:
        return
    losses = [[line["loss"] for line in steps] for steps, _ in (gpu, cpu)]
    held_out = [of_device[1] for of_device in (gpu, cpu)]
    if [len(x) for x in losses] != [len(losses[0])] * 2 or len(held_out[0]) != len(held_out[1]):
        step.fail(f"{[len(x) for x in losses]} steps, {[len(x) for x in held_out]} evaluations")
    apart = [abs(a - b) / abs(b) for a, b in zip(*losses)]
    seconds = [step_seconds(of_device[0]) for of_device in (gpu, cpu)]
    step.details(losses={"gpu": losses[0], "cpu": losses[1]}, held_out={"gpu": held_out[0], "cpu": held_out[1]})
    step.details(tolerances=TOLERANCES, step_seconds={"gpu": seconds[0], "cpu": seconds[1]})
    for i, difference in enumerate(apart):
        tolerance = TOLERANCES["early" if i < WARM_UP_STEPS else "late"]
        if not difference <= tolerance:
            step.fail(f"step {i + 1}: the losses {losses[0][i]} and {losses[1][i]} are further apart than {tolerance:g}")
            break
    for a, b in zip(*held_out):
        if not abs(a - b) <= TOLERANCES["late"] * abs(b):
            step.fail(f"the held-out losses {a} and {b} are further apart than {TOLERANCES['late']:g}")
    worst = f"{len(apart)} steps, losses at most {max(apart):.1e} apart, held-out loss {held_out[0][-1]:.3f}"
    step.figure(worst, f"{seconds[0]:.4f} s a step, the CPU {seconds[1]:.4f} s")
