"""Takes a random checkpoint of Qwen3-0.6B's full size, as the hub stores one, through Weft and back into transformers.

    .venv/bin/python scripts/qwen_round_trip.py --weft target/release/weft --rows train.jsonl     (pip install -r requirements.txt)

It writes config.json, 1.2 GB of bf16 safetensors and a tokenizer of Qwen's layout (151,643 byte-level tokens, then added ones, the
mask token at 151,669), then runs data, plan, train with a kill and --resume, generate and merge. transformers' own Qwen3 loads the
base with the adapter by PEFT, and the merged checkpoint alone: their logits must be equal to Weft's, which `weft parity` compares.
The exit status is 1 where a step fails or numbers differ.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY, ROWS, MASK = 151_643, 151_936, 151_669
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|added_{i}|>" for i in range(3, 24)] + ["<think>", "</think>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["A2DQwen3LMHeadModel"], "model_type": "a2d-qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": ROWS,
    "max_position_embeddings": 40_960, "rope_theta": 1_000_000, "rope_scaling": None, "rms_norm_eps": 1e-06, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_sliding_window": False,
    "sliding_window": None, "bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": 151_643, "torch_dtype": "bfloat16",
}


def write_tokenizer(folder):
    """Byte-level BPE of Qwen's size: all bytes, and merges of pairs that make words up to the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {token: i for i, token in enumerate(alphabet)}, []
    tokens = list(alphabet)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["\u0120"]
    for first in tokens:
        for second in letters:
            if len(vocabulary) == VOCABULARY:
                break
            if first + second not in vocabulary:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
                tokens.append(first + second)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ADDED + ["<|mask|>"]])
    assert tokenizer.token_to_id("<|mask|>") == MASK, tokenizer.token_to_id("<|mask|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_base(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    model = qwen3()
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    # Gains of exactly 1 would hide a norm that is left out.
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            tensor += 0.1 * torch.randn(tensor.shape, dtype=tensor.dtype)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**{key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}))


def opened(folder):
    from safetensors.torch import load_file

    model = qwen3()
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def reference(model, path):
    """A reference file of logits for `weft parity`: clean, and with the answer masked."""
    torch.manual_seed(1)
    ids, start = torch.randint(0, VOCABULARY, (1, 24)), 8
    masked = ids.clone()
    masked[:, start:] = MASK
    sees_all = torch.zeros(1, 1, 24, 24)
    with torch.no_grad():
        clean, answer = (model(input_ids=x, attention_mask=sees_all).logits.contiguous() for x in (ids, masked))
    log_p = torch.log_softmax(answer, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    entropy[:, :start] = 0
    save_file({"input_ids": ids, "prompt_lengths": torch.tensor([start]), "logits_clean": clean,
               "logits_answer_masked": answer, "entropy": entropy}, str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="training rows, such as GSM8K's train.jsonl")
    parser.add_argument("--out", type=Path, default=Path("qwen-round-trip"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-seq-len", type=int, default=512)
    args = parser.parse_args()
    base, run, merged = args.out / "base", args.out / "run", args.out / "merged"
    if not (base / "model.safetensors").exists():
        write_base(base)
    weft = str(args.weft.resolve())
    recipe = args.out / "recipe.toml"
    recipe.write_text(f"""[model]
path = "{base}"
lora_rank = 16
lora_alpha = 32.0
lora_targets = ["all-linear"]
[data]
train = "{args.rows}"
train_rows = 200
held_out = "{args.rows}"
held_out_rows = 4
max_seq_len = {args.max_seq_len}
[train]
output = "{run}"
lr = 1e-3
micro_batch_size = 2
max_steps = {args.steps}
checkpoint_every = 4
eval_every = {args.steps}
""")

    def go(*words):
        print("$ weft", *words, flush=True)
        subprocess.run([weft, *map(str, words)], check=True)

    go("data", recipe)
    go("plan", recipe)
    # A run that is killed after its first checkpoint, and resumed.
    process = subprocess.Popen([weft, "train", str(recipe)])
    # Eight digits: one that is being written has an ending.
    while not list(run.glob("checkpoints/step-" + 8 * "[0-9]")) and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run([weft, "train", str(recipe), "--resume"], check=True, capture_output=True, text=True).stdout
    print(resumed, flush=True)
    assert "resumed at step" in resumed, "the run began anew"
    go("generate", "--model", base, "--adapter", run / "adapter", "--gen-length", 8, "--diffusion-steps", 4, "--prompt", "hello")
    if not merged.exists():
        go("merge", "--model", base, "--adapter", run / "adapter", "--out", merged)
    reference(opened(merged), args.out / "merged.safetensors")
    go("parity", "--model", merged, "--reference", args.out / "merged.safetensors")
    model = PeftModel.from_pretrained(opened(base).float(), str(run / "adapter")).eval()
    reference(model, args.out / "adapted.safetensors")
    go("parity", "--model", base, "--adapter", run / "adapter", "--reference", args.out / "adapted.safetensors")
    print("the round trip is whole")


if __name__ == "__main__":
    sys.exit(main())
