//! Generation: its settings, the canvas of masks after each prompt, and what the loops of both families share. The
//! loops themselves are in `llada` and `dream`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use serde::{Deserialize, Serialize};
use weft_kernels::predict::{Guidance, Prediction, RowDraw, Rule};

use super::cache::{Caching, Network, Work};
use super::remasking::{Loop, Remasking};
use super::{dream, llada};
use crate::model::block::Transformer;
use crate::rng::Draws;

/// The largest answer length, and the largest number of steps.
const MAX_GEN_LENGTH: usize = 1 << 20;

/// The shortest block that is chosen if no block length is given.
const LEAST_BLOCK: usize = 8;

/// The sampler's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Tokens of the answer.
    pub gen_length: usize,
    /// Tokens per block in LLaDA's loop; a divisor of `gen_length`.
    pub block_length: usize,
    /// Denoising steps for the whole answer; in LLaDA's loop a multiple of the number of blocks.
    pub diffusion_steps: usize,
    /// LLaDA's loop: each step keeps every prediction with at least this probability, and always the likeliest one,
    /// instead of following a fixed number of steps; a value above 1 keeps one token per step.
    pub confidence_threshold: Option<f64>,
    /// LLaDA's loop: the rows whose keys and values a block's later steps take from its first step.
    pub cache: Caching,
    /// Gumbel temperature of the tokens; 0 is greedy.
    pub temperature: f64,
    /// Dream's loop: draw tokens from the smallest set of likeliest tokens that holds this probability; 1 turns it off.
    pub top_p: f64,
    /// Dream's loop: draw tokens from the `top_k` likeliest; 0 turns it off.
    pub top_k: usize,
    /// Dream's loop: temperature of the choice of the tokens that are kept; 0 keeps the most confident.
    pub alg_temp: f64,
    /// Scale of classifier-free guidance; 0 turns it off.
    pub cfg_scale: f64,
    /// Which predictions are kept, and in which family's loop; by default the one that the model's authors recommend.
    pub remasking: Option<Remasking>,
    /// The end tokens that end an answer and to which `forbid_eos` and `defer_eos` apply; they come from the model, not
    /// from a recipe.
    #[serde(skip)]
    pub eos_token_ids: Vec<u32>,
    /// LLaDA's loop: let the mask token be predicted like any other token, as LLaDA's own code does. A token where it is
    /// predicted stays masked, perhaps to the end, so only a comparison with that code sets this.
    #[serde(skip)]
    pub predicts_mask: bool,
    /// LLaDA's loop: denoise the blocks behind an end token too, as the public code of LLaDA and d1 does. Otherwise an
    /// answer ends with the first finished block that holds an end token, and the first of `eos_token_ids` fills the rest.
    pub whole_canvas: bool,
    /// Never predict an end token (LLaDA's `logits_eos_inf`).
    pub forbid_eos: bool,
    /// Keep a predicted end token last (LLaDA's `confidence_eos_eot_inf`).
    pub defer_eos: bool,
    /// The seed of all draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            gen_length: 128,
            block_length: 32,
            diffusion_steps: 64,
            confidence_threshold: None,
            cache: Caching::None,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            alg_temp: 0.0,
            cfg_scale: 0.0,
            remasking: None,
            eos_token_ids: vec![],
            predicts_mask: false,
            whole_canvas: false,
            forbid_eos: false,
            defer_eos: false,
            seed: 1,
        }
    }
}

impl Sampling {
    /// The settings, with the default remasking of models with these logits if they name none.
    pub fn for_logits(&self, shifted: bool) -> Self {
        Self { remasking: Some(self.remasking.unwrap_or(Remasking::of(shifted))), ..self.clone() }
    }

    /// The settings for an answer of `gen_length` tokens. Its blocks have the default length, or else the largest length below
    /// it that divides the answer; if only short blocks would divide it, the answer is one block.
    pub fn with_gen_length(self, gen_length: usize) -> Self {
        let default = Self::default().block_length;
        let divides = |block: &usize| gen_length.is_multiple_of(*block);
        let block_length = (LEAST_BLOCK..=default).rev().find(divides).unwrap_or(gen_length);
        Self { gen_length, block_length, ..self }
    }

