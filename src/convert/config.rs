//! config.json of an autoregressive checkpoint: which ones can be converted, and what the converted one says.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::json_edit::{remove, set};
use crate::error::{Error, Result};
use crate::files::read_text;

/// A kind of checkpoint that can be converted, and the names that dLLM gives the result.
#[derive(Debug)]
pub(super) struct Conversion {
    /// `model_type` of the autoregressive checkpoint.
    from: &'static str,
    /// `model_type` of the diffusion checkpoint.
    pub to: &'static str,
    /// Its entry in `architectures`.
    architecture: &'static str,
}

const CONVERSIONS: [Conversion; 3] = [
    Conversion { from: "llama", to: "a2d-llama", architecture: "A2DLlamaLMHeadModel" },
    Conversion { from: "qwen2", to: "a2d-qwen2", architecture: "A2DQwen2LMHeadModel" },
    Conversion { from: "qwen3", to: "a2d-qwen3", architecture: "A2DQwen3LMHeadModel" },
];

/// `model_type` of diffusion checkpoints besides the converted ones.
const DIFFUSION: [&str; 3] = ["llada", "Dream", "illada"];

/// The fields by which a configuration says that its MLPs are experts.
const EXPERTS: [&str; 5] =
    ["num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"];

/// A config.json that can be converted.
pub(super) struct Config {
    path: PathBuf,
    text: String,
    fields: Map<String, Value>,
    pub conversion: &'static Conversion,
}

impl Config {
    /// Reads the config.json of a folder.
    ///
    /// # Errors
    /// A file that is missing or damaged; the name of a field with which the result couldn't be trained.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = read_text(&path)?;
        let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
        let fields: Map<String, Value> = serde_json::from_str(&text).map_err(format)?;
        match check(&fields) {
            Ok(conversion) => Ok(Self { path, text, fields, conversion }),
            Err(reason) => Err(Error::Config { path, reason }),
        }
    }

    /// The path, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field that is a whole number; `None` if it is absent, null or something else.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.fields.get(key).and_then(Value::as_u64)
    }

    /// Whether the head shares the embedding's weight if the file has none of its own; by default it doesn't.
    pub fn is_tied(&self) -> bool {
        self.fields.get("tie_word_embeddings") == Some(&Value::Bool(true))
    }

    /// The text of the converted checkpoint's config.json, with `rows` in its vocabulary.
    ///
    /// # Errors
    /// A text that is damaged.
    pub fn converted(&self, mask_token_id: u32, rows: usize) -> Result<String> {
        let edited = || {
            let mut text = set(&self.text, "model_type", &json!(self.conversion.to))?;
            text = set(&text, "architectures", &json!([self.conversion.architecture]))?;
            // It names the classes of the autoregressive model.
            text = remove(&text, "auto_map")?;
            if self.number("vocab_size") != Some(rows as u64) {
                text = set(&text, "vocab_size", &json!(rows))?;
            }
            set(&text, "mask_token_id", &json!(mask_token_id))
        };
        edited().map_err(|e| Error::Format { path: self.path.clone(), reason: e.to_string() })
    }
}

/// How a checkpoint is converted, or why it can't be.
fn check(fields: &Map<String, Value>) -> std::result::Result<&'static Conversion, String> {
    let model_type = fields.get("model_type").unwrap_or(&Value::Null);
    let name = model_type.as_str().unwrap_or_default();
    if DIFFUSION.contains(&name) || CONVERSIONS.iter().any(|c| c.to == name) {
        return Err(format!("model_type {model_type}: it is already a diffusion checkpoint; give it to weft train"));
    }
    let is_set = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null() && value != &json!(0));
    if let Some(key) = EXPERTS.into_iter().find(|key| is_set(key)) {
        return Err(format!("{key} {}: mixtures of experts can't be converted; give a dense checkpoint", fields[key]));
    }
    let Some(conversion) = CONVERSIONS.iter().find(|c| c.from == name) else {
        return Err(format!(
            "model_type {model_type} can't be converted; give a checkpoint of model_type llama, qwen2 or qwen3"
        ));
    };
    if is_set(&"quantization_config") {
        return Err("quantization_config: quantized weights can't be converted; give the checkpoint in bf16".to_owned());
    }
    check_attention(fields)?;
    Ok(conversion)
}

/// Refuses attention that a diffusion model of Weft doesn't have.
fn check_attention(fields: &Map<String, Value>) -> std::result::Result<(), String> {
    let whole = "the converted model sees the whole sequence in every layer; give a checkpoint that does so too";
    if fields.get("use_sliding_window") == Some(&Value::Bool(true)) {
        return Err(format!("use_sliding_window true: {whole}"));
    }
    let kinds = fields.get("layer_types").and_then(Value::as_array).into_iter().flatten();
    if let Some(kind) = kinds.into_iter().find(|kind| *kind != "full_attention") {
        return Err(format!("layer_types has {kind}: {whole}"));
    }
    let absent = Value::Null;
    for (key, is_optional) in [("rope_scaling", false), ("rope_parameters", true)] {
        let field = fields.get(key).unwrap_or(&absent);
        let kind = ["rope_type", "type"].into_iter().find_map(|kind| field.get(kind));
        // transformers 5 writes rope_parameters of every model; an object without a type is of the default one.
        let is_default = kind.map_or(field.is_null() || is_optional, |kind| kind == "default");
        if !is_default {
            let kind = kind.unwrap_or(field);
            return Err(format!("{key} {kind}: Weft scales no rotary positions; give a checkpoint without scaling"));
        }
    }
    Ok(())
}
