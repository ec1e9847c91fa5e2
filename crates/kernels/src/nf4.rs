//! NF4, the 4-bit format of a frozen base: quantise, and dequantise block by block while a matmul reads. Blocks are 64
//! neighbouring numbers in row-major order, as bitsandbytes lays them out, so a block may go on in the next row. The
//! innermost loop is in `nf4::lookup`; checkpoints and their names belong to the library.

mod lookup;
mod quantize;

use std::ops::Range;
use std::sync::Arc;

use crate::precision;
use crate::weight::{Dtype, MappedFile};

/// How many numbers share a scale.
pub const BLOCK: usize = 64;
/// How many scales share a scale of their own where scales are quantised too.
pub const NESTED_BLOCK: usize = 256;

/// The sixteen numbers that codes stand for: quantiles of the normal distribution, scaled to `[-1, 1]`.
///
/// # Source
/// QLoRA (arXiv 2305.14314), appendix E.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The 256 numbers that the 8-bit codes of scales stand for, in ascending order: seven decades, of which each has twice
/// as many steps as the one below it.
///
/// # Source
/// bitsandbytes' `create_dynamic_map`, bit for bit: its `linspace` rounds each boundary once.
pub fn dynamic_map() -> [f32; 256] {
    let boundary = |i: usize, steps: usize| {
        let (start, end) = (f64::from(0.1f32), 1.0);
        let step = f64::from(((end - start) / steps as f64) as f32);
        // The second half counts down from the end.
        (if i < steps.div_ceil(2) { start + step * i as f64 } else { end - step * (steps - i) as f64 }) as f32
    };
    let mut map = [0.0; 256];
    let mut numbers = map.iter_mut();
    for decade in 0..7 {
        let (steps, scale) = (1 << decade, 10f64.powi(decade - 6) as f32);
        for i in 0..steps {
            let mean = (boundary(i, steps) + boundary(i + 1, steps)) / 2.0;
            for (sign, number) in [1.0, -1.0].into_iter().zip(numbers.by_ref()) {
                *number = sign * scale * mean;
            }
        }
    }
    // Zero is among the numbers already.
    numbers.next().into_iter().for_each(|last| *last = 1.0);
    map.sort_by(f32::total_cmp);
    map
}

/// The format that numbers had before they were quantised. Dequantised numbers are rounded to it, as bitsandbytes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Original {
    /// IEEE single precision: nothing is rounded.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Original {
    /// The format in which a weight says that its numbers are: f16 is widened.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::Bf16,
            Self::F32 | Self::F16 => Dtype::F32,
        }
    }

    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => precision::round(x),
            Self::F16 => half::f16::from_f32(x).to_f32(),
        }
    }
}

impl From<Dtype> for Original {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// Bytes in memory of their own, or in a mapped file.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// In memory of their own.
    Own(Arc<[u8]>),
    /// A part of a mapped file.
    Mapped(MappedFile, Range<usize>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Mapped(file, range) => &file.bytes()[range.clone()],
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(bytes.into())
    }
}

impl Bytes {
    fn of_f32(numbers: &[f32]) -> Self {
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// The little-endian f32 number at an index.
    #[inline(always)]
    fn f32_at(&self, index: usize) -> f32 {
        let bytes = self[4 * index..].first_chunk::<4>().expect("a number for each index");
        f32::from_le_bytes(*bytes)
    }
}

/// The largest magnitude of each block.
#[derive(Clone, Debug)]
pub enum Scales {
    /// As f32 numbers.
    Plain(Bytes),
    /// Quantised to 8 bits: `map[code] * absmax + offset`.
    Nested {
        /// A code for each block.
        codes: Bytes,
        /// The largest magnitude of each 256 scales, once the offset has been subtracted, as f32.
        absmax: Bytes,
        /// The mean of the scales.
        offset: f32,
        /// What the codes stand for.
        map: Arc<[f32; 256]>,
    },
}

/// A matrix in NF4.
#[derive(Clone, Debug)]
pub struct Nf4 {
    len: usize,
    codes: Bytes,
    scales: Scales,
    original: Original,
}

impl Nf4 {
    /// A matrix of `len` numbers from its parts; two codes lie in a byte, the first one in the upper half.
    ///
    /// # Errors
    /// A part whose size doesn't match, as one sentence.
    pub fn new(len: usize, codes: Bytes, scales: Scales, original: Original) -> Result<Self, String> {
        let expect = |what: &str, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(format!("its {what} have {found} bytes, expected {expected}")),
        };
        let blocks = len.div_ceil(BLOCK);
        expect("codes", codes.len(), len.div_ceil(2))?;
        match &scales {
            Scales::Plain(absmax) => expect("scales", absmax.len(), 4 * blocks)?,
            Scales::Nested { codes, absmax, .. } => {
                expect("scales", codes.len(), blocks)?;
                expect("scales' scales", absmax.len(), 4 * blocks.div_ceil(NESTED_BLOCK))?;
            }
        }
        Ok(Self { len, codes, scales, original })
    }

