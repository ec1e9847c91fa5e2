//! AdamW with decoupled weight decay: one tensor's update.

use rayon::prelude::*;

use crate::exp::vectorised;

/// Numbers per task, and per sum of squares.
pub const CHUNK: usize = 1 << 14;

/// The update's constants at one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The step, counted from 1.
    pub step: u64,
}

/// The sums of squares of chunks of [`CHUNK`] numbers, in f64; their sum in order doesn't depend on the threads.
pub fn chunk_sums(x: &[f32]) -> Vec<f64> {
    let of_chunk = |chunk: &[f32]| chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    x.par_chunks(CHUNK).map(of_chunk).collect()
}

impl AdamW {
    /// `w <- w (1 - lr wd) - lr m' / (sqrt(v') + eps)`, with the gradient multiplied by `grad_scale` first.
    ///
    /// # Source
    /// Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, as PyTorch computes it.
    pub fn update(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], grad_scale: f32) {
        let correction1 = 1.0 - f64::from(self.beta1).powi(self.step as i32);
        let correction2 = (1.0 - f64::from(self.beta2).powi(self.step as i32)).sqrt();
        let (step_size, root) = ((f64::from(self.lr) / correction1) as f32, (1.0 / correction2) as f32);
        let decay = 1.0 - self.lr * self.weight_decay;
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        w.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments).for_each(|((w, g), (m, v))| {
            vectorised(
                #[inline(always)]
                || {
                    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * grad_scale;
                        *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                        *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                        *w = *w * decay - step_size * *m / (v.sqrt() * root + self.eps);
                    }
                },
            );
        });
    }
}
