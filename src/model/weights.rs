//! A checkpoint folder's tensors by name: single or sharded safetensors, memory-mapped.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::SafeTensors;
use serde::Deserialize;
use weft_kernels::weight::{Dtype, MappedFile, Weight};

use crate::error::{Error, Result};

/// The tensors of a checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    tensors: HashMap<String, (Vec<usize>, Weight)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file that is missing, damaged, outside the folder, or of a dtype other than f32 and bf16.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        let files: BTreeSet<String> = if index.exists() {
            let parsed: Index = serde_json::from_str(&read_text(&index)?)
                .map_err(|e| Error::Format { path: index.clone(), reason: e.to_string() })?;
            parsed.weight_map.into_values().collect()
        } else {
            BTreeSet::from(["model.safetensors".to_owned()])
        };
        let mut tensors = HashMap::new();
        for file in files {
            let inside = Path::new(&file).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                let reason = format!("the shard {file:?} lies outside the folder");
                return Err(Error::Format { path: index, reason });
            }
            map_file(&folder.join(file), &mut tensors)?;
        }
        Ok(Self { folder: folder.to_owned(), tensors })
    }

    /// Maps one file of a folder.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(folder: &Path, file: &str) -> Result<Self> {
        let mut tensors = HashMap::new();
        map_file(&folder.join(file), &mut tensors)?;
        Ok(Self { folder: folder.to_owned(), tensors })
    }

    /// Takes a tensor of a known shape; a vector becomes a matrix of one row.
    ///
    /// # Errors
    /// A name that isn't there, or another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let error = |reason: String| Error::Tensor { name: name.to_owned(), folder: self.folder.clone(), reason };
        match self.tensors.remove(name) {
            None => Err(error("missing".to_owned())),
            Some((found, _)) if found != shape => Err(error(format!("expected {shape:?}, got {found:?}"))),
            Some((_, weight)) => Ok(weight),
        }
    }
}

/// Reads a small text file.
///
/// # Errors
/// What the operating system answers.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn map_file(path: &Path, tensors: &mut HashMap<String, (Vec<usize>, Weight)>) -> Result<()> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let file = MappedFile::open(&File::open(path).map_err(read)?).map_err(read)?;
    let parsed = SafeTensors::deserialize(file.bytes()).map_err(|e| format(e.to_string()))?;
    for (name, view) in parsed.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => return Err(format(format!("{name} is stored as {other:?}, Weft reads F32 and BF16"))),
        };
        let shape = view.shape().to_vec();
        let (rows, cols) = match shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(format(format!("{name} has shape {shape:?}, expected one or two sizes"))),
        };
        let start = view.data().as_ptr() as usize - file.bytes().as_ptr() as usize;
        let weight = Weight::mapped(rows, cols, dtype, file.clone(), start..start + view.data().len());
        tensors.insert(name, (shape, weight));
    }
    Ok(())
}
