//! Token embedding: rows gathered forward, gradients scattered backward.

use crate::cpu;
use crate::cuda;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// `x_n = E[id_n]`.
///
/// # Shapes
/// `x` `[N, D]`, `weight` `[V, D]`; every id is below `V`.
pub fn forward(x: &mut Tensor, ids: &[u32], weight: &Weight) {
    match x {
        x if x.is_meta() => {}
        Tensor::Host(x) => cpu::embedding::forward(x, ids, weight),
        Tensor::Gpu(x) => cuda::rows::embed(x, ids, weight),
    }
}

/// `dE[id_n] += dx_n`, in the tokens' order.
pub fn backward(dweight: &mut Tensor, ids: &[u32], dx: &Tensor) {
    match (dweight, dx) {
        (dweight, _) if dweight.is_meta() => {}
        (Tensor::Host(dweight), Tensor::Host(dx)) => cpu::embedding::backward(dweight, ids, dx),
        (dweight, dx) => cuda::rows::embed_backward(dweight.array_mut(), ids, dx.array()),
    }
}
