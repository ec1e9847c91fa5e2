"""Shows that a checkpoint saved by a full run loads in transformers and computes the same numbers there.

This file is responsible for the way in: `AutoConfig`, `AutoModel` and `AutoTokenizer` read the folder, with LLaDA's
network in plain PyTorch registered under its `model_type`, and must find every tensor, none too many, in the dtype that
config.json names. The network, the reference file and the draws are `peft_round_trip.py`'s; `weft parity` judges.

    .venv/bin/python scripts/checkpoint_round_trip.py --checkpoint runs/mine/checkpoint --weft target/release/weft

The exit status is that of `weft parity`; 1 where transformers and the checkpoint disagree about what it holds.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from peft_round_trip import DEFAULTS, Base, draw, reference
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig


class Config(PretrainedConfig):
    model_type = "llada"

    def __init__(self, **fields):
        super().__init__(**fields)
        self.tie_word_embeddings = fields.get("weight_tying", False)
        for name, value in DEFAULTS.items():
            setattr(self, name, fields.get(name, value))


class Llada(Base):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.post_init()


def load(folder):
    AutoConfig.register("llada", Config)
    AutoModel.register(Config, Llada)
    model, info = AutoModel.from_pretrained(str(folder), dtype="auto", output_loading_info=True)
    saved, params = load_file(folder / "model.safetensors"), dict(model.named_parameters())
    dtypes = {str(x.dtype).removeprefix("torch.") for x in saved.values()}
    both = saved.keys() & params.keys()
    changed = sorted(n for n in both if saved[n].dtype != params[n].dtype or not saved[n].equal(params[n]))
    complaints = {key: value for key, value in info.items() if value} | ({"changed": changed} if changed else {})
    verdict = complaints or "none missing, left over or changed"
    print(f"transformers: {len(saved)} tensors in {'/'.join(dtypes)}, {verdict}", flush=True)
    if complaints or dtypes != {str(model.config.dtype).removeprefix("torch.")}:
        sys.exit(1)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    text = "What is 2 + 3?"
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        sys.exit("the tokenizer does not give its text back")
    return model.float().eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--checkpoint", "--weft"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load(args.checkpoint)
    tensors = reference(dict(model.named_parameters()), model, draw(model.config, args.seed))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "reference.safetensors")
        save_file(tensors, out, metadata={"format": "pt"})
        command = [args.weft.resolve(), "parity", "--model", args.checkpoint, "--reference", out]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
