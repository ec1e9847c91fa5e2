//! RMSNorm, `y = g x / sqrt(mean(x^2) + eps)`: forward and backward. A row is as wide as the gain: a token of width `D`,
//! or one head of it, if all heads of queries or keys share a gain.

use crate::cpu;
use crate::cuda;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// `y = g x / sqrt(mean(x^2) + eps)`, row by row. On a GPU, `x` and `y` may each be f32 or in the format of matmuls.
///
/// # Shapes
/// `y`, `x` `[N, D]`, `gain` `[D]`; for a norm of each head, `[N * heads, head_dim]` and `[head_dim]`.
pub fn forward(y: &mut Tensor, x: &Tensor, gain: &Weight, eps: f32) {
    match (y, x) {
        (y, _) if y.is_meta() => {}
        (Tensor::Host(y), Tensor::Host(x)) => cpu::rms_norm::forward(y, x, &gain.to_f32(), eps),
        (y, x) => cuda::rms_norm::forward(y.array_mut(), x.array(), gain, eps),
    }
}

/// `dx += d y / d x` and, where the gain is trained, `dgain += sum over rows of dy x / rms`.
pub fn backward(dx: &mut Tensor, dgain: Option<&mut Tensor>, dy: &Tensor, x: &Tensor, gain: &Weight, eps: f32) {
    match (dx, dy) {
        (dx, _) if dx.is_meta() => {}
        (Tensor::Host(dx), Tensor::Host(dy)) => {
            cpu::rms_norm::backward(dx, dgain.map(|dgain| &mut **dgain.host_mut()), dy, x.host(), &gain.to_f32(), eps);
        }
        (dx, dy) => {
            cuda::rms_norm::backward(dx.array_mut(), dgain.map(Tensor::array_mut), dy.array(), x.array(), gain, eps);
        }
    }
}

/// Overwrites `dy` with the gradient of `x`, `dy g / rms - x sum(dy g x) / (D rms^3)`. Where the gain is trained,
/// `dgain += sum over rows of dy x / rms`, in f32. On a GPU, `dy` and `x` are both f32 or both in the format of matmuls.
///
/// # Shapes
/// As in [`forward`].
pub fn backward_in_place(dy: &mut Tensor, dgain: Option<&mut Tensor>, x: &Tensor, gain: &Weight, eps: f32) {
    match (dy, x) {
        (Tensor::Host(dy), Tensor::Host(x)) => {
            if let Some(meta) = dy.meta() {
                let bytes = dgain.map_or(0, |dgain| cpu::rms_norm::partial_bytes(dy.len(), dgain.len()));
                drop(meta.take_outside(bytes));
                return;
            }
            let dgain = dgain.map(|dgain| &mut **dgain.host_mut());
            cpu::rms_norm::backward_in_place(dy, dgain, x, &gain.to_f32(), eps);
        }
        (dy, x) => {
            cuda::rms_norm::backward_in_place(dy.array_mut(), dgain.map(Tensor::array_mut), x.array(), gain, eps)
        }
    }
}
