"""Measures training steps of LLaDA-8B's shape on one NVIDIA GPU: PyTorch with PEFT, and `weft bench`, in turn.

usage: gpu_benchmark.py WEFT [--quick] [--sides pytorch,weft] [--steps N] [--out FILE]     (pip install -r scripts/requirements.txt)

Random bf16 weights; LoRA of rank 128, alpha 256 on q, k, v; 4,096 tokens a step, a quarter of them prompt. What is
measured in which order is in gpu_check_steps/shapes.py. Every
measurement is a process of its own, so that its peak memory is its own. PyTorch's side is made fast where that costs a
user little: flash attention, fused AdamW, the head only at rows that are asked for (--logits all computes every row, as
the published scripts do). PEFT keeps adapters in f32; as under a trainer's bf16 autocast their matmuls are bf16, and
PEFT's detour of their input through f32 is left out. With checkpointing every layer is computed again in backward, on
both sides (--activation-memory-gb 0); without it nothing is.

The share of the GPU's rate counts the model's arithmetic as src/bench/mod.rs does, two operations a multiply-add:
  layers = tokens * layers * (4 D^2 + 3 D F + 2 D L)    one forward, attention included
  SFT    = 2 * (layers + masked * V * D)                forward, and backward to the inputs
  WeFT   = SFT + layers + answers * V * D               and the pass for entropies
for width D, an MLP of F, V words, sequences of L; half of the answers' tokens count as masked, the mean. Recomputation,
adapters and rows of the head that the loss doesn't ask for are no work. The rate is torch.matmul's of 8192 x 8192 bf16
matrices. The GPU's memory in use is sampled ten times a second.
"""
import argparse
import contextlib
import json
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import peft
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.checkpoint import checkpoint

from gpu_check_steps.memory import SMI, MemoryWatch
from gpu_check_steps.shapes import configs

LLADA = {"width": 4096, "layers": 32, "heads": 32, "mlp": 12288, "vocab": 126464, "mask": 126336, "rank": 128}
TINY = {"width": 64, "layers": 2, "heads": 4, "mlp": 192, "vocab": 512, "mask": 511, "rank": 8}
OPTIONS = ("device", "objective", "sequences", "tokens", "warm_up", "steps")  # of weft bench
THETA, EPS, ENTROPY_ROWS = 500000.0, 1e-5, 512  # rows of logits that exist at once in the pass for entropies
synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None


class Block(nn.Module):
    def __init__(self, run):
        super().__init__()
        D, self.head_dim, self.device = run["width"], run["width"] // run["heads"], run["device"]
        self.attn_norm, self.ff_norm = nn.RMSNorm(D, EPS), nn.RMSNorm(D, EPS)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(D, run["mlp"], bias=False) for _ in range(2))
        self.down = nn.Linear(run["mlp"], D, bias=False)

    def forward(self, x, cos, sin):
        def rope(y):
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        h = self.attn_norm(x)
        with torch.autocast(self.device, torch.bfloat16):
            qkv = self.q_proj(h), self.k_proj(h), self.v_proj(h)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in qkv)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attended = F.scaled_dot_product_attention(rope(q), rope(k), v)
        x = x + self.attn_out(attended.transpose(1, 2).flatten(-2))
        h = self.ff_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Denoiser(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.checkpointing = run["checkpointing"]
        self.embedding = nn.Embedding(run["vocab"], run["width"])
        self.blocks = nn.ModuleList(Block(run) for _ in range(run["layers"]))
        self.norm, self.head = nn.RMSNorm(run["width"], EPS), nn.Linear(run["width"], run["vocab"], bias=False)

    def forward(self, ids):
        """The last layer's output, `[B * L, D]`."""
        x = self.embedding(ids)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *self.angles, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, *self.angles)
        return x.flatten(0, 1)

    def nll(self, rows, targets):
        return F.cross_entropy(self.head(self.norm(rows)).float(), targets, reduction="none")

    def entropy(self, rows):
        log_p = F.log_softmax(self.head(self.norm(rows)).float(), -1)
        return -(log_p.exp() * log_p).sum(-1)


