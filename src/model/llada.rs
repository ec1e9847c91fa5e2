//! LLaDA: its configuration, and its tensors' names as fields of the transformer.

use std::path::Path;

use serde::Deserialize;

use super::block::{Block, Config, Linear, Param, ParamId, Transformer};
use super::weights::{Checkpoint, read_text};
use crate::error::{Error, Result};

/// The fields of config.json that change the numbers.
#[derive(Debug, Deserialize)]
struct LladaConfig {
    model_type: String,
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
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
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

/// Fields that Weft computes for one value only; an absent field has that value.
const REQUIRED: [(&str, &str); 12] = [
    ("include_bias", "false"),
    ("include_qkv_bias", "false"),
    ("bias_for_layer_norm", "false"),
    ("alibi", "false"),
    ("input_emb_norm", "false"),
    ("attention_layer_norm", "false"),
    ("scale_logits", "false"),
    ("rope", "true"),
    ("layer_norm_with_affine", "true"),
    ("activation_type", "\"silu\""),
    ("block_type", "\"llama\""),
    ("layer_norm_type", "\"rms\""),
];

impl LladaConfig {
    fn check(&self) -> std::result::Result<(), String> {
        if self.model_type != "llada" {
            return Err(format!(
                "model_type {:?} is not supported; give a checkpoint of model_type llada",
                self.model_type
            ));
        }
        for (field, only) in REQUIRED {
            let found = self.others.get(field).filter(|v| !v.is_null()).map(ToString::to_string);
            if let Some(value) = found.filter(|value| value != only) {
                return Err(format!("{field} = {value} is not supported; only {only} is"));
            }
        }
        let (d, heads, kv_heads) = (self.d_model, self.n_heads, self.kv_heads());
        if heads == 0 || kv_heads == 0 || d == 0 || d % (2 * heads) != 0 || heads % kv_heads != 0 {
            return Err(format!(
                "d_model {d}, n_heads {heads} and n_kv_heads {kv_heads} do not divide into even heads"
            ));
        }
        if self.mask_token_id as usize >= self.rows() {
            let id = self.mask_token_id;
            return Err(format!("mask_token_id {id} lies outside the vocabulary of {}; set it below", self.rows()));
        }
        Ok(())
    }

    fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Rows of the embedding and the head.
    fn rows(&self) -> usize {
        self.embedding_size.unwrap_or(self.vocab_size)
    }
}

/// Opens a LLaDA checkpoint's folder.
///
/// # Errors
/// A config field that Weft doesn't compute, by its name; a file or tensor that is missing or damaged.
pub fn load(folder: &Path) -> Result<Transformer> {
    let path = folder.join("config.json");
    let config: LladaConfig = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    config.check().map_err(|reason| Error::Config { path, reason })?;
    let mut table = Table { checkpoint: Checkpoint::open(folder)?, params: vec![] };
    let (d, rows) = (config.d_model, config.rows());
    let mlp = config.mlp_hidden_size.unwrap_or(config.mlp_ratio * d);
    let kv = d / config.n_heads * config.kv_heads();
    let embedding = table.take("wte", &[rows, d])?;
    let block = |i: usize, table: &mut Table| {
        let name = |part: &str| format!("blocks.{i}.{part}");
        let mut linear = |part: &str, outputs, inputs| table.linear(&name(part), outputs, inputs);
        let qkv = [linear("q_proj", d, d)?, linear("k_proj", kv, d)?, linear("v_proj", kv, d)?];
        let gate_up = [linear("ff_proj", mlp, d)?, linear("up_proj", mlp, d)?];
        let (attn_out, down) = (linear("attn_out", d, d)?, linear("ff_out", d, mlp)?);
        let (attn_norm, ff_norm) = (table.take(&name("attn_norm"), &[d])?, table.take(&name("ff_norm"), &[d])?);
        Ok(Block { attn_norm, qkv, attn_out, ff_norm, gate_up, down })
    };
    let blocks = (0..config.n_layers).map(|i| block(i, &mut table)).collect::<Result<_>>()?;
    let final_norm = table.take("ln_f", &[d])?;
    let head = match config.weight_tying {
        true => Linear { weight: embedding, lora: None },
        false => table.linear("ff_out", rows, d)?,
    };
    let config = Config {
        width: d,
        heads: config.n_heads,
        kv_heads: config.kv_heads(),
        rope_theta: config.rope_theta,
        rms_norm_eps: config.rms_norm_eps,
        mask_token_id: config.mask_token_id,
        lora_scale: 1.0,
        lora_dropout: 0.0,
    };
    Ok(Transformer { config, params: table.params, embedding, blocks, final_norm, head })
}

/// The parameter table while it fills.
struct Table {
    checkpoint: Checkpoint,
    params: Vec<Param>,
}

impl Table {
    fn take(&mut self, part: &str, shape: &[usize]) -> Result<ParamId> {
        let name = format!("model.transformer.{part}.weight");
        let weight = self.checkpoint.take(&name, shape)?;
        self.params.push(Param { name, weight, trainable: false });
        Ok(self.params.len() - 1)
    }

    fn linear(&mut self, part: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.take(part, &[outputs, inputs])?, lora: None })
    }
}
