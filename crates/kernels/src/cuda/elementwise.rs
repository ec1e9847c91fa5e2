//! Element-wise operations, and casts between formats.

use std::ops::Range;
use std::sync::Arc;

use super::array::Array;
use super::gpu::{Arg, Gpu, Grid};
use super::nf4::Dequantized;
use crate::precision::Precision;
use crate::weight::Dtype;

/// An array in a given format: the original, a converted copy, or a dequantised one.
pub(crate) enum InFormat<'a> {
    Borrowed(&'a Array),
    Owned(Array),
    Dequantized(Dequantized<'a>),
}

impl std::ops::Deref for InFormat<'_> {
    type Target = Array;

    fn deref(&self) -> &Array {
        match self {
            Self::Borrowed(array) => array,
            Self::Owned(array) => array,
            Self::Dequantized(array) => array,
        }
    }
}

/// The suffix of a kernel's name for a format.
pub(super) fn suffix(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
    }
}

/// A grid in which each thread takes four numbers.
pub(super) fn fours(count: usize) -> Grid {
    Grid::over(count.div_ceil(4))
}

pub(super) fn long(count: usize) -> Arg {
    Arg::I64(count as i64)
}

pub(super) fn int(count: usize) -> Arg {
    Arg::I32(i32::try_from(count).expect("a size below 2^31"))
}

/// An array in the format of a matmul's operands; the array itself if it is in that format already.
pub(crate) fn in_format(array: &Array, precision: Precision) -> InFormat<'_> {
    let dtype = precision.dtype();
    if array.dtype() == dtype { InFormat::Borrowed(array) } else { InFormat::Owned(cast(array, dtype)) }
}

/// A copy in another format; bf16 is rounded to nearest, ties to even.
pub(crate) fn cast(array: &Array, dtype: Dtype) -> Array {
    if array.dtype() == dtype {
        return array.clone();
    }
    let to = Array::unset(array.gpu(), array.len(), dtype);
    let kernel = if dtype == Dtype::Bf16 { "cast_f32_bf16" } else { "cast_bf16_f32" };
    // SAFETY: both arrays have the same length.
    unsafe { array.gpu().launch(kernel, fours(array.len()), &[to.arg(), array.arg(), long(array.len())]) };
    to
}

/// Normally distributed numbers in bf16, for measurements.
pub(crate) fn normal(gpu: &Arc<Gpu>, len: usize, seed: u64, deviation: f32) -> Array {
    let to = Array::unset(gpu, len, Dtype::Bf16);
    let args = [to.arg(), Arg::I64(seed as i64), Arg::F32(deviation), long(len)];
    // SAFETY: the array has that length.
    unsafe { gpu.launch("fill_normal_bf16", fours(len), &args) };
    to
}

/// Writes a range of f32 numbers rounded to bf16, from `start` on.
pub(crate) fn round_into(to: &mut Array, start: usize, from: &Array, stretch: Range<usize>) {
    let len = stretch.len();
    assert!(start + len <= to.len() && stretch.end <= from.len(), "the stretch lies within both");
    assert_eq!((to.dtype(), from.dtype()), (Dtype::Bf16, Dtype::F32), "f32 numbers become bf16");
    let (to_start, from_start) = (to.part(start, len), from.part(stretch.start, len));
    // SAFETY: the range lies within both arrays.
    unsafe { to.gpu().launch("cast_f32_bf16", fours(len), &[to_start, from_start, long(len)]) };
}

/// `to += from`, in f32.
pub(crate) fn add(to: &mut Array, from: &Array) {
    assert_eq!((to.len(), to.dtype(), from.dtype()), (from.len(), Dtype::F32, Dtype::F32), "two matrices of one size");
    // SAFETY: both arrays have the same length.
    unsafe { to.gpu().launch("add_f32", fours(to.len()), &[to.arg(), from.arg(), long(to.len())]) };
}

/// `array[to + i] += array[from + i]`.
pub(crate) fn add_within(array: &mut Array, to: usize, from: usize, len: usize) {
    assert!(from + len <= array.len() && array.dtype() == Dtype::F32, "both stretches lie within the array");
    let [to, from] = [to, from].map(|start| array.part(start, len));
    // SAFETY: both ranges lie within the array, and the caller makes sure that they don't overlap.
    unsafe { array.gpu().launch("add_f32", fours(len), &[to, from, long(len)]) };
}

/// `h = gate sigmoid(gate) up`.
pub(crate) fn swiglu(h: &mut Array, gate: &Array, up: &Array) {
    same(&[h, gate, up]);
    let kernel = format!("swiglu_{}", suffix(h.dtype()));
    // SAFETY: the arrays have the same length and format.
    unsafe { h.gpu().launch(&kernel, fours(h.len()), &[h.arg(), gate.arg(), up.arg(), long(h.len())]) };
}

/// Overwrites a gate and an up projection with their gradients.
pub(crate) fn swiglu_backward(gate: &mut Array, up: &mut Array, dh: &Array) {
    same(&[gate, up, dh]);
    let kernel = format!("swiglu_backward_{}", suffix(dh.dtype()));
    // SAFETY: the arrays have the same length and format.
    unsafe { dh.gpu().launch(&kernel, fours(dh.len()), &[gate.arg(), up.arg(), dh.arg(), long(dh.len())]) };
}

/// Rotates every head of every row by its position.
pub(crate) fn rope(x: &mut Array, [cos, sin]: [&Array; 2], (heads, half): (usize, usize), sign: f32) {
    let pairs = x.len() / 2;
    assert!(pairs <= cos.len() * heads && cos.len() == sin.len(), "an angle for each pair of features");
    let kernel = format!("rope_{}", suffix(x.dtype()));
    let args = [x.arg(), cos.arg(), sin.arg(), int(heads), int(half), Arg::F32(sign)];
    // SAFETY: the assertion bounds what is read, and the count of rows bounds what is written.
    unsafe { x.gpu().launch(&kernel, Grid::rows(pairs / (heads * half).max(1), 256), &args) };
}

fn same(arrays: &[&Array]) {
    let [first, rest @ ..] = arrays else { return };
    let is_same = |other: &&Array| other.len() == first.len() && other.dtype() == first.dtype();
    assert!(rest.iter().all(is_same), "arrays of one size and format");
}
