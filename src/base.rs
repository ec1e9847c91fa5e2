//! A base to fine-tune or to ask: a checkpoint's network with its tokenizer and chat template. Also saves a trained
//! base as a checkpoint of its own. `tiny-base` is part of the program (assets/tiny-base).

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_kernels::weight::Dtype;

use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::files::{read_text, write_folder_whole, write_whole};
use crate::model::block::Transformer;
use crate::model::checkpoint;
use crate::model::config::{BLOCK_LENGTHS, ModelConfig};
use crate::model::facts::{Overrides, TokenizerFiles};
use crate::model::from_hub::{self, is_companion};
use crate::model::lora;
use crate::model::weights::{Checkpoint, Tensor, write_tensors};

/// The embedded base's name.
pub(crate) const TINY_BASE: &str = "tiny-base";

/// A network with its text side.
pub struct Base {
    /// The network.
    pub model: Transformer,
    /// The tokenizer, the chat template and the end token.
    pub text: TextModel,
    /// The folder, the name of the embedded base, or the id on the hub.
    pub name: String,
    /// The adapter that was loaded into the network, for messages; `None` if there is none or the caller doesn't set it.
    pub adapter: Option<PathBuf>,
    /// The number format in which the weights are held, taken from the embedding: that of the files, except for f16.
    pub dtype: Dtype,
    /// The configuration, with the facts that other files or the user add.
    config: ModelConfig,
    /// Whether the files hold weights of f16.
    is_half: bool,
    /// What the user said of the checkpoint, against its files.
    overrides: Overrides,
    /// The folder with its other files; `None` for the embedded base.
    folder: Option<PathBuf>,
}

