//! AdamW with decoupled weight decay: the update of one tensor.

use std::ops::Range;

use crate::cpu;
use crate::cuda;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// How many numbers a task updates, and how many each sum of squares covers.
pub const CHUNK: usize = 1 << 14;

/// The constants of an update at one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the square root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The step, counted from 1.
    pub step: u64,
}

/// The factors of an update, derived from its constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// Factor of the first moment.
    pub(crate) step_size: f32,
    /// Factor of the second moment's square root.
    pub(crate) root: f32,
    /// Factor of the weight.
    pub(crate) decay: f32,
}

/// The sums of squares of each tensor's chunks of [`CHUNK`] numbers, in f64. Adding them in order gives a total that
/// doesn't depend on the number of threads.
pub fn chunk_sums(tensors: &[&Tensor]) -> Vec<Vec<f64>> {
    match tensors {
        [Tensor::Gpu(first), ..] => cuda::adamw::chunk_sums(first.gpu(), tensors.iter().map(|tensor| tensor.array())),
        _ => tensors.iter().map(|tensor| cpu::adamw::chunk_sums(tensor.host())).collect(),
    }
}

impl AdamW {
    /// Updates the numbers `own` of a trainable weight: `w <- w (1 - lr wd) - lr m' / (sqrt(v') + eps)`, with the
    /// gradient multiplied by `grad_scale` first. The moments and the gradient cover `own` alone.
    ///
    /// # Source
    /// Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, as PyTorch computes it.
    pub fn update(
        &self,
        weight: &mut Weight,
        own: Range<usize>,
        [m, v]: [&mut Tensor; 2],
        grad: &Tensor,
        grad_scale: f32,
    ) {
        match grad {
            Tensor::Host(grad) => {
                let weight = &mut weight.make_trainable()[own];
                cpu::adamw::update(self, weight, m.host_mut(), v.host_mut(), grad, grad_scale);
            }
            Tensor::Gpu(grad) => {
                cuda::adamw::update(self, (weight.array_mut(), own), m.array_mut(), v.array_mut(), grad, grad_scale);
            }
        }
    }

    /// Like [`AdamW::update`], for all numbers of a part that is a tensor of its own.
    pub fn update_part(&self, part: &mut Tensor, [m, v]: [&mut Tensor; 2], grad: &Tensor, grad_scale: f32) {
        match (part, grad) {
            (Tensor::Host(part), Tensor::Host(grad)) => {
                cpu::adamw::update(self, part, m.host_mut(), v.host_mut(), grad, grad_scale);
            }
            (part, grad) => {
                let all = 0..part.len();
                let (m, v) = (m.array_mut(), v.array_mut());
                cuda::adamw::update(self, (part.array_mut(), all), m, v, grad.array(), grad_scale);
            }
        }
    }

    pub(crate) fn factors(&self) -> Factors {
        let correction1 = 1.0 - f64::from(self.beta1).powi(self.step as i32);
        let correction2 = (1.0 - f64::from(self.beta2).powi(self.step as i32)).sqrt();
        Factors {
            step_size: (f64::from(self.lr) / correction1) as f32,
            root: (1.0 / correction2) as f32,
            decay: 1.0 - self.lr * self.weight_decay,
        }
    }
}
