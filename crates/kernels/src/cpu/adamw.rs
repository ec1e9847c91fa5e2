//! AdamW on the CPU.

use rayon::prelude::*;

use crate::adamw::{AdamW, CHUNK, Factors};
use crate::cpu::exp::vectorised;

/// The sums of squares of chunks of [`CHUNK`] numbers, in f64. Adding them in order gives a total that doesn't depend
/// on the number of threads.
pub fn chunk_sums(x: &[f32]) -> Vec<f64> {
    let of_chunk = |chunk: &[f32]| chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    x.par_chunks(CHUNK).map(of_chunk).collect()
}

/// `w <- w (1 - lr wd) - lr m' / (sqrt(v') + eps)`, with the gradient multiplied by `grad_scale` first.
pub fn update(adamw: &AdamW, w: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], grad_scale: f32) {
    let Factors { step_size, root, decay } = adamw.factors();
    let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    w.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments).for_each(|((w, g), (m, v))| {
        vectorised(
            #[inline(always)]
            || {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * grad_scale;
                    *m = adamw.beta1 * *m + (1.0 - adamw.beta1) * g;
                    *v = adamw.beta2 * *v + (1.0 - adamw.beta2) * g * g;
                    *w = *w * decay - step_size * *m / (v.sqrt() * root + adamw.eps);
                }
            },
        );
    });
}
