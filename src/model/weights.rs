//! A checkpoint folder's tensors by name, memory-mapped from a single or sharded safetensors file; and writing such
//! files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{SafeTensorError, SafeTensors, View};
use serde::Deserialize;
use weft_kernels::lora_linear::{self, Lora};
use weft_kernels::nf4::Bytes;
use weft_kernels::weight::{Dtype, MappedFile, Weight};

use super::bitsandbytes::{self, Part, is_part};
use super::block::Param;
use super::foreign;
use crate::error::{Error, Result};
use crate::files::stand_in::{cannot_open, check_bytes};
use crate::files::{read_text, write_whole_by};

/// The tensors of a checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    tensors: HashMap<String, (Vec<usize>, Weight)>,
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
    pub fn is_in(folder: &Path) -> bool {
        files(folder).is_ok_and(|files| files.iter().all(|file| folder.join(file).exists()))
    }

    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// A file that is missing, pickled, damaged, outside the folder, or of a dtype other than f32 and bf16; a tensor in two
    /// files, or in a file other than the one that the index names.
    pub fn open(folder: &Path) -> Result<Self> {
        let Some(index) = index(folder)? else { return Self::open_file(folder, SINGLE) };
        let mut all = Mapped::default();
        for file in index.values().collect::<BTreeSet<_>>() {
            let path = folder.join(file);
            let mut shard = Mapped::default();
            map_file(&path, &mut shard, Halves::Refused)?;
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

    /// Maps one file of a folder.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    pub fn open_file(folder: &Path, file: &str) -> Result<Self> {
        let mut mapped = Mapped::default();
        map_file(&folder.join(file), &mut mapped, Halves::Refused)?;
        mapped.checkpoint(folder)
    }

    /// Maps one file of a folder like [`Checkpoint::open_file`]; tensors of f16 are widened to f32.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], except for tensors of f16.
    pub(super) fn open_widened(folder: &Path, file: &str) -> Result<Self> {
        let mut mapped = Mapped::default();
        map_file(&folder.join(file), &mut mapped, Halves::Widened)?;
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
            tensors.insert(name, (shape, Weight::from_bytes(rows, cols, dtype, data)));
            Ok(())
        })?;
        Ok(Self { folder: path.to_owned(), tensors })
    }

    /// The names of the tensors that haven't been taken.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether any tensor is quantised.
    pub(super) fn has_quantized(&self) -> bool {
        self.tensors.values().any(|(_, weight)| weight.is_quantized())
    }

    /// Puts quantised tensors in the place of those with the same names. Returns false, and changes nothing, if there are
    /// others or their shapes differ.
    pub(super) fn replace(&mut self, quantized: Self) -> bool {
        let fits = |(name, (shape, _)): (&String, &(Vec<usize>, Weight))| {
            self.tensors.get(name).is_some_and(|(own, _)| own == shape)
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
        Some(a_shape == b_shape && have_equal_numbers(a, b))
    }

    /// Whether a tensor holds the numbers of a weight.
    pub(super) fn equals(&self, name: &str, weight: &Weight) -> bool {
        self.tensors.get(name).is_some_and(|(_, own)| have_equal_numbers(own, weight))
    }

    /// The shape of a tensor that hasn't been taken.
    pub(super) fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| shape.as_slice())
    }

    /// Every tensor that hasn't been taken, ordered by name, with its shape.
    pub fn tensors(&self) -> Vec<(&str, &[usize], &Weight)> {
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
        let error = |reason: String| Error::Tensor { name: name.to_owned(), folder: self.folder.clone(), reason };
        match self.tensors.remove(name) {
            None if self.rest().any(|other| other.contains(COMPILED)) => Err(error(format!(
                "missing, and others' names hold {COMPILED}, as those of a model that torch.compile wrapped; save what it \
                 wraps: model._orig_mod.save_pretrained(DIR)"
            ))),
            None => Err(error("missing".to_owned())),
            Some((found, _)) if found != shape => Err(error(format!("expected {shape:?}, got {found:?}"))),
            Some((_, weight)) => Ok(weight),
        }
    }
}

fn have_equal_numbers(a: &Weight, b: &Weight) -> bool {
    let is_of_size = (a.rows(), a.cols()) == (b.rows(), b.cols());
    is_of_size && (0..a.rows()).all(|row| a.rows_f32(row..row + 1) == b.rows_f32(row..row + 1))
}

/// A tensor to be written; its bytes are made at that moment, one tensor after the other.
pub struct Tensor<'a> {
    name: Cow<'a, str>,
    shape: Vec<usize>,
    dtype: Dtype,
    numbers: Numbers<'a>,
}

