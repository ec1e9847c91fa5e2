//! Dream: its configuration and the names of its modules. The layout is Qwen2.5's: biases on queries, keys and values,
//! grouped heads, and logits that predict the next position.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::block::Config;
use super::family::Family;
use super::layout::{Layout, Names, SizeFields, check_fields};

/// Dream's modules.
pub(super) const NAMES: Names = Names {
    embedding: "model.embed_tokens",
    blocks: "model.layers",
    attn_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attn_out: "self_attn.o_proj",
    ff_norm: "post_attention_layernorm",
    gate_up: ["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
};

/// The fields of config.json on which the results depend.
#[derive(Deserialize)]
struct DreamConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    mask_token_id: u32,
}

fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_eps() -> f32 {
    1e-6
}

/// Fields for which Weft supports one value only; an absent field has that value.
const REQUIRED: [(&str, &str); 5] = [
    ("hidden_act", "\"silu\""),
    ("use_sliding_window", "false"),
    ("use_mrope", "false"),
    ("rope_scaling", "null"),
    ("rope_parameters", "null"),
];

/// The layout that a config.json of `model_type` Dream describes.
pub(super) fn layout(fields: &Map<String, Value>) -> Result<Layout, String> {
    let c: DreamConfig = serde_json::from_value(fields.clone().into()).map_err(|e| e.to_string())?;
    check_fields(fields, &REQUIRED, &["attention_dropout"])?;
    let sizes = [c.hidden_size, c.num_attention_heads, c.num_key_value_heads];
    let config = Config {
        rope_theta: c.rope_theta,
        rms_norm_eps: c.rms_norm_eps,
        ..Layout::config(Family::Dream, sizes, c.mask_token_id)
    };
    let layout = Layout {
        layers: c.num_hidden_layers,
        mlp_hidden_size: c.intermediate_size,
        rows: c.vocab_size,
        tied: c.tie_word_embeddings,
        config,
    };
    layout.check(&SizeFields {
        layers: "num_hidden_layers",
        width: "hidden_size",
        heads: "num_attention_heads",
        kv_heads: "num_key_value_heads",
        mlp_hidden_size: "intermediate_size",
        rows: "vocab_size",
    })?;
    Ok(layout)
}
