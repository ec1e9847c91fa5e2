//! A linear layer, `y = x W^T`, and a bias: forward and gradients. Layers with LoRA are in `lora_linear`.

use rayon::prelude::*;

use crate::cpu::matrix::{self, View};
use crate::precision::Precision;
use crate::slice::{Slice, SliceMut};
use crate::tensor::Into;
use crate::weight::Weight;

/// How many rows' bias gradients are added into one partial sum, in order.
const PARTIAL_ROWS: usize = 64;

/// `y = x W^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: SliceMut, x: Slice, weight: &Weight, precision: Precision) {
    let x = View::new(x, x.len() / weight.cols(), weight.cols());
    matrix::times_weight_t(y, x, weight, Into::Set, precision);
}

/// `dx = dy W` (or `+=`).
pub fn backward_input(dx: SliceMut, dy: Slice, weight: &Weight, into: Into, precision: Precision) {
    let dy = View::new(dy, dy.len() / weight.rows(), weight.rows());
    matrix::times_weight(dx, dy, weight, into, precision);
}

/// `dW += dy^T x`, for a weight that is trained.
///
/// # Shapes
/// `dw` `[out, in]`, `dy` `[N, out]`, `x` `[N, in]`.
pub fn backward_weight(dw: SliceMut, dy: Slice, x: Slice, n: usize, precision: Precision) {
    if n == 0 {
        return;
    }
    let (dy, x) = (View::new(dy, n, dy.len() / n), View::new(x, n, x.len() / n));
    matrix::par_matmul(dw, dy.t(), x, 1.0, Into::Add, precision);
}

/// `y += b` in every row.
///
/// # Shapes
/// `y` `[N, out]`, `bias` `[out]`.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    y.par_chunks_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// `db += sum over rows of dy`, for a bias that is trained.
pub fn backward_bias(dbias: &mut [f32], dy: &[f32]) {
    let width = dbias.len();
    let sum = |rows: &[f32]| {
        let mut partial = vec![0.0; width];
        for row in rows.chunks(width) {
            partial.iter_mut().zip(row).for_each(|(p, dy)| *p += dy);
        }
        partial
    };
    let partials: Vec<Vec<f32>> = dy.par_chunks(width * PARTIAL_ROWS).map(sum).collect();
    for partial in partials {
        dbias.iter_mut().zip(partial).for_each(|(d, p)| *d += p);
    }
}
