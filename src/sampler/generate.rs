//! Generation: the canvas of masks after each prompt, and what the loops of both families share. The loops themselves are
//! in `llada`, `dream` and `block_causal`, the settings in `settings`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use weft_kernels::predict::{Guidance, Prediction, RowDraw, Rule};

use super::cache::{Network, Work};
use super::remasking::Loop;
use super::{block_causal, dream, llada};
use crate::error::Result;
use crate::model::block::Transformer;
use crate::rng::Draws;

pub use super::settings::{Attention, Sampling};

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

/// Watches the denoising of a batch, and may give up answers.
pub struct Watch<'a> {
    /// Called after every step with the token ids of all canvases.
    pub after_step: &'a mut dyn FnMut(&[Vec<u32>]),
    /// A flag for each prompt. Once it is true, the prompt's answer isn't computed any further, and may still contain masks.
    pub unwanted: &'a [&'a AtomicBool],
}

impl Watch<'_> {
    /// Whether nobody wants the answer to the prompt with this index any more.
    pub(super) fn is_unwanted(&self, prompt: usize) -> bool {
        self.unwanted.get(prompt).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Whether nobody wants any of the answers any more.
    pub(super) fn is_over(&self) -> bool {
        !self.unwanted.is_empty() && (0..self.unwanted.len()).all(|prompt| self.is_unwanted(prompt))
    }
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
pub fn generate(model: &Transformer, prompts: &[Prompt], sampling: &Sampling) -> Result<Vec<Output>> {
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
) -> Result<Vec<Output>> {
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
) -> Result<Vec<Output>> {
    let unwanted = vec![stops; prompts.len()];
    let mut after_step = told(steps);
    generate_watched(model, prompts, sampling, Watch { after_step: &mut after_step, unwanted: &unwanted })
}

/// A function that sends the canvases of a step to a channel, if there is one.
pub(super) fn told(steps: Option<Sender<Vec<Vec<u32>>>>) -> impl FnMut(&[Vec<u32>]) {
    move |canvases| {
        if let Some(steps) = &steps {
            // The receiver may be gone, but the answer is still wanted.
            let _ = steps.send(canvases.to_vec());
        }
    }
}

/// Like [`generate`], but the caller watches every step and may give up single answers.
///
/// # Errors
/// Those of [`generate`].
pub fn generate_watched(
    model: &Transformer,
    prompts: &[Prompt],
    sampling: &Sampling,
    watch: Watch,
) -> Result<Vec<Output>> {
    let sampling = sampling.for_model(&model.config);
    sampling.check()?;
    if sampling.is_block_causal() {
        return Ok(block_causal::generate(model, prompts, &sampling, watch));
    }
    let mut canvases = Canvases::new(model, prompts, &sampling, watch);
    match sampling.remasking.expect("a default was chosen") {
        remasking if remasking.sampling_loop() == Loop::Llada => llada::denoise(&mut canvases, &sampling, remasking),
        remasking => dream::denoise(&mut canvases, &sampling, remasking),
    }
    let [conditional, unconditional] = canvases.networks.map(|network| network.work);
    let works = conditional.into_iter().zip(unconditional).map(|(c, u)| c + u);
    Ok(canvases.sequences.into_iter().zip(works).map(|(ids, work)| Output { ids, work }).collect())
}

/// Prompts with their answers so far.
pub(super) struct Canvases<'a, 'w> {
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
    /// The caller's watch over the denoising.
    watch: Watch<'w>,
}

impl<'a, 'w> Canvases<'a, 'w> {
    pub(super) fn new(
        model: &'a Transformer,
        prompts: &'a [Prompt<'a>],
        sampling: &Sampling,
        watch: Watch<'w>,
    ) -> Self {
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
            watch,
        }
    }

    /// Whether nobody wants any of the answers any more.
    pub(super) fn are_stopped(&self) -> bool {
        self.watch.is_over()
    }

    /// Starts denoising a block of the answers.
    pub(super) fn start_block(&mut self, answer: Range<usize>) {
        self.networks.iter_mut().for_each(Network::start_block);
        self.block = answer;
    }

    /// Reports a finished step.
    pub(super) fn tell(&mut self) {
        (self.watch.after_step)(&self.sequences);
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

    /// The positions to denoise in each sequence: the masked ones of the block, and possibly of earlier blocks. A sequence
    /// whose answer is unwanted has none.
    pub(super) fn masked(&self) -> Vec<Vec<usize>> {
        let before = if self.denoises_earlier { self.block.start } else { 0 };
        let of = |(prompt, (ids, block)): (usize, (&Vec<u32>, Range<usize>))| match self.watch.is_unwanted(prompt) {
            true => vec![],
            false => (block.start - before..block.end).filter(|at| ids[*at] == self.mask_token_id).collect(),
        };
        self.sequences.iter().zip(self.blocks()).enumerate().map(of).collect()
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
