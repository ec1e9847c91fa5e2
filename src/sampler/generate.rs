//! LLaDA's sampler: block after block, each denoised in a number of steps that keep the most confident predictions.

use serde::{Deserialize, Serialize};

use super::remasking::{Remasking, most_confident, num_transfer_tokens};
use crate::model::batch::Batch;
use crate::model::block::Transformer;
use crate::rng::{Draws, Stream};

/// The sampler's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    pub cfg_scale: f64,
    /// Which predictions are kept.
    pub remasking: Remasking,
    /// End tokens that `forbid_eos` and `defer_eos` speak of; the model's own, not a recipe's.
    #[serde(skip)]
    pub eos_token_ids: Vec<u32>,
    /// Never predict an end token (LLaDA's `logits_eos_inf`).
    pub forbid_eos: bool,
    /// Keep a predicted end token last (LLaDA's `confidence_eos_eot_inf`).
    pub defer_eos: bool,
    /// Names the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            gen_length: 128,
            block_length: 32,
            diffusion_steps: 64,
            temperature: 0.0,
            cfg_scale: 0.0,
            remasking: Remasking::default(),
            eos_token_ids: vec![],
            forbid_eos: false,
            defer_eos: false,
            seed: 1,
        }
    }
}

impl Sampling {
    /// Says what is wrong with the lengths and scales.
    ///
    /// # Errors
    /// One sentence with the values.
    pub fn check(&self) -> Result<(), String> {
        let Self { gen_length, block_length, diffusion_steps, .. } = self;
        if *block_length == 0 || *gen_length == 0 || gen_length % block_length != 0 {
            return Err(format!("gen_length {gen_length} is not a multiple of block_length {block_length}"));
        }
        for (name, value) in [("temperature", self.temperature), ("cfg_scale", self.cfg_scale)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(format!("{name} {value} is negative or not a number"));
            }
        }
        let blocks = gen_length / block_length;
        if *diffusion_steps == 0 || diffusion_steps % blocks != 0 {
            return Err(format!("diffusion_steps {diffusion_steps} is not a multiple of the {blocks} blocks"));
        }
        Ok(())
    }
}

/// A prompt and the number that names its draws beside the seed.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// The example's number.
    pub example: u64,
}

/// Appends an answer of `gen_length` tokens to each prompt. The prompts are packed into one forward and do not see
/// each other: each gets what it would get alone.
///
/// # Errors
/// Lengths that do not divide, as [`Sampling::check`] says them.
///
/// # Source
/// LLaDA (arXiv 2502.09992), algorithms 4 and 5, and its public `generate`.
pub fn generate(model: &Transformer, prompts: &[Prompt], sampling: &Sampling) -> Result<Vec<Vec<u32>>, String> {
    sampling.check()?;
    let mask = model.config.mask_token_id;
    let canvas = |p: &Prompt| {
        let mut ids = p.ids.to_vec();
        ids.resize(p.ids.len() + sampling.gen_length, mask);
        ids
    };
    let mut sequences: Vec<Vec<u32>> = prompts.iter().map(canvas).collect();
    let steps = sampling.diffusion_steps / (sampling.gen_length / sampling.block_length);
    for block in 0..sampling.gen_length / sampling.block_length {
        for (step, count) in num_transfer_tokens(sampling.block_length, steps).into_iter().enumerate() {
            // 1. The masked positions of this block, in every sequence.
            let first = block * sampling.block_length;
            let is_masked = |i: usize, at: &usize| sequences[i][*at] == mask;
            let masked: Vec<Vec<usize>> = prompts
                .iter()
                .enumerate()
                .map(|(i, p)| (p.ids.len() + first, i))
                .map(|(start, i)| (start..start + sampling.block_length).filter(|at| is_masked(i, at)).collect())
                .collect();
            // 2. Their predictions, the most confident of which are kept.
            let mut logits = guided_logits(model, prompts, &sequences, &masked, sampling.cfg_scale as f32).into_iter();
            for ((prompt, ids), positions) in prompts.iter().zip(&mut sequences).zip(&masked) {
                let draws = Draws::new(sampling.seed, Stream::Sampling, (block * steps + step) as u64, prompt.example);
                let predict = |(at, mut row): (&usize, Vec<f32>)| predict(&mut row, *at, mask, sampling, &draws);
                let predictions: Vec<(u32, f64)> = positions.iter().zip(logits.by_ref()).map(predict).collect();
                let confidence: Vec<f64> = predictions.iter().map(|p| p.1).collect();
                for kept in most_confident(&confidence, count) {
                    ids[positions[kept]] = predictions[kept].0;
                }
            }
        }
    }
    Ok(sequences)
}

/// The logits of each masked position, guided away from those without the prompt where `cfg_scale` is above 0.
fn guided_logits(
    model: &Transformer,
    prompts: &[Prompt],
    sequences: &[Vec<u32>],
    masked: &[Vec<usize>],
    cfg_scale: f32,
) -> Vec<Vec<f32>> {
    let mut logits = logits_at(model, sequences, masked);
    if cfg_scale > 0.0 {
        let mut unconditional = sequences.to_vec();
        for (ids, prompt) in unconditional.iter_mut().zip(prompts) {
            ids[..prompt.ids.len()].fill(model.config.mask_token_id);
        }
        let unconditional = logits_at(model, &unconditional, masked);
        for (l, u) in logits.iter_mut().flatten().zip(unconditional.iter().flatten()) {
            *l = u + (cfg_scale + 1.0) * (*l - u);
        }
    }
    logits
}

fn logits_at(model: &Transformer, sequences: &[Vec<u32>], positions: &[Vec<usize>]) -> Vec<Vec<f32>> {
    let batch = Batch::pack(sequences.iter().map(Vec::as_slice));
    let in_batch = batch.sequences.iter().zip(positions);
    let rows: Vec<usize> = in_batch.flat_map(|(s, at)| at.iter().map(move |i| s.start + i)).collect();
    let mut all = vec![];
    let vocab = model.params[model.head.weight].weight.rows();
    model.for_each_logits(&batch, &rows, |_, chunk| all.extend(chunk.chunks(vocab).map(<[f32]>::to_vec)));
    all
}

/// The predicted token of a position and its confidence.
fn predict(row: &mut [f32], position: usize, mask: u32, sampling: &Sampling, draws: &Draws) -> (u32, f64) {
    if sampling.forbid_eos {
        sampling.eos_token_ids.iter().for_each(|id| row[*id as usize] = f32::NEG_INFINITY);
    }
    // A mask token predicted as an answer would stay masked for ever, but it keeps its share of the probability.
    let lse = log_sum_exp(row);
    row[mask as usize] = f32::NEG_INFINITY;
    let token = choose(row, sampling.temperature, draws, position);
    let confidence = match sampling.remasking {
        Remasking::LowConfidence => (f64::from(row[token]) - lse).exp(),
        Remasking::Random => draws.unit_f64(position as u64),
    };
    let deferred = sampling.defer_eos && sampling.eos_token_ids.contains(&(token as u32));
    (token as u32, if deferred { f64::NEG_INFINITY } else { confidence })
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
