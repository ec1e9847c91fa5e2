//! A checkpoint folder's tensors by name, memory-mapped from a single or sharded safetensors file. `tensor_file` writes
//! such files, and `halves` converts f16.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::SafeTensors;
use serde::Deserialize;
use weft_kernels::nf4::Bytes;
use weft_kernels::weight::{Dtype, MappedFile, Weight, to_bf16_bytes};

use super::bitsandbytes::{self, Part, is_part};
pub(crate) use super::tensor_file::{Format, Tensor, make_in_order, write_tensors};
use super::{foreign, halves};
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::files::stand_in::{cannot_open, check_bytes};

/// The tensors of a checkpoint.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    tensors: HashMap<String, (Vec<usize>, Held)>,
    halves: Halves,
}

/// What f16 tensors are converted to when they are read, since nothing is computed in f16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Halves {
    /// They are widened to f32, which represents their numbers exactly.
    #[default]
    Widened,
    /// They are rounded to bf16, which has three bits fewer.
    Rounded,
    /// They become f32 weights on the meta device, without a number being read.
    Meta,
    /// They become bf16 weights on the meta device.
    RoundedMeta,
}

/// A tensor of a checkpoint, as it is stored.
#[derive(Clone, Debug)]
pub enum Held {
    /// An f32 or bf16 tensor.
    Weight(Weight),
    /// An f16 tensor, in its mapped file.
    Half {
        /// The file.
        file: MappedFile,
        /// The bytes of the numbers in the file.
        bytes: Range<usize>,
        /// The rows and columns of the matrix.
        size: [usize; 2],
    },
}

impl Held {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Weight(weight) => weight.rows(),
            Self::Half { size, .. } => size[0],
        }
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Weight(weight) => weight.cols(),
            Self::Half { size, .. } => size[1],
        }
    }

    /// The number format in which it is stored.
    pub fn format(&self) -> Format {
        match self {
            Self::Weight(weight) => weight.dtype().into(),
            Self::Half { .. } => Format::F16,
        }
    }

    /// Its numbers as a weight; f16 is widened to f32.
    pub(crate) fn to_weight(&self) -> Cow<'_, Weight> {
        match self {
            Self::Weight(weight) => Cow::Borrowed(weight),
            Self::Half { .. } => Cow::Owned(self.clone().into_weight(Halves::Widened)),
        }
    }

    fn is_quantized(&self) -> bool {
        matches!(self, Self::Weight(weight) if weight.is_quantized())
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Half { file, bytes, size }, Self::Half { file: other, bytes: of_other, size: its_size }) => {
                size == its_size && file.bytes()[bytes.clone()] == other.bytes()[of_other.clone()]
            }
            _ => have_equal_numbers(&self.to_weight(), &other.to_weight()),
        }
    }

    fn into_weight(self, halves: Halves) -> Weight {
        let (file, bytes, [rows, cols]) = match self {
            Self::Weight(weight) => return weight,
            Self::Half { file, bytes, size } => (file, bytes, size),
        };
        let widened = || halves::widened(&file.bytes()[bytes.clone()]);
        match halves {
            Halves::Widened => Weight::from_f32(rows, cols, widened()),
            Halves::Rounded => Weight::from_bytes(rows, cols, Dtype::Bf16, &to_bf16_bytes(&widened())),
            Halves::Meta => Weight::meta(rows, cols, Dtype::F32),
            Halves::RoundedMeta => Weight::meta(rows, cols, Dtype::Bf16),
        }
    }
}

/// The file that holds all tensors if there is only one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The file that lists the shards if there are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// What torch.compile puts into the names of the tensors of a model that it wraps.
pub(super) const COMPILED: &str = "_orig_mod.";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The file that holds each tensor according to the index, by the tensor's name; `None` if there is no index.
fn index(folder: &Path) -> Result<Option<BTreeMap<String, String>>> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return Ok(None);
    }
    let format = |reason: String| Error::Format { path: index.clone(), reason };
    let parsed: Index = serde_json::from_str(&read_text(&index)?).map_err(|e| format(e.to_string()))?;
    let is_outside = |file: &&String| !Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
    match parsed.weight_map.values().find(is_outside) {
        Some(file) => Err(format(format!("the shard {file:?} lies outside the folder"))),
        None => Ok(Some(parsed.weight_map)),
    }
}

/// The names of the files of a checkpoint's tensors; the files themselves may be missing.
pub(crate) fn files(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(index(folder)?.map_or_else(|| BTreeSet::from([SINGLE.to_owned()]), |map| map.into_values().collect()))
}

