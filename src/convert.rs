//! An autoregressive checkpoint of Llama's, Qwen2's or Qwen3's layout as a masked diffusion checkpoint: the same
//! weights under dLLM's `model_type`, with a mask token. `config` says which checkpoints can be converted, `mask_token` edits
//! the tokenizer's files, `rows` makes room for the token where the embedding has none, and `json_edit` keeps the rest
//! of each JSON file as it was.

mod config;
mod json_edit;
mod mask_token;
mod rows;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use config::Config;
use json_edit::{edit, get, set};
use mask_token::MaskToken;
use serde_json::json;

use crate::base::is_embedded;
use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::files::{read_text, write_folder_whole, write_whole};
use crate::merge::check_out;
use crate::model::from_hub;
use crate::model::weights::{Checkpoint, Held, INDEX, files};

/// The names that the embedding and the head have in all three layouts.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The endings of files that hold weights in other formats, or the weights of an adapter.
const OTHER_WEIGHTS: [&str; 10] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json"];

/// What a conversion did.
#[derive(Debug)]
pub struct Converted {
    /// `model_type` of the result.
    pub model_type: &'static str,
    /// The mask token.
    pub mask_token: String,
    /// Its id.
    pub mask_token_id: u32,
    /// Whether the tokenizer lacked it.
    pub is_mask_new: bool,
    /// Rows of the result's embedding.
    pub rows: usize,
    /// The matrices that have a row more than before; none if the embedding had a free one.
    pub extended: Vec<&'static str>,
    /// The files that differ from the source's.
    pub edited: BTreeSet<String>,
    /// The number of files that were copied unchanged.
    pub num_copied: usize,
    /// Their bytes.
    pub copied_bytes: u64,
    /// What was left out: folders, and weights in other formats.
    pub left_out: BTreeSet<String>,
}

/// A checkpoint that can be converted, and what will become of its files.
struct Source {
    folder: PathBuf,
    config: Config,
    mask: MaskToken,
    /// Rows of the embedding.
    rows: usize,
    /// The matrices that get a row.
    extended: Vec<TokenMatrix>,
}

/// A matrix with a row per token.
struct TokenMatrix {
    name: &'static str,
    /// Numbers and bytes of a row.
    cols: usize,
    row_bytes: usize,
}

impl TokenMatrix {
    fn of(name: &'static str, matrix: &Held) -> Self {
        Self { name, cols: matrix.cols(), row_bytes: matrix.cols() * matrix.format().size() }
    }
}

/// Writes the checkpoint `model`, a folder or an id of the hub, as a diffusion checkpoint into the folder `out`, which
/// appears complete or not at all. Files that don't have to change are copied byte for byte.
///
/// # Errors
/// A folder `out` that isn't empty; a checkpoint of another kind, or with a setting that the result couldn't have, by
/// its name; a file that is missing, damaged or can't be written.
pub fn convert(model: &Path, out: &Path) -> Result<Converted> {
    check_out(out)?;
    let source = Source::open(model)?;
    let mut converted = Converted {
        model_type: source.config.to.model_type,
        mask_token: source.mask.content.clone(),
        mask_token_id: source.mask.id,
        is_mask_new: source.mask.is_new,
        rows: source.new_rows(),
        extended: source.extended.iter().map(|matrix| matrix.name).collect(),
        edited: BTreeSet::new(),
        num_copied: 0,
        copied_bytes: 0,
        left_out: BTreeSet::new(),
    };
    let files = source.list(&mut converted.left_out)?;
    write_folder_whole(out, |partial| {
        source.write_edited(partial, &mut converted.edited)?;
        for name in files.iter().filter(|name| !partial.join(name).exists()) {
            let (from, to) = (source.folder.join(name), partial.join(name));
            converted.copied_bytes += fs::copy(from, &to).map_err(|source| Error::Write { path: to, source })?;
            converted.num_copied += 1;
        }
        source.mask.check(partial, &source.folder)?;
        // Another process may have written to the folder in the meantime.
        check_out(out)
    })?;
    Ok(converted)
}

impl Source {
    fn open(model: &Path) -> Result<Self> {
        if is_embedded(model) {
            let reason = "it is already a diffusion checkpoint; give it to weft train";
            return Err(Error::Usage(format!("{}: {reason}", model.display())));
        }
        // A checkpoint that can't be converted is refused before its weights are downloaded.
        let config = Config::open(&from_hub::without_weights(model)?)?;
        let folder = from_hub::checkpoint(model)?;
        let mask = MaskToken::find(&folder, &TextModel::open(&folder)?)?;
        if let Some(id) = config.number("mask_token_id").filter(|id| *id != u64::from(mask.id)) {
            let (name, path) = (&mask.content, config.path().to_owned());
            let reason = format!(
                "mask_token_id {id} is not the tokenizer's mask token {name:?}, which is {}; remove one of the two",
                mask.id
            );
            return Err(Error::Config { path, reason });
        }
        let (rows, matrices) = matrices(&folder, &config)?;
        let missing = (mask.id as usize + 1).saturating_sub(rows);
        if missing > 1 {
            let reason = format!(
                "the mask token's id {} lies past the model's {rows} rows by more than one; use the model's own \
                 tokenizer",
                mask.id
            );
            return Err(Error::Config { path: folder.join("tokenizer.json"), reason });
        }
        let extended = if missing == 1 { matrices } else { vec![] };
        Ok(Self { folder, config, mask, rows, extended })
    }

