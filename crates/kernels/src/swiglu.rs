//! SwiGLU, `h = silu(gate) * up`: forward and backward, element by element.

use rayon::prelude::*;

use crate::exp::{exp, vectorised};

/// Numbers per task.
const CHUNK: usize = 1 << 14;

/// `h = gate sigmoid(gate) up`.
///
/// # Shapes
/// All `[N, mlp width]`.
pub fn forward(h: &mut [f32], gate: &[f32], up: &[f32]) {
    h.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((h, g), u)| {
        vectorised(
            #[inline(always)]
            || {
                for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
                    *h = g * sigmoid(*g) * u;
                }
            },
        );
    });
}

/// Turns `gate` and `up` into their gradients in place: both are recomputed and needed no more.
pub fn backward(gate: &mut [f32], up: &mut [f32], dh: &[f32]) {
    gate.par_chunks_mut(CHUNK).zip(up.par_chunks_mut(CHUNK)).zip(dh.par_chunks(CHUNK)).for_each(|((g, u), dh)| {
        vectorised(
            #[inline(always)]
            || {
                for ((g, u), dh) in g.iter_mut().zip(u).zip(dh) {
                    let s = sigmoid(*g);
                    let silu = *g * s;
                    let dgate = dh * *u * (s + silu * (1.0 - s));
                    *u = dh * silu;
                    *g = dgate;
                }
            },
        );
    });
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
