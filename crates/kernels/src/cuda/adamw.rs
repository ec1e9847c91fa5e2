//! AdamW on a GPU.

use std::ops::Range;
use std::sync::Arc;

use super::array::{Array, Memory};
use super::elementwise::{fours, long};
use super::gpu::{Arg, Gpu, Grid};
use crate::adamw::{AdamW, CHUNK, Factors};
use crate::weight::Dtype;

/// The sums of squares of every array's chunks; all of them are copied to the host together.
pub(crate) fn chunk_sums<'a>(gpu: &Arc<Gpu>, arrays: impl Iterator<Item = &'a Array> + Clone) -> Vec<Vec<f64>> {
    let chunks = |array: &Array| array.len().div_ceil(CHUNK);
    let count: usize = arrays.clone().map(chunks).sum();
    let sums = Memory::unset(gpu, size_of::<f64>() * count);
    let mut start = 0;
    for array in arrays.clone() {
        assert_eq!(array.dtype(), Dtype::F32, "a norm of f32 numbers");
        let to = Arg::Pointer(sums.pointer() + (size_of::<f64>() * start) as u64);
        // SAFETY: there is a sum for each of the array's chunks.
        unsafe {
            gpu.launch("sums_of_squares", Grid::rows(chunks(array), 256), &[to, array.arg(), long(array.len())]);
        }
        start += chunks(array);
    }
    let mut all = vec![0.0f64; count];
    sums.read(0, bytemuck::cast_slice_mut(&mut all));
    let mut rest = all.as_slice();
    let own = |array: &Array| {
        let own;
        (own, rest) = rest.split_at(chunks(array));
        own.to_vec()
    };
    arrays.map(own).collect()
}

/// One update of the numbers `own` of a weight.
pub(crate) fn update(
    adamw: &AdamW,
    (weight, own): (&mut Array, Range<usize>),
    m: &mut Array,
    v: &mut Array,
    grad: &Array,
    grad_scale: f32,
) {
    let Factors { step_size, root, decay } = adamw.factors();
    let is_whole = [&*m, v, grad].iter().all(|x| x.len() == own.len() && x.dtype() == Dtype::F32);
    assert!(is_whole && own.end <= weight.len() && weight.dtype() == Dtype::F32, "moments of the numbers, in f32");
    let args = [
        weight.part(own.start, own.len()),
        m.arg(),
        v.arg(),
        grad.arg(),
        Arg::F32(grad_scale),
        Arg::F32(adamw.beta1),
        Arg::F32(adamw.beta2),
        Arg::F32(step_size),
        Arg::F32(root),
        Arg::F32(adamw.eps),
        Arg::F32(decay),
        long(own.len()),
    ];
    // SAFETY: all four pointers are valid for the same count of numbers.
    unsafe { grad.gpu().launch("adamw", fours(own.len()), &args) };
}
