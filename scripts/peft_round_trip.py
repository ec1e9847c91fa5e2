"""Shows that an adapter folder saved by Weft loads in PEFT and computes the same numbers there.

This file is responsible for PEFT's side: the network (LLaDA's in plain PyTorch, Dream's from transformers' Qwen2), the
adapter loaded into it by `peft` and left unmerged, and a reference file of logits, entropies, losses and gradients (f32,
CPU), which `weft parity` judges.

    python -m venv .venv && .venv/bin/pip install -r scripts/requirements.txt
    .venv/bin/python scripts/peft_round_trip.py --model BASE --adapter ADAPTER --weft target/release/weft

The exit status is that of `weft parity`; 1 where PEFT and the adapter's files disagree about which tensors there are.
`--out FILE` keeps the reference file, `--reference-only` stops after writing it. `--check-golden DIR` tests this
script's own network instead: it recomputes DIR/objectives.safetensors and exits with 1 past a relative error of 1e-4.
`--merged DIR` also loads what `weft merge` made of the two and compares its logits with those of PEFT.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

LENGTH, PROMPTS, TOLERANCE = 40, (8, 11, 14), 1e-4
DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "weight_tying": False, "mlp_ratio": 4, "mlp_hidden_size": None}
DEFAULTS |= {"n_kv_heads": None, "multi_query_attention": None, "embedding_size": None}
COMPUTED = {"block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False}
COMPUTED |= {"input_emb_norm": False, "scale_logits": False}


class Block(nn.Module):
    """One pre-norm transformer block; attention sees both directions."""

    def __init__(self, c):
        super().__init__()
        self.theta, self.head_dim = c.rope_theta, c.d_model // c.n_heads
        kv = self.head_dim * (c.n_kv_heads or (1 if c.multi_query_attention else c.n_heads))
        d, hidden = c.d_model, c.mlp_hidden_size or c.mlp_ratio * c.d_model
        self.attn_norm, self.ff_norm = nn.RMSNorm(d, eps=c.rms_norm_eps), nn.RMSNorm(d, eps=c.rms_norm_eps)
        shapes = {"q_proj": (d, d), "k_proj": (d, kv), "v_proj": (d, kv), "attn_out": (d, d)}
        shapes |= {"ff_proj": (d, hidden), "up_proj": (d, hidden), "ff_out": (hidden, d)}
        for name, (inputs, outputs) in shapes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def rope(self, x):
        """Rotates dimension i with dimension i + half by the position's angle."""
        inverse = self.theta ** (-torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angle = torch.outer(torch.arange(x.shape[-2]).float(), inverse)
        first, second = x.chunk(2, -1)
        return x * angle.cos().repeat(1, 2) + torch.cat([-second, first], -1) * angle.sin().repeat(1, 2)

    def forward(self, x):
        h = self.attn_norm(x)
        qkv = (self.q_proj(h), self.k_proj(h), self.v_proj(h))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in qkv)
        attended = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, enable_gqa=True)
        x = x + self.attn_out(attended.transpose(1, 2).flatten(-2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Base(PreTrainedModel):
    """LLaDA's network under LLaDA's module names; a PreTrainedModel so that PEFT knows the head from other layers."""

    def __init__(self, c):
        super().__init__(c)
        rows = c.embedding_size or c.vocab_size
        parts = {"wte": nn.Embedding(rows, c.d_model), "ln_f": nn.RMSNorm(c.d_model, eps=c.rms_norm_eps)}
        parts["blocks"] = nn.Sequential(*(Block(c) for _ in range(c.n_layers)))
        parts |= {} if c.weight_tying else {"ff_out": nn.Linear(c.d_model, rows, bias=False)}
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(parts)})

    def get_output_embeddings(self):
        return self.model.transformer["wte" if self.config.weight_tying else "ff_out"]

    def forward(self, input_ids):
        net, head = self.model.transformer, self.get_output_embeddings()
        x = net.ln_f(net.blocks(net.wte(input_ids)))
        return F.linear(x, head.weight) if self.config.weight_tying else head(x)


