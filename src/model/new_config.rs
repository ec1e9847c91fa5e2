//! Configurations of new models: LLaDA's layout in any sizes, and the sizes of models that are measured.

use serde_json::{Value, json};

use super::config::ModelConfig;
use super::facts::{Overrides, TokenizerFiles};
use super::family::LLADA_KEYS;
use crate::error::{Error, Result};

/// The sizes of a new model in LLaDA's layout.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Width.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the MLP's hidden layer.
    pub mlp_hidden_size: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// The longest sequence that it is trained on.
    pub max_seq_len: usize,
    /// The id of the mask token.
    pub mask_token_id: u32,
    /// The id of the end-of-sequence token.
    pub eos_token_id: u32,
}

/// The sizes of LLaDA-8B-Instruct, from its config.json.
pub(crate) const LLADA_8B: Sizes = Sizes {
    width: 4096,
    layers: 32,
    heads: 32,
    mlp_hidden_size: 12_288,
    vocab_size: 126_464,
    max_seq_len: 4096,
    mask_token_id: 126_336,
    eos_token_id: 126_081,
};

/// The configuration of a new LLaDA model, with every field that LLaDA's own code reads.
///
/// # Errors
/// Sizes that no model can have.
pub fn new_llada(sizes: Sizes) -> Result<ModelConfig> {
    let Sizes { width, layers, heads, mlp_hidden_size, vocab_size, max_seq_len, mask_token_id, eos_token_id } = sizes;
    let sized = json!({
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads,
        "mlp_hidden_size": mlp_hidden_size,
        "mlp_ratio": 4,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "weight_tying": false,
        "mask_token_id": mask_token_id,
        "max_sequence_length": max_seq_len,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "architectures": ["LLaDAModelLM"],
        "torch_dtype": "bfloat16",
    });
    let mut fields = as_object(sized);
    let only =
        |(field, only): &(&str, &str)| ((*field).to_owned(), serde_json::from_str(only).expect("the table holds JSON"));
    fields.extend(LLADA_KEYS.required.iter().map(only));
    fields.extend(LLADA_KEYS.dropouts.iter().map(|field| ((*field).to_owned(), Value::from(0.0))));
    ModelConfig::from_fields(fields, &TokenizerFiles::default(), Overrides::default()).map_err(Error::Usage)
}

/// The configuration of dLLM's Qwen3-0.6B-diffusion-mdlm-v0.1.
pub(crate) fn qwen3_0_6b() -> ModelConfig {
    let fields = json!({
        "model_type": "a2d-qwen3",
        "architectures": ["A2DQwen3LMHeadModel"],
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "mask_token_id": 151_669,
        "eos_token_id": 151_645,
        "pad_token_id": 151_643,
        "torch_dtype": "bfloat16",
    });
    let parsed = ModelConfig::from_fields(as_object(fields), &TokenizerFiles::default(), Overrides::default());
    parsed.expect("these are the fields of a published checkpoint")
}

fn as_object(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("a literal object"),
    }
}
