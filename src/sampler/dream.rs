//! Dream's loop: at each time of its schedule it keeps a share of the masked tokens, anywhere in the answer.

use weft_kernels::predict::{Confidence, Prediction, Rule};

use super::generate::{Canvases, Sampling};
use super::remasking::{Remasking, most_confident, transfer_shares};
use crate::rng::{Draws, Stream};

/// Fills the masks of the answers; the mask token counts as a prediction like any other.
pub(super) fn denoise(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let (is_origin, rule) = (remasking == Remasking::Origin, rule(sampling, remasking));
    for (step, share) in transfer_shares(sampling.diffusion_steps).into_iter().enumerate() {
        let draws = |example| Draws::new(sampling.seed, Stream::Sampling, step as u64, example);
        // 1. The masked positions; `origin` draws the ones to keep before it predicts them.
        let mut wanted = canvases.masked();
        if is_origin {
            for (positions, prompt) in wanted.iter_mut().zip(canvases.prompts) {
                let draws = draws(prompt.example);
                positions.retain(|at| draws.unit_f64(*at as u64) < f64::from(share));
            }
        }
        // 2. Their predictions, some of which are kept.
        let mut predictions = canvases.predict(&wanted, sampling, draws, &rule).into_iter();
        for ((prompt, ids), positions) in canvases.prompts.iter().zip(&mut canvases.sequences).zip(&wanted) {
            let draws = draws(prompt.example);
            let own: Vec<Prediction> = predictions.by_ref().take(positions.len()).collect();
            let count = if is_origin { positions.len() } else { (positions.len() as f32 * share) as usize };
            let score = |(at, Prediction { confidence, .. }): (&usize, &Prediction)| match sampling.alg_temp {
                0.0 => *confidence,
                // The largest of these are draws without replacement, with probabilities proportional to e^(confidence
                // / alg_temp).
                alg_temp => confidence / alg_temp + gumbel(draws.unit_f64(*at as u64)),
            };
            let scores: Vec<f64> = positions.iter().zip(&own).map(score).collect();
            for kept in most_confident(&scores, count) {
                ids[positions[kept]] = own[kept].token;
            }
        }
        canvases.tell();
        if canvases.are_stopped() {
            break;
        }
    }
}

/// How a position's token is chosen and how its confidence is computed.
fn rule(sampling: &Sampling, remasking: Remasking) -> Rule<'static> {
    let is_greedy = sampling.temperature == 0.0;
    Rule {
        divisor: if is_greedy { 1.0 } else { sampling.temperature as f32 },
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        noise: if is_greedy { 0.0 } else { 1.0 },
        confidence: match remasking {
            Remasking::TopkMargin => Confidence::Margin,
            Remasking::Entropy => Confidence::NegativeEntropy,
            _ => Confidence::Probability,
        },
        ..Rule::GREEDY
    }
}

/// A Gumbel-distributed number from a uniform one.
fn gumbel(u: f64) -> f64 {
    -(-u.max(f64::MIN_POSITIVE).ln()).ln()
}
