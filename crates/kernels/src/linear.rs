//! A linear layer without bias, `y = x W^T`: forward and its two gradients. LoRA is `lora_linear`'s.

use crate::matrix::{self, Into, View};
use crate::precision::Precision;
use crate::weight::Weight;

/// `y = x W^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: &mut [f32], x: &[f32], weight: &Weight, precision: Precision) {
    let x = View::new(x, x.len() / weight.cols(), weight.cols());
    matrix::times_weight_t(y, x, weight, Into::Set, precision);
}

/// `dx = dy W` (or `+=`).
pub fn backward_input(dx: &mut [f32], dy: &[f32], weight: &Weight, into: Into, precision: Precision) {
    let dy = View::new(dy, dy.len() / weight.rows(), weight.rows());
    matrix::times_weight(dx, dy, weight, into, precision);
}

/// `dW += dy^T x`, for a weight that is trained.
///
/// # Shapes
/// `dw` `[out, in]`, `dy` `[N, out]`, `x` `[N, in]`.
pub fn backward_weight(dw: &mut [f32], dy: &[f32], x: &[f32], n: usize, precision: Precision) {
    if n == 0 {
        return;
    }
    let (dy, x) = (View::new(dy, n, dy.len() / n), View::new(x, n, x.len() / n));
    matrix::par_product(dw, dy.t(), x, 1.0, Into::Add, precision);
}