    fn new_rows(&self) -> usize {
        self.rows + usize::from(!self.extended.is_empty())
    }

    /// The folder's files that belong to the result; what doesn't is added to `left_out`.
    fn list(&self, left_out: &mut BTreeSet<String>) -> Result<Vec<String>> {
        let read_error = |source| Error::Read { path: self.folder.clone(), source };
        let weights = files(&self.folder)?;
        let mut listed = vec![];
        for entry in fs::read_dir(&self.folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_other = OTHER_WEIGHTS.iter().any(|end| name.ends_with(end)) || name == "adapter_config.json";
            match path.is_file() && (weights.contains(&name) || name == INDEX || !is_other) {
                true => listed.push(name),
                false => _ = left_out.insert(name),
            }
        }
        Ok(listed)
    }

    /// Writes every file that changes, and adds its name to `edited`.
    fn write_edited(&self, partial: &Path, edited: &mut BTreeSet<String>) -> Result<()> {
        let mut texts = self.mask.edits(&self.folder)?;
        texts.push(("config.json", self.config.converted(self.mask.id, self.new_rows())?));
        if !self.extended.is_empty() {
            let names: Vec<&str> = self.extended.iter().map(|matrix| matrix.name).collect();
            for file in files(&self.folder)? {
                let (from, to) = (self.folder.join(&file), partial.join(&file));
                if rows::holds(&from, &names)? {
                    rows::add_row(&from, &to, &names)?;
                    edited.insert(file);
                }
            }
            texts.extend(self.index()?.map(|text| (INDEX, text)));
        }
        for (name, text) in texts {
            write_whole(&partial.join(name), text.as_bytes())?;
            edited.insert(name.to_owned());
        }
        Ok(())
    }

    /// The index of shards with the sizes that it has with the added rows; `None` if there is no index.
    fn index(&self) -> Result<Option<String>> {
        let path = self.folder.join(INDEX);
        if !path.exists() {
            return Ok(None);
        }
        let bytes: usize = self.extended.iter().map(|matrix| matrix.row_bytes).sum();
        let numbers: usize = self.extended.iter().map(|matrix| matrix.cols).sum();
        let metadata = |text: &str| {
            let mut text = text.to_owned();
            for (key, more) in [("total_size", bytes), ("total_parameters", numbers)] {
                if let Some(total) = get(&text, key)?.and_then(|total| total.parse::<u64>().ok()) {
                    text = set(&text, key, &json!(total + more as u64))?;
                }
            }
            Ok(text)
        };
        let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
        edit(&read_text(&path)?, "metadata", metadata).map(Some).map_err(format)
    }
}

/// The rows of the embedding, and the matrices that have a row per token: the embedding, and the head if the checkpoint
/// has one. Every file of the weights is opened, so that a damaged one is found before anything is written.
fn matrices(folder: &Path, config: &Config) -> Result<(usize, Vec<TokenMatrix>)> {
    if let Some(file) = files(folder)?.iter().find(|file| file.contains('/')) {
        let reason = format!("the shard {file:?} lies in a folder of its own; put all files into one folder");
        return Err(Error::Config { path: folder.join(INDEX), reason });
    }
    let checkpoint = Checkpoint::open(folder)?;
    let error = |name: &str, reason: String| Error::Tensor { name: name.to_owned(), folder: folder.to_owned(), reason };
    let tensors = checkpoint.tensors();
    let find = |name: &str| tensors.iter().find(|(found, ..)| *found == name).filter(|(_, shape, _)| shape.len() == 2);
    let Some((_, _, embedding)) = find(EMBEDDING) else { return Err(error(EMBEDDING, "missing".to_owned())) };
    if config.number("vocab_size") != Some(embedding.rows() as u64) {
        let expected = config.number("vocab_size").map_or("none".to_owned(), |rows| rows.to_string());
        return Err(error(EMBEDDING, format!("it has {} rows, and vocab_size is {expected}", embedding.rows())));
    }
    let mut matrices = vec![TokenMatrix::of(EMBEDDING, embedding)];
    match find(HEAD) {
        Some((_, _, head)) if (head.rows(), head.cols()) != (embedding.rows(), embedding.cols()) => {
            let expected = [embedding.rows(), embedding.cols()];
            return Err(error(HEAD, format!("expected {expected:?}, got {:?}", [head.rows(), head.cols()])));
        }
        Some((_, _, head)) => matrices.push(TokenMatrix::of(HEAD, head)),
        None if config.is_tied() => {}
        None => return Err(error(HEAD, "missing, and tie_word_embeddings isn't true".to_owned())),
    }
    Ok((embedding.rows(), matrices))
}