class Dream(Qwen2ForCausalLM):
    """Qwen2's network with attention in both directions, and the logits moved to the positions that they predict."""

    def forward(self, input_ids):
        see_all = torch.zeros(len(input_ids), 1, input_ids.shape[1], input_ids.shape[1])
        logits = super().forward(input_ids=input_ids, attention_mask=see_all, use_cache=False).logits
        return torch.cat([logits[:, :1], logits[:, :-1]], 1)


def load_dream(fields, tensors):
    neutral = ("model_type", "architectures", "torch_dtype", "dtype", "auto_map", "transformers_version")
    config = Qwen2Config(**{k: v for k, v in fields.items() if k not in neutral}, attn_implementation="eager")
    config.max_sequence_length = fields["max_position_embeddings"]
    base = Dream(config)
    if config.tie_word_embeddings:
        tensors = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    base.load_state_dict(tensors, strict=True)
    return base.eval()


def load_tensors(folder):
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return {name: x.float() for file in files for name, x in load_file(folder / file).items()}


def load_base(folder):
    fields = json.loads((folder / "config.json").read_text())
    if fields["model_type"] == "Dream":
        return load_dream(fields, load_tensors(folder))
    fields = DEFAULTS | COMPUTED | fields
    for name, value in COMPUTED.items():
        if fields[name] != value:
            sys.exit(f"{folder}/config.json: {name} = {fields[name]!r} is not computed here, only {value!r}")
    config = PretrainedConfig(tie_word_embeddings=fields["weight_tying"])
    for name in (*DEFAULTS, *"d_model n_layers n_heads vocab_size max_sequence_length mask_token_id".split()):
        setattr(config, name, fields[name])
    with torch.device("meta"):
        base = Base(config)
    base.load_state_dict(load_tensors(folder), strict=True, assign=True)
    return base.eval()


def load_adapter(base, folder):
    """PEFT's model and its trained parameters, named as in the file; fails unless PEFT took that file's tensors."""
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()
    params = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
    saved = load_file(folder / "adapter_model.safetensors")
    unexpected, missing = saved.keys() - params.keys(), params.keys() - saved.keys()
    changed = [name for name in saved.keys() & params.keys() if not torch.equal(saved[name].float(), params[name])]
    print(f"PEFT: {len(saved)} tensors, {len(unexpected)} unexpected, {len(missing)} missing, {len(changed)} changed")
    if unexpected or missing or changed:
        sys.exit("\n".join(sorted({*unexpected, *missing, *changed})))
    return model, params


