//! One row more for the embedding and the head, in the safetensors files that hold them.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View};
use weft_kernels::weight::{MappedFile, to_bf16_bytes};

use crate::error::{Error, Result};
use crate::files::write_whole_by;

/// A tensor as it is stored, with a row behind its last one if `row` isn't empty.
struct Extended<'a> {
    stored: TensorView<'a>,
    shape: Vec<usize>,
    row: Vec<u8>,
}

impl<'a> Extended<'a> {
    fn of(stored: TensorView<'a>, gets_row: bool) -> Self {
        let mut shape = stored.shape().to_vec();
        let row = if gets_row { mean_row(&stored) } else { vec![] };
        if gets_row {
            shape[0] += 1;
        }
        Self { stored, shape, row }
    }
}

impl View for Extended<'_> {
    fn dtype(&self) -> Dtype {
        self.stored.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.row.is_empty() {
            true => Cow::Borrowed(self.stored.data()),
            false => Cow::Owned([self.stored.data(), &self.row].concat()),
        }
    }

    fn data_len(&self) -> usize {
        self.stored.data().len() + self.row.len()
    }
}

/// The mean of a matrix's rows, in the format of the matrix: summed in f64 in the order of the rows, so that it is the
/// same on every machine. transformers draws a new row from a normal distribution around this mean, whose covariance
/// is the rows' own times 1e-9.
fn mean_row(matrix: &TensorView) -> Vec<u8> {
    let is_f32 = matrix.dtype() == Dtype::F32;
    let number = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        [a, b] => f64::from(f32::from_le_bytes([0, 0, a, b])),
        _ => unreachable!("a number has two bytes or four"),
    };
    let size = if is_f32 { 4 } else { 2 };
    let (rows, cols) = (matrix.shape()[0], matrix.shape()[1]);
    let mut sums = vec![0.0; cols];
    for row in matrix.data().chunks_exact((cols * size).max(1)) {
        sums.iter_mut().zip(row.chunks_exact(size)).for_each(|(sum, bytes)| *sum += number(bytes));
    }
    let mean: Vec<f32> = sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect();
    if is_f32 { mean.iter().flat_map(|x| x.to_le_bytes()).collect() } else { to_bf16_bytes(&mean) }
}

/// Whether a safetensors file holds one of the named tensors.
///
/// # Errors
/// A file that can't be read or is damaged.
pub(super) fn holds(path: &Path, names: &[&str]) -> Result<bool> {
    let file = map(path)?;
    let tensors = SafeTensors::deserialize(file.bytes()).map_err(|e| damaged(path, &e))?;
    Ok(tensors.iter().any(|(name, _)| names.contains(&name)))
}

/// Writes the safetensors file `from` as `to`, with one row more in each of the named matrices. Every other tensor and
/// the metadata stay as they are.
///
/// # Errors
/// A file that can't be read or written, or is damaged.
pub(super) fn add_row(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    let file = map(from)?;
    let tensors = SafeTensors::deserialize(file.bytes()).map_err(|e| damaged(from, &e))?;
    let (_, header) = SafeTensors::read_metadata(file.bytes()).map_err(|e| damaged(from, &e))?;
    let views = tensors.tensors().into_iter().map(|(name, view)| {
        let gets_row = names.contains(&&*name) && view.shape().len() == 2;
        (name, Extended::of(view, gets_row))
    });
    write_whole_by(to, |partial| {
        safetensors::serialize_to_file(views, header.metadata().clone(), partial).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    })
}

fn map(path: &Path) -> Result<MappedFile> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    MappedFile::open(&File::open(path).map_err(read)?).map_err(read)
}

fn damaged(path: &Path, error: &SafeTensorError) -> Error {
    Error::Format { path: path.to_owned(), reason: error.to_string() }
}
