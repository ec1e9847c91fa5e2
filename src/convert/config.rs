//! config.json of an autoregressive checkpoint: which ones can be converted, and what the converted one says.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::json_edit::{remove, set};
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::model::config::{ModelConfig, listed};
use crate::model::facts::{Overrides, TokenizerFiles};
use crate::model::family::{FAMILIES, Family};

/// `model_type` of the checkpoints that can be converted; that of the result begins with [`PREFIX`].
const AUTOREGRESSIVE: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// The beginning of `model_type` in dLLM's converted checkpoints.
const PREFIX: &str = "a2d-";

/// A config.json that can be converted.
pub(super) struct Config {
    path: PathBuf,
    text: String,
    fields: Map<String, Value>,
    /// The family of the result.
    pub to: &'static Family,
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
        let to = check(&fields).map_err(|reason| Error::Config { path: path.clone(), reason })?;
        // What Weft couldn't load afterwards is refused now. The mask token is still to come, so that any id will do.
        let any_mask = Overrides { mask_token_id: Some(0), ..Overrides::default() };
        ModelConfig::from_files(&text, &path, &TokenizerFiles::default(), any_mask)?;
        Ok(Self { path, text, fields, to })
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
            let mut text = set(&self.text, "model_type", &json!(self.to.model_type))?;
            text = set(&text, "architectures", &json!([self.to.class]))?;
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

/// The family that a checkpoint becomes one of, or why it can't.
fn check(fields: &Map<String, Value>) -> std::result::Result<&'static Family, String> {
    let model_type = fields.get("model_type").unwrap_or(&Value::Null);
    let name = model_type.as_str().unwrap_or_default();
    let is_autoregressive = AUTOREGRESSIVE.contains(&name);
    if !is_autoregressive && FAMILIES.iter().any(|family| family.model_type == name) {
        return Err(format!("model_type {model_type}: it is already a diffusion checkpoint; give it to weft train"));
    }
    if fields.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return Err("quantization_config: quantized weights can't be converted; give the checkpoint in bf16".to_owned());
    }
    let to = FAMILIES.iter().find(|family| family.model_type.strip_prefix(PREFIX) == Some(name));
    to.filter(|_| is_autoregressive).ok_or_else(|| {
        format!(
            "model_type {model_type} can't be converted; give a checkpoint of model_type {}",
            listed(&AUTOREGRESSIVE)
        )
    })
}