impl Base {
    /// Opens a checkpoint's folder, a model of the hub, or the embedded base if no folder has its name.
    ///
    /// # Errors
    /// A file that is missing, damaged or of a family that Weft doesn't support; a mask token that the tokenizer lacks;
    /// an id whose files can't be downloaded.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, Overrides::default())
    }

    /// Opens a base like [`Base::open`], with what the user says of it.
    ///
    /// # Errors
    /// Those of [`Base::open`].
    pub fn open_with(path: &Path, overrides: Overrides) -> Result<Self> {
        let name = path.display().to_string();
        let is_embedded = is_embedded(path);
        let path = &*if is_embedded { path.to_owned() } else { checkpoint_folder(from_hub::checkpoint(path)?)? };
        let ((model, config), text) = match is_embedded {
            true => embedded(overrides)?,
            false => (checkpoint::load_with(path, overrides)?, TextModel::open(path)?),
        };
        let embedding = &model.params[model.embedding].weight;
        let dtype = embedding.dtype();
        check_tokens(&text, embedding.rows(), path)?;
        let folder = (!is_embedded).then(|| path.to_owned());
        let is_half = folder.as_deref().is_some_and(|folder| is_half(folder, &config));
        Ok(Self { model, text, name, adapter: None, dtype, config, is_half, overrides, folder })
    }

    /// Opens only the text side and the configuration, for which no weights are needed.
    ///
    /// # Errors
    /// The errors of [`Base::open`], except those of the weights.
    pub fn open_text(path: &Path, overrides: Overrides) -> Result<(TextModel, ModelConfig)> {
        if is_embedded(path) {
            let (config, text) = embedded_text(overrides)?;
            return Ok((text, config));
        }
        let path = &*checkpoint_folder(from_hub::without_weights(path)?)?;
        let (text, config) = (TextModel::open(path)?, ModelConfig::open(path, overrides)?);
        check_tokens(&text, config.num_rows(), path)?;
        Ok((text, config))
    }

    /// Whether the files of a base hold f16 weights, which are converted into memory of their own.
    ///
    /// # Errors
    /// The errors of [`Base::open_text`].
    pub fn holds_halves(path: &Path, overrides: Overrides) -> Result<bool> {
        if is_embedded(path) {
            return Ok(false);
        }
        let path = &*checkpoint_folder(from_hub::without_weights(path)?)?;
        Ok(is_half(path, &ModelConfig::open(path, overrides)?))
    }

    /// Whether the files hold weights of f16.
    pub fn is_half(&self) -> bool {
        self.is_half
    }

    /// What f16 weights were converted to, as a sentence; `None` if there are none.
    pub fn told_of_halves(&self) -> Option<&'static str> {
        self.is_half.then_some(match self.overrides.rounds_halves {
            true => {
                "the F16 weights are rounded to bf16, which has 3 bits fewer, because the precision is bf16; f32 keeps them \
                 all"
            }
            false => "the F16 weights are widened to f32, which takes 4 bytes for each",
        })
    }

    /// The line that says what quantizing means for a base that is already stored in 4 bits; `None` for any other base, or if
    /// the base isn't to be quantized.
    pub fn told_of_quantizing(&self) -> Option<String> {
        let is_stored = self.config.field("quantization_config").is_some_and(|field| !field.is_null());
        (self.overrides.quantize.is_some() && is_stored)
            .then(|| format!("has no effect on the layers that {} stores in 4 bits", self.name))
    }

    /// Opens the text side and the configuration, and the network on the meta device, for which no weight is read.
    ///
    /// # Errors
    /// The errors of [`Base::open`], except those of missing weights.
    pub fn open_meta(path: &Path, overrides: Overrides) -> Result<(TextModel, ModelConfig, Transformer)> {
        match is_embedded(path) {
            true => {
                let (config, text) = embedded_text(overrides)?;
                let mut meta = checkpoint::meta_of(&config);
                overrides.quantize.into_iter().for_each(|quantization| meta.quantize(quantization));
                Ok((text, config, meta))
            }
            false => {
                let path = &*checkpoint_folder(from_hub::without_weights(path)?)?;
                let (text, (meta, config)) = (TextModel::open(path)?, checkpoint::load_meta(path, overrides)?);
                check_tokens(&text, meta.params[meta.embedding].weight.rows(), path)?;
                Ok((text, config, meta))
            }
        }
    }

    /// Saves the network with its current weights in a folder that loads wherever the base's own does: it has the same
    /// names and files, and config.json names `dtype`. Adapters aren't saved. An earlier folder is replaced.
    ///
    /// # Errors
    /// A file of the base that can't be read, or a file that can't be written; in either case nothing is left behind.
    pub fn save(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        let own = self.model.params.iter().filter(|p| !p.is_adapters());
        self.save_tensors(folder, dtype, own.map(|p| Tensor::of(p, dtype)).collect())
    }

    /// Saves a checkpoint like [`Base::save`], with the given tensors in place of the network's.
    ///
    /// # Errors
    /// The errors of [`Base::save`].
    pub fn save_tensors(&self, folder: &Path, dtype: Dtype, tensors: Vec<Tensor>) -> Result<()> {
        write_folder_whole(folder, |partial| {
            for (name, bytes) in self.companions()? {
                write_whole(&partial.join(name), &bytes)?;
            }
            write_tensors(&partial.join("model.safetensors"), tensors)?;
            write_whole(
                &partial.join("config.json"),
                self.config_json(Some(dtype), self.model.has_tied_head())?.as_bytes(),
            )
        })
    }

    /// The tensors of the checkpoint as they are stored.
    ///
    /// # Errors
    /// A file that has become missing or damaged.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        match &self.folder {
            Some(folder) => Checkpoint::open(folder),
            None => embedded_tensors(),
        }
    }

    /// The path and the text of config.json.
    fn config_text(&self) -> Result<(PathBuf, String)> {
        Ok(match &self.folder {
            Some(folder) => (folder.join("config.json"), read_text(&folder.join("config.json"))?),
            None => (PathBuf::from(EMBEDDED[0].0), String::from_utf8_lossy(EMBEDDED[0].1).into_owned()),
        })
    }

    /// The base's config.json for a checkpoint that is saved: with another dtype if one is given, with the head as it is now,
    /// and with what the user said against it. The text stays as it is if nothing changes.
    pub(crate) fn config_json(&self, dtype: Option<Dtype>, is_tied: bool) -> Result<String> {
        let (path, text) = self.config_text()?;
        let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
        let mut fields: Value = serde_json::from_str(&text).map_err(format)?;
        let original = fields.clone();
        if let Some(dtype) = dtype {
            let name = match dtype {
                Dtype::F32 => "float32",
                Dtype::Bf16 => "bfloat16",
            };
            // transformers 5 writes `dtype`, older versions `torch_dtype`; every version reads the second.
            let keys = ["dtype", "torch_dtype"].into_iter().filter(|key| fields.get(key).is_some()).collect::<Vec<_>>();
            for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
                fields[key] = Value::from(name);
            }
        }
        let tie_key = self.model.config.family.keys.tied;
        if fields.get(tie_key).and_then(Value::as_bool).unwrap_or(false) != is_tied {
            fields[tie_key] = Value::from(is_tied);
        }
        // What is saved is dequantized.
        fields.as_object_mut().and_then(|fields| fields.shift_remove("quantization_config"));
        if let Some(id) = self.overrides.mask_token_id {
            fields["mask_token_id"] = Value::from(id);
        }
        if let Some(shifted) = self.overrides.logits_shifted {
            fields["logits_shifted"] = Value::from(shifted);
        }
        if let Some(length) = self.model.config.block_length {
            let key = BLOCK_LENGTHS.into_iter().find(|key| fields.get(key).is_some_and(|own| !own.is_null()));
            let key = key.unwrap_or(BLOCK_LENGTHS[0]);
            if fields.get(key) != Some(&Value::from(length)) {
                fields[key] = Value::from(length);
            }
        }
        let is_changed = dtype.is_some() || fields != original;
        Ok(if is_changed { serde_json::to_string_pretty(&fields).expect("JSON values print") } else { text })
    }

    /// The configuration, with the facts that other files or the user add.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the first lines of a run say of the base.
    pub fn told(&self) -> String {
        let halves = self.told_of_halves().map(|told| format!("; {told}"));
        let quantization = self.model.quantization().map(|of| format!("; its linear layers are in {of}"));
        let told = self.config.told(self.model.has_tied_head());
        format!("{told}{}{}", halves.unwrap_or_default(), quantization.unwrap_or_default())
    }

    /// The other files of the base, as names and contents.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let Some(folder) = &self.folder else {
            return Ok(EMBEDDED[1..].iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect());
        };
        let read_error = |source| Error::Read { path: folder.clone(), source };
        let mut files = vec![];
        for entry in fs::read_dir(folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // An adapter in the base's folder took no part in the training.
            let is_own = ["config.json", "adapter_config.json"].contains(&&*name) || name.ends_with(".index.json");
            if path.is_file() && !is_own && is_companion(&name) {
                let bytes = fs::read(&path).map_err(|source| Error::Read { path, source })?;
                files.push((name, bytes));
            }
        }
        Ok(files)
    }
}

