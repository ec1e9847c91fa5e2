//! Generation: its settings, the canvas of masks behind each prompt, and what both families' loops share. The loops
//! are `llada`'s and `dream`'s.

use serde::{Deserialize, Serialize};

use super::remasking::Remasking;
use super::{dream, llada};
use crate::model::batch::Batch;
use crate::model::block::Transformer;
use crate::model::family::Family;
use crate::rng::Draws;

/// The sampler's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Tokens of the answer.
    pub gen_length: usize,
    /// Tokens of a block of LLaDA's loop; a divisor of `gen_length`.
    pub block_length: usize,
    /// Denoising steps of the whole answer; in LLaDA's loop a multiple of the number of blocks.
    pub diffusion_steps: usize,
    /// Gumbel temperature of the tokens; 0 is greedy.
    pub temperature: f64,
    /// Dream's loop: draw tokens from the likeliest that hold this probability together; 1 is off.
    pub top_p: f64,
    /// Dream's loop: draw tokens from the `top_k` likeliest; 0 is off.
    pub top_k: usize,
    /// Dream's loop: temperature of the choice of the tokens that are kept; 0 keeps the most confident.
    pub alg_temp: f64,
    /// Classifier-free guidance; 0 is off.
    pub cfg_scale: f64,
    /// Which predictions are kept, and in whose loop; the model's family's own where absent.
    pub remasking: Option<Remasking>,
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
            top_p: 1.0,
            top_k: 0,
            alg_temp: 0.0,
            cfg_scale: 0.0,
            remasking: None,
            eos_token_ids: vec![],
            forbid_eos: false,
            defer_eos: false,
            seed: 1,
        }
    }
}

impl Sampling {
    /// The settings with the family's remasking where they name none.
    pub fn for_family(&self, family: Family) -> Self {
        Self { remasking: Some(self.remasking.unwrap_or(Remasking::of(family))), ..self.clone() }
    }

    /// Says what is wrong with the lengths and scales; blocks count where the remasking is one of LLaDA's.
    ///
    /// # Errors
    /// One sentence with the values.
    pub fn check(&self) -> Result<(), String> {
        let Self { gen_length, block_length, diffusion_steps, top_p, .. } = self;
        let scales = [("temperature", self.temperature), ("cfg_scale", self.cfg_scale), ("alg_temp", self.alg_temp)];
        for (name, value) in scales {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(format!("{name} {value} is negative or not a number"));
            }
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            return Err(format!("top_p {top_p} lies outside (0, 1]; 1 is off"));
        }
        if *gen_length == 0 || *diffusion_steps == 0 {
            return Err(format!("gen_length {gen_length} and diffusion_steps {diffusion_steps} must be at least 1"));
        }
        if self.remasking.is_none_or(|remasking| remasking.family() != Family::Llada) {
            return Ok(());
        }
        if *block_length == 0 || gen_length % block_length != 0 {
            return Err(format!("gen_length {gen_length} is not a multiple of block_length {block_length}"));
        }
        let blocks = gen_length / block_length;
        match diffusion_steps % blocks {
            0 => Ok(()),
            _ => Err(format!("diffusion_steps {diffusion_steps} is not a multiple of the {blocks} blocks")),
        }
    }

    /// A prediction with its confidence, which an end token has none of where end tokens are deferred.
    pub(super) fn deferred(&self, (token, confidence): (u32, f64)) -> (u32, f64) {
        let is_deferred = self.defer_eos && self.eos_token_ids.contains(&token);
        (token, if is_deferred { f64::NEG_INFINITY } else { confidence })
    }

    /// Settings without effect under a remasking, a sentence each.
    pub fn warnings(&self, remasking: Remasking) -> Vec<String> {
        let default = Self::default();
        let dreams = remasking.family() == Family::Dream;
        let is_origin = remasking == Remasking::Origin;
        let settings = [
            ("block_length", dreams && self.block_length != default.block_length),
            ("top_p", !dreams && self.top_p != default.top_p),
            ("top_k", !dreams && self.top_k != default.top_k),
            ("alg_temp", (!dreams || is_origin) && self.alg_temp != default.alg_temp),
            ("defer_eos", is_origin && self.defer_eos),
        ];
        let idle = settings.iter().filter(|(_, is_idle)| *is_idle);
        idle.map(|(name, _)| format!("{name} has no effect with remasking {}", remasking.name())).collect()
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
/// each other: each gets what it would get alone. LLaDA's loop leaves no mask; Dream's, like Dream's own, takes the mask
/// token for a prediction like any other and leaves one where it is predicted to the last.
///
/// # Errors
/// Lengths and scales without sense, as [`Sampling::check`] says them.
///
/// # Source
/// LLaDA (arXiv 2502.09992), algorithms 4 and 5, and its public `generate`; Dream's public `generation_utils`.
pub fn generate(model: &Transformer, prompts: &[Prompt], sampling: &Sampling) -> Result<Vec<Vec<u32>>, String> {
    let sampling = sampling.for_family(model.config.family);
    sampling.check()?;
    let canvas = |p: &Prompt| {
        let mut ids = p.ids.to_vec();
        ids.resize(p.ids.len() + sampling.gen_length, model.config.mask_token_id);
        ids
    };
    let mut canvases = Canvases { model, prompts, sequences: prompts.iter().map(canvas).collect() };
    match sampling.remasking.expect("the family has one") {
        remasking if remasking.family() == Family::Llada => llada::denoise(&mut canvases, &sampling, remasking),
        remasking => dream::denoise(&mut canvases, &sampling, remasking),
    }
    Ok(canvases.sequences)
}

/// Prompts and their answers so far.
pub(super) struct Canvases<'a> {
    pub(super) model: &'a Transformer,
    pub(super) prompts: &'a [Prompt<'a>],
    pub(super) sequences: Vec<Vec<u32>>,
}

