//! `[sampler]` of a recipe: the settings of generation, and checks for those that make no sense or have no effect.

use serde::{Deserialize, Serialize};

use super::cache::Caching;
use super::remasking::{Loop, Remasking};
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::model::block::Config;
use crate::settings::in_plain_words;

/// The largest answer length, and the largest number of steps.
const MAX_GEN_LENGTH: usize = 1 << 20;

/// The shortest block that is chosen if no block length is given.
const LEAST_BLOCK: usize = 8;

/// Which tokens a token attends to while an answer is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// The prompt and the whole canvas.
    Bidirectional,
    /// Its own block and those before it, for models trained by block diffusion.
    BlockCausal,
}

impl Attention {
    /// The attention's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bidirectional => "bidirectional",
            Self::BlockCausal => "block-causal",
        }
    }

    /// Parses the name of an attention.
    ///
    /// # Errors
    /// An unknown name, with those that are known.
    pub fn parse(name: &str) -> Result<Self> {
        serde_json::from_value(name.into()).map_err(|e: serde_json::Error| Error::Usage(in_plain_words(&e.to_string())))
    }
}

/// The sampler's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Tokens of the answer.
    pub gen_length: usize,
    /// Tokens per block in LLaDA's loop, a divisor of `gen_length`; with block-causal attention any number.
    pub block_length: usize,
    /// Which tokens a token attends to; if absent, what the checkpoint was trained with.
    pub attention: Option<Attention>,
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
            attention: None,
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
    /// The settings for a model: its attention, its blocks and the remasking that goes with them, unless the settings name
    /// their own.
    pub fn for_model(&self, config: &Config) -> Self {
        let own = config.block_length.map_or(Attention::Bidirectional, |_| Attention::BlockCausal);
        let attention = self.attention.unwrap_or(own);
        let is_default = self.attention.is_none() && self.block_length == Self::default().block_length;
        let block_length = config.block_length.filter(|_| is_default).unwrap_or(self.block_length);
        // Dream's loop, which is the default of shifted logits, has no blocks.
        let remasking = Remasking::of(config.logits_shifted && attention == Attention::Bidirectional);
        let remasking = Some(self.remasking.unwrap_or(remasking));
        Self { attention: Some(attention), block_length, remasking, ..self.clone() }
    }

    /// Whether answers are sampled with block-causal attention.
    pub fn is_block_causal(&self) -> bool {
        self.attention == Some(Attention::BlockCausal)
    }

    /// The settings for an answer of `gen_length` tokens. Its blocks have the default length, or else the largest length
    /// below it that divides the answer; if only short blocks would divide it, the answer is one block.
    pub fn with_gen_length(self, gen_length: usize) -> Self {
        let default = Self::default().block_length;
        let divides = |block: &usize| gen_length.is_multiple_of(*block);
        let block_length = (LEAST_BLOCK..=default).rev().find(divides).unwrap_or(gen_length);
        Self { gen_length, block_length, ..self }
    }

    /// The settings with a block length that divides the answer ([`Sampling::with_gen_length`]) if they have the default one
    /// and it doesn't, and the default number of steps rounded up to a multiple of the blocks.
    pub fn fitted(self) -> Self {
        let default = Self::default();
        let is_blockless = self.remasking.is_some_and(|remasking| remasking.sampling_loop() == Loop::Dream);
        if self.is_block_causal() || is_blockless {
            return self;
        }
        let gen_length = self.gen_length;
        let is_free = self.block_length == default.block_length && !gen_length.is_multiple_of(self.block_length);
        let fitted = if is_free { self.with_gen_length(gen_length) } else { self };
        let steps = match fitted.diffusion_steps == default.diffusion_steps {
            true => fitted.diffusion_steps.next_multiple_of(fitted.num_blocks()),
            false => fitted.diffusion_steps,
        };
        Self { diffusion_steps: steps, ..fitted }
    }

    /// The number of blocks that LLaDA's loop divides the answer into; 1 if they don't divide it.
    pub fn num_blocks(&self) -> usize {
        self.gen_length.checked_div(self.block_length).unwrap_or(1).max(1)
    }

    /// Checks the lengths and scales; blocks matter only if the remasking is one of LLaDA's.
    ///
    /// # Errors
    /// What is wrong, as one sentence with the values.
    pub fn check(&self) -> Result<()> {
        self.check_all().map_err(Error::Usage)
    }

    fn check_all(&self) -> std::result::Result<(), String> {
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
        for (name, value) in [("gen_length", gen_length), ("diffusion_steps", diffusion_steps)] {
            if *value == 0 {
                return Err(format!("{name} 0 must be at least 1"));
            }
        }
        if *gen_length.max(diffusion_steps) > MAX_GEN_LENGTH {
            return Err(format!(
                "gen_length {gen_length} or diffusion_steps {diffusion_steps} is more than {MAX_GEN_LENGTH}; lower it"
            ));
        }
        if self.is_block_causal() {
            return self.check_block_causal();
        }
        self.remasking.map_or(Ok(()), |remasking| match remasking.sampling_loop() {
            Loop::Llada => self.check_blocks(remasking),
            Loop::Dream => self.check_no_blocks(remasking),
        })
    }

    fn check_block_causal(&self) -> std::result::Result<(), String> {
        if self.block_length == 0 {
            return Err("block_length 0 must be at least 1".to_owned());
        }
        if self.cache == Caching::Dual {
            return Err(
                "cache dual is of rows behind a block, which attention block-causal doesn't see; leave it out: \
                        finished blocks are always cached, which is exact"
                    .to_owned(),
            );
        }
        match (self.remasking, self.confidence_threshold) {
            (Some(remasking), _) if remasking.sampling_loop() == Loop::Dream => Err(format!(
                "attention block-causal needs blocks, and remasking {} has none; set remasking low_confidence",
                remasking.name()
            )),
            (Some(Remasking::Random), Some(threshold)) => Err(random_with(threshold)),
            _ => Ok(()),
        }
    }

    fn check_blocks(&self, remasking: Remasking) -> std::result::Result<(), String> {
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
            Some(threshold) if remasking == Remasking::Random => Err(random_with(threshold)),
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
    fn check_no_blocks(&self, remasking: Remasking) -> std::result::Result<(), String> {
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
        let is_drawn = self.temperature > 0.0
            || dreams && self.alg_temp > 0.0
            || matches!(remasking, Remasking::Random | Remasking::Origin);
        let is_cached = self.is_block_causal() && self.cache != default.cache;
        let idle = settings.iter().filter(|(_, is_idle)| *is_idle);
        let mut warnings: Vec<String> =
            idle.map(|(name, _)| format!("{name} has no effect with remasking {}", remasking.name())).collect();
        if is_cached {
            warnings.push(
                "cache has no effect with attention block-causal, which always caches finished blocks".to_owned(),
            );
        }
        if self.confidence_threshold.is_some() && self.diffusion_steps != default.diffusion_steps {
            warnings.push("diffusion_steps has no effect with confidence_threshold".to_owned());
        } else if !dreams && self.diffusion_steps > self.gen_length && self.diffusion_steps != default.diffusion_steps {
            let (steps, tokens) = (self.diffusion_steps, counted(self.gen_length, "token"));
            warnings
                .push(format!("diffusion_steps {steps} is more than the {tokens} of the answer: each has one step"));
        }
        if self.forbid_eos {
            let idle = [("defer_eos", self.defer_eos && !is_origin), ("whole_canvas", self.whole_canvas && !dreams)];
            let idle = idle.iter().filter(|(_, is_set)| *is_set);
            warnings.extend(idle.map(|(name, _)| format!("{name} has no effect with forbid_eos")));
        }
        if self.seed != default.seed && !is_drawn {
            warnings.push("seed has no effect: nothing is drawn at temperature 0".to_owned());
        }
        warnings
    }
}

/// Checks a threshold that somebody wrote. The sampler itself takes one above 1, which no prediction reaches.
///
/// # Errors
/// A threshold that isn't a probability, as one sentence.
pub(crate) fn check_threshold(threshold: f64) -> std::result::Result<(), String> {
    let fix = match threshold {
        percent if percent > 1.0 && percent <= 100.0 => format!("write {}", percent / 100.0),
        _ => "0.9 is a good start".to_owned(),
    };
    match threshold > 0.0 && threshold <= 1.0 {
        true => Ok(()),
        false => Err(format!("confidence_threshold {threshold} lies outside (0, 1]; {fix}")),
    }
}

fn random_with(threshold: f64) -> String {
    format!(
        "confidence_threshold {threshold} does not go with remasking random, which draws its confidences; set remasking \
         low_confidence"
    )
}