def build(run):
    """The network with PEFT's adapters, on the device."""
    with torch.device("meta"):
        model = Denoiser(run).to(torch.bfloat16).to_empty(device=run["device"])
    for p in model.parameters():
        nn.init.ones_(p) if p.ndim == 1 else nn.init.normal_(p, std=0.02)
    inverse = THETA ** -torch.arange(0, 1, 2 * run["heads"] / run["width"], device=run["device"])
    angle = torch.outer(torch.arange(run["tokens"], device=run["device"]), inverse).repeat(1, 2)
    model.angles = angle.cos().bfloat16(), angle.sin().bfloat16()
    config = peft.LoraConfig(r=run["rank"], lora_alpha=2 * run["rank"], target_modules=["q_proj", "k_proj", "v_proj"])
    for module in peft.get_peft_model(model, config).modules():  # layers of `model` are replaced in place
        module.cast_input_dtype_enabled = False
    if run["compile"]:
        for block in model.blocks:
            block.compile(dynamic=False)
        model.entropy, model.nll = torch.compile(model.entropy), torch.compile(model.nll, dynamic=True)
    return model


def loss_of(model, ids, answer, run):
    """The objective's loss as in the CPU's baseline: t uniform in (1e-3, 1], the sum divided by the answers' tokens."""
    every_row = run["logits"] == "all"
    t = torch.rand(len(ids), 1, device=ids.device) * 0.999 + 1e-3
    p_mask = t.expand(ids.shape)
    if run["objective"] == "weft":
        with torch.no_grad():
            at = (answer | every_row).flatten().nonzero().squeeze(1)
            entropies = torch.zeros(ids.numel(), device=ids.device)
            hidden = model(torch.where(answer, run["mask"], ids)).index_select(0, at)
            entropies[at] = torch.cat([model.entropy(rows) for rows in hidden.split(ENTROPY_ROWS)])
            beta = entropies.sqrt().view(ids.shape) * answer
            reference = beta.sum(1, keepdim=True) / answer.sum(1, keepdim=True)
            p_mask = (1 - (1 - t) ** (beta / reference)).clamp_min(1e-6)
    masked = (torch.rand(ids.shape, device=ids.device) < p_mask) & answer
    at = (masked | every_row).flatten().nonzero().squeeze(1)
    hidden = model(torch.where(masked, run["mask"], ids)).index_select(0, at)
    nll = torch.where(masked.flatten()[at], model.nll(hidden, ids.flatten()[at]), 0)
    return (nll / p_mask.flatten()[at]).sum() / answer.sum()


