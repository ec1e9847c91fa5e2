//! The loss of a head that isn't trained: each row's negative log-likelihood and the gradient of its input, in one pass
//! over the vocabulary. It works like attention with the head's rows as keys and values: a block's logits become
//! exponentials and are multiplied by the same block while it is in the cache, so no logits are stored. A trained head
//! needs stored logits (`head_loss`).

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::{Buffer, Scratch};
use crate::cpu::exp::{self, exp, vectorised};
use crate::cpu::matrix::{BLOCK, Term, View, task};
use crate::cpu::microkernel::Output;
use crate::cpu::panels::Right;
use crate::head_loss::Head;
use crate::precision::LaidOut;
use crate::slice::{Slice, SliceMut};
use crate::tensor::Into;

/// The number of parts of the vocabulary, each with its own sums. It is fixed, so that results don't depend on the
/// number of threads.
const PARTS: usize = 8;
/// The most numbers that the sums of all parts hold.
const SUMS: usize = 1 << 23;

/// The rows of a chunk: inputs `[N, D]`, targets and weights.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) x: Slice<'a>,
    pub(crate) targets: &'a [u32],
    pub(crate) weights: &'a [f32],
}

/// Sums over one part of the vocabulary, without the target: near certainty the target's gradient is a small
/// difference, which would be lost in rounded operands.
struct Part {
    /// Each row's largest logit.
    max: Vec<f32>,
    /// `sum of e^(z_v - max)`.
    z: Vec<f64>,
    /// `sum of e^(z_v - max) W_v`, `[N, D]`.
    sums: Buffer,
    /// Each row's target logit, if the target is in this part.
    target: Vec<Option<f32>>,
}

/// The rows of a chunk, for each of which every part holds sums.
fn rows_at_once(width: usize) -> usize {
    (SUMS / (PARTS * width)).clamp(96, 2048)
}

/// Returns each row's `nll`, and overwrites `dx` with the gradient of `sum of weight * nll`.
///
/// # Shapes
/// `dx` `[N, D]`.
pub(crate) fn loss(head: &Head, rows: Rows, mut dx: SliceMut) -> Vec<f32> {
    let width = head.weight.cols();
    let (at_once, mut first, mut nll) = (rows_at_once(width), 0, vec![]);
    for (targets, weights) in rows.targets.chunks(at_once).zip(rows.weights.chunks(at_once)) {
        let range = first * width..(first + targets.len()) * width;
        let x = rows.x.range(range.clone());
        nll.extend(loss_of_chunk(head, Rows { x, targets, weights }, dx.borrow().range(range)));
        first += targets.len();
    }
    nll
}

fn loss_of_chunk(head: &Head, rows: Rows, dx: SliceMut) -> Vec<f32> {
    let (vocab, width) = (head.weight.rows(), head.weight.cols());
    let blocks = vocab.div_ceil(BLOCK[1]);
    let x = LaidOut::new(View::new(rows.x, rows.targets.len(), width), head.precision.layout());
    let sums = [(); PARTS].map(|()| Buffer::unset(rows.x.meta(), rows.targets.len() * width));
    if let Some(meta) = rows.x.meta() {
        meta.take_on_threads(rows.targets.len() * BLOCK[1].min(vocab));
    }
    let Some(dx) = dx.numbers() else { return vec![0.0; rows.targets.len()] };
    let part = |(p, sums): (usize, Buffer)| {
        let cols = p * blocks / PARTS * BLOCK[1]..((p + 1) * blocks / PARTS * BLOCK[1]).min(vocab);
        Part::new(head, rows, &x, cols, sums)
    };
    let parts: Vec<Part> = Vec::from(sums).into_par_iter().enumerate().map(part).collect();
    dx.par_chunks_mut(width).enumerate().map(|(i, dx)| merge(&parts, i, rows, head, dx)).collect()
}

