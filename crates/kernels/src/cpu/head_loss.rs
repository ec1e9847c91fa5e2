//! The LM head with softmax statistics: negative log-likelihood, entropy, and the gradient of a weighted sum of the
//! negative log-likelihoods. Logits exist only for a chunk of rows at a time, never as `[N, V]`.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::exp::{self, exp, vectorised};
use crate::cpu::frozen_head::{self, Rows};
use crate::cpu::linear;
use crate::cpu::lora_linear::{self, LoraGrad};
use crate::cpu::matrix::{self, Term, View};
use crate::cpu::panels::Right;
use crate::head_loss::Head;
use crate::slice::{Slice, SliceMut};
use crate::tensor::Into;

/// The most logits that are held at once.
const CHUNK_LOGITS: usize = 1 << 23;
/// The difference from the largest logit below which a token counts as impossible.
const LOWEST: f32 = -1e4;

/// Where the head's gradients are added; `None` for what is frozen.
#[derive(Default)]
pub struct HeadGrad<'a> {
    /// Gradient of the weight, `[V, D]`.
    pub weight: Option<&'a mut Buffer>,
    /// Gradients of the adapter.
    pub lora: Option<LoraGrad<'a>>,
}

/// How many rows have their logits held at once where logits are stored.
pub(crate) fn rows_at_once(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab).clamp(16, 512)
}

/// Calls `f(first row, logits [rows, V])` for each chunk of `x` `[N, D]`, in order.
pub fn for_each_chunk(head: &Head, x: Slice, mut f: impl FnMut(usize, SliceMut)) {
    let (vocab, width) = (head.weight.rows(), head.weight.cols());
    let (all, at_once) = (x.len() / width, rows_at_once(vocab));
    let mut logits = Buffer::unset(x.meta(), at_once.min(all) * vocab);
    for first in (0..all).step_by(at_once) {
        let rows = at_once.min(all - first);
        let x = x.range(first * width..(first + rows) * width);
        let mut logits = SliceMut::from(&mut logits).range(0..rows * vocab);
        logits_of(head, first, x, logits.borrow());
        f(first, logits);
    }
}

/// The logits of some rows; `first` is the index of the first one among all rows.
pub(crate) fn logits_of(head: &Head, first: usize, x: Slice, logits: SliceMut) {
    match head.lora_from(first) {
        None => linear::forward(logits, x, head.weight, head.precision),
        Some(lora) => lora_linear::forward(logits, x, head.weight, &lora),
    }
}

/// Shannon entropy of each row's distribution, in nats: `H = ln Z - sum e_v (z_v - max) / Z`, never below 0.
pub fn entropy(head: &Head, x: Slice) -> Vec<f32> {
    let entropy = |s: &Statistics| {
        let entropy = s.z.ln() - s.dot / s.z;
        // This form keeps a NaN visible.
        if entropy < 0.0 { 0.0 } else { entropy as f32 }
    };
    statistics(head, x, None).iter().map(entropy).collect()
}

/// Negative log-likelihood of each row's target, in nats.
pub fn nll(head: &Head, x: Slice, targets: &[u32]) -> Vec<f32> {
    let nll = |s: &Statistics| (f64::from(s.max) + s.z.ln() - f64::from(s.target)) as f32;
    statistics(head, x, Some(targets)).iter().map(nll).collect()
}

/// Statistics of each row's logits, which are never stored: each thread takes some of their columns at a time. On a
/// meta device the result is empty.
fn statistics(head: &Head, x: Slice, targets: Option<&[u32]>) -> Vec<Statistics> {
    let rows = x.len() / head.weight.cols();
    let of_all_tiles = rows * head.weight.rows().div_ceil(matrix::BLOCK[1]) * size_of::<Statistics>();
    let _of_all_tiles = x.meta().map(|meta| meta.take_outside(of_all_tiles));
    let of_tile = |first: usize, cols: Range<usize>, tile: &[f32]| -> Vec<Statistics> {
        let row = |(i, logits): (usize, &[f32])| {
            let target = targets.map(|t| t[first + i] as usize).filter(|t| cols.contains(t));
            Statistics::new(logits, target.map_or(0.0, |t| logits[t - cols.start]))
        };
        tile.chunks(cols.len()).enumerate().map(row).collect()
    };
    let tiles = match head.lora_from(0) {
        None => {
            let a = View::new(x, rows, head.weight.cols());
            matrix::map_tiles(&[Term { a, b: Right::WeightT(head.weight), scale: 1.0 }], head.precision, of_tile)
        }
        Some(lora) => {
            let u = lora_linear::project_down(lora_linear::dropped(x, &lora).as_ref().map_or(x, Slice::from), &lora);
            matrix::map_tiles(&lora_linear::terms(x, &u, head.weight, &lora), head.precision, of_tile)
        }
    };
    let merged = |blocks: &Vec<Vec<Statistics>>| -> Vec<Statistics> {
        let row = |i| blocks.iter().map(|block| block[i]).reduce(Statistics::merge).expect("a vocabulary");
        (0..blocks[0].len()).into_par_iter().map(row).collect()
    };
    tiles.iter().flat_map(merged).collect()
}

