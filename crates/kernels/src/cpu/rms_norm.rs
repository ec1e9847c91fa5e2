//! RMSNorm, `y = g x / sqrt(mean(x^2) + eps)`: forward and backward.

use rayon::prelude::*;

use crate::cpu::exp::{dot, dot3, vectorised};

/// How many rows' gain gradients are added into one partial sum, in order.
const PARTIAL_ROWS: usize = 64;

/// `y = g x / sqrt(mean(x^2) + eps)`, row by row.
///
/// # Shapes
/// `y`, `x` `[N, D]`, `gain` `[D]`.
pub fn forward(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    let width = gain.len();
    y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                let scale = inverse_rms(x, eps);
                for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
                    *y = x * scale * g;
                }
            },
        );
    });
}

/// `dx += d y / d x` and, where the gain is trained, `dgain += sum over rows of dy x / rms`.
pub fn backward(dx: &mut [f32], dgain: Option<&mut [f32]>, dy: &[f32], x: &[f32], gain: &[f32], eps: f32) {
    let width = gain.len();
    dx.par_chunks_mut(width).zip(dy.par_chunks(width)).zip(x.par_chunks(width)).for_each(|((dx, dy), x)| {
        vectorised(
            #[inline(always)]
            || {
                let scale = inverse_rms(x, eps);
                let shrink = scale * scale * scale * dot3(dy, gain, x) / width as f32;
                for (((dx, dy), g), x) in dx.iter_mut().zip(dy).zip(gain).zip(x) {
                    *dx += dy * g * scale - x * shrink;
                }
            },
        );
    });
    let Some(dgain) = dgain else { return };
    let partials: Vec<Vec<f32>> = dy
        .par_chunks(width * PARTIAL_ROWS)
        .zip(x.par_chunks(width * PARTIAL_ROWS))
        .map(|(dy, x)| {
            let mut partial = vec![0.0; width];
            for (dy, x) in dy.chunks(width).zip(x.chunks(width)) {
                vectorised(
                    #[inline(always)]
                    || {
                        let scale = inverse_rms(x, eps);
                        for ((p, dy), x) in partial.iter_mut().zip(dy).zip(x) {
                            *p += dy * x * scale;
                        }
                    },
                );
            }
            partial
        })
        .collect();
    for partial in partials {
        for (d, p) in dgain.iter_mut().zip(partial) {
            *d += p;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean_square = dot(x, x) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}
