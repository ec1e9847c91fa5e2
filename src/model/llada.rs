//! LLaDA: its configuration and the names of its modules.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::block::Config;
use super::family::{Family, ModelConfig};
use super::layout::{Layout, Names, SizeFields, check_fields};

/// LLaDA's modules.
pub(super) const NAMES: Names = Names {
    embedding: "model.transformer.wte",
    blocks: "model.transformer.blocks",
    attn_norm: "attn_norm",
    qkv: ["q_proj", "k_proj", "v_proj"],
    attn_out: "attn_out",
    ff_norm: "ff_norm",
    gate_up: ["ff_proj", "up_proj"],
    down: "ff_out",
    final_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
};

/// The fields of config.json on which the results depend.
#[derive(Deserialize)]
struct LladaConfig {
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    mlp_hidden_size: Option<usize>,
    #[serde(default = "default_mlp_ratio")]
    mlp_ratio: usize,
    vocab_size: usize,
    embedding_size: Option<usize>,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    #[serde(default)]
    weight_tying: bool,
    mask_token_id: u32,
}

fn default_mlp_ratio() -> usize {
    4
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_eps() -> f32 {
    1e-5
}

/// Fields for which Weft supports one value only; an absent field has that value.
const REQUIRED: [(&str, &str); 15] = [
    ("include_bias", "false"),
    ("include_qkv_bias", "false"),
    ("bias_for_layer_norm", "false"),
    ("alibi", "false"),
    ("input_emb_norm", "false"),
    ("attention_layer_norm", "false"),
    ("scale_logits", "false"),
    ("multi_query_attention", "false"),
    ("rope", "true"),
    ("rope_full_precision", "true"),
    ("layer_norm_with_affine", "true"),
    ("activation_type", "\"silu\""),
    ("block_type", "\"llama\""),
    ("block_group_size", "1"),
    ("layer_norm_type", "\"rms\""),
];

/// Dropout settings of the base, which Weft doesn't support.
const DROPOUTS: [&str; 3] = ["attention_dropout", "residual_dropout", "embedding_dropout"];

/// The sizes of a new model.
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
/// Sizes that no model can have, as one sentence.
pub fn new_config(sizes: Sizes) -> Result<ModelConfig, String> {
    let Sizes { width, layers, heads, mlp_hidden_size, vocab_size, max_seq_len, mask_token_id, eos_token_id } = sizes;
    let sized = json!({
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads,
        "mlp_hidden_size": mlp_hidden_size,
        "mlp_ratio": default_mlp_ratio(),
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "rope_theta": default_rope_theta(),
        "rms_norm_eps": 1e-5,
        "weight_tying": false,
        "mask_token_id": mask_token_id,
    });
    let mut fields = sized.as_object().expect("the literal above is an object").clone();
    let only =
        |(field, only): (&str, &str)| (field.to_owned(), serde_json::from_str(only).expect("the table holds JSON"));
    fields.extend(REQUIRED.map(only));
    fields.extend(DROPOUTS.map(|field| (field.to_owned(), Value::from(0.0))));
    fields.extend([
        ("max_sequence_length".to_owned(), Value::from(max_seq_len)),
        ("eos_token_id".to_owned(), Value::from(eos_token_id)),
        ("pad_token_id".to_owned(), Value::from(eos_token_id)),
        ("architectures".to_owned(), Value::from(vec!["LLaDAModelLM"])),
        ("torch_dtype".to_owned(), Value::from("bfloat16")),
    ]);
    ModelConfig::from_fields(fields)
}

/// The layout that a config.json of `model_type` llada describes.
pub(super) fn layout(fields: &Map<String, Value>) -> Result<Layout, String> {
    let c: LladaConfig = serde_json::from_value(fields.clone().into()).map_err(|e| e.to_string())?;
    check_fields(fields, &REQUIRED, &DROPOUTS)?;
    let rows = c.embedding_size.unwrap_or(c.vocab_size);
    if rows < c.vocab_size {
        return Err(format!("embedding_size {rows} is smaller than vocab_size {}", c.vocab_size));
    }
    let sizes = [c.d_model, c.n_heads, c.n_kv_heads.unwrap_or(c.n_heads)];
    let config = Config {
        rope_theta: c.rope_theta,
        rms_norm_eps: c.rms_norm_eps,
        ..Layout::config(Family::Llada, sizes, c.mask_token_id)
    };
    let layout = Layout {
        layers: c.n_layers,
        mlp_hidden_size: c.mlp_hidden_size.unwrap_or(c.mlp_ratio.saturating_mul(c.d_model)),
        rows,
        tied: c.weight_tying,
        config,
    };
    layout.check(&SizeFields {
        layers: "n_layers",
        width: "d_model",
        heads: "n_heads",
        kv_heads: "n_kv_heads",
        mlp_hidden_size: if c.mlp_hidden_size.is_some() { "mlp_hidden_size" } else { "mlp_ratio * d_model" },
        rows: if c.embedding_size.is_some() { "embedding_size" } else { "vocab_size" },
    })?;
    Ok(layout)
}
