//! RMSNorm, `y = g x / sqrt(mean(x^2) + eps)`: forward and backward.

use crate::cpu;
use crate::cuda;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// `y = g x / sqrt(mean(x^2) + eps)`, row by row.
///
/// # Shapes
/// `y`, `x` `[N, D]`, `gain` `[D]`.
pub fn forward(y: &mut Tensor, x: &Tensor, gain: &Weight, eps: f32) {
    match (y, x) {
        (Tensor::Host(y), Tensor::Host(x)) => cpu::rms_norm::forward(y, x, &gain.to_f32(), eps),
        (y, x) => cuda::rms_norm::forward(y.array_mut(), x.array(), gain, eps),
    }
}

/// `dx += d y / d x` and, where the gain is trained, `dgain += sum over rows of dy x / rms`.
pub fn backward(dx: &mut Tensor, dgain: Option<&mut Tensor>, dy: &Tensor, x: &Tensor, gain: &Weight, eps: f32) {
    match (dx, dy) {
        (Tensor::Host(dx), Tensor::Host(dy)) => {
            cpu::rms_norm::backward(dx, dgain.map(Tensor::host_mut), dy, x.host(), &gain.to_f32(), eps);
        }
        (dx, dy) => {
            cuda::rms_norm::backward(dx.array_mut(), dgain.map(Tensor::array_mut), dy.array(), x.array(), gain, eps);
        }
    }
}
