//! Token embedding: rows gathered forward, gradients scattered backward.

use rayon::prelude::*;

use crate::weight::Weight;

/// `x_n = E[id_n]`.
///
/// # Shapes
/// `x` `[N, D]`, `weight` `[V, D]`; every id is below `V`.
pub fn forward(x: &mut [f32], ids: &[u32], weight: &Weight) {
    x.par_chunks_mut(weight.cols()).zip(ids).for_each(|(row, &id)| {
        weight.copy_row(id as usize, row);
    });
}

/// `dE[id_n] += dx_n`, in the tokens' order.
pub fn backward(dweight: &mut [f32], ids: &[u32], dx: &[f32]) {
    let width = dx.len() / ids.len().max(1);
    for (&id, dx) in ids.iter().zip(dx.chunks(width.max(1))) {
        for (d, dx) in dweight[id as usize * width..][..width].iter_mut().zip(dx) {
            *d += dx;
        }
    }
}
