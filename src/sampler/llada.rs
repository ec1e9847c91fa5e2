//! LLaDA's loop: it denoises block after block, each in a fixed number of steps that keep the most confident
//! predictions, or, with a threshold, in as many steps as it takes to keep every prediction that is confident enough.

use weft_kernels::predict::{Prediction, Rule};

use super::generate::{Canvases, Sampling};
use super::remasking::{Remasking, confident, most_confident, num_transfer_tokens};
use crate::rng::{Draws, Stream};

/// Fills every mask of the answers.
pub(super) fn denoise(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let Sampling { gen_length, block_length, diffusion_steps, confidence_threshold, .. } = *sampling;
    // Each step keeps at least one token.
    let steps = confidence_threshold.map_or(diffusion_steps / (gen_length / block_length), |_| block_length);
    let counts = num_transfer_tokens(block_length, steps);
    // A mask token predicted as an answer would stay masked, so it is excluded, but keeps its share of the probability.
    let excluded = Some(canvases.mask_token_id).filter(|_| !sampling.predicts_mask);
    let rule = Rule { excluded, noise: sampling.temperature, ..Rule::GREEDY };
    for block in 0..gen_length / block_length {
        canvases.start_block(block * block_length..(block + 1) * block_length);
        for (step, count) in counts.iter().enumerate() {
            // 1. The masked positions of this block in every sequence; a sequence without any waits for the others.
            let masked = canvases.masked();
            if masked.iter().all(Vec::is_empty) {
                break;
            }
            // 2. Predict them, and keep the most confident predictions.
            let draws = |example| Draws::new(sampling.seed, Stream::Sampling, (block * steps + step) as u64, example);
            let mut predictions = canvases.predict(&masked, sampling, draws, &rule).into_iter();
            for ((prompt, ids), positions) in canvases.prompts.iter().zip(&mut canvases.sequences).zip(&masked) {
                let draws = draws(prompt.example);
                let own: Vec<Prediction> = predictions.by_ref().take(positions.len()).collect();
                let rated = |(at, p): (&usize, &Prediction)| match remasking {
                    Remasking::Random if p.confidence > f64::NEG_INFINITY => draws.unit_f64(*at as u64),
                    _ => p.confidence,
                };
                let confidence: Vec<f64> = positions.iter().zip(&own).map(rated).collect();
                let kept = match confidence_threshold {
                    Some(threshold) => confident(&confidence, threshold),
                    None => most_confident(&confidence, *count),
                };
                kept.into_iter().for_each(|kept| ids[positions[kept]] = own[kept].token);
            }
            canvases.tell();
        }
    }
}
