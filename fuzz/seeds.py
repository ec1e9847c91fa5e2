"""Writes the corpora that the targets start from, into fuzz/corpus: small files of each format, and the tests' own.
Run it from anywhere: python3 fuzz/seeds.py"""

import json
import struct
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
ROOT = FUZZ.parent
BORDER = b"\n====\n"
# The sizes of small_config.json.
WIDTH, MLP, ROWS = 4, 6, 8


def seed(target, name, *files):
    folder = FUZZ / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f if isinstance(f, bytes) else f.encode() for f in files]
    (folder / name).write_bytes(BORDER.join(parts))


def safetensors(shapes):
    """A file of f32 tensors of ones; `shapes` are by name."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack("<f", 1.0) * (at // 4)


def llada():
    block = "model.transformer.blocks.0."
    shapes = {"model.transformer.wte.weight": [ROWS, WIDTH], "model.transformer.ff_out.weight": [ROWS, WIDTH]}
    shapes |= {block + n + ".weight": [WIDTH, WIDTH] for n in ["q_proj", "k_proj", "v_proj", "attn_out"]}
    shapes |= {block + n + ".weight": [MLP, WIDTH] for n in ["ff_proj", "up_proj"]}
    shapes |= {block + "ff_out.weight": [WIDTH, MLP]}
    shapes |= {n + ".weight": [WIDTH] for n in [block + "attn_norm", block + "ff_norm", "model.transformer.ln_f"]}
    return shapes


def dream():
    block = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [ROWS, WIDTH], "lm_head.weight": [ROWS, WIDTH]}
    shapes |= {block + f"self_attn.{n}_proj.weight": [WIDTH, WIDTH] for n in "qkvo"}
    shapes |= {block + f"self_attn.{n}_proj.bias": [WIDTH] for n in "qkv"}
    shapes |= {block + f"mlp.{n}_proj.weight": [MLP, WIDTH] for n in ["gate", "up"]}
    shapes |= {block + "mlp.down_proj.weight": [WIDTH, MLP]}
    norms = [block + "input_layernorm", block + "post_attention_layernorm", "model.norm"]
    return shapes | {n + ".weight": [WIDTH] for n in norms}


small = (FUZZ / "small_config.json").read_text()
dream_config = json.dumps({"model_type": "Dream", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1,
                           "num_key_value_heads": 1, "intermediate_size": MLP, "vocab_size": ROWS, "mask_token_id": 7})
seed("checkpoint", "llada", small, safetensors(llada()))
seed("checkpoint", "dream", dream_config, safetensors(dream()))
for family in ["llada", "dream"]:
    seed("config", family, (ROOT / "tests/golden" / family / "config.json").read_text())
seed("config", "small", small)

# A tokenizer of single characters, and one with merges and every kind of part.
vocab = {"<eos>": 0, "<bos>": 1, "<mask>": 2} | {c: i + 3 for i, c in enumerate("abcdefgh\u0120\u010a.!?0123456789")}
added = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
          "special": True} for c, i in vocab.items() if c.startswith("<")]
level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
             "pre_tokenizer": level, "post_processor": None, "decoder": level,
             "model": {"type": "BPE", "vocab": vocab, "merges": []}}
(FUZZ / "corpus").mkdir(exist_ok=True)
(FUZZ / "corpus/small-tokenizer.json").write_text(json.dumps(tokenizer))
settings = json.dumps({"eos_token": "<eos>", "bos_token": "<bos>", "chat_template":
                       "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}"})
seed("tokenizer", "bpe", json.dumps(tokenizer), settings)
merged = tokenizer | {"model": {"type": "BPE", "vocab": vocab | {"ab": 40, "abc": 41}, "merges": ["a b", "ab c"],
                                "unk_token": "a", "byte_fallback": True},
                      "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                                  "pad_type_id": 0, "pad_token": "<eos>"},
                      "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
                      "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                          {"type": "Split", "pattern": {"Regex": "(?i:'s|a+)+| ?\\S+(?!x)"}, "behavior": "Isolated",
                           "invert": False}, level]}}
seed("tokenizer", "merges", json.dumps(merged), settings)
unigram = tokenizer | {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<eos>", 0.0], ["a", -1.0], ["ab", -2.0]]},
                       "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}}
seed("tokenizer", "unigram", json.dumps(unigram), settings)
pieces = tokenizer | {"model": {"type": "WordPiece", "unk_token": "<eos>", "continuing_subword_prefix": "##",
                                "max_input_chars_per_word": 100, "vocab": vocab},
                      "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                                     "strip_accents": None, "lowercase": True},
                      "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##",
                                                                                  "cleanup": True}}
seed("tokenizer", "wordpiece", json.dumps(pieces), settings)

seed("chat_template", "llada", "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
     "'<|start|>' + message['role'] + '\\n' + message['content'] | trim + '<eot>' %}{% if loop.index0 == 0 %}{% set content"
     " = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'a' }}{% endif %}")
seed("chat_template", "qwen", "{%- macro f(x, n=2) %}{{ x * n }}{%- endmacro %}{%- set ns = namespace(s='', i=0) %}"
     "{%- for m in messages[::-1] if m.role != 'tool' %}{%- set ns.s = ns.s ~ f(m.content.split(' ')[-1]) %}{%- endfor %}"
     "{{ ns.s.strip().replace('a', 'bb') }}{{ messages | tojson }}{{ [1, 2] | join(', ') }}{% if ns.i is defined and "
     "not messages[0].role == 'x' %}{{ raise_exception('no') }}{% endif %}{{ range(3) | list | length }}")
seed("chat_template", "methods", "{{ '%s %5d' | format('a', 3) }}{{ 'a{}b'.format(1) }}{{ 'abc'.upper().find('B') }}"
     "{{ {'a': 1}.items() | list }}{{ 'x' | indent(4) | center(9) }}{{ [3, 1] | sort | map('string') | join }}")

targets = ["q_proj", "k_proj", "v_proj"]
lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": targets, "bias": "none",
        "use_rslora": True, "rank_pattern": {}}
names = {f"base_model.model.model.transformer.blocks.0.{t}.lora_{ab}.weight": s for t in targets
         for ab, s in [("A", [2, WIDTH]), ("B", [WIDTH, 2])]}
seed("adapter", "names", json.dumps(lora), safetensors(names))
seed("adapter", "pattern", json.dumps(lora | {"target_modules": r".*\.[qkv]_proj"}), safetensors(names))

for recipe in (ROOT / "recipes").glob("*.toml"):
    seed("recipe", recipe.stem, recipe.read_text(), "train.lr=1e-3")
mixed = """[data]
train = [{ path = "a.jsonl", weight = 2.0, rows = "10%:" }, { path = "b.json", format = "alpaca" }]
max_seq_len = 64
"""
seed("recipe", "mixed", mixed, "data.max_seq_len=7")

rows = ['{"prompt": "a", "response": "b"}', '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
        '"content": "b"}]}', '{"question": "a", "answer": "b #### 3", "ground_truth": 3, "generation": "3"}',
        '{"problem": "a", "generations": ["b"], "correctness_math_verify": [true]}',
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "c"}',
        '{"instruction": "a", "input": "", "output": "b"}', '{"input": "30,100,93", "output": "23"}',
        '{"question": "a", "thinking_trajectories": ["t"], "attempt": "b"}']
for i, row in enumerate(rows):
    seed("rows", f"line-{i}", b"0" + row.encode() + b"\n")
seed("rows", "cells", '2prompt,response\n"a\nb","c ""d"""\n')
seed("rows", "half", b'0{"prompt": "\\ud83d", "response": "\\ud83d\\ude00"}\n')
seed("rows", "array", "1[" + ", ".join(rows) + "]")
seed("rows", "object", '1{"generations": [' + rows[2] + "]}")
for file in (ROOT / "tests/rows").rglob("*.parquet"):
    seed("parquet", file.stem, file.read_bytes())

