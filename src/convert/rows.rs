//! One row more for the embedding and the head, in the safetensors files that hold them.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};
use weft_kernels::weight::{MappedFile, to_bf16_bytes};

use crate::error::{Error, Result};
use crate::files::write_whole_by;
use crate::model::halves::{narrowed, widened};

/// A safetensors file begins with the length of its header: a number of this many bytes, padded to a multiple of it.
const LENGTH_BYTES: usize = 8;

/// Whether a safetensors file holds one of the named tensors.
///
/// # Errors
/// A file that can't be read or is damaged.
pub(super) fn holds(path: &Path, names: &[&str]) -> Result<bool> {
    let file = map(path)?;
    let tensors = SafeTensors::deserialize(file.bytes()).map_err(|e| damaged(path, e))?;
    Ok(tensors.iter().any(|(name, _)| names.contains(&name)))
}

/// Writes the safetensors file `from` as `to`, with one row more in each of the named matrices. Every other tensor, the
/// metadata and the order of the header stay as they are.
///
/// # Errors
/// A file that can't be read or written, or is damaged.
pub(super) fn add_row(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    let file = map(from)?;
    let tensors = SafeTensors::deserialize(file.bytes()).map_err(|e| damaged(from, e))?;
    let (length, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| damaged(from, e))?;
    let header = &file.bytes()[LENGTH_BYTES..LENGTH_BYTES + length];
    let mut header: Map<String, Value> = serde_json::from_slice(header).map_err(|e| damaged(from, e))?;
    let (mut parts, mut end) = (vec![], 0);
    for name in metadata.offset_keys() {
        let view = tensors.tensor(&name).map_err(|e| damaged(from, e))?;
        let row = if names.contains(&&*name) { mean_row(&view) } else { vec![] };
        if !row.is_empty() {
            header[&name]["shape"] = json!([view.shape()[0] + 1, view.shape()[1]]);
        }
        let start = end;
        end += view.data().len() + row.len();
        header[&name]["data_offsets"] = json!([start, end]);
        parts.push((view, row));
    }
    let mut header = serde_json::to_string(&header).expect("JSON values print");
    header.push_str(&" ".repeat(header.len().next_multiple_of(LENGTH_BYTES) - header.len()));
    write_whole_by(to, |partial| {
        let mut file = BufWriter::new(File::create(partial)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for (view, row) in &parts {
            file.write_all(view.data())?;
            file.write_all(row)?;
        }
        file.flush()
    })
}

/// The mean of a matrix's rows, in the format of the matrix: summed in f64 in the order of the rows, so that it is the
/// same on every machine. transformers draws a new row from a normal distribution around this mean, whose covariance
/// is the rows' own times 1e-9.
fn mean_row(matrix: &TensorView) -> Vec<u8> {
    let (is_f32, is_f16) = (matrix.dtype() == Dtype::F32, matrix.dtype() == Dtype::F16);
    let number = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        [_, _] if is_f16 => f64::from(widened(bytes)[0]),
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
    match matrix.dtype() {
        Dtype::F32 => mean.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => narrowed(&mean),
        _ => to_bf16_bytes(&mean),
    }
}

fn map(path: &Path) -> Result<MappedFile> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    MappedFile::open(&File::open(path).map_err(read)?).map_err(read)
}

fn damaged(path: &Path, error: impl Display) -> Error {
    Error::Format { path: path.to_owned(), reason: error.to_string() }
}