    /// The number of blocks that LLaDA's loop divides the answer into; 1 if they don't divide it.
    pub fn num_blocks(&self) -> usize {
        self.gen_length.checked_div(self.block_length).unwrap_or(1).max(1)
    }

    /// Checks the lengths and scales; blocks matter only if the remasking is one of LLaDA's.
    ///
    /// # Errors
    /// What is wrong, as one sentence with the values.
    pub fn check(&self) -> Result<(), String> {
        let Self { gen_length, diffusion_steps, top_p, .. } = self;
        let scales = [("temperature", self.temperature), ("cfg_scale", self.cfg_scale), ("alg_temp", self.alg_temp)];
        let threshold = self.confidence_threshold.map(|threshold| ("confidence_threshold", threshold));
        for (name, value) in scales.into_iter().chain(threshold) {
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
        if *gen_length.max(diffusion_steps) > MAX_GEN_LENGTH {
            return Err(format!(
                "gen_length {gen_length} or diffusion_steps {diffusion_steps} is more than {MAX_GEN_LENGTH}; lower it"
            ));
        }
        self.remasking.map_or(Ok(()), |remasking| match remasking.sampling_loop() {
            Loop::Llada => self.check_blocks(remasking),
            Loop::Dream => self.check_no_blocks(remasking),
        })
    }

    fn check_blocks(&self, remasking: Remasking) -> Result<(), String> {
        let Self { gen_length, block_length, diffusion_steps, .. } = self;
        if *block_length == 0 {
            return Err("block_length 0 must be at least 1".to_owned());
        }
        if gen_length % block_length != 0 {
            let nearest = gen_length.next_multiple_of(*block_length);
            return Err(format!(
                "gen_length {gen_length} is not a multiple of block_length {block_length}; set gen_length {nearest} or \
                 another block_length"
            ));
        }
        let blocks = gen_length / block_length;
        match self.confidence_threshold {
            Some(threshold) if remasking == Remasking::Random => Err(format!(
                "confidence_threshold {threshold} does not go with remasking random, which draws its confidences; set \
                 remasking low_confidence"
            )),
            None if diffusion_steps % blocks != 0 => {
                let nearest = diffusion_steps.next_multiple_of(blocks);
                Err(format!(
                    "diffusion_steps {diffusion_steps} is not a multiple of the {blocks} blocks of {block_length} tokens; \
                     set {nearest}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings that need blocks, which Dream's loop doesn't have.
    fn check_no_blocks(&self, remasking: Remasking) -> Result<(), String> {
        let threshold = self.confidence_threshold.map(|threshold| format!("confidence_threshold {threshold}"));
        let cache = (self.cache != Caching::None).then(|| format!("cache {}", self.cache.name()));
        match threshold.or(cache) {
            None => Ok(()),
            Some(setting) => Err(format!(
                "{setting} needs blocks, and remasking {} has none; set remasking low_confidence, which denoises \
                 Dream's checkpoints block by block too",
                remasking.name()
            )),
        }
    }

    /// The settings that have no effect under a remasking, one sentence each.
    pub fn warnings(&self, remasking: Remasking) -> Vec<String> {
        let default = Self::default();
        let dreams = remasking.sampling_loop() == Loop::Dream;
        let is_origin = remasking == Remasking::Origin;
        let settings = [
            ("block_length", dreams && self.block_length != default.block_length),
            ("top_p", !dreams && self.top_p != default.top_p),
            ("top_k", !dreams && self.top_k != default.top_k),
            ("alg_temp", (!dreams || is_origin) && self.alg_temp != default.alg_temp),
            ("defer_eos", is_origin && self.defer_eos),
            ("whole_canvas", dreams && self.whole_canvas),
        ];
        let idle = settings.iter().filter(|(_, is_idle)| *is_idle);
        let mut warnings: Vec<String> =
            idle.map(|(name, _)| format!("{name} has no effect with remasking {}", remasking.name())).collect();
        if self.confidence_threshold.is_some() && self.diffusion_steps != default.diffusion_steps {
            warnings.push("diffusion_steps has no effect with confidence_threshold".to_owned());
        }
        warnings
    }
}

/// A prompt, and the number that selects its draws together with the seed.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// The number of the example.
    pub example: u64,
}

/// A prompt followed by its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Token ids; those of the prompt come first.
    pub ids: Vec<u32>,
    /// The work that it took.
    pub work: Work,
}

/// Appends an answer of `gen_length` tokens to each prompt. The prompts are packed into one forward and don't see each
/// other: each gets the answer that it would get alone. LLaDA's loop leaves no mask; Dream's loop, like Dream's own
/// code, treats the mask token as a prediction like any other, and leaves one where it is still predicted at the last
/// step. In LLaDA's loop nothing is computed behind a finished block that holds an end token.
///
/// # Errors
/// Lengths and scales that make no sense, as reported by [`Sampling::check`].
///
/// # Source
/// LLaDA (arXiv 2502.09992), algorithms 4 and 5, and its public `generate`; Dream's public `generation_utils`; threshold
/// and caches: Fast-dLLM (arXiv 2505.22618).
pub fn generate(model: &Transformer, prompts: &[Prompt], sampling: &Sampling) -> Result<Vec<Output>, String> {
    generate_told(model, prompts, sampling, None)
}

/// Like [`generate`], and sends the token ids of all canvases to `steps` after every step.
///
/// # Errors
/// Those of [`generate`].
pub fn generate_told(
    model: &Transformer,
    prompts: &[Prompt],
    sampling: &Sampling,
    steps: Option<Sender<Vec<Vec<u32>>>>,
) -> Result<Vec<Output>, String> {
    generate_until(model, prompts, sampling, steps, &AtomicBool::new(false))
}

/// Like [`generate_told`], and stops after the step in which `stops` has become true; answers may hold masks then.
///
/// # Errors
/// Those of [`generate`].
pub fn generate_until(
    model: &Transformer,
    prompts: &[Prompt],
    sampling: &Sampling,
    steps: Option<Sender<Vec<Vec<u32>>>>,
    stops: &AtomicBool,
) -> Result<Vec<Output>, String> {
    let sampling = sampling.for_logits(model.config.logits_shifted);
    sampling.check()?;
    let mut canvases = Canvases { steps, stops: Some(stops), ..Canvases::new(model, prompts, &sampling) };
    match sampling.remasking.expect("a default was chosen") {
        remasking if remasking.sampling_loop() == Loop::Llada => llada::denoise(&mut canvases, &sampling, remasking),
        remasking => dream::denoise(&mut canvases, &sampling, remasking),
    }
    let [conditional, unconditional] = canvases.networks.map(|network| network.work);
    let works = conditional.into_iter().zip(unconditional).map(|(c, u)| c + u);
    Ok(canvases.sequences.into_iter().zip(works).map(|(ids, work)| Output { ids, work }).collect())
}

/// Prompts with their answers so far.
pub(super) struct Canvases<'a> {
    pub(super) mask_token_id: u32,
    pub(super) prompts: &'a [Prompt<'a>],
    pub(super) sequences: Vec<Vec<u32>>,
    /// Where each sequence's answer starts.
    pub(super) starts: Vec<usize>,
    /// One network for the canvases, and under guidance one for the canvases without their prompts.
    pub(super) networks: [Network<'a>; 2],
    /// The part of the answer that is being denoised, relative to its start.
    pub(super) block: Range<usize>,
    /// Whether the masks that earlier blocks left are denoised too.
    denoises_earlier: bool,
    /// The channel that receives the canvases after every step.
    pub(super) steps: Option<Sender<Vec<Vec<u32>>>>,
    /// Whether somebody has asked the sampler to stop.
    stops: Option<&'a AtomicBool>,
}

impl<'a> Canvases<'a> {
    pub(super) fn new(model: &'a Transformer, prompts: &'a [Prompt<'a>], sampling: &Sampling) -> Self {
        let mask_token_id = model.config.mask_token_id;
        let canvas = |p: &Prompt| {
            let mut ids = p.ids.to_vec();
            ids.resize(p.ids.len() + sampling.gen_length, mask_token_id);
            ids
        };
        let networks = [(); 2].map(|()| Network::new(model, sampling.cache, prompts.len()));
        let sequences = prompts.iter().map(canvas).collect();
        Self {
            mask_token_id,
            prompts,
            sequences,
            starts: prompts.iter().map(|prompt| prompt.ids.len()).collect(),
            networks,
            block: 0..sampling.gen_length,
            denoises_earlier: sampling.predicts_mask,
            steps: None,
            stops: None,
        }
    }

    /// Whether the sampler has been asked to stop.
    pub(super) fn are_stopped(&self) -> bool {
        self.stops.is_some_and(|stops| stops.load(Ordering::Relaxed))
    }

    /// Starts denoising a block of the answers.
    pub(super) fn start_block(&mut self, answer: Range<usize>) {
        self.networks.iter_mut().for_each(Network::start_block);
        self.block = answer;
    }

    /// Reports a finished step.
    pub(super) fn tell(&self) {
        if let Some(steps) = &self.steps {
            // The receiver may be gone, but the answer is still wanted.
            let _ = steps.send(self.sequences.clone());
        }
    }

    /// The block's positions in each sequence.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.iter().map(|start| start + self.block.start..start + self.block.end)
    }

    /// Ends the answers whose block is finished and holds an end token: the first end token fills what follows the block.
    pub(super) fn end_answers(&mut self, ends: &[u32]) {
        let [end, ..] = *ends else { return };
        let blocks: Vec<Range<usize>> = self.blocks().collect();
        for (ids, block) in self.sequences.iter_mut().zip(blocks) {
            let (own, rest) = ids[block.start..].split_at_mut(block.len());
            if own.iter().any(|id| ends.contains(id)) && !own.contains(&self.mask_token_id) {
                rest.fill(end);
            }
        }
    }

    /// The positions to denoise in each sequence: those of the block that are masked, and perhaps of earlier blocks.
    pub(super) fn masked(&self) -> Vec<Vec<usize>> {
        let before = if self.denoises_earlier { self.block.start } else { 0 };
        let of = |(ids, block): (&Vec<u32>, Range<usize>)| {
            (block.start - before..block.end).filter(|at| ids[*at] == self.mask_token_id).collect()
        };
        self.sequences.iter().zip(self.blocks()).map(of).collect()
    }

    /// Predicts tokens for some of the block's positions, sequence after sequence, with noise from `draws(example)`. If
    /// `cfg_scale` is above 0, predictions are guided away from those without the prompt; end tokens that are forbidden
    /// are never predicted.
    pub(super) fn predict(
        &mut self,
        positions: &[Vec<usize>],
        sampling: &Sampling,
        draws: impl Fn(u64) -> Draws,
        rule: &Rule,
    ) -> Vec<Prediction> {
        let blocks: Vec<Range<usize>> = self.blocks().collect();
        let of_sequence = |(prompt, at): (&Prompt, &Vec<usize>)| -> Vec<RowDraw> {
            let key = draws(prompt.example).row_key();
            at.iter().map(|at| RowDraw { key, position: *at as u32 }).collect()
        };
        let row_draws: Vec<RowDraw> = self.prompts.iter().zip(positions).flat_map(of_sequence).collect();
        let [conditional, unconditional] = &mut self.networks;
        let model = conditional.model;
        let x = conditional.head_inputs(&self.sequences, positions, &blocks);
        let without_prompts = (sampling.cfg_scale > 0.0).then(|| {
            let mut without = self.sequences.clone();
            for (ids, prompt) in without.iter_mut().zip(self.prompts) {
                ids[..prompt.ids.len()].fill(self.mask_token_id);
            }
            unconditional.head_inputs(&without, positions, &blocks)
        });
        let guidance = without_prompts.as_ref().map(|x| Guidance { x, scale: sampling.cfg_scale as f32 });
        let forbidden = if sampling.forbid_eos { sampling.eos_token_ids.as_slice() } else { &[] };
        let mut predictions = model.predict(&x, guidance, &row_draws, &Rule { forbidden, ..*rule });
        // A deferred end token gets the lowest confidence.
        let is_deferred = |p: &&mut Prediction| sampling.defer_eos && sampling.eos_token_ids.contains(&p.token);
        predictions.iter_mut().filter(is_deferred).for_each(|p| p.confidence = f64::NEG_INFINITY);
        predictions
    }
}
