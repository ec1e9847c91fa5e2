"""Writes a small autoregressive checkpoint in Qwen3's layout with random weights, to be converted and pretrained.

    .venv/bin/python scripts/small_qwen3.py --texts train.jsonl --out small-qwen3     (pip install -r requirements.txt)

4 layers of width 256, 8 heads of 32 with 4 key/value heads, a tied head: 4 million parameters. Its tokenizer is a byte-level BPE of
4,096 tokens that is trained on the texts' `text` values, with single digits, Qwen's end tokens and a ChatML template.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="rows with the key `text` (JSONL)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.texts.read_text().splitlines()]
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4093, initial_alphabet=alphabet, show_progress=False))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    args.out.mkdir(parents=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None, "chat_template": TEMPLATE}
    (args.out / "tokenizer_config.json").write_text(json.dumps(end, indent=2))
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=4160, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
                         num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
                         eos_token_id=tokenizer.token_to_id("<|endoftext|>"))
    Qwen3ForCausalLM(config).save_pretrained(args.out)


if __name__ == "__main__":
    main()
