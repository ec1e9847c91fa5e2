//! LLaDA's loop: it denoises block after block, each in a fixed number of steps that keep the most confident
//! predictions, or, with a threshold, in as many steps as it takes to keep every prediction that is confident enough.

use weft_kernels::predict::{Prediction, Rule};

use super::generate::{Canvases, Sampling};
use super::remasking::{Remasking, confident, most_confident, num_transfer_tokens};
use crate::rng::{Draws, Stream};

/// Fills every mask of the answers. An answer ends with the first finished block that holds an end token, unless the
/// whole canvas is asked for.
pub(super) fn denoise(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let Sampling { gen_length, block_length, diffusion_steps, confidence_threshold, .. } = *sampling;
    // Each step keeps at least one token.
    let steps = confidence_threshold.map_or(diffusion_steps / (gen_length / block_length), |_| block_length);
    let counts = num_transfer_tokens(block_length, steps);
    // A mask left in an earlier block may still become an end token.
    let ends_early = !sampling.whole_canvas && !sampling.predicts_mask;
    for block in 0..gen_length / block_length {
        canvases.start_block(block * block_length..(block + 1) * block_length);
        let ends = if ends_early { sampling.eos_token_ids.as_slice() } else { &[] };
        denoise_block(canvases, (sampling, remasking), (block * steps, &counts), ends);
        if canvases.are_stopped() {
            break;
        }
    }
}

/// Fills every mask in the canvases' span, which may also hold tokens.
pub(super) fn infill(canvases: &mut Canvases, sampling: &Sampling, remasking: Remasking) {
    let (span, mut first_step, mut left) = (canvases.block.clone(), 0, canvases.masked()[0].len());
    let end = span.end;
    let mut steps_left = sampling.diffusion_steps.min(left);
    for start in span.step_by(sampling.block_length) {
        canvases.start_block(start..(start + sampling.block_length).min(end));
        let masked = canvases.masked()[0].len();
        if masked == 0 {
            continue;
        }
        let steps = match sampling.confidence_threshold {
            Some(_) => masked,
            None => (steps_left * masked / left).clamp(1, masked),
        };
        let counts = num_transfer_tokens(masked, steps);
        denoise_block(canvases, (sampling, remasking), (first_step, &counts), &[]);
        (first_step, left, steps_left) = (first_step + steps, left - masked, steps_left.saturating_sub(steps));
    }
}

/// Denoises the canvases' block in at most `counts.len()` steps, the first of which has the number `first_step` in the
/// draws. An answer ends with the block if it holds one of `ends` then.
fn denoise_block(
    canvases: &mut Canvases,
    (sampling, remasking): (&Sampling, Remasking),
    (first_step, counts): (usize, &[usize]),
    ends: &[u32],
) {
    // A mask token predicted as an answer would stay masked, so it is excluded, but keeps its share of the probability.
    let excluded = Some(canvases.mask_token_id).filter(|_| !sampling.predicts_mask);
    let rule = Rule { excluded, noise: sampling.temperature, ..Rule::GREEDY };
    for (step, count) in counts.iter().enumerate() {
        // 1. The masked positions of this block in every sequence; a sequence without any waits for the others.
        let masked = canvases.masked();
        if masked.iter().all(Vec::is_empty) {
            break;
        }
        // 2. Predict them, and keep the most confident predictions.
        let draws = |example| Draws::new(sampling.seed, Stream::Sampling, (first_step + step) as u64, example);
        let mut predictions = canvases.predict(&masked, sampling, draws, &rule).into_iter();
        for ((prompt, ids), positions) in canvases.prompts.iter().zip(&mut canvases.sequences).zip(&masked) {
            let draws = draws(prompt.example);
            let own: Vec<Prediction> = predictions.by_ref().take(positions.len()).collect();
            let rated = |(at, p): (&usize, &Prediction)| match remasking {
                Remasking::Random if p.confidence > f64::NEG_INFINITY => draws.unit_f64(*at as u64),
                _ => p.confidence,
            };
            let confidence: Vec<f64> = positions.iter().zip(&own).map(rated).collect();
            let kept = match sampling.confidence_threshold {
                Some(threshold) => confident(&confidence, threshold),
                None => most_confident(&confidence, *count),
            };
            kept.into_iter().for_each(|kept| ids[positions[kept]] = own[kept].token);
        }
        // 3. An answer whose block is finished may be finished as a whole.
        canvases.end_answers(ends);
        canvases.tell();
        if canvases.are_stopped() {
            break;
        }
    }
}