    /// How many numbers the matrix has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the matrix is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Two codes a byte, the first one in the upper half.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// The blocks' scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The format of the numbers before they were quantised.
    pub fn original(&self) -> Original {
        self.original
    }

    /// Whether the scales are quantised too.
    pub fn is_nested(&self) -> bool {
        matches!(self.scales, Scales::Nested { .. })
    }

    /// The bytes that `len` numbers take.
    pub fn bytes(len: usize, is_nested: bool) -> usize {
        let blocks = len.div_ceil(BLOCK);
        let scales = match is_nested {
            true => blocks + 4 * blocks.div_ceil(NESTED_BLOCK),
            false => 4 * blocks,
        };
        len.div_ceil(2) + scales
    }

    /// The scale of a block.
    #[inline(always)]
    pub(crate) fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(absmax) => absmax.f32_at(block),
            Scales::Nested { codes, absmax, offset, map } => {
                map[usize::from(codes[block])] * absmax.f32_at(block / NESTED_BLOCK) + offset
            }
        }
    }

    /// Dequantises the numbers from `start` on: `y = round(codebook[code] * scale)`.
    pub fn dequantize(&self, start: usize, to: &mut [f32]) {
        assert!(start + to.len() <= self.len, "a stretch of the matrix");
        let (mut at, mut rest) = (start, to);
        while !rest.is_empty() {
            let (part, behind) = rest.split_at_mut(rest.len().min(BLOCK - at % BLOCK));
            let (scale, original) = (self.scale(at / BLOCK), self.original);
            let table = CODEBOOK.map(|number| original.round(number * scale));
            lookup::lookup(part, &self.codes, at, &table);
            at += part.len();
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_scales_has_256_numbers_with_one_zero() {
        let map = dynamic_map();
        assert!(map.is_sorted_by(|a, b| a < b) && map[127] == 0.0 && map[255] == 1.0);
    }

    #[test]
    fn a_stretch_of_a_matrix_is_that_of_the_whole() {
        for len in [1, 63, 64, 65, 1000, 40_001] {
            let numbers: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            for is_nested in [false, true] {
                let nf4 = Nf4::quantize(
                    len,
                    |at, to| to.copy_from_slice(&numbers[at..at + to.len()]),
                    Original::F32,
                    is_nested,
                );
                let mut whole = vec![f32::NAN; len];
                nf4.dequantize(0, &mut whole);
                let largest_step = 0.5 * (1.0 - 0.696) * 3.0 + 0.02;
                assert!(numbers.iter().zip(&whole).all(|(x, y)| (x - y).abs() <= largest_step), "{len}");
                for (start, count) in [(0, 1), (len / 3, len / 2), (len - 1, 1), (len / 2, len - len / 2)] {
                    let mut part = vec![f32::NAN; count];
                    nf4.dequantize(start, &mut part);
                    assert_eq!(part, whole[start..start + count], "{start} {count} of {len}");
                }
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero_and_a_block_gone_wrong_stays_visible() {
        let mut numbers = vec![0.0; 3 * BLOCK];
        numbers[BLOCK + 3] = f32::NAN;
        let nf4 = Nf4::quantize(
            numbers.len(),
            |at, to| to.copy_from_slice(&numbers[at..at + to.len()]),
            Original::Bf16,
            false,
        );
        let mut back = vec![1.0; 3 * BLOCK];
        nf4.dequantize(0, &mut back);
        assert!(back[..BLOCK].iter().chain(&back[2 * BLOCK..]).all(|x| *x == 0.0));
        assert!(back[BLOCK..2 * BLOCK].iter().all(|x| x.is_nan()));
    }
}
