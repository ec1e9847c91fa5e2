//! A sampler's predictions on the CPU, with one row a task.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::head_loss::{logits_of, rows_at_once};
use crate::head_loss::Head;
use crate::philox::{philox, unit_f64};
use crate::predict::{Confidence, Prediction, RowDraw, Rule};
use crate::slice::{Slice, SliceMut};

/// Added to each probability before its logarithm is taken, as in Dream.
const TINY: f64 = 1e-10;

/// A prediction for each row of `x`.
pub fn predict(
    head: &Head,
    x: Slice,
    guidance: Option<(Slice, f32)>,
    draws: &[RowDraw],
    rule: &Rule,
) -> Vec<Prediction> {
    let (vocab, width) = (head.weight.rows(), head.weight.cols());
    let rows = rows_at_once(vocab).min(draws.len().max(1));
    let [mut logits, mut unguided] =
        [true, guidance.is_some()].map(|is_needed| Buffer::unset(x.meta(), if is_needed { rows * vocab } else { 0 }));
    let mut predictions = Vec::with_capacity(draws.len());
    for (chunk, draws) in draws.chunks(rows).enumerate() {
        let first = chunk * rows;
        let inputs = first * width..(first + draws.len()) * width;
        let numbers = 0..draws.len() * vocab;
        logits_of(head, first, x.range(inputs.clone()), SliceMut::from(&mut logits).range(numbers.clone()));
        if let Some((x, _)) = guidance {
            logits_of(head, first, x.range(inputs), SliceMut::from(&mut unguided).range(numbers.clone()));
        }
        let Some(logits) = SliceMut::from(&mut logits).range(numbers.clone()).numbers() else { continue };
        if let Some((_, scale)) = guidance {
            logits.par_iter_mut().zip(&unguided[..]).for_each(|(l, u)| *l = u + (scale + 1.0) * (*l - u));
        }
        predictions.par_extend(logits.par_chunks_mut(vocab).zip(draws).map(|(row, draw)| of_row(row, *draw, rule)));
    }
    predictions
}

/// The prediction of one row, whose logits it changes.
fn of_row(row: &mut [f32], draw: RowDraw, rule: &Rule) -> Prediction {
    rule.forbidden.iter().for_each(|id| row[*id as usize] = f32::NEG_INFINITY);
    if rule.divisor != 1.0 {
        row.iter_mut().for_each(|z| *z /= rule.divisor);
    }
    keep_likeliest(row, rule.top_p, rule.top_k);
    let lse = log_sum_exp(row);
    let probability = |z: f32| (f64::from(z) - lse).exp();
    let token = choose(row, draw, rule);
    let confidence = match rule.confidence {
        Confidence::Probability => probability(row[token]),
        Confidence::Margin => {
            let [first, second] = largest_two(row);
            probability(first) - probability(second)
        }
        Confidence::NegativeEntropy => row.iter().map(|z| probability(*z)).map(|p| p * (p + TINY).ln()).sum(),
    };
    Prediction { token: token as u32, confidence }
}

/// The argmax of `z - noise ln(-ln u)` in f64, or of `z` without noise. Among equals, the earliest wins.
fn choose(row: &[f32], draw: RowDraw, rule: &Rule) -> usize {
    let score = |v: usize| {
        let z = f64::from(row[v]);
        if rule.noise == 0.0 {
            return z;
        }
        let words = philox(draw.key, [v as u32, draw.position + 1, 0, 2]);
        let u = unit_f64(words[0], words[1]).max(f64::MIN_POSITIVE);
        z - rule.noise * (-u.ln()).ln()
    };
    let is_open = |v: &usize| rule.excluded.is_none_or(|excluded| *v != excluded as usize);
    let mut best = (0, f64::NEG_INFINITY);
    for v in (0..row.len()).filter(is_open) {
        let s = score(v);
        if s > best.1 {
            best = (v, s);
        }
    }
    best.0
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|z| (f64::from(*z) - max).exp()).sum::<f64>().ln()
}

/// Makes all but the most likely tokens impossible: those beyond the most likely ones that together hold more than
/// `top_p`, then those less likely than the `top_k`-th of what is left.
fn keep_likeliest(row: &mut [f32], top_p: f64, top_k: usize) {
    if top_p < 1.0 {
        let lse = log_sum_exp(row);
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let mut held = 0.0;
        for v in order {
            match held > top_p {
                true => row[v] = f32::NEG_INFINITY,
                false => held += (f64::from(row[v]) - lse).exp(),
            }
        }
    }
    if top_k > 0 && top_k < row.len() {
        let mut falling = row.to_vec();
        let least = *falling.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1;
        row.iter_mut().filter(|z| **z < least).for_each(|z| *z = f32::NEG_INFINITY);
    }
}

fn largest_two(row: &[f32]) -> [f32; 2] {
    row.iter().fold([f32::NEG_INFINITY; 2], |[first, second], &z| match z > first {
        true => [z, first],
        false => [first, second.max(z)],
    })
}
