//! SwiGLU, `h = silu(gate) * up`: forward and backward, element by element.

use rayon::prelude::*;

use crate::cpu::exp::{exp, vectorised};
use crate::precision::{Precision, round};

/// Numbers per task.
const CHUNK: usize = 1 << 14;

/// `h = gate sigmoid(gate) up`, with the gate and the up projection rounded to `precision` first, because they may be
/// saved for backward in that format.
///
/// # Shapes
/// All `[N, mlp width]`.
pub fn forward(h: &mut [f32], gate: &[f32], up: &[f32], precision: Precision) {
    match precision {
        Precision::F32 | Precision::Bf16x3 => forward_of(h, gate, up, |x| x),
        Precision::Bf16 => forward_of(h, gate, up, round),
    }
}

fn forward_of(h: &mut [f32], gate: &[f32], up: &[f32], round: impl Fn(f32) -> f32 + Sync) {
    h.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((h, g), u)| {
        vectorised(
            #[inline(always)]
            || {
                for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
                    let (g, u) = (round(*g), round(*u));
                    *h = g * sigmoid(g) * u;
                }
            },
        );
    });
}

/// Overwrites `gate` and `up`, which are no longer needed, with their gradients. Both are rounded first, as in forward.
pub fn backward(gate: &mut [f32], up: &mut [f32], dh: &[f32], precision: Precision) {
    match precision {
        Precision::F32 | Precision::Bf16x3 => backward_of(gate, up, dh, |x| x),
        Precision::Bf16 => backward_of(gate, up, dh, round),
    }
}

fn backward_of(gate: &mut [f32], up: &mut [f32], dh: &[f32], round: impl Fn(f32) -> f32 + Sync) {
    gate.par_chunks_mut(CHUNK).zip(up.par_chunks_mut(CHUNK)).zip(dh.par_chunks(CHUNK)).for_each(|((g, u), dh)| {
        vectorised(
            #[inline(always)]
            || {
                for ((g, u), dh) in g.iter_mut().zip(u).zip(dh) {
                    let (gate, up) = (round(*g), round(*u));
                    let s = sigmoid(gate);
                    let silu = gate * s;
                    *g = dh * up * (s + silu * (1.0 - s));
                    *u = dh * silu;
                }
            },
        );
    });
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