enum Numbers<'a> {
    Plain(&'a [f32]),
    Weight(&'a Weight),
    Merged(&'a Weight, Lora<'a>),
    Made(Make<'a>),
}

/// Makes a tensor's numbers when it is written.
pub type Make<'a> = Box<dyn Fn() -> Cow<'a, [f32]> + 'a>;

impl<'a> Tensor<'a> {
    /// A parameter, rounded to nearest where `dtype` is bf16.
    pub fn of(param: &'a Param, dtype: Dtype) -> Self {
        Self {
            name: Cow::from(&param.name),
            shape: param.shape.clone(),
            dtype,
            numbers: Numbers::Weight(&param.weight),
        }
    }

    /// A weight, merged with its adapter if it has one, in the given dtype.
    pub fn merged(name: &'a str, shape: &[usize], weight: &'a Weight, lora: Option<Lora<'a>>, dtype: Dtype) -> Self {
        let numbers = lora.map_or(Numbers::Weight(weight), |lora| Numbers::Merged(weight, lora));
        Self { name: name.into(), shape: shape.to_vec(), dtype, numbers }
    }

    /// Numbers that `make` produces when they are written: once, in the order of the tensors' names.
    pub fn made(name: Cow<'a, str>, shape: &[usize], dtype: Dtype, make: Make<'a>) -> Self {
        Self { name, shape: shape.to_vec(), dtype, numbers: Numbers::Made(make) }
    }

    /// A tensor of f32 numbers.
    pub fn f32(name: &'a str, shape: Vec<usize>, numbers: &'a [f32]) -> Self {
        Self { name: name.into(), shape, dtype: Dtype::F32, numbers: Numbers::Plain(numbers) }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = match &self.numbers {
            Numbers::Plain(numbers) => Cow::Borrowed(*numbers),
            Numbers::Weight(weight) => weight.to_f32(),
            Numbers::Merged(weight, lora) => lora_linear::merged(weight, lora).into(),
            Numbers::Made(make) => make(),
        };
        Cow::Owned(match self.dtype {
            Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::Bf16 => weft_kernels::weight::to_bf16_bytes(&numbers),
        })
    }

    fn data_len(&self) -> usize {
        self.dtype.size() * self.shape.iter().product::<usize>()
    }
}

/// Writes a safetensors file, complete or not at all.
///
/// # Errors
/// A file that can't be written.
pub fn write_tensors(path: &Path, tensors: Vec<Tensor>) -> Result<()> {
    // transformers refuses a file whose metadata doesn't name the format.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.into_iter().map(|t| (t.name.clone(), t));
    write_whole_by(path, |partial| {
        safetensors::serialize_to_file(views, Some(metadata), partial).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    })
}

/// Makes and drops the numbers that are otherwise made while they are written. The other ranks that
/// hold parts of the tensors call this while one rank writes them.
pub fn make_in_order(mut tensors: Vec<Tensor>) {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in tensors {
        if let Numbers::Made(make) = tensor.numbers {
            make();
        }
    }
}

/// What is done with tensors of f16, in which nothing is computed.
#[derive(Clone, Copy, PartialEq)]
enum Halves {
    Refused,
    Widened,
}

/// The tensors of mapped files, and the parts of quantised ones, which may lie in several files.
#[derive(Default)]
struct Mapped {
    tensors: HashMap<String, (Vec<usize>, Weight)>,
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
        Ok(Checkpoint { folder: folder.to_owned(), tensors: self.tensors })
    }
}

fn map_file(path: &Path, mapped: &mut Mapped, halves: Halves) -> Result<()> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file =
        File::open(path).map_err(|source| foreign::pickled(path).unwrap_or_else(|| cannot_open(path, source)))?;
    let file = MappedFile::open(&file).map_err(read)?;
    for_each_tensor(path, file.bytes(), |name, shape, [rows, cols], dtype, data| {
        let start = data.as_ptr() as usize - file.bytes().as_ptr() as usize;
        let range = start..start + data.len();
        let weight = match dtype {
            Stored::As(dtype) => Weight::mapped(rows, cols, dtype, file.clone(), range),
            Stored::Part(dtype) => {
                let bytes = Bytes::Mapped(file.clone(), range);
                mapped.parts.insert(name, Part { path: path.to_owned(), dtype, bytes });
                return Ok(());
            }
            Stored::F16 if halves == Halves::Widened => Weight::from_f32(rows, cols, foreign::widened(data)),
            Stored::F16 => return Err(foreign::refused(path, &name, safetensors::Dtype::F16)),
        };
        mapped.tensors.insert(name, (shape, weight));
        Ok(())
    })
}

/// How a tensor is stored.
#[derive(Clone, Copy)]
enum Stored {
    As(Dtype),
    F16,
    /// As a part of a quantised weight.
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