/// Whether a folder's weights are f16. If the weights aren't there yet, the dtype in config.json decides.
fn is_half(folder: &Path, config: &ModelConfig) -> bool {
    match Checkpoint::is_in(folder) {
        true => Checkpoint::open(folder).is_ok_and(|checkpoint| checkpoint.has_halves()),
        false => checkpoint::named_dtype(config) == Some("float16"),
    }
}

/// Accepts a folder that may be a checkpoint; the error says what it is instead.
fn checkpoint_folder(path: PathBuf) -> Result<PathBuf> {
    let has = |name: &str| path.join(name).exists();
    let reason = match has("config.json") {
        true => return Ok(path),
        false if path.is_file() => "it is a file; give a checkpoint's folder".to_owned(),
        false if has("checkpoint/config.json") => {
            format!("it is a run folder; its checkpoint is in {}", path.join("checkpoint").display())
        }
        false if has("adapter_config.json") => {
            let base = lora::named_base(&path).map(|base| format!(" ({base})")).unwrap_or_default();
            format!(
                "it is an adapter; give its base{base} as the model, and the adapter as --adapter (model.adapter in a recipe)"
            )
        }
        false if has("adapter/adapter_config.json") => {
            let adapter = path.join("adapter");
            format!(
                "it is a run folder, whose adapter is in {}; give its base as the model, and the adapter as --adapter \
                 (model.adapter in a recipe)",
                adapter.display()
            )
        }
        false => match from_hub::to_resume_from(&path) {
            Some(reason) => reason,
            None => return Ok(path),
        },
    };
    Err(Error::Config { path, reason })
}

/// Refuses a tokenizer with tokens for which the model has no row.
fn check_tokens(text: &TextModel, rows: usize, folder: &Path) -> Result<()> {
    let refuse = |reason: String| {
        let reason = format!("{reason}; use the model's own tokenizer");
        Err(Error::Config { path: folder.join("tokenizer.json"), reason })
    };
    match (text.vocab_size(), text.last_id()) {
        (tokens, _) if tokens > rows => refuse(format!("its {tokens} tokens are more than the model's {rows}")),
        (_, last) if last as usize >= rows => refuse(format!("its token {last} lies past the model's {rows}")),
        _ => Ok(()),
    }
}

/// Whether a path names the embedded base.
pub fn is_embedded(path: &Path) -> bool {
    path == Path::new(TINY_BASE) && !path.exists()
}

macro_rules! asset {
    ($file:literal) => {
        ($file, include_bytes!(concat!("../assets/tiny-base/", $file)))
    };
}

/// The embedded base's files except its weights, config.json first.
const EMBEDDED: [(&str, &[u8]); 3] = [asset!("config.json"), asset!("tokenizer.json"), asset!("tokenizer_config.json")];

fn embedded(overrides: Overrides) -> Result<((Transformer, ModelConfig), TextModel)> {
    let (config, text) = embedded_text(overrides)?;
    let mut model = checkpoint::assemble(&config, embedded_tensors()?)?;
    overrides.quantize.into_iter().for_each(|quantization| model.quantize(quantization));
    Ok(((model, config), text))
}

fn embedded_text(overrides: Overrides) -> Result<(ModelConfig, TextModel)> {
    let utf8 = |bytes: &'static [u8]| std::str::from_utf8(bytes).expect("the embedded texts are UTF-8");
    let [(_, config), (_, tokenizer), (_, tokenizer_config)] = EMBEDDED;
    let folder = Path::new(TINY_BASE);
    let files = TokenizerFiles::of(folder, |name| {
        let file = EMBEDDED.into_iter().find(|(own, _)| *own == name);
        Ok(file.map(|(_, bytes)| Cow::from(utf8(bytes))))
    })?;
    let config = ModelConfig::from_files(utf8(config), &folder.join("config.json"), &files, overrides)?;
    Ok((config, TextModel::from_bytes(tokenizer, utf8(tokenizer_config))?))
}

fn embedded_tensors() -> Result<Checkpoint> {
    let (_, weights) = asset!("model.safetensors");
    Checkpoint::from_bytes("tiny-base/model.safetensors", weights)
}
