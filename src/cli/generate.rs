//! `weft generate`: answers a prompt.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;

use clap::Args;
use weft::base::Base;
use weft::data::Message;
use weft::error::{Error, Result};
use weft::sampler::cache::Caching;
use weft::sampler::generate::{Prompt, Sampling, generate_told};
use weft::sampler::remasking::{Loop, Remasking};

use super::progress::{bar, count_unmasked};
use super::trace::Trace;

/// Answer a prompt
///
/// The prompt is rendered with the checkpoint's chat template and answered by its family's sampler, or by the sampler
/// that --remasking belongs to: low_confidence and random are LLaDA's, the others Dream's.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft generate --model tiny-base --prompt 'What is 7 + 5?' --gen-length 32 --diffusion-steps 32 --trace"
)]
pub struct Generate {
    #[command(flatten)]
    model: super::ModelArgs,
    /// The user's turn; default: standard input
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Pass the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Show the denoising step by step on standard error
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The sampler's options; an option that isn't given keeps the library's or the recipe's value.
#[derive(Args)]
pub struct SamplingArgs {
    /// Tokens of the answer; default: 128. Choose it near the length of the answers that the model was trained on
    #[arg(long, value_name = "N")]
    gen_length: Option<usize>,
    /// Tokens per block of LLaDA's sampler, a divisor of --gen-length; default: 32, or --gen-length if that is less
    #[arg(long, value_name = "N")]
    block_length: Option<usize>,
    /// Denoising steps for the whole answer; default: half of --gen-length if that is given, else 64
    #[arg(long, value_name = "N")]
    diffusion_steps: Option<usize>,
    /// LLaDA's sampler: unmask every prediction of at least this probability, and at least one per step, whatever the
    /// number of steps; 0.9 is a good start
    #[arg(long, value_name = "P")]
    confidence_threshold: Option<f64>,
    /// LLaDA's sampler: reuse keys and values of a block's first step in its later ones: none, prefix (of what precedes
    /// the block) or dual (of everything around it). Faster, but not exact; default: none
    #[arg(long, value_name = "WHOSE", value_parser = Caching::parse)]
    cache: Option<Caching>,
    /// Gumbel temperature; default: 0, which is greedy
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Dream's sampler: draw from the smallest set of most likely tokens with this total probability; default: 1, which
    /// is off
    #[arg(long, value_name = "X")]
    top_p: Option<f64>,
    /// Dream's sampler: draw from the N most likely tokens; default: 0, which is off
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Dream's sampler: temperature of the choice of which predictions are kept; default: 0, which keeps the most
    /// confident
    #[arg(long, value_name = "X")]
    alg_temp: Option<f64>,
    /// Classifier-free guidance scale; default: 0, which is off
    #[arg(long, value_name = "X")]
    cfg_scale: Option<f64>,
    /// Which predictions are kept: low_confidence or random (LLaDA's sampler); origin, maskgit_plus, topk_margin or
    /// entropy (Dream's); default: low_confidence or entropy, by the model's family
    #[arg(long, value_name = "HOW", value_parser = Remasking::parse)]
    remasking: Option<Remasking>,
    /// Never predict an end token
    #[arg(long)]
    forbid_eos: bool,
    /// Unmask a predicted end token last
    #[arg(long)]
    defer_eos: bool,
    /// The seed of the random draws; default: 1
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The library's settings with these options applied; warns of options without effect on the model.
    pub fn sampling(&self, base: &Base) -> Result<Sampling> {
        let mut sampling = self.over(Sampling::default()).for_logits(base.model.config.logits_shifted);
        let has_blocks = sampling.remasking.is_some_and(|remasking| remasking.sampling_loop() == Loop::Llada);
        if has_blocks && self.block_length.is_none() && sampling.gen_length > 0 {
            sampling.block_length = sampling.block_length.min(sampling.gen_length);
        }
        tell_idle(&sampling);
        sampling.check().map_err(Error::Usage)?;
        Ok(Sampling { eos_token_ids: base.text.end_token_ids(), ..sampling })
    }

    fn over(&self, base: Sampling) -> Sampling {
        let confidence_threshold = self.confidence_threshold.or(base.confidence_threshold);
        let half = self.gen_length.filter(|_| confidence_threshold.is_none()).map(|tokens| (tokens / 2).max(1));
        Sampling {
            gen_length: self.gen_length.unwrap_or(base.gen_length),
            block_length: self.block_length.unwrap_or(base.block_length),
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
            forbid_eos: self.forbid_eos || base.forbid_eos,
            defer_eos: self.defer_eos || base.defer_eos,
            seed: self.seed.unwrap_or(base.seed),
        }
    }
}

/// Warns of settings without effect.
pub fn tell_idle(sampling: &Sampling) {
    let warnings = sampling.remasking.map(|remasking| sampling.warnings(remasking));
    warnings.into_iter().flatten().for_each(|warning| eprintln!("warning: {warning}"));
}

impl Generate {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let base = self.model.open()?;
        let sampling = self.sampling.sampling(&base)?;
        let content = match self.prompt {
            Some(prompt) => prompt,
            None => {
                let mut text = String::new();
                let path = PathBuf::from("standard input");
                std::io::stdin().read_to_string(&mut text).map_err(|source| Error::Read { path, source })?;
                text
            }
        };
        if content.trim().is_empty() {
            return Err(Error::Usage(
                "the prompt is empty; give --prompt 'TEXT', or the text on standard input".to_owned(),
            ));
        }
        let ids = match self.raw {
            true => base.text.encode(&content)?,
            false => base.text.prompt_ids(&[Message { role: "user".to_owned(), content }])?,
        };
        let prompts = [Prompt { ids: &ids, example: 0 }];
        let (sender, steps) = channel();
        let trace = Trace { text: &base.text, prompt_len: ids.len(), mask_token_id: base.model.config.mask_token_id };
        let output = std::thread::scope(|scope| {
            let bar = bar(quiet);
            let is_shown = self.trace || !bar.is_hidden();
            scope.spawn(move || match self.trace {
                true => trace.show(&steps),
                false => count_unmasked(&steps, (trace.prompt_len, trace.mask_token_id), &bar),
            });
            generate_told(&base.model, &prompts, &sampling, is_shown.then_some(sender))
        });
        let output = output.map_err(Error::Usage)?;
        say!("{}", base.text.decode_answer(&output[0].ids[ids.len()..]));
        Ok(ExitCode::SUCCESS)
    }
}
