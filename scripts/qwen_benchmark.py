"""Measures LoRA steps of Qwen3-0.6B's shape on the CPU: transformers' Qwen3 with PEFT, compiled, and `weft bench`, in turn.

usage: qwen_benchmark.py WEFT [--dtype f32,bf16] [--rounds 3] [--steps 1] [--out FILE]
       pip install torch==2.11.0 transformers==4.57.1 peft==0.21.0

Random weights of the published sizes: 28 layers, width 1024, 16 heads of 128 with 8 key/value heads, a tied head of 151,936
rows. LoRA of rank 32, alpha 64 on q, k, v. A quarter of each sequence is prompt; every token attends to all of its sequence.
PyTorch's side is the stock model under torch.compile: `model(ids).logits` in the model's dtype, the loss in f32, AdamW, norms
clipped at 1; adapters in f32 as PEFT keeps them, under autocast in bf16. Every measurement is a process of its own, so that its
peak memory is its own. Each round measures both sides in turn; the table has medians over the rounds.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

MASK, VOCABULARY, RANK = 151_669, 151_936, 32


def pytorch(run):
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(run["threads"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[run["dtype"]]
    config = Qwen3Config(vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                         num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6,
                         tie_word_embeddings=True, use_cache=False)
    torch.set_default_dtype(dtype)
    model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(model, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    sequences, tokens = run["sequences"], run["tokens"]
    compiled = torch.compile(model, dynamic=False)
    sees_all = torch.zeros(sequences, 1, tokens, tokens, dtype=dtype)
    ids = torch.randint(0, 151_000, (sequences, tokens))
    answer = torch.arange(tokens)[None].expand(sequences, tokens) >= tokens // 4

    def logits(ids):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return compiled(input_ids=ids, attention_mask=sees_all).logits.float()

    def loss(p_mask):
        masked = (torch.rand(sequences, tokens) < p_mask) & answer
        targets = torch.where(masked, ids, -100).view(-1)
        nll = F.cross_entropy(logits(torch.where(masked, MASK, ids)).view(-1, VOCABULARY), targets, reduction="none")
        return (nll.view(sequences, tokens) / p_mask).sum() / answer.sum()

    def sft():
        return loss((torch.rand(sequences, 1) * 0.999 + 1e-3).expand(sequences, tokens))

    def weft():
        with torch.no_grad():
            log_p = F.log_softmax(logits(torch.where(answer, MASK, ids)), -1)
            beta = (-(log_p.exp() * log_p).sum(-1)).sqrt()
        mean = (beta * answer).sum(1, keepdim=True) / answer.sum(1, keepdim=True)
        t = torch.rand(sequences, 1) * 0.999 + 1e-3
        return loss((1 - (1 - t) ** (beta / mean)).clamp_min(1e-6))

    times = []
    for _ in range(run["warm_up"] + run["steps"]):
        start = time.perf_counter()
        {"sft": sft, "weft": weft}[run["objective"]]().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_seconds": statistics.median(times[run["warm_up"]:]), "peak_rss_bytes": peak}))


def weft(binary, run):
    command = [binary, "bench", "--shape", "qwen3-0.6b", "--json", "--quiet", "--threads", str(run["threads"])]
    for option in ("dtype", "objective", "sequences", "tokens", "warm_up", "steps", "activation_memory_gb"):
        command += ["--" + option.replace("_", "-"), str(run[option])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def of_pytorch(run):
    command = [sys.executable, __file__, "--one", json.dumps(run)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft", nargs="?")
    parser.add_argument("--dtype", default="f32,bf16")
    parser.add_argument("--objective", default="sft,weft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activation-memory-gb", type=float, default=2.7,
                        help="Weft's, for matmul results saved for backward: all of 4 x 512 tokens fit into 2.7 GB (the default)")
    parser.add_argument("--out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return pytorch(json.loads(args.one))
    if not args.weft:
        parser.error("name the weft program to measure")
    fields = ("steps", "warm_up", "sequences", "tokens", "threads", "activation_memory_gb")
    rows = {}
    for number in range(args.rounds):
        for dtype in args.dtype.split(","):
            for objective in args.objective.split(","):
                run = {"dtype": dtype, "objective": objective} | {name: getattr(args, name) for name in fields}
                for side, measure in (("pytorch", of_pytorch), ("weft", lambda run: weft(args.weft, run))):
                    measured = measure(run)
                    rows.setdefault((dtype, objective), {}).setdefault(side, []).append(measured)
                    print(f"round {number + 1} {dtype} {objective} {side}: {measured['step_seconds']:.2f} s, "
                          f"{measured['peak_rss_bytes'] / 1e9:.2f} GB", flush=True)
    table = []
    for (dtype, objective), sides in rows.items():
        seconds, peaks = ({side: statistics.median(m[key] for m in all_) for side, all_ in sides.items()}
                          for key in ("step_seconds", "peak_rss_bytes"))
        planned = sides["weft"][-1]["planned_rss_bytes"]
        table.append({"dtype": dtype, "objective": objective, "seconds": seconds, "peaks": peaks, "planned": planned})
        print(f"{dtype} {objective}: PyTorch {seconds['pytorch']:.2f} s, Weft {seconds['weft']:.2f} s, "
              f"{seconds['pytorch'] / seconds['weft']:.2f}x; peaks {peaks['pytorch'] / 1e9:.2f} and "
              f"{peaks['weft'] / 1e9:.2f} GB ({planned / 1e9:.2f} planned)")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