def draw(config, seed):
    """Random sequences without the mask token, their prompt lengths, and the draws of the forward process."""
    g, length = torch.Generator().manual_seed(seed), min(LENGTH, config.max_sequence_length)
    ids = torch.randint(config.vocab_size - 1, (len(PROMPTS), length), generator=g)
    ids += (ids >= config.mask_token_id).long()
    prompts, u = torch.tensor([p * length // LENGTH for p in PROMPTS]), torch.rand(ids.shape, generator=g)
    # One t in each third of (0, 1), so that a file has light and heavy masking.
    t = (torch.arange(len(PROMPTS)) + 0.1 + 0.8 * torch.rand(len(PROMPTS), generator=g)) / len(PROMPTS)
    return {"input_ids": ids, "prompt_lengths": prompts, "t": t, "u": u}


def objective(params, base, drawn, answer, r, name):
    """Rates, mask, losses and the gradient of `loss_token` for relative uncertainties `r`."""
    ids, t, r = drawn["input_ids"], drawn["t"].double()[:, None], r.double()
    t_i = torch.where(answer, -torch.expm1(r * torch.log1p(-t)), 0).float()
    masked = answer & (drawn["u"] < t_i)
    logits = base(torch.where(masked, base.config.mask_token_id, ids))
    nll = torch.where(masked, F.cross_entropy(logits.transpose(1, 2), ids, reduction="none"), 0)
    loss = nll / torch.where(masked, t_i, 1)
    out = {"t_i": t_i, "masked": masked.to(torch.uint8), "nll": nll, "loss_token": loss.sum() / answer.sum()}
    out["loss_sequence"] = (loss.sum(1) / answer.sum(1)).mean()
    out["loss_masked"] = loss.sum() / masked.sum().clamp(min=1)
    out["loss_elbo"] = (loss * r * (1 - t) ** (r - 1)).sum() / answer.sum()
    grads = torch.autograd.grad(out["loss_token"], params.values(), materialize_grads=True)
    out |= {f"grad.{param}": g for param, g in zip(params, grads)}
    out["grad_norm"] = torch.stack([g.norm() for g in grads]).norm()
    return {f"{name}.{key}": x.detach() for key, x in out.items()}


def reference(params, base, drawn):
    ids = drawn["input_ids"]
    answer = torch.arange(ids.shape[1]) >= drawn["prompt_lengths"][:, None]
    with torch.no_grad():
        clean, hidden = base(ids), base(torch.where(answer, base.config.mask_token_id, ids))
        entropy = torch.where(answer, -(hidden.softmax(-1) * hidden.log_softmax(-1)).sum(-1).clamp(max=0), 0)
        mean = (entropy.sqrt().sum(1) / answer.sum(1))[:, None]
        r = torch.where(mean > 0, entropy.sqrt() / mean, 1)
    out = drawn | {"logits_clean": clean, "logits_answer_masked": hidden, "entropy": entropy}
    for name, r in (("sft", torch.ones_like(r)), ("weft_sqrt", r)):
        out |= objective(params, base, drawn, answer, r, name)
    return {n: (x.float() if x.is_floating_point() else x).reshape(x.shape or 1).contiguous() for n, x in out.items()}


def check_golden(params, base, folder):
    golden = load_file(folder / "objectives.safetensors")
    computed = reference(params, base, {n: golden[n] for n in ("input_ids", "prompt_lengths", "t", "u")})
    golden = {name: x for name, x in golden.items() if name.split(".")[0] in ("sft", "weft_sqrt", name)}
    ours, theirs = ({(name, x.shape, x.dtype) for name, x in file.items()} for file in (computed, golden))
    if ours != theirs:
        sys.exit(f"other names, shapes or types than the golden file: {sorted(map(str, ours ^ theirs))}")
    errors = {}
    for name, theirs in golden.items():
        error = (computed[name].double() - theirs.double()).abs().max() / theirs.abs().max().clamp(min=1e-30)
        errors.setdefault(name.split(".model.")[0], []).append(error.item())
    for name, of_name in errors.items():
        print(f"{name:28}{max(of_name):.1e}")
    return 0 if all(error <= TOLERANCE for of_name in errors.values() for error in of_name) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--model", "--adapter", "--weft", "--out", "--check-golden", "--merged"):
        parser.add_argument(option, type=Path, required=option in ("--model", "--adapter"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference-only", action="store_true")
    args = parser.parse_args()
    if not (args.check_golden or args.weft or args.reference_only and args.out):
        parser.error("give --weft, --reference-only with --out, or --check-golden")
    base = load_base(args.model)
    model, params = load_adapter(base, args.adapter)
    if args.check_golden:
        return check_golden(params, base, args.check_golden)
    tensors = reference(params, base, draw(base.config, args.seed))
    with torch.no_grad(), model.disable_adapter():
        effect = (base(tensors["input_ids"]) - tensors["logits_clean"]).abs().max()
        print(f"the adapter moves the base's logits by up to {effect:.2e}", flush=True)
        if args.merged:
            logits = load_base(args.merged)(tensors["input_ids"])
            error = ((logits - tensors["logits_clean"]).abs().max() / logits.abs().max()).item()
            print(f"the merged checkpoint's logits lie within {error:.1e} of PEFT's", flush=True)
            if not error <= TOLERANCE:
                return 1
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch, "reference.safetensors")
        save_file(tensors, out, metadata={"format": "pt"})
        parity = ["parity", "--model", args.model, "--adapter", args.adapter, "--reference", out]
        return 0 if args.reference_only else subprocess.run([args.weft, *parity]).returncode


if __name__ == "__main__":
    sys.exit(main())
