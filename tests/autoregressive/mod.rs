//! Small autoregressive checkpoints of Llama's, Qwen2's and Qwen3's layout, with a tokenizer of words.
#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::scratch::folder;

/// The tokenizer's ids end at 63: 62 words and two added tokens.
pub const TOKENS: usize = 64;
/// The hidden size.
pub const WIDTH: usize = 8;
/// The embedding's name.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's name.
pub const HEAD: &str = "lm_head.weight";
/// The files that every converted checkpoint has as they were.
pub const OTHERS: [&str; 7] = [
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "modeling_x.py",
    ".gitattributes",
];

/// A small autoregressive checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub model_type: &'static str,
    pub is_sharded: bool,
    pub is_tied: bool,
    pub rows: usize,
}

impl Source {
    /// Qwen3's layout with two free rows.
    pub const QWEN3: Self = Self { model_type: "qwen3", is_sharded: false, is_tied: true, rows: TOKENS + 2 };

    /// The format of its tensors.
    pub fn dtype(self) -> Dtype {
        match self.model_type {
            "qwen2" => Dtype::F32,
            "llama" => Dtype::F16,
            _ => Dtype::BF16,
        }
    }

    /// The shapes of the tensors that a layer has.
    fn layer(self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![];
        for (name, rows, cols) in [
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", 4, WIDTH),
            ("self_attn.v_proj", 4, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", 12, WIDTH),
            ("mlp.up_proj", 12, WIDTH),
            ("mlp.down_proj", WIDTH, 12),
        ] {
            tensors.push((format!("model.layers.0.{name}.weight"), vec![rows, cols]));
            if self.model_type == "qwen2" && cols == WIDTH && name.starts_with("self_attn") && !name.contains("o_proj")
            {
                tensors.push((format!("model.layers.0.{name}.bias"), vec![rows]));
            }
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.0.{norm}.weight"), vec![WIDTH]));
        }
        if self.model_type == "qwen3" {
            tensors.push(("model.layers.0.self_attn.q_norm.weight".to_owned(), vec![4]));
            tensors.push(("model.layers.0.self_attn.k_norm.weight".to_owned(), vec![4]));
        }
        tensors
    }

    /// Every tensor with its bytes. The sums of columns in 2 bytes are small whole numbers, so that their mean is exact.
    fn tensors(self) -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let mut shapes = self.layer();
        shapes.push(("model.norm.weight".to_owned(), vec![WIDTH]));
        shapes.push((EMBEDDING.to_owned(), vec![self.rows, WIDTH]));
        if !self.is_tied {
            shapes.push((HEAD.to_owned(), vec![self.rows, WIDTH]));
        }
        let numbered = shapes.into_iter().enumerate();
        let made = numbered.map(|(k, (name, shape))| {
            let numbers = (0..shape.iter().product()).map(|i: usize| match self.dtype() {
                Dtype::F32 => ((i * 37 + k * 11) % 101) as f32 * 0.0137 - 0.5,
                _ => ((i * 5 + i / WIDTH + k) % 3) as f32 - 1.0,
            });
            let bytes = numbers.flat_map(|x: f32| match self.dtype() {
                Dtype::F32 => x.to_le_bytes().to_vec(),
                // The numbers -1, 0 and 1.
                Dtype::F16 => [0xbc00_u16, 0, 0x3c00][(x + 1.0) as usize].to_le_bytes().to_vec(),
                _ => x.to_le_bytes()[2..].to_vec(),
            });
            let bytes = bytes.collect();
            (name, shape, bytes)
        });
        made.collect()
    }

    fn config(self) -> Value {
        json!({
            "architectures": ["SomethingForCausalLM"],
            "attention_dropout": 0.0,
            "head_dim": WIDTH / 2,
            "hidden_act": "silu",
            "hidden_size": WIDTH,
            "initializer_range": 0.02,
            "intermediate_size": 12,
            "layer_types": ["full_attention"],
            "model_type": self.model_type,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "rms_norm_eps": "EPS",
            "rope_scaling": null,
            "rope_theta": 1000000,
            "sliding_window": 4096,
            "tie_word_embeddings": self.is_tied,
            "use_sliding_window": false,
            "vocab_size": self.rows,
        })
    }

    /// Writes the checkpoint with a tokenizer.json.
    pub fn write(self, name: &str) -> PathBuf {
        let folder = folder(name);
        let text = serde_json::to_string_pretty(&self.config()).expect("it prints");
        // Python's way to write this number, which serde_json doesn't print.
        write(&folder, "config.json", text.replace("\"EPS\"", "1e-06"));
        self.write_weights(&folder);
        write_tokenizer(&folder, &["<|endoftext|>", "<|im_end|>"], "w0");
        OTHERS.iter().for_each(|name| write(&folder, name, format!("this is {name}\n")));
        folder
    }

    fn write_weights(self, folder: &Path) {
        let tensors = self.tensors();
        if !self.is_sharded {
            return save(folder, "model.safetensors", self.dtype(), &tensors);
        }
        let (first, second) = tensors.split_at(5);
        let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let mut map = Map::new();
        for (file, part) in files.into_iter().zip([first, second]) {
            save(folder, file, self.dtype(), part);
            map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
        }
        let bytes: usize = tensors.iter().map(|(.., bytes)| bytes.len()).sum();
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
        write(folder, "model.safetensors.index.json", serde_json::to_string_pretty(&index).expect("it prints"));
    }
}

/// Writes a file of a folder.
pub fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    fs::write(folder.join(name), text).expect("it is written");
}

/// Writes a safetensors file with two entries of metadata; the crate's own writer doesn't keep their order.
fn save(folder: &Path, file: &str, dtype: Dtype, tensors: &[(String, Vec<usize>, Vec<u8>)]) {
    let mut header = json!({ "__metadata__": { "format": "pt", "made_by": "a test" } });
    let mut data = vec![];
    for (name, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        header[name] = json!({ "dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": [data.len(), end] });
        data.extend(bytes);
    }
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let length = (header.len() as u64).to_le_bytes();
    write(folder, file, [&length, header.as_bytes(), &data].concat());
}

/// Writes a tokenizer of words, whose last ones are added tokens; `word` takes the place of the first.
pub fn write_tokenizer(folder: &Path, added: &[&str], word: &str) {
    let words = TOKENS - added.len();
    let mut vocab: Map<String, Value> = (0..words).map(|id| (format!("w{id}"), json!(id))).collect();
    vocab.remove("w0");
    vocab.insert(word.to_owned(), json!(0));
    let (mut listed, mut decoder) = (vec![], Map::new());
    for (id, content) in (words..).zip(added) {
        let mut token = json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false, "special": true });
        decoder.insert(id.to_string(), token.clone());
        token["id"] = json!(id);
        listed.push(token);
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": listed, "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w1" },
    });
    let config = json!({ "added_tokens_decoder": decoder, "eos_token": added[0], "tokenizer_class": "Qwen2Tokenizer" });
    write(folder, "tokenizer.json", serde_json::to_string_pretty(&tokenizer).expect("it prints"));
    write(folder, "tokenizer_config.json", serde_json::to_string_pretty(&config).expect("it prints"));
    write(folder, "special_tokens_map.json", json!({ "eos_token": added[0] }).to_string());
}