impl Checkpoint {
    /// Whether a folder has all of its weights.
    pub(crate) fn is_in(folder: &Path) -> bool {
        files(folder).is_ok_and(|files| files.iter().all(|file| folder.join(file).exists()))
    }

    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// A file that is missing, pickled, damaged, outside the folder, or of a dtype other than f32, bf16 and f16; a tensor
    /// in two files, or in a file other than the one that the index names.
    pub fn open(folder: &Path) -> Result<Self> {
        let Some(index) = index(folder)? else { return Self::open_file(folder, SINGLE) };
        let mut all = Mapped::default();
        for file in index.values().collect::<BTreeSet<_>>() {
            let path = folder.join(file);
            let mut shard = Mapped::default();
            map_file(&path, &mut shard)?;
            if let Some((name, _)) = index.iter().find(|(name, of)| *of == file && !shard.has(name)) {
                let reason = format!("{name} isn't in {file}, although the index says so");
                return Err(Error::Format { path: folder.join(INDEX), reason });
            }
            if let Some(name) = shard.names().filter(|name| all.has(name)).min() {
                return Err(Error::Format { path, reason: format!("{name} is in another shard too") });
            }
            all.tensors.extend(shard.tensors);
            all.parts.extend(shard.parts);
        }
        all.checkpoint(folder)
    }

    /// The checkpoint, with another conversion of its f16 tensors.
    pub(crate) fn with_halves(self, halves: Halves) -> Self {
        Self { halves, ..self }
    }

    /// Whether a tensor is f16.
    pub(crate) fn has_halves(&self) -> bool {
        self.tensors.values().any(|(_, held)| held.format() == Format::F16)
    }

    /// Maps one file of a folder.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    pub(crate) fn open_file(folder: &Path, file: &str) -> Result<Self> {
        let mut mapped = Mapped::default();
        map_file(&folder.join(file), &mut mapped)?;
        mapped.checkpoint(folder)
    }

    /// Copies the tensors of a file that is embedded in the program.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let path = Path::new(name);
        let mut tensors = HashMap::new();
        for_each_tensor(path, bytes, |name, shape, [rows, cols], dtype, data| {
            let dtype = match dtype {
                Stored::As(dtype) => dtype,
                Stored::F16 => return Err(foreign::refused(path, &name, safetensors::Dtype::F16)),
                Stored::Part(dtype) => return Err(foreign::refused(path, &name, dtype)),
            };
            tensors.insert(name, (shape, Held::Weight(Weight::from_bytes(rows, cols, dtype, data))));
            Ok(())
        })?;
        Ok(Self { folder: path.to_owned(), tensors, halves: Halves::default() })
    }

    /// The names of the tensors that haven't been taken.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether any tensor is quantized.
    pub(super) fn has_quantized(&self) -> bool {
        self.tensors.values().any(|(_, held)| held.is_quantized())
    }

    /// Puts quantized tensors in the place of those with the same names. Returns false, and changes nothing, if there are
    /// others or their shapes differ.
    pub(super) fn replace(&mut self, quantized: Self) -> bool {
        let fits = |(name, (shape, held)): (&String, &(Vec<usize>, Held))| {
            held.is_quantized() && self.tensors.get(name).is_some_and(|(own, _)| own == shape)
        };
        let fit = !quantized.tensors.is_empty() && quantized.tensors.iter().all(fits);
        if fit {
            self.tensors.extend(quantized.tensors);
        }
        fit
    }

    /// Whether two tensors hold the same numbers; `None` if either isn't there.
    pub(crate) fn are_equal(&self, a: &str, b: &str) -> Option<bool> {
        let [(a_shape, a), (b_shape, b)] = [self.tensors.get(a)?, self.tensors.get(b)?];
        Some(a_shape == b_shape && a.equals(b))
    }

    /// Whether a tensor holds the numbers of a weight.
    pub(super) fn equals(&self, name: &str, weight: &Weight) -> bool {
        self.tensors.get(name).is_some_and(|(_, own)| have_equal_numbers(&own.to_weight(), weight))
    }

    /// The shape of a tensor that hasn't been taken.
    pub(super) fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| shape.as_slice())
    }

    /// Every tensor that hasn't been taken, ordered by name, with its shape.
    pub fn tensors(&self) -> Vec<(&str, &[usize], &Held)> {
        let mut tensors: Vec<_> =
            self.tensors.iter().map(|(n, (shape, w))| (n.as_str(), shape.as_slice(), w)).collect();
        tensors.sort_by_key(|(name, ..)| *name);
        tensors
    }

    /// The error for a tensor that can't be used.
    pub(super) fn wrong(&self, name: &str, reason: &str) -> Error {
        Error::Tensor { name: name.to_owned(), folder: self.folder.clone(), reason: reason.to_owned() }
    }

    /// Takes a tensor of a given shape; a vector becomes a matrix of one row.
    ///
    /// # Errors
    /// A name that isn't there, or a tensor of another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.take_as(name, shape, self.halves)
    }

    /// Takes a tensor like [`Checkpoint::take`], with the given conversion if it is f16.
    ///
    /// # Errors
    /// Those of [`Checkpoint::take`].
    pub(super) fn take_as(&mut self, name: &str, shape: &[usize], halves: Halves) -> Result<Weight> {
        let error = |reason: String| Error::Tensor { name: name.to_owned(), folder: self.folder.clone(), reason };
        match self.tensors.remove(name) {
            None if self.rest().any(|other| other.contains(COMPILED)) => Err(error(format!(
                "missing, and others' names hold {COMPILED}, as those of a model that torch.compile wrapped; save what it \
                 wraps: model._orig_mod.save_pretrained(DIR)"
            ))),
            None => Err(error("missing".to_owned())),
            Some((found, _)) if found != shape => Err(error(format!("expected {shape:?}, got {found:?}"))),
            Some((_, held)) => Ok(held.into_weight(halves)),
        }
    }
}