seed("scoring", "sudoku", "<answer>1234341221434321</answer>", "puzzle: 0234341221434321\n", '"1234341221434321"')
seed("scoring", "countdown", "\\boxed{(100 - 93) * 30 // 2 ** 3}", "q", "[[30, 100, 93], 23]")
seed("scoring", "gsm8k", "<answer>\\boxed{\\$1,234.50}</answer>", "q", "1234.5")
seed("scoring", "math", "\\boxed{\\dfrac12 \\text{ cm}}", "\\frac{1}{2}", '"\\\\sqrt3/4"')

# Of one example: its counts, its lengths, its tokens.
seed("token_cache", "one", b"0" + struct.pack("<8I", 1, 0, 0, 1, 2, 5, 6, 7))

state = {"step": 1, "recipe": {}, "entropies": [[0, 0, 3], [1, 0, 3]]}
trained = {f"base_model.model.model.transformer.blocks.0.q_proj.lora_{ab}.weight": s for ab, s in [("A", [1, WIDTH]),
                                                                                                   ("B", [WIDTH, 1])]}
tensors = {prefix + n: s for n, s in trained.items() for prefix in ["", "m.", "v."]} | {"token_entropy": [6]}
seed("training_state", "kept", json.dumps(state), safetensors(tensors))

# A request's head, one part a line, and its body.
post = "POST\n{}\n127.0.0.1:8000\nhttp://127.0.0.1:8000\nsame-origin\nBearer secret\napplication/json"
turns = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
sampler = {"max_tokens": 8, "temperature": 0.5, "seed": 1, "stop": ["a", "b"], "n": 2, "stream": True, "top_p": 1.0,
           "stream_options": {"include_usage": True}, "remasking": "random", "cache": "dual", "block_length": 4, "user": "u"}
seed("request", "chat", post.format("/v1/chat/completions"), json.dumps({"model": "m", "messages": turns} | sampler))
seed("request", "text", post.format("/v1/completions?a=b"), json.dumps({"model": "m", "prompt": ["a", [1, 2]], "logprobs": 1}))
seed("request", "watched", post.format("/api/denoise"), json.dumps({"model": "m", "messages": turns[1:], "tools": []}))
tokens = {"prompt": [[1, 2], [3]], "n": 3, "top_k": 5, "confidence_threshold": 0.9, "seed": 2**64 - 1, "best_of": 1}
seed("request", "tokens", post.format("/v1/completions"), json.dumps({"model": "m"} | tokens))
seed("request", "wrong", post.format("/v1/models/%ff"), json.dumps({"model": "m", "messages": [], "k" * 80: 1e300}))
seed("request", "model", "GET\n/v1/models/a%2Fb\n[::1]", "")
