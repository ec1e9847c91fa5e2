//! NF4 weights on a GPU: codes and scales, which a kernel dequantises into a scratch matrix before each matmul.

use std::sync::Arc;

use super::array::{Array, Memory};
use super::elementwise::{long, suffix};
use super::gpu::{Arg, Gpu, Grid};
use crate::nf4::{BLOCK, NESTED_BLOCK, Nf4, Original, Scales};
use crate::weight::{Dtype, Encoding};

/// A matrix in NF4 on a GPU.
#[derive(Debug)]
pub struct Nf4Array {
    len: usize,
    /// Two codes a byte, filled up to whole words.
    codes: Memory,
    /// The scales, or the scales of the scales.
    absmax: Memory,
    nested: Option<Nested>,
    original: Original,
}

/// Scales that are quantised to 8 bits.
#[derive(Debug)]
struct Nested {
    codes: Memory,
    map: Memory,
    offset: f32,
}

impl Nf4Array {
    /// Uploads a matrix.
    pub(crate) fn of(gpu: &Arc<Gpu>, nf4: &Nf4) -> Self {
        let len = nf4.len();
        let is_nested = nf4.is_nested();
        let mut array = Self::unset(gpu, len, nf4.original(), is_nested);
        array.codes.write(0, nf4.codes());
        match (nf4.scales(), &mut array.nested) {
            (Scales::Nested { codes, absmax, offset, map }, Some(nested)) => {
                array.absmax.write(0, absmax);
                nested.codes.write(0, codes);
                nested.map.write(0, bytemuck::cast_slice(&map[..]));
                nested.offset = *offset;
            }
            (Scales::Plain(absmax), _) => array.absmax.write(0, absmax),
            (Scales::Nested { .. }, None) => unreachable!("the array was made for nested scales"),
        }
        array
    }

    /// A matrix with arbitrary codes and scales.
    pub(crate) fn unset(gpu: &Arc<Gpu>, len: usize, original: Original, is_nested: bool) -> Self {
        let blocks = len.div_ceil(BLOCK);
        let scales = if is_nested { blocks.div_ceil(NESTED_BLOCK) } else { blocks };
        Self {
            len,
            codes: Memory::unset(gpu, len.div_ceil(2).next_multiple_of(4)),
            absmax: Memory::unset(gpu, 4 * scales),
            nested: is_nested.then(|| Nested {
                codes: Memory::unset(gpu, blocks),
                map: Memory::unset(gpu, 4 * 256),
                offset: 0.0,
            }),
            original,
        }
    }

    /// How the matrix is encoded.
    pub(crate) fn encoding(&self) -> Encoding {
        Encoding::Nf4 { original: self.original, is_nested: self.nested.is_some() }
    }

    /// The numbers in a format of matmuls.
    pub(crate) fn dequantized(&self, dtype: Dtype) -> Array {
        let gpu = self.codes.gpu();
        let to = Array::unset(gpu, self.len, dtype);
        let (nested, map, offset) = match &self.nested {
            Some(nested) => (nested.codes.arg(), nested.map.arg(), nested.offset),
            None => (Arg::Pointer(0), Arg::Pointer(0), 0.0),
        };
        let original = match self.original {
            Original::F32 => 0,
            Original::Bf16 => 1,
            Original::F16 => 2,
        };
        let args = [
            to.arg(),
            self.codes.arg(),
            self.absmax.arg(),
            nested,
            map,
            Arg::F32(offset),
            Arg::I32(original),
            long(self.len),
        ];
        let kernel = format!("dequantize_nf4_{}", suffix(dtype));
        // SAFETY: the codes are whole words for `len` numbers, and there is a scale for each block of 64.
        unsafe { gpu.launch(&kernel, Grid::over(self.len.div_ceil(8)), &args) };
        to
    }

    /// The numbers as f32, once all work before is done.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        self.dequantized(Dtype::F32).to_f32()
    }
}
