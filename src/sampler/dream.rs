//! Dream's loop: at each time of its schedule a share of the masked tokens, anywhere in the answer, is kept.

use super::generate::{Canvases, Sampling, choose, log_sum_exp};
use super::remasking::{Remasking, most_confident, transfer_shares};
use crate::rng::{Draws, Stream};

/// Added to probabilities before their logarithm, as Dream adds it.
const TINY: f64 = 1e-10;

/// Fills the masks of the answers; the mask token is a prediction like any other.
pub(super) fn denoise(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let is_origin = remasking == Remasking::Origin;
    for (step, share) in transfer_shares(sampling.diffusion_steps).into_iter().enumerate() {
        let draws = |example| Draws::new(sampling.seed, Stream::Sampling, step as u64, example);
        // 1. The masked positions; `origin` draws those to be kept before it looks at them.
        let mut wanted = canvases.masked();
        if is_origin {
            for (positions, prompt) in wanted.iter_mut().zip(canvases.prompts) {
                let draws = draws(prompt.example);
                positions.retain(|at| draws.unit_f64(*at as u64) < f64::from(share));
            }
        }
        // 2. Their predictions, some of which are kept.
        let mut logits = canvases.logits(&wanted, sampling).into_iter();
        for ((prompt, ids), positions) in canvases.prompts.iter().zip(&mut canvases.sequences).zip(&wanted) {
            let draws = draws(prompt.example);
            let predict = |(at, row): (&usize, Vec<f32>)| predict(row, *at, sampling, remasking, &draws);
            let predictions: Vec<(u32, f64)> = positions.iter().zip(logits.by_ref()).map(predict).collect();
            let count = if is_origin { positions.len() } else { (positions.len() as f32 * share) as usize };
            let score = |(at, (_, confidence)): (&usize, &(u32, f64))| match sampling.alg_temp {
                0.0 => *confidence,
                // The largest of these are draws without replacement in proportion to e^(confidence / alg_temp).
                alg_temp => confidence / alg_temp + gumbel(draws.unit_f64(*at as u64)),
            };
            let scores: Vec<f64> = positions.iter().zip(&predictions).map(score).collect();
            for kept in most_confident(&scores, count) {
                ids[positions[kept]] = predictions[kept].0;
            }
        }
        canvases.tell();
    }
}

/// The predicted token of a position and its confidence.
fn predict(mut row: Vec<f32>, at: usize, sampling: &Sampling, remasking: Remasking, draws: &Draws) -> (u32, f64) {
    let is_greedy = sampling.temperature == 0.0;
    if !is_greedy {
        row.iter_mut().for_each(|z| *z /= sampling.temperature as f32);
    }
    keep_likeliest(&mut row, sampling.top_p, sampling.top_k);
    let lse = log_sum_exp(&row);
    let token = choose(&row, if is_greedy { 0.0 } else { 1.0 }, draws, at);
    let probability = |z: f32| (f64::from(z) - lse).exp();
    let confidence = match remasking {
        Remasking::TopkMargin => {
            let [first, second] = largest_two(&row);
            probability(first) - probability(second)
        }
        Remasking::Entropy => row.iter().map(|z| probability(*z)).map(|p| p * (p + TINY).ln()).sum(),
        _ => probability(row[token]),
    };
    sampling.deferred((token as u32, confidence))
}

/// Makes the tokens impossible that lie behind the likeliest: behind those that hold more than `top_p` together, and
/// less likely than the `top_k`-th of what is left.
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

/// A Gumbel number of a uniform one.
fn gumbel(u: f64) -> f64 {
    -(-u.max(f64::MIN_POSITIVE).ln()).ln()
}
