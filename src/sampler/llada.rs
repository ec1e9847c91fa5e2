//! LLaDA's loop: block after block, each denoised in a number of steps that keep the most confident predictions, or in
//! as many as it takes where every confident one is kept.

use super::generate::{Canvases, Sampling, choose, log_sum_exp};
use super::remasking::{Remasking, confident, most_confident, num_transfer_tokens};
use crate::rng::{Draws, Stream};

/// Fills every mask of the answers.
pub(super) fn denoise(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let Sampling { gen_length, block_length, diffusion_steps, confidence_threshold, .. } = *sampling;
    // A step keeps one token at least.
    let steps = confidence_threshold.map_or(diffusion_steps / (gen_length / block_length), |_| block_length);
    let counts = num_transfer_tokens(block_length, steps);
    let mask = canvases.mask_token_id;
    for block in 0..gen_length / block_length {
        canvases.start_block(block * block_length..(block + 1) * block_length);
        for (step, count) in counts.iter().enumerate() {
            // 1. The masked positions of this block, in every sequence; a sequence without one waits for the others.
            let masked = canvases.masked();
            if masked.iter().all(Vec::is_empty) {
                break;
            }
            // 2. Their predictions, the most confident of which are kept.
            let mut logits = canvases.logits(&masked, sampling).into_iter();
            for ((prompt, ids), positions) in canvases.prompts.iter().zip(&mut canvases.sequences).zip(&masked) {
                let draws = Draws::new(sampling.seed, Stream::Sampling, (block * steps + step) as u64, prompt.example);
                let predict = |(at, mut row): (&usize, Vec<f32>)| {
                    // A mask token predicted as an answer would stay masked for ever, but it keeps its share of the
                    // probability.
                    let lse = log_sum_exp(&row);
                    row[mask as usize] = f32::NEG_INFINITY;
                    let token = choose(&row, sampling.temperature, &draws, *at);
                    let confidence = match remasking {
                        Remasking::Random => draws.unit_f64(*at as u64),
                        _ => (f64::from(row[token]) - lse).exp(),
                    };
                    sampling.deferred((token as u32, confidence))
                };
                let predictions: Vec<(u32, f64)> = positions.iter().zip(logits.by_ref()).map(predict).collect();
                let confidence: Vec<f64> = predictions.iter().map(|p| p.1).collect();
                let kept = match confidence_threshold {
                    Some(threshold) => confident(&confidence, threshold),
                    None => most_confident(&confidence, *count),
                };
                kept.into_iter().for_each(|kept| ids[positions[kept]] = predictions[kept].0);
            }
            canvases.tell();
        }
    }
}
