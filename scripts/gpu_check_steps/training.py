"""Step d: the quick start on the GPU beside the CPU, losses compared step by step."""
import json
import statistics

# Largest relative difference of a step's loss. Both devices compute in f32 and add in other orders, which made 3e-5 in 40
# steps of batches of 4 on the emulated GPU. Later a token's mask may have flipped, and the weights have moved with it.
WARM_UP_STEPS, LEAST_STEPS = 20, 10
TOLERANCES = {"early": 1e-4, "late": 2e-2}
SETTINGS = ["train.max_steps=40", "train.eval_every=20", "eval.limit=8", "eval.samples=0", "data.held_out_rows=16"]
SMALL = ["train.max_steps=3", "train.micro_batch_size=2", "data.train_rows=32", "data.held_out_rows=4"]
SMALL += ["eval.limit=1", "eval.samples=0", "sampler.gen_length=16", "sampler.block_length=16", "sampler.diffusion_steps=2"]


def settings_of(step, **others):
    """The quick start's changed settings as arguments."""
    chosen = [*(SMALL if step.is_small else SETTINGS), "train.checkpoint_every=0"]
    chosen += [f"train.{name}={value}" for name, value in others.items()]
    return [argument for setting in chosen for argument in ("--set", setting)]


def metrics(output):
    """A run's steps, and its held-out losses."""
    whole = (output / "metrics.jsonl").read_text().split("\n")[:-1]  # a killed run's last line may be half a line
    lines = [json.loads(line) for line in whole]
    return [line for line in lines if "loss" in line], [l["held_out_nll_bound"] for l in lines if "held_out_nll_bound" in l]


def step_seconds(steps):
    """The median step, the first ones left out."""
    return statistics.median([line["step_seconds"] for line in steps][len(steps) // 4 :])


def trained(step, device, limit_seconds=None):
    """A training on a device: its steps and held-out losses; None if it failed. At the limit, what it has done so far."""
    output = step.work / device
    arguments = ["--quiet", "--device", device, *settings_of(step, output=output)]
    done = step.weft("train", *arguments, limit_seconds=limit_seconds)
    if done.status or done.status is None and not (output / "metrics.jsonl").exists():
        return step.fail(done.problem(f"weft train on {device}"))
    return metrics(output)


def longest_common(step, gpu, cpu):
    """Both runs' losses and held-out losses. A CPU with few cores may reach its limit first: then the steps that it did."""
    count, evaluations = len(cpu[0]), len(cpu[1])
    if count > len(gpu[0]) or count < min(len(gpu[0]), LEAST_STEPS):
        step.fail(f"the GPU did {len(gpu[0])} steps, the CPU {count}")
    return [steps[:count] for steps in (gpu[0], cpu[0])], [held_out[:evaluations] for held_out in (gpu[1], cpu[1])]


def run(step):
    gpu = trained(step, "cuda")
    cpu = gpu and trained(step, "cpu", step.left_seconds() - 3)
    if not cpu:
        return
    steps, held_out = longest_common(step, gpu, cpu)
    if not steps[1]:
        return
    losses = [[line["loss"] for line in of_device] for of_device in steps]
    apart = [abs(a - b) / abs(b) for a, b in zip(*losses)]
    seconds = [step_seconds(of_device) for of_device in steps]
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
    told = f"{len(apart)} steps, losses at most {max(apart):.1e} apart; {len(held_out[1])} held-out losses: {held_out[0][-1]:.3f}"
    step.figure(told, f"{seconds[0]:.4f} s a step, the CPU {seconds[1]:.4f} s")
