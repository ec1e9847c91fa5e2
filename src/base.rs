//! A base to fine-tune or to ask: a checkpoint's network together with its tokenizer and chat template.
//! `tiny-base` is part of the program (assets/tiny-base).

use std::path::Path;

use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::model::block::Transformer;
use crate::model::llada::{self, LladaConfig};
use crate::model::weights::Checkpoint;

/// The embedded base's name.
pub const TINY_BASE: &str = "tiny-base";

/// A network and its text.
pub struct Base {
    /// The network.
    pub model: Transformer,
    /// Tokenizer, chat template and end token.
    pub text: TextModel,
    /// The folder or the embedded base's name.
    pub name: String,
}

impl Base {
    /// Opens a checkpoint's folder, or the embedded base where no folder has its name.
    ///
    /// # Errors
    /// A file that is missing, damaged or of a family that Weft doesn't compute; a mask token that the tokenizer lacks.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let (model, text) = match path == Path::new(TINY_BASE) && !path.exists() {
            true => embedded()?,
            false => (llada::load(path)?, TextModel::open(path)?),
        };
        let rows = model.params[model.embedding].weight.rows();
        if text.vocab_size() > rows {
            return Err(Error::Config {
                path: path.join("tokenizer.json"),
                reason: format!(
                    "its {} tokens are more than the model's {rows}; use the model's own tokenizer",
                    text.vocab_size()
                ),
            });
        }
        Ok(Self { model, text, name })
    }
}

fn embedded() -> Result<(Transformer, TextModel)> {
    macro_rules! asset {
        ($file:literal) => {
            include_bytes!(concat!("../assets/tiny-base/", $file))
        };
    }
    let utf8 = |bytes: &'static [u8]| std::str::from_utf8(bytes).expect("the embedded texts are UTF-8");
    let config = LladaConfig::parse(utf8(asset!("config.json")), Path::new("tiny-base/config.json"))?;
    let checkpoint = Checkpoint::from_bytes("tiny-base/model.safetensors", asset!("model.safetensors"))?;
    let text = TextModel::from_bytes(asset!("tokenizer.json"), utf8(asset!("tokenizer_config.json")))?;
    Ok((llada::assemble(&config, checkpoint)?, text))
}
