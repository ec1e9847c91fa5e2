//! LLaDA's sampler: block after block, each denoised in a number of steps that keep the most confident predictions.

use super::remasking::{Remasking, most_confident, num_transfer_tokens};
use crate::model::block::{Batch, Transformer};
use crate::rng::{Draws, Stream};

/// The sampler's settings.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Tokens of the answer.
    pub gen_length: usize,
    /// Tokens of a block; a divisor of `gen_length`.
    pub block_length: usize,
    /// Denoising steps of the whole answer; a multiple of the number of blocks.
    pub diffusion_steps: usize,
    /// Gumbel temperature; 0 is greedy.
    pub temperature: f64,
    /// Classifier-free guidance; 0 is off.
    pub cfg_scale: f32,
    /// Which predictions are kept.
    pub remasking: Remasking,
    /// End tokens that `forbid_eos` and `defer_eos` speak of.
    pub eos_token_ids: Vec<u32>,
    /// Never predict an end token (LLaDA's `logits_eos_inf`).
    pub forbid_eos: bool,
    /// Keep a predicted end token last (LLaDA's `confidence_eos_eot_inf`).
    pub defer_eos: bool,
    /// Names the draws.
    pub seed: u64,
}

impl Sampling {
    /// Says what is wrong with the lengths.
    ///
    /// # Errors
    /// One sentence with the values.
    pub fn check(&self) -> Result<(), String> {
        let Self { gen_length, block_length, diffusion_steps, .. } = self;
        if *block_length == 0 || *gen_length == 0 || gen_length % block_length != 0 {
            return Err(format!("gen_length {gen_length} is not a multiple of block_length {block_length}"));
        }
        let blocks = gen_length / block_length;
        if *diffusion_steps == 0 || diffusion_steps % blocks != 0 {
            return Err(format!("diffusion_steps {diffusion_steps} is not a multiple of the {blocks} blocks"));
        }
        Ok(())
    }
}

/// Appends an answer of `gen_length` tokens to the prompt. `example` names the draws beside the seed.
///
/// # Errors
/// Lengths that do not divide, as [`Sampling::check`] says them.
///
/// # Source
/// LLaDA (arXiv 2502.09992), algorithms 4 and 5, and its public `generate`.
pub fn generate(model: &Transformer, prompt: &[u32], sampling: &Sampling, example: u64) -> Result<Vec<u32>, String> {
    sampling.check()?;
    let mask = model.config.mask_token_id;
    let mut ids = prompt.to_vec();
    ids.resize(prompt.len() + sampling.gen_length, mask);
    let steps = sampling.diffusion_steps / (sampling.gen_length / sampling.block_length);
    for block in 0..sampling.gen_length / sampling.block_length {
        let start = prompt.len() + block * sampling.block_length;
        for (step, count) in num_transfer_tokens(sampling.block_length, steps).into_iter().enumerate() {
            let rows: Vec<usize> = (start..start + sampling.block_length).filter(|i| ids[*i] == mask).collect();
            let draws = Draws::new(sampling.seed, Stream::Sampling, (block * steps + step) as u64, example);
            let predictions = predict(model, &ids, prompt.len(), &rows, sampling, &draws);
            let confidence: Vec<f64> = predictions.iter().map(|p| p.1).collect();
            for kept in most_confident(&confidence, count) {
                ids[rows[kept]] = predictions[kept].0;
            }
        }
    }
    Ok(ids)
}

/// The predicted token and its confidence at each row.
fn predict(
    model: &Transformer,
    ids: &[u32],
    prompt_length: usize,
    rows: &[usize],
    sampling: &Sampling,
    draws: &Draws,
) -> Vec<(u32, f64)> {
    let mut logits = logits_at(model, ids, rows);
    if sampling.cfg_scale > 0.0 {
        let mut unconditional = ids.to_vec();
        unconditional[..prompt_length].fill(model.config.mask_token_id);
        let unconditional = logits_at(model, &unconditional, rows);
        for (l, u) in logits.iter_mut().zip(unconditional) {
            *l = u + (sampling.cfg_scale + 1.0) * (*l - u);
        }
    }
    let vocab = logits.len() / rows.len().max(1);
    let predict_row = |(row, &position): (&mut [f32], &usize)| {
        if sampling.forbid_eos {
            sampling.eos_token_ids.iter().for_each(|id| row[*id as usize] = f32::NEG_INFINITY);
        }
        // A mask token predicted as an answer would stay masked for ever, but it keeps its share of the probability.
        let lse = log_sum_exp(row);
        row[model.config.mask_token_id as usize] = f32::NEG_INFINITY;
        let token = choose(row, sampling.temperature, draws, position);
        let confidence = match sampling.remasking {
            Remasking::LowConfidence => (f64::from(row[token]) - lse).exp(),
            Remasking::Random => draws.unit_f64(position as u64),
        };
        let deferred = sampling.defer_eos && sampling.eos_token_ids.contains(&(token as u32));
        (token as u32, if deferred { f64::NEG_INFINITY } else { confidence })
    };
    logits.chunks_mut(vocab.max(1)).zip(rows).map(predict_row).collect()
}

fn logits_at(model: &Transformer, ids: &[u32], rows: &[usize]) -> Vec<f32> {
    let mut all = vec![];
    model.for_each_logits(&Batch::pack([ids]), rows, |_, chunk| all.extend_from_slice(chunk));
    all
}

/// The argmax of `exp(z) / (-ln u)^temperature` in f64, as `z - temperature ln(-ln u)`; of `z` at temperature 0.
fn choose(logits: &[f32], temperature: f64, draws: &Draws, position: usize) -> usize {
    let score = |v: usize| {
        let z = f64::from(logits[v]);
        if temperature == 0.0 {
            return z;
        }
        // Positions below 2^32 name the remasking's draws; the vocabulary's lie above.
        let u = draws.unit_f64((position as u64 + 1) << 32 | v as u64).max(f64::MIN_POSITIVE);
        z - temperature * (-u.ln()).ln()
    };
    let mut best = (0, f64::NEG_INFINITY);
    for v in 0..logits.len() {
        let s = score(v);
        if s > best.1 {
            best = (v, s);
        }
    }
    best.0
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|z| (f64::from(*z) - max).exp()).sum::<f64>().ln()
}
