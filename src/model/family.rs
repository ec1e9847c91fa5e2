//! The families of checkpoints: which one a config.json describes, how they differ, and whole models as folders.

use std::path::Path;

use serde_json::{Map, Value};
use weft_kernels::weight::{Dtype, Weight};

use super::block::Transformer;
use super::layout::{self, Layout, Names};
use super::weights::{Checkpoint, Tensor, write_tensors};
use super::{dream, llada};
use crate::error::{Error, Result};
use crate::files::{make_folder, read_text, write_whole};

/// A family of masked diffusion language models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LLaDA (arXiv 2502.09992), `model_type: llada`.
    Llada,
    /// Dream (arXiv 2508.15487), `model_type: Dream`.
    Dream,
}

impl Family {
    /// Whether the logits that predict position i sit at position i-1. The logits of position 0 then predict both 0 and
    /// 1.
    pub fn logits_shifted(self) -> bool {
        self == Self::Dream
    }

    /// The head's module name if its weight is the embedding's; LLaDA's network then has no such module.
    pub(crate) fn tied_head(self) -> Option<&'static str> {
        (self == Self::Dream).then_some(self.names().head)
    }

    pub(super) fn has_qkv_bias(self) -> bool {
        self == Self::Dream
    }

    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Llada => &llada::NAMES,
            Self::Dream => &dream::NAMES,
        }
    }
}

/// A config.json: its raw fields and the layout that they describe.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    fields: Map<String, Value>,
    layout: Layout,
}

impl ModelConfig {
    /// Parses the text of config.json; `path` is named in errors.
    ///
    /// # Errors
    /// The name of a family or a field that Weft doesn't support.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let format = |e: serde_json::Error| Error::Format { path: path.to_owned(), reason: e.to_string() };
        let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
        Self::from_fields(serde_json::from_str(text).map_err(format)?).map_err(refuse)
    }

    pub(super) fn from_fields(fields: Map<String, Value>) -> std::result::Result<Self, String> {
        let layout = match fields.get("model_type").and_then(Value::as_str) {
            Some("llada") => llada::layout(&fields)?,
            Some("Dream") => dream::layout(&fields)?,
            _ => {
                let family = fields.get("model_type").unwrap_or(&Value::Null);
                return Err(format!(
                    "model_type {family} is not supported; give a checkpoint of model_type llada or Dream"
                ));
            }
        };
        Ok(Self { fields, layout })
    }

    /// The same configuration, but with an untied head.
    pub(crate) fn untied(mut self) -> Self {
        self.fields.insert("tie_word_embeddings".to_owned(), Value::from(false));
        self.layout.tied = false;
        self
    }

    /// The id of the mask token.
    pub fn mask_token_id(&self) -> u32 {
        self.layout.config.mask_token_id
    }

    /// Rows of the embedding, of which there may be more than tokens.
    pub fn num_rows(&self) -> usize {
        self.layout.rows
    }

    /// The text of config.json.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.fields).expect("JSON values print")
    }
}

/// Opens a checkpoint's folder.
///
/// # Errors
/// The name of a config field that Weft doesn't support; a file or tensor that is missing or damaged.
pub fn load(folder: &Path) -> Result<Transformer> {
    let path = folder.join("config.json");
    let config = ModelConfig::parse(&read_text(&path)?, &path)?;
    assemble(&config, Checkpoint::open(folder)?)
}

/// A checkpoint's model on the meta device: its shapes and dtypes, without reading a tensor. If the weights aren't
/// there yet, the dtype is what config.json says, or bf16.
///
/// # Errors
/// Those of [`load`].
pub fn load_meta(folder: &Path) -> Result<Transformer> {
    let path = folder.join("config.json");
    let config = ModelConfig::parse(&read_text(&path)?, &path)?;
    if Checkpoint::is_in(folder) {
        return assemble(&config, Checkpoint::open(folder)?).map(|model| model.to_meta());
    }
    Ok(meta_of(&config))
}

/// A configuration's model on the meta device, in the dtype that the configuration names.
pub(crate) fn meta_of(config: &ModelConfig) -> Transformer {
    let named = ["dtype", "torch_dtype"].into_iter().find_map(|key| config.fields.get(key)?.as_str());
    let dtype = if named == Some("float32") { Dtype::F32 } else { Dtype::Bf16 };
    let meta = build(config, |_, shape| {
        let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
        Ok(Weight::meta(rows, cols, dtype))
    });
    meta.expect("a shape can't fail")
}

/// Builds the model from a configuration and its tensors.
///
/// # Errors
/// A tensor that is missing or has another shape.
pub fn assemble(config: &ModelConfig, mut checkpoint: Checkpoint) -> Result<Transformer> {
    build(config, |name, shape| checkpoint.take(name, shape))
}

/// Builds the model whose tensors are `take(name, shape)`.
pub(crate) fn build(config: &ModelConfig, take: impl FnMut(&str, &[usize]) -> Result<Weight>) -> Result<Transformer> {
    layout::build(&config.layout, take)
}

/// A model with random weights, to be trained from scratch.
pub fn fresh(config: &ModelConfig, seed: u64) -> Transformer {
    layout::fresh(&config.layout, seed)
}

/// Writes a whole model as a Hugging Face folder, without a tokenizer.
///
/// # Errors
/// A file that can't be written.
pub fn save(folder: &Path, model: &Transformer, config: &ModelConfig, dtype: Dtype) -> Result<()> {
    make_folder(folder)?;
    write_tensors(&folder.join("model.safetensors"), model.params.iter().map(|p| Tensor::of(p, dtype)).collect())?;
    write_whole(&folder.join("config.json"), config.to_json().as_bytes())
}
