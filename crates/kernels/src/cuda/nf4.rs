//! NF4 weights on a GPU: codes and scales, which a kernel dequantises into a scratch matrix before each matmul. There are
//! two scratch matrices and a stream beside the one that computes: while a matmul reads one matrix, the next weight is
//! dequantised into the other.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::array::{Array, Memory};
use super::elementwise::{long, suffix};
use super::gpu::{Arg, Gpu, Grid, Mark};
use super::streams::Beside;
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
    /// The point at which the codes and the scales are there.
    uploaded: Mark,
    scratch: Arc<Scratch>,
}

/// The two scratch matrices of a GPU's weights.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    slots: [Mutex<Slot>; 2],
    turn: Mutex<usize>,
}

/// A scratch matrix.
#[derive(Debug, Default)]
struct Slot {
    matrix: Option<Array>,
    /// The point at which the last matmul has read the matrix, or at which its memory is there.
    free: Option<Mark>,
}

/// A scratch matrix while a matmul reads it.
pub(crate) struct Dequantized<'a>(MutexGuard<'a, Slot>);

impl Deref for Dequantized<'_> {
    type Target = Array;

    fn deref(&self) -> &Array {
        self.0.matrix.as_ref().expect("it was dequantised")
    }
}

impl Drop for Dequantized<'_> {
    fn drop(&mut self) {
        let mark = self.gpu().mark();
        self.0.free = Some(mark);
    }
}

/// Scales that are quantised to 8 bits.
#[derive(Debug)]
struct Nested {
    codes: Memory,
    map: Memory,
    offset: f32,
}

impl Gpu {
    /// The scratch matrices that all quantised weights share.
    pub(super) fn scratch(&self) -> Arc<Scratch> {
        let mut shared = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let scratch = Arc::<Scratch>::default();
            *shared = Arc::downgrade(&scratch);
            scratch
        })
    }
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
        array.uploaded = gpu.mark();
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
            uploaded: gpu.mark(),
            scratch: gpu.scratch(),
        }
    }

    /// How the matrix is encoded.
    pub(crate) fn encoding(&self) -> Encoding {
        Encoding::Nf4 { original: self.original, is_nested: self.nested.is_some() }
    }

    /// The numbers in a format of matmuls, in one of the scratch matrices, until the result is dropped. The kernel runs
    /// beside the matmuls that were asked for before; those asked for from now on wait for it.
    pub(crate) fn dequantized(&self, dtype: Dtype) -> Dequantized<'_> {
        let gpu = self.codes.gpu();
        let mut turn = self.scratch.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = (*turn + 1) % self.scratch.slots.len();
        let mut slot = self.scratch.slots[*turn].lock().unwrap_or_else(PoisonError::into_inner);
        drop(turn);
        if !slot.matrix.as_ref().is_some_and(|matrix| matrix.len() >= self.len && matrix.dtype() == dtype) {
            // The smaller matrix is given back first.
            slot.matrix = None;
            slot.matrix = Some(Array::unset(gpu, self.len, dtype));
            slot.free = Some(gpu.mark());
        }
        let written = {
            let _beside = Beside::dequantize();
            gpu.wait_for(&self.uploaded);
            slot.free.iter().for_each(|free| gpu.wait_for(free));
            self.dequantize(slot.matrix.as_ref().expect("it was made above"));
            gpu.mark()
        };
        gpu.wait_for(&written);
        Dequantized(slot)
    }

    /// Writes the numbers to the beginning of an array.
    fn dequantize(&self, to: &Array) {
        let gpu = self.codes.gpu();
        let dtype = to.dtype();
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
            to.part(0, self.len),
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
    }

    /// The numbers as f32, once all work before is done.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let numbers = Array::unset(self.codes.gpu(), self.len, Dtype::F32);
        self.dequantize(&numbers);
        numbers.to_f32()
    }
}
