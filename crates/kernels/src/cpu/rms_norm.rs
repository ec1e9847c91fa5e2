//! RMSNorm, `y = g x / sqrt(mean(x^2) + eps)`: forward and backward.

use rayon::prelude::*;

use crate::cpu::exp::{dot, dot3, vectorised};

/// How many rows' gain gradients are added into one partial sum, in order; short rows have more of them.
const PARTIAL_ROWS: usize = 64;
/// About how many numbers one task takes, so that rows of a head's width don't cost a task each.
const TASK_NUMBERS: usize = 8192;

/// `y = g x / sqrt(mean(x^2) + eps)`, row by row.
///
/// # Shapes
/// `y`, `x` `[N, D]`, `gain` `[D]`.
pub fn forward(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    let (width, task) = (gain.len(), task_len(gain.len()));
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                    let scale = inverse_rms(x, eps);
                    for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
                        *y = x * scale * g;
                    }
                }
            },
        );
    });
}

/// `dx += d y / d x` and, where the gain is trained, `dgain += sum over rows of dy x / rms`.
pub fn backward(dx: &mut [f32], dgain: Option<&mut [f32]>, dy: &[f32], x: &[f32], gain: &[f32], eps: f32) {
    let (width, task) = (gain.len(), task_len(gain.len()));
    dx.par_chunks_mut(task).zip(dy.par_chunks(task)).zip(x.par_chunks(task)).for_each(|((dx, dy), x)| {
        vectorised(
            #[inline(always)]
            || {
                for ((dx, dy), x) in dx.chunks_mut(width).zip(dy.chunks(width)).zip(x.chunks(width)) {
                    let (scale, shrink) = factors(dy, x, gain, eps);
                    for (((dx, dy), g), x) in dx.iter_mut().zip(dy).zip(gain).zip(x) {
                        *dx += dy * g * scale - x * shrink;
                    }
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
                    || add_gain_gradient(&mut partial, dy, x, inverse_rms(x, eps)),
                );
            }
            partial
        })
        .collect();
    add_partials(dgain, partials);
}

/// Overwrites `dy` with the gradient of `x`, `dy g / rms - x sum(dy g x) / (D rms^3)`. Where the gain is trained,
/// `dgain += sum over rows of dy x / rms`.
pub fn backward_in_place(dy: &mut [f32], dgain: Option<&mut [f32]>, x: &[f32], gain: &[f32], eps: f32) {
    let (width, is_trained) = (gain.len(), dgain.is_some());
    let task = if is_trained { partial_len(width) } else { task_len(width) };
    let of_task = |(dy, x): (&mut [f32], &[f32])| {
        let mut partial = vec![0.0; if is_trained { width } else { 0 }];
        vectorised(
            #[inline(always)]
            || {
                for (dy, x) in dy.chunks_mut(width).zip(x.chunks(width)) {
                    let (scale, shrink) = factors(dy, x, gain, eps);
                    add_gain_gradient(&mut partial, dy, x, scale);
                    for ((dy, g), x) in dy.iter_mut().zip(gain).zip(x) {
                        *dy = *dy * g * scale - x * shrink;
                    }
                }
            },
        );
        partial
    };
    let partials: Vec<Vec<f32>> = dy.par_chunks_mut(task).zip(x.par_chunks(task)).map(of_task).collect();
    if let Some(dgain) = dgain {
        add_partials(dgain, partials);
    }
}

/// Bytes of the partial sums that [`backward_in_place`] needs for the gain's gradient of `len` numbers.
pub(crate) fn partial_bytes(len: usize, width: usize) -> usize {
    len.div_ceil(partial_len(width)) * width * size_of::<f32>()
}

/// How many numbers one task takes: whole rows.
fn task_len(width: usize) -> usize {
    width * (TASK_NUMBERS / width).max(1)
}

/// How many numbers' gain gradients [`backward_in_place`] adds into one partial sum.
fn partial_len(width: usize) -> usize {
    task_len(width).max(width * PARTIAL_ROWS)
}

/// What multiplies `dy g` and what multiplies `x` in a row's gradient.
#[inline(always)]
fn factors(dy: &[f32], x: &[f32], gain: &[f32], eps: f32) -> (f32, f32) {
    let scale = inverse_rms(x, eps);
    (scale, scale * scale * scale * dot3(dy, gain, x) / x.len() as f32)
}

#[inline(always)]
fn add_gain_gradient(to: &mut [f32], dy: &[f32], x: &[f32], scale: f32) {
    for ((to, dy), x) in to.iter_mut().zip(dy).zip(x) {
        *to += dy * x * scale;
    }
}

/// Adds the partial sums in order.
fn add_partials(dgain: &mut [f32], partials: Vec<Vec<f32>>) {
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
