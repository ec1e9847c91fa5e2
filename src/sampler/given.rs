//! The sampler's settings that the options of a command or the fields of a request give, and how the other settings follow
//! from them and from the model.

use super::cache::Caching;
use super::remasking::{Loop, Remasking};
use super::settings::{Attention, Sampling, check_threshold};
use crate::error::{Error, Result};
use crate::model::block::Config;

/// The sampler's settings that are given; `None` stands for one that isn't. [`Sampling`] says what they mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The number of tokens in the answer.
    pub gen_length: Option<usize>,
    /// Tokens per block.
    pub block_length: Option<usize>,
    /// Which tokens a token attends to.
    pub attention: Option<Attention>,
    /// Denoising steps for the whole answer.
    pub diffusion_steps: Option<usize>,
    /// The probability at or above which predictions are kept.
    pub confidence_threshold: Option<f64>,
    /// The rows whose keys and values a block's later steps reuse.
    pub cache: Option<Caching>,
    /// Gumbel temperature.
    pub temperature: Option<f64>,
    /// Tokens are drawn from the smallest set of likeliest tokens that holds this probability.
    pub top_p: Option<f64>,
    /// Tokens are drawn from this many likeliest tokens.
    pub top_k: Option<usize>,
    /// The temperature of the choice of the tokens that are kept.
    pub alg_temp: Option<f64>,
    /// The scale of classifier-free guidance.
    pub cfg_scale: Option<f64>,
    /// Which predictions are kept.
    pub remasking: Option<Remasking>,
    /// Whether the blocks after an end token are denoised too.
    pub whole_canvas: Option<bool>,
    /// Whether end tokens are never predicted.
    pub forbid_eos: Option<bool>,
    /// Whether a predicted end token is kept last.
    pub defer_eos: Option<bool>,
    /// The seed of all draws.
    pub seed: Option<u64>,
}

impl Given {
    /// These settings, with those of `others` in place of the ones that aren't given.
    pub fn or(&self, others: &Self) -> Self {
        // A number of steps is meant for one length, and so is a block length that has to divide it; neither is taken from
        // `others` if the lengths differ.
        let own = self.gen_length.filter(|length| Some(*length) != others.gen_length);
        let in_blocks = self.attention.or(others.attention) == Some(Attention::BlockCausal);
        let fits = |block: &usize| in_blocks || own.is_none_or(|length| length.is_multiple_of(*block));
        Self {
            gen_length: self.gen_length.or(others.gen_length),
            block_length: self.block_length.or(others.block_length.filter(fits)),
            attention: self.attention.or(others.attention),
            diffusion_steps: self.diffusion_steps.or(others.diffusion_steps.filter(|_| own.is_none())),
            confidence_threshold: self.confidence_threshold.or(others.confidence_threshold),
            cache: self.cache.or(others.cache),
            temperature: self.temperature.or(others.temperature),
            top_p: self.top_p.or(others.top_p),
            top_k: self.top_k.or(others.top_k),
            alg_temp: self.alg_temp.or(others.alg_temp),
            cfg_scale: self.cfg_scale.or(others.cfg_scale),
            remasking: self.remasking.or(others.remasking),
            whole_canvas: self.whole_canvas.or(others.whole_canvas),
            forbid_eos: self.forbid_eos.or(others.forbid_eos),
            defer_eos: self.defer_eos.or(others.defer_eos),
            seed: self.seed.or(others.seed),
        }
    }

    /// The sampler's settings for a model. Lengths and steps that aren't given are chosen to fit the others; the result isn't
    /// checked yet.
    pub fn sampling(&self, config: &Config) -> Sampling {
        let mut sampling = self.over_defaults().for_model(config);
        let has_blocks = sampling.remasking.is_some_and(|remasking| remasking.sampling_loop() == Loop::Llada);
        if sampling.is_block_causal() {
            let own = self.block_length.or(config.block_length);
            sampling.block_length = own.unwrap_or(sampling.block_length);
        } else if has_blocks && self.block_length.is_none() {
            let gen_length = sampling.gen_length;
            sampling = sampling.with_gen_length(gen_length);
        }
        let needs_multiple = has_blocks && !sampling.is_block_causal() && sampling.confidence_threshold.is_none();
        if needs_multiple && self.diffusion_steps.is_none() {
            sampling.diffusion_steps = sampling.diffusion_steps.next_multiple_of(sampling.num_blocks());
        }
        sampling
    }

    /// The settings to fill this many masks in place, by default two per step.
    pub fn filling(&self, config: &Config, masks: usize) -> Sampling {
        let diffusion_steps = self.diffusion_steps.unwrap_or(masks.div_ceil(2));
        Sampling { diffusion_steps, ..self.over_defaults().for_model(config) }
    }

    /// Checks the values that make no sense for any model, so that they are refused before a model is opened.
    ///
    /// # Errors
    /// What is wrong, as one sentence with the value.
    pub fn check(&self) -> Result<()> {
        self.confidence_threshold.map_or(Ok(()), check_threshold).map_err(Error::Usage)?;
        Sampling { attention: None, remasking: None, ..self.over_defaults() }.check()
    }

    fn over_defaults(&self) -> Sampling {
        let base = Sampling::default();
        let confidence_threshold = self.confidence_threshold.or(base.confidence_threshold);
        let half = self.gen_length.filter(|_| confidence_threshold.is_none()).map(|tokens| (tokens / 2).max(1));
        Sampling {
            gen_length: self.gen_length.unwrap_or(base.gen_length),
            block_length: self.block_length.unwrap_or(base.block_length),
            attention: self.attention.or(base.attention),
            diffusion_steps: self.diffusion_steps.or(half).unwrap_or(base.diffusion_steps),
            confidence_threshold,
            cache: self.cache.unwrap_or(base.cache),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_p: self.top_p.unwrap_or(base.top_p),
            top_k: self.top_k.unwrap_or(base.top_k),
            alg_temp: self.alg_temp.unwrap_or(base.alg_temp),
            cfg_scale: self.cfg_scale.unwrap_or(base.cfg_scale),
            remasking: self.remasking.or(base.remasking),
            eos_token_ids: base.eos_token_ids,
            predicts_mask: base.predicts_mask,
            whole_canvas: self.whole_canvas.unwrap_or(base.whole_canvas),
            forbid_eos: self.forbid_eos.unwrap_or(base.forbid_eos),
            defer_eos: self.defer_eos.unwrap_or(base.defer_eos),
            seed: self.seed.unwrap_or(base.seed),
        }
    }
}
