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