/// Negative log-likelihood of each row's target, in nats, and the gradient of `sum over rows of weight * nll`:
/// overwrites `dx` `[N, D]` and adds to `grad`.
pub fn loss(
    head: &Head,
    x: Slice,
    (targets, row_weights): (&[u32], &[f32]),
    mut dx: SliceMut,
    mut grad: HeadGrad,
) -> Vec<f32> {
    if grad.weight.is_none() && head.lora.is_none() {
        return frozen_head::loss(head, Rows { x, targets, weights: row_weights }, dx);
    }
    let (vocab, width) = (head.weight.rows(), head.weight.cols());
    let mut nll = vec![0.0; targets.len()];
    for_each_chunk(head, x, |first, mut logits| {
        let rows = logits.len() / vocab;
        let range = first..first + rows;
        let numbers = logits.borrow().numbers().unwrap_or_default();
        numbers
            .par_chunks_mut(vocab)
            .zip(nll[range.clone()].par_iter_mut())
            .zip(&targets[range.clone()])
            .zip(&row_weights[range.clone()])
            .for_each(|(((row, nll), &target), &weight)| {
                let lse = log_sum_exp(row);
                *nll = (lse - f64::from(row[target as usize])) as f32;
                let lse = lse as f32;
                vectorised(
                    #[inline(always)]
                    || row.iter_mut().for_each(|z| *z = weight * exp(*z - lse)),
                );
                row[target as usize] -= weight;
            });
        let (logits, features) = (logits.read(), range.start * width..range.end * width);
        let (x, dx) = (x.range(features.clone()), dx.borrow().range(features));
        if let Some(dw) = grad.weight.as_deref_mut() {
            linear::backward_weight(dw.into(), logits, x, rows, head.precision);
        }
        match (head.lora_from(first), &mut grad.lora) {
            (Some(lora), Some(g)) => {
                let grad = LoraGrad { a: &mut *g.a, b: &mut *g.b };
                lora_linear::backward(Some((dx, Into::Set)), grad, logits, x, head.weight, &lora);
            }
            _ => linear::backward_input(dx, logits, head.weight, Into::Set, head.precision),
        }
    });
    nll
}

/// `ln sum exp z`, in f64 from f32 exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let max = exp::max(logits);
            f64::from(max) + exp::sum(logits, |z| exp(z - max)).ln()
        },
    )
}

/// Softmax statistics of some logits; those of a whole row are merged from those of its parts.
#[derive(Clone, Copy)]
struct Statistics {
    max: f32,
    /// `sum of e^(z_v - max)`.
    z: f64,
    /// `sum of e^(z_v - max) (z_v - max)`.
    dot: f64,
    /// The target's logit, or 0 if the target is not among these logits.
    target: f32,
}

impl Statistics {
    /// Statistics of a few logits, for whose sums f32 is enough.
    fn new(logits: &[f32], target: f32) -> Self {
        vectorised(
            #[inline(always)]
            || {
                let max = exp::max(logits);
                // All tokens are impossible: -inf - -inf would be NaN.
                let from = if max == f32::NEG_INFINITY { 0.0 } else { max };
                let [mut z, mut dot] = [[0.0f32; exp::LANES]; 2];
                for chunk in logits.chunks(exp::LANES) {
                    for ((z, dot), logit) in z.iter_mut().zip(&mut dot).zip(chunk) {
                        // An impossible token's difference is cut off, because 0 * -inf is NaN.
                        let distance = if logit - from < LOWEST { LOWEST } else { logit - from };
                        let e = exp(distance);
                        *z += e;
                        *dot += e * distance;
                    }
                }
                Self { max, z: z.iter().sum::<f32>().into(), dot: dot.iter().sum::<f32>().into(), target }
            },
        )
    }

    fn merge(self, other: Self) -> Self {
        let max = if other.max > self.max { other.max } else { self.max };
        let [(z, dot), (other_z, other_dot)] = [self, other].map(|s| {
            // Equal maxima may be infinite, and their difference would be NaN.
            let shift =
                if s.max == max { 0.0 } else { f64::from(if s.max - max < LOWEST { LOWEST } else { s.max - max }) };
            (shift.exp() * s.z, shift.exp() * (s.dot + shift * s.z))
        });
        Self { max, z: z + other_z, dot: dot + other_dot, target: self.target + other.target }
    }
}
