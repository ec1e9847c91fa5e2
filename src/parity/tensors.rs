//! A reference file's tensors by name, and how far other numbers are from them.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::Row;
use crate::error::{Error, Result};
use crate::model::block::Transformer;

/// A reference file's tensors by name.
pub(super) struct Tensors<'a> {
    path: &'a Path,
    pub(super) file: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    pub(super) fn open(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let format = |e: safetensors::SafeTensorError| Error::Format { path: path.to_owned(), reason: e.to_string() };
        Ok(Self { path, file: SafeTensors::deserialize(bytes).map_err(format)? })
    }

    pub(super) fn wrong(&self, reason: String) -> Error {
        Error::Format { path: self.path.to_owned(), reason }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    pub(super) fn bytes(&self, name: &str, dtypes: &[Dtype]) -> Result<&'a [u8]> {
        let tensor = self.file.tensor(name).map_err(|_| self.wrong(format!("tensor {name} is missing")))?;
        match dtypes.contains(&tensor.dtype()) {
            true => Ok(tensor.data()),
            false => Err(self.wrong(format!("tensor {name} is {:?}, expected {dtypes:?}", tensor.dtype()))),
        }
    }

    pub(super) fn numbers(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(name, &[Dtype::F32])?;
        let numbers: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
        match numbers.len() == count {
            true => Ok(numbers),
            false => Err(self.wrong(format!("tensor {name} has {} numbers, expected {count}", numbers.len()))),
        }
    }

    pub(super) fn integers(&self, name: &str) -> Result<Vec<u32>> {
        let bytes = self.bytes(name, &[Dtype::I64])?;
        let integers = bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")));
        integers
            .map(|i| u32::try_from(i).map_err(|_| self.wrong(format!("tensor {name} holds {i}, not a token id"))))
            .collect()
    }

    pub(super) fn check_ids(&self, ids: &[u32], model: &Transformer) -> Result<()> {
        let rows = model.params[model.embedding].weight.rows();
        match ids.iter().find(|id| **id as usize >= rows) {
            Some(id) => Err(self.wrong(format!("token id {id} lies outside the model's vocabulary of {rows}"))),
            None => Ok(()),
        }
    }

    pub(super) fn compare(&self, name: &str, got: &[f32]) -> Result<Row> {
        let expected = self.numbers(name, got.len())?;
        let largest = expected.iter().fold(0.0f64, |m, e| m.max(f64::from(e.abs())));
        let mut worst = 0.0f64;
        for (g, e) in got.iter().zip(&expected) {
            let difference = (f64::from(*g) - f64::from(*e)).abs();
            // NaN compares false with everything, so it counts as infinitely far off.
            worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
        }
        let error = if largest > 0.0 { worst / largest } else { worst };
        Ok(Row { name: name.to_owned(), count: got.len(), error })
    }

    pub(super) fn compare_masks(&self, name: &str, got: &[u8]) -> Result<Row> {
        let expected: Vec<u8> =
            self.bytes(name, &[Dtype::BOOL, Dtype::U8])?.iter().map(|b| u8::from(*b != 0)).collect();
        Ok(Row { name: name.to_owned(), count: got.len(), error: share_differing(got, &expected) })
    }
}

/// The share of places that differ; 1 if the lengths differ.
pub(super) fn share_differing<T: PartialEq>(got: &[T], expected: &[T]) -> f64 {
    if got.len() != expected.len() {
        return 1.0;
    }
    got.iter().zip(expected).filter(|(g, e)| g != e).count() as f64 / got.len().max(1) as f64
}
