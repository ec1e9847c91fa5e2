//! A linear layer, `y = x W^T`, and a bias: forward and gradients. Layers with LoRA are in `lora_linear`.

use crate::cpu;
use crate::cuda;
use crate::precision::Precision;
use crate::tensor::{Into, Tensor};
use crate::weight::Weight;

/// `y = x W^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: &mut Tensor, x: &Tensor, weight: &Weight, precision: Precision) {
    match (y, x) {
        (Tensor::Host(y), Tensor::Host(x)) => cpu::linear::forward(y.into(), x.into(), weight, precision),
        (y, x) => cuda::linear::forward(y.array_mut(), x.array(), weight, None, precision),
    }
}

/// `y = before + x W^T`, where `before` has the shape of `y`.
pub fn forward_onto(y: &mut Tensor, x: &Tensor, weight: &Weight, before: &Tensor, precision: Precision) {
    match y {
        Tensor::Host(_) => {
            forward(y, x, weight, precision);
            y.add(before);
        }
        Tensor::Gpu(y) => cuda::linear::forward(y, x.array(), weight, Some(before.array()), precision),
    }
}

/// `dx = dy W` (or `+=`).
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Weight, into: Into, precision: Precision) {
    match (dx, dy) {
        (Tensor::Host(dx), Tensor::Host(dy)) => {
            cpu::linear::backward_input(dx.into(), dy.into(), weight, into, precision);
        }
        (dx, dy) => cuda::linear::backward_input(dx.array_mut(), dy.array(), weight, into, precision),
    }
}

/// `dW += dy^T x`, for a weight that is trained.
///
/// # Shapes
/// `dw` `[out, in]`, `dy` `[N, out]`, `x` `[N, in]`.
pub fn backward_weight(dw: &mut Tensor, dy: &Tensor, x: &Tensor, n: usize, precision: Precision) {
    match (dw, dy) {
        (Tensor::Host(dw), Tensor::Host(dy)) => {
            cpu::linear::backward_weight(dw.into(), dy.into(), x.host().into(), n, precision);
        }
        (dw, dy) => cuda::linear::backward_weight(dw.array_mut(), dy.array(), x.array(), n, precision),
    }
}

/// `y += b` in every row.
///
/// # Shapes
/// `y` `[N, out]`, `bias` `[out]`.
pub fn add_bias(y: &mut Tensor, bias: &Weight) {
    match y {
        y if y.is_meta() => {}
        Tensor::Host(y) => cpu::linear::add_bias(y, &bias.to_f32()),
        Tensor::Gpu(y) => cuda::linear::add_bias(y, bias),
    }
}

/// `db += sum over rows of dy`, for a bias that is trained.
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) {
    match (dbias, dy) {
        (dbias, _) if dbias.is_meta() => {}
        (Tensor::Host(dbias), Tensor::Host(dy)) => cpu::linear::backward_bias(dbias, dy),
        (dbias, dy) => cuda::linear::backward_bias(dbias.array_mut(), dy.array()),
    }
}
