//! Writes safetensors files. The bytes of each tensor are produced only when it is written, one tensor after the other.
//! `weights` reads such files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{SafeTensorError, View};
use weft_kernels::lora_linear::{self, Lora};
use weft_kernels::weight::{Dtype, Weight};

use super::block::Param;
use super::halves;
use crate::error::Result;
use crate::files::write_whole_by;

/// A number format of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE's single precision: 4 bytes.
    F32,
    /// bfloat16: 2 bytes, with the exponents of f32.
    Bf16,
    /// IEEE's half precision: 2 bytes. Nothing is computed in it.
    F16,
}

impl Format {
    /// The size of a number in bytes.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// A tensor to be written; its bytes are produced when it is written.
pub struct Tensor<'a> {
    name: Cow<'a, str>,
    shape: Vec<usize>,
    dtype: Format,
    numbers: Numbers<'a>,
}

enum Numbers<'a> {
    Plain(&'a [f32]),
    Weight(&'a Weight),
    Merged(&'a Weight, Lora<'a>),
    Made(Make<'a>),
}

/// Produces a tensor's numbers when it is written.
pub type Make<'a> = Box<dyn Fn() -> Cow<'a, [f32]> + 'a>;

impl<'a> Tensor<'a> {
    /// A parameter, rounded to nearest where `dtype` is bf16.
    pub fn of(param: &'a Param, dtype: Dtype) -> Self {
        Self {
            name: Cow::from(&param.name),
            shape: param.shape.clone(),
            dtype: dtype.into(),
            numbers: Numbers::Weight(&param.weight),
        }
    }

    /// A weight, merged with its adapter if it has one, in the given dtype.
    pub fn merged(
        name: &'a str,
        shape: &[usize],
        weight: &'a Weight,
        lora: Option<Lora<'a>>,
        dtype: impl Into<Format>,
    ) -> Self {
        let numbers = lora.map_or(Numbers::Weight(weight), |lora| Numbers::Merged(weight, lora));
        Self { name: name.into(), shape: shape.to_vec(), dtype: dtype.into(), numbers }
    }

    /// A tensor whose numbers `make` produces when it is written. Each `make` is called once, in the order of the tensors'
    /// names.
    pub fn made(name: Cow<'a, str>, shape: &[usize], dtype: impl Into<Format>, make: Make<'a>) -> Self {
        Self { name, shape: shape.to_vec(), dtype: dtype.into(), numbers: Numbers::Made(make) }
    }

    /// An f32 tensor.
    pub fn f32(name: &'a str, shape: Vec<usize>, numbers: &'a [f32]) -> Self {
        Self { name: name.into(), shape, dtype: Format::F32, numbers: Numbers::Plain(numbers) }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Format::F32 => safetensors::Dtype::F32,
            Format::Bf16 => safetensors::Dtype::BF16,
            Format::F16 => safetensors::Dtype::F16,
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
            Format::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Format::Bf16 => weft_kernels::weight::to_bf16_bytes(&numbers),
            Format::F16 => halves::narrowed(&numbers),
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
pub(crate) fn write_tensors(path: &Path, tensors: Vec<Tensor>) -> Result<()> {
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

/// Produces the numbers as writing would, and drops them. The other ranks that hold parts of the tensors call this while
/// one rank writes them.
pub(crate) fn make_in_order(mut tensors: Vec<Tensor>) {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in tensors {
        if let Numbers::Made(make) = tensor.numbers {
            make();
        }
    }
}