impl Canvases<'_> {
    /// Each sequence's positions that are masked, among some tokens of its answer.
    pub(super) fn masked(&self, answer: std::ops::Range<usize>) -> Vec<Vec<usize>> {
        let mask = self.model.config.mask_token_id;
        let of = |(prompt, ids): (&Prompt, &Vec<u32>)| {
            let start = prompt.ids.len();
            (start + answer.start..start + answer.end).filter(|at| ids[*at] == mask).collect()
        };
        self.prompts.iter().zip(&self.sequences).map(of).collect()
    }

    /// The logits of some positions, guided away from those without the prompt where `cfg_scale` is above 0; without end
    /// tokens where they are forbidden.
    pub(super) fn logits(&self, positions: &[Vec<usize>], sampling: &Sampling) -> Vec<Vec<f32>> {
        let mut logits = logits_at(self.model, &self.sequences, positions);
        let cfg_scale = sampling.cfg_scale as f32;
        if cfg_scale > 0.0 {
            let mut unconditional = self.sequences.clone();
            for (ids, prompt) in unconditional.iter_mut().zip(self.prompts) {
                ids[..prompt.ids.len()].fill(self.model.config.mask_token_id);
            }
            let unconditional = logits_at(self.model, &unconditional, positions);
            for (l, u) in logits.iter_mut().flatten().zip(unconditional.iter().flatten()) {
                *l = u + (cfg_scale + 1.0) * (*l - u);
            }
        }
        for row in logits.iter_mut().filter(|_| sampling.forbid_eos) {
            sampling.eos_token_ids.iter().for_each(|id| row[*id as usize] = f32::NEG_INFINITY);
        }
        logits
    }
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

/// The argmax of `exp(z) / (-ln u)^temperature` in f64, as `z - temperature ln(-ln u)`; of `z` at temperature 0.
pub(super) fn choose(logits: &[f32], temperature: f64, draws: &Draws, position: usize) -> usize {
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

pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|z| (f64::from(*z) - max).exp()).sum::<f64>().ln()
}