def measure_pytorch(run):
    """One configuration's steps."""
    torch.manual_seed(0)
    model = build(run)
    ids = torch.randint(0, run["vocab"] - 200, (run["sequences"], run["tokens"]), device=run["device"])
    answer = (torch.arange(run["tokens"], device=run["device"]) >= run["tokens"] // 4).expand(ids.shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    seconds, losses = [], []
    for _ in range(run["warm_up"] + run["steps"]):
        synchronize()
        started = time.perf_counter()
        loss = loss_of(model, ids, answer, run)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    result = {"step_seconds": statistics.median(seconds[run["warm_up"] :]), "all_step_seconds": seconds}
    result |= {"losses": losses, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    result |= {"adapter_dtype": str(trained[0].dtype), "trained_numbers": sum(p.numel() for p in trained)}
    return result | {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def seconds_of(function):
    """The median of as many calls as fill a second; the timer waits for the GPU."""
    return Timer("function()", globals={"function": function}).blocked_autorange(min_run_time=1.0).median


def measure_ceilings(run):
    """What the GPU reaches at most: bf16 matmuls as the layers have them (`x W^T`), and copies within its memory."""
    device, on_gpu = run["device"], run["device"] == "cuda"
    sizes = [(8192, 8192, 8192), (4096, 4096, 4096), (4096, 4096, 12288)] if on_gpu else [(64, 64, 64)]
    rates = {}
    for rows, inner, columns in sizes:
        x, w = (torch.randn(n, inner, device=device).bfloat16() for n in (rows, columns))
        seconds = seconds_of(lambda: torch.matmul(x, w.t()))
        rates[f"[{rows}, {inner}] x [{inner}, {columns}]"] = 2 * rows * inner * columns / seconds
    source, target = torch.zeros(2, 1 << (30 if on_gpu else 20), dtype=torch.uint8, device=device)
    copy_rate = 2 * source.numel() / seconds_of(lambda: target.copy_(source))
    gpu = torch.cuda.get_device_name() if on_gpu else "no GPU, a test of the script"
    if on_gpu and shutil.which(SMI[0]):
        gpu += ", driver " + subprocess.check_output([*SMI, "--query-gpu=driver_version"], text=True).strip()
    return {"gpu": gpu, "matrix_rates": rates, "copy_rate": copy_rate}


def operations(run):
    """The model's arithmetic in a step: the module's formula."""
    D, L, tokens, head = run["width"], run["tokens"], run["sequences"] * run["tokens"], run["vocab"] * run["width"]
    layers = tokens * run["layers"] * (4 * D * D + 3 * D * run["mlp"] + 2 * D * L)
    answers = run["sequences"] * (L - L // 4)
    return 2 * (2 * (layers + answers / 2 * head) + (layers + answers * head) * (run["objective"] == "weft"))


def measured(command, run, timeout):
    """The line of JSON that a command prints, or its error, and how far the GPU's used memory rose meanwhile."""
    started = time.perf_counter()
    with MemoryWatch() if run["device"] == "cuda" else contextlib.nullcontext() as watch:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
            result = {"error": done.stderr[-800:]} if done.returncode else json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            result = {"error": f"took longer than {timeout:.0f} s"}
    result["process_seconds"] = time.perf_counter() - started
    if watch and watch.bytes is not None:
        result["smi_bytes"] = watch.bytes
    if "step_seconds" in result:
        result["tokens_per_second"] = run["sequences"] * run["tokens"] / result["step_seconds"]
        result["operations_per_second"] = operations(run) / result["step_seconds"]
    return run | result


def schedule(args):
    """Each run with its command, in order: the GPU's ceilings, then for each step one side after the other."""
    common = {"device": "cpu" if args.tiny else "cuda", "warm_up": 2, "steps": args.steps or (3 if args.quick else 5)}
    common |= {"compile": args.compile, "logits": args.logits} | (TINY if args.tiny else LLADA)
    runs = [common | {"of": "ceilings"}]
    for config in configs(args.tiny):
        step = common | {"objective": config.objective, "sequences": config.sequences, "tokens": config.tokens}
        runs += [step | {"of": of, "checkpointing": config.recomputed} for of in args.sides] * args.rounds
    weft = [args.weft, "bench", "--quiet", "--json", "--dtype", "bf16", "--shape", "P" if args.tiny else "llada-8b"]
    weft += shlex.split(args.weft_flags)
    for run in runs:
        command = [sys.executable, __file__, args.weft, "--one", json.dumps(run)]
        options = [f"--{name.replace('_', '-')}={run.get(name)}" for name in OPTIONS]
        options.append(f"--activation-memory-gb={0 if run.get('checkpointing') else 1000}")
        yield run, weft + options if run["of"] == "weft" else command


def cell(results, key, form, scale=1.0):
    """The median of several processes' figures; a dash where none has it."""
    values = [r[key] / scale for r in results if key in r]
    return format(statistics.median(values), form) if values else "-"


def print_table(results, rate):
    columns = [("tokens/s", "tokens_per_second", ",.0f", 1), ("share of rate", "operations_per_second", ".1%", rate)]
    columns += [("peak GB", "smi_bytes" if results[0]["device"] == "cuda" else "peak_rss_bytes", ".1f", 1e9)]
    heads = ["step", "checkpointing", "PyTorch s/step", "Weft s/step", "PyTorch / Weft"]
    heads += [f"{side} {column[0]}" for column in columns for side in ("PyTorch", "Weft")]
    print("\n| " + " | ".join([*heads, "PyTorch allocated, reserved GB |\n"]) + "| --- " * (len(heads) + 1) + "|")
    for step in dict.fromkeys((r["objective"], r["sequences"], r["tokens"]) for r in results):
        of_step = [r for r in results if (r["objective"], r["sequences"], r["tokens"]) == step]
        for checkpointing in (True, False):
            alike = [r for r in of_step if r["checkpointing"] == checkpointing]
            both = [[r for r in alike if r["of"] == side] for side in ("pytorch", "weft")]
            seconds = [cell(side, "step_seconds", ".3f") for side in both]
            ratio = "-" if "-" in seconds else f"**{float(seconds[0]) / float(seconds[1]):.2f}**"
            row = ["{} {} x {}".format(*step), "on" if checkpointing else "off", *seconds, ratio]
            row += [cell(side, *column[1:]) for column in columns for side in both]
            row += [", ".join(cell(both[0], key, ".1f", 1e9) for key in ("allocated", "reserved"))]
            print("| " + " | ".join(row) + " |")


def compare(args):
    out, deadline, results = open(args.out, "w"), time.monotonic() + args.limit, []
    for run, command in schedule(args):
        left = deadline - time.monotonic()
        if left < 1 or "error" in (results or [{}])[0]:
            break  # what follows is left out: dashes in the table
        results.append(r := measured(command, run, left))
        print(json.dumps(r), file=out, flush=True)
        names = [str(run[key]) for key in ("of", "objective", "sequences", "tokens", "checkpointing") if key in run]
        seconds, took = cell([r], "step_seconds", ".3f"), r["process_seconds"]
        print(*names, f"{seconds} s a step, {took:.0f} s in all", r.get("error", ""), flush=True)
    ceilings = results.pop(0)
    if not results:
        sys.exit("nothing was measured")
    weft = subprocess.check_output([args.weft, "-V"], text=True).strip()
    print(f"\n{ceilings['gpu']}; PyTorch {torch.__version__}, PEFT {peft.__version__}; {weft}")
    print(f"PyTorch: compile {args.compile}, head at {args.logits} rows, adapters {results[0].get('adapter_dtype')}")
    rates = [f"{sizes} {rate / 1e12:,.1f} TFLOP/s" for sizes, rate in ceilings["matrix_rates"].items()]
    print("; ".join([*rates, f"copies {ceilings['copy_rate'] / 1e9:,.0f} GB/s read and written"]))
    print_table(results, next(iter(ceilings["matrix_rates"].values())))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft", help="the binary")
    parser.add_argument("--quick", action="store_true", help="3 steps")
    parser.add_argument("--tiny", action="store_true", help="a test of this script on the CPU: shapes differ")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=["pytorch", "weft"], help="or one of them")
    parser.add_argument("--steps", type=int, help="measured steps, after 2 of warm-up (default 5)")
    parser.add_argument("--rounds", type=int, default=1, help="times that everything is measured")
    parser.add_argument("--out", default="gpu_benchmark.jsonl", help="every measurement, a line of JSON each")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which nothing more is measured")
    parser.add_argument("--compile", action="store_true", help="torch.compile of PyTorch's blocks and losses")
    parser.add_argument("--logits", choices=("masked", "all"), default="masked", help="rows of PyTorch's head")
    parser.add_argument("--weft-flags", default="", help="more options for weft bench, in one string")
    parser.add_argument("--one", type=json.loads, metavar="JSON", help="one measurement, in this process")
    args = parser.parse_args()
    measure = {"ceilings": measure_ceilings, "pytorch": measure_pytorch}
    print(json.dumps(measure[args.one["of"]](args.one))) if args.one else compare(args)


if __name__ == "__main__":
    main()