impl Part {
    fn new(head: &Head, rows: Rows, x: &LaidOut, cols: Range<usize>, mut sums: Buffer) -> Self {
        let (n, width, layout) = (rows.targets.len(), head.weight.cols(), head.precision.layout());
        sums.fill(0.0);
        let mut part = Self { max: vec![f32::NEG_INFINITY; n], z: vec![0.0; n], sums, target: vec![None; n] };
        let numbers = View::new(rows.x, n, width);
        let mut tile = Buffer::unset(None, n * BLOCK[1].min(cols.len()));
        let mut spare = Scratch::new();
        for start in cols.clone().step_by(BLOCK[1]) {
            let block = start..(start + BLOCK[1]).min(cols.end);
            let tile = &mut tile[..n * block.len()];
            let logits = Term { a: numbers, b: Right::WeightT(head.weight), scale: 1.0 };
            // SAFETY: the tile holds `n` rows of the block's columns and is borrowed mutably.
            unsafe {
                let out = Output { start: tile.as_mut_ptr(), stride: block.len() };
                task(out, x.view(), &logits, layout, block.clone(), Into::Set);
            }
            for (i, row) in tile.chunks_mut(block.len()).enumerate() {
                let target = Some(rows.targets[i] as usize).filter(|t| block.contains(t));
                part.take_row(i, row, target.map(|t| t - start));
            }
            let tile = View::new(&*tile, n, block.len());
            let values = Term { a: tile, b: Right::WeightRows(head.weight, [block.start, block.end]), scale: 1.0 };
            // SAFETY: the sums hold `n` rows of `width` numbers and are borrowed mutably.
            unsafe {
                let out = Output { start: part.sums.as_mut_ptr(), stride: width };
                task(out, layout.of(tile, &mut spare), &values, layout, 0..width, Into::Add);
            }
        }
        part
    }

    /// Overwrites a row's next logits with the exponentials of their differences from the largest logit so far.
    fn take_row(&mut self, i: usize, row: &mut [f32], target: Option<usize>) {
        if let Some(t) = target {
            self.target[i] = Some(row[t]);
            row[t] = f32::NEG_INFINITY;
        }
        let width = self.sums.len() / self.max.len();
        let (max, sums) = (&mut self.max[i], &mut self.sums[i * width..(i + 1) * width]);
        let z = &mut self.z[i];
        vectorised(
            #[inline(always)]
            || {
                let largest = exp::max(row);
                if largest > *max {
                    let shrink = exp(*max - largest);
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                    *z *= f64::from(shrink);
                    *max = largest;
                }
                // Only the target has come so far, and -inf - -inf would be NaN.
                let from = if *max == f32::NEG_INFINITY { 0.0 } else { *max };
                row.iter_mut().for_each(|logit| *logit = exp(*logit - from));
                *z += exp::sum(row, |e| e);
            },
        );
    }
}

/// A row's `nll` and the gradient of its input, merged from the sums of all parts.
fn merge(parts: &[Part], i: usize, rows: Rows, head: &Head, dx: &mut [f32]) -> f32 {
    let (width, weight, target) = (dx.len(), rows.weights[i], rows.targets[i] as usize);
    let target_logit = parts.iter().find_map(|part| part.target[i]).expect("the target is a row of the head");
    let max = parts.iter().map(|part| part.max[i]).fold(target_logit, f32::max);
    let factors: Vec<f64> = parts.iter().map(|part| f64::from(part.max[i] - max).exp()).collect();
    let others: f64 = parts.iter().zip(&factors).map(|(part, factor)| part.z[i] * factor).sum();
    let z = others + f64::from(target_logit - max).exp();
    let of_target = head.weight.rows_f32(target..target + 1);
    let away = f64::from(weight) * (others / z);
    dx.iter_mut().zip(&*of_target).for_each(|(dx, w)| *dx = -(away as f32) * w);
    for (part, factor) in parts.iter().zip(factors) {
        let factor = (f64::from(weight) * factor / z) as f32;
        vectorised(
            #[inline(always)]
            || {
                let sums = &part.sums[i * width..(i + 1) * width];
                dx.iter_mut().zip(sums).for_each(|(dx, sum)| *dx += factor * sum);
            },
        );
    }
    (f64::from(max) + z.ln() - f64::from(target_logit)) as f32
}