fn have_equal_numbers(a: &Weight, b: &Weight) -> bool {
    let is_of_size = (a.rows(), a.cols()) == (b.rows(), b.cols());
    is_of_size && (0..a.rows()).all(|row| a.rows_f32(row..row + 1) == b.rows_f32(row..row + 1))
}

/// The tensors of mapped files, and the parts of quantized ones, which may lie in several files.
#[derive(Default)]
struct Mapped {
    tensors: HashMap<String, (Vec<usize>, Held)>,
    parts: HashMap<String, Part>,
}

impl Mapped {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys().chain(self.parts.keys())
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.parts.contains_key(name)
    }

    fn checkpoint(mut self, folder: &Path) -> Result<Checkpoint> {
        bitsandbytes::assemble(self.parts, &mut self.tensors)?;
        Ok(Checkpoint { folder: folder.to_owned(), tensors: self.tensors, halves: Halves::default() })
    }
}

fn map_file(path: &Path, mapped: &mut Mapped) -> Result<()> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file =
        File::open(path).map_err(|source| foreign::pickled(path).unwrap_or_else(|| cannot_open(path, source)))?;
    let file = MappedFile::open(&file).map_err(read)?;
    for_each_tensor(path, file.bytes(), |name, shape, [rows, cols], dtype, data| {
        let start = data.as_ptr() as usize - file.bytes().as_ptr() as usize;
        let (file, bytes) = (file.clone(), start..start + data.len());
        let held = match dtype {
            Stored::As(dtype) => Held::Weight(Weight::mapped(rows, cols, dtype, file, bytes)),
            Stored::F16 => Held::Half { file, bytes, size: [rows, cols] },
            Stored::Part(dtype) => {
                let bytes = Bytes::Mapped(file, bytes);
                mapped.parts.insert(name, Part { path: path.to_owned(), dtype, bytes });
                return Ok(());
            }
        };
        mapped.tensors.insert(name, (shape, held));
        Ok(())
    })
}

/// How a tensor is stored.
#[derive(Clone, Copy)]
enum Stored {
    As(Dtype),
    F16,
    /// As a part of a quantized weight.
    Part(safetensors::Dtype),
}

/// Calls `f(name, shape, [rows, cols], dtype, bytes)` for each tensor of a safetensors file, in the order of their names.
fn for_each_tensor(
    path: &Path,
    bytes: &[u8],
    mut f: impl FnMut(String, Vec<usize>, [usize; 2], Stored, &[u8]) -> Result<()>,
) -> Result<()> {
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    check_bytes(path, bytes)?;
    let parsed = SafeTensors::deserialize(bytes)
        .map_err(|e| format(foreign::cut_short(bytes).unwrap_or_else(|| e.to_string())))?;
    let mut tensors = parsed.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, view) in tensors {
        let dtype = match view.dtype() {
            dtype if is_part(&name, dtype) => Stored::Part(dtype),
            safetensors::Dtype::F32 => Stored::As(Dtype::F32),
            safetensors::Dtype::BF16 => Stored::As(Dtype::Bf16),
            safetensors::Dtype::F16 => Stored::F16,
            other => return Err(foreign::refused(path, &name, other)),
        };
        let shape = view.shape().to_vec();
        let size = match shape[..] {
            [cols] => [1, cols],
            [rows, cols] => [rows, cols],
            _ => return Err(format(format!("{name} has shape {shape:?}, expected one or two sizes"))),
        };
        f(name, shape, size, dtype, view.data())?;
    }
    Ok(())
}
