//! `weft generate`: answers a prompt, chat turns or the rows of a file, or fills masks in place. What is asked is read by
//! `asking`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};

use clap::Args;
use weft::base::Base;
use weft::counted::{counted, verb};
use weft::data::settings::OnRow;
use weft::data::typed_tokens::SpecialTokens;
use weft::error::{Error, Result};
use weft::eval::answer_rows::{Answered, Asking, answer_rows, shown};
use weft::model::positions;
use weft::sampler::cache::Caching;
use weft::sampler::generate::{Attention, Output, Prompt, Sampling, generate_told};
use weft::sampler::given::Given;
use weft::sampler::infill::infill;
use weft::sampler::remasking::Remasking;

use super::asking::AskingArgs;
use super::chat;
use super::progress::{bar, count_unmasked, drawn};
use super::trace::Trace;

/// Answer a prompt, a chat, or the rows of a file
///
/// The prompt is rendered with the checkpoint's chat template and answered by its family's sampler, or by the sampler
/// that --remasking belongs to: low_confidence and random are LLaDA's, the others Dream's. With --infill the mask tokens
/// in the text are filled in place. On a terminal, without a prompt, it is a chat.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft generate --model tiny-base\n  weft generate --model tiny-base --prompt 'What is 7 + 5?' --gen-length 32 --diffusion-steps 32 --trace\n  weft generate --model tiny-base --messages chat.json --system 'Answer briefly.'\n  weft generate --model tiny-base --data questions.jsonl --out answers.jsonl\n  weft generate --model tiny-base --raw --infill --prompt 'The <|mdm_mask|> of France is Paris'"
)]
pub struct Generate {
    #[command(flatten)]
    model: super::ModelArgs,
    #[command(flatten, next_help_heading = "Prompt")]
    asking: AskingArgs,
    /// Answer every row of this file, whose rows have messages or a prompt and may have an answer (JSONL, JSON, CSV, parquet)
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = ["prompt", "messages", "infill", "trace"], help_heading = "Prompt")]
    data: Option<PathBuf>,
    /// The split where --data is a folder or a data set of the hub; default: test
    #[arg(long, value_name = "NAME", requires = "data", help_heading = "Prompt")]
    split: Option<String>,
    /// What to do with rows of --data that can't be asked, like a recipe's data.on_bad_row: stop, with an error that lists them,
    /// or skip, which counts them; default: stop
    #[arg(long, value_name = "WHAT", requires = "data", value_parser = super::on_bad_row, help_heading = "Prompt")]
    on_bad_row: Option<OnRow>,
    /// Write the rows of --data with their answers (the key generation) to this file (JSONL). Rows that are already in it
    /// are not asked again
    #[arg(long, value_name = "FILE", requires = "data", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Fill the mask tokens of the prompt, or of the last turn, in place instead of answering; print the filled text
    #[arg(long, conflicts_with_all = ["gen_length", "cfg_scale"], help_heading = "Prompt")]
    infill: bool,
    /// Print special tokens too, such as markers that the model was trained on; the end token is not printed
    #[arg(long, help_heading = "Output")]
    keep_special_tokens: bool,
    /// Show the denoising step by step on standard error
    #[arg(long, help_heading = "Output")]
    trace: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The sampler's options; an option that isn't given keeps the library's or the recipe's value.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Tokens of the answer; default: 128. Choose it near the length of the answers that the model was trained on
    #[arg(long, value_name = "N")]
    gen_length: Option<usize>,
    /// Tokens per block of LLaDA's sampler, a divisor of --gen-length; default: 32, or the largest divisor below it, or
    /// --gen-length if it has none of at least 8
    #[arg(long, value_name = "N")]
    block_length: Option<usize>,
    /// Which tokens a token sees: bidirectional (prompt and answer) or block-causal (its block and those before it, for
    /// models trained by block diffusion; blocks are then counted from the start of the prompt); default: what the
    /// checkpoint's config.json says
    #[arg(long, value_name = "KIND", value_parser = Attention::parse)]
    attention: Option<Attention>,
    /// Denoising steps for the whole answer; default: half of --gen-length if that is given, else 64, rounded up to a
    /// multiple of the blocks
    #[arg(long, value_name = "N")]
    diffusion_steps: Option<usize>,
    /// LLaDA's sampler: unmask every prediction of at least this probability, and at least one per step, whatever the
    /// number of steps; 0.9 is a good start
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    confidence_threshold: Option<f64>,
    /// LLaDA's sampler: reuse keys and values of a block's first step in its later ones: none, prefix (of what precedes
    /// the block) or dual (of everything around it). Faster, but not exact; default: none
    #[arg(long, value_name = "WHOSE", value_parser = Caching::parse)]
    cache: Option<Caching>,
    /// Gumbel temperature; default: 0, which is greedy
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Dream's sampler: draw from the smallest set of most likely tokens with this total probability; default: 1, which
    /// is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Dream's sampler: draw from the N most likely tokens; default: 0, which is off
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Dream's sampler: temperature of the choice of which predictions are kept; default: 0, which keeps the most
    /// confident
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alg_temp: Option<f64>,
    /// Classifier-free guidance scale; default: 0, which is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    cfg_scale: Option<f64>,
    /// Which predictions are kept: low_confidence or random (LLaDA's sampler); origin, maskgit_plus, topk_margin or
    /// entropy (Dream's); default: low_confidence or entropy, by the model's family
    #[arg(long, value_name = "HOW", value_parser = Remasking::parse)]
    remasking: Option<Remasking>,
    /// LLaDA's sampler: denoise the blocks behind an end token too, as LLaDA's and d1's own code does; by default an
    /// answer ends with the first finished block that holds one
    #[arg(long)]
    whole_canvas: bool,
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
    /// The seed of the draws.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(Sampling::default().seed)
    }

    /// Whether an option other than the seed is given.
    pub fn are_given(&self) -> bool {
        Given { seed: None, ..self.given() } != Given::default()
    }

    /// The library's settings with these options applied; warns of options without effect on the model.
    pub fn sampling(&self, base: &Base) -> Result<Sampling> {
        let sampling = self.given().sampling(&base.model.config);
        sampling.check()?;
        tell_idle(&sampling);
        Ok(Sampling { eos_token_ids: base.text.end_token_ids(), ..sampling })
    }

    /// Settings like [`SamplingArgs::sampling`], to fill this many masks in place, by default two per step.
    fn filling(&self, base: &Base, masks: usize) -> Sampling {
        let sampling = self.given().filling(&base.model.config, masks);
        tell_idle(&Sampling { gen_length: masks, whole_canvas: false, ..sampling.clone() });
        if self.whole_canvas {
            tell!("warning: whole_canvas has no effect with --infill, where an end token ends nothing");
        }
        Sampling { eos_token_ids: base.text.end_token_ids(), ..sampling }
    }

    /// The options that are given.
    pub fn given(&self) -> Given {
        Given {
            gen_length: self.gen_length,
            block_length: self.block_length,
            attention: self.attention,
            diffusion_steps: self.diffusion_steps,
            confidence_threshold: self.confidence_threshold,
            cache: self.cache,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            alg_temp: self.alg_temp,
            cfg_scale: self.cfg_scale,
            remasking: self.remasking,
            whole_canvas: self.whole_canvas.then_some(true),
            forbid_eos: self.forbid_eos.then_some(true),
            defer_eos: self.defer_eos.then_some(true),
            seed: self.seed,
        }
    }
}

/// The options with which `weft generate` uses these settings, each preceded by a space. Values that the command chooses by
/// default are left out.
pub fn as_options(wanted: &Sampling) -> String {
    let own = Sampling::default().with_gen_length(wanted.gen_length);
    let half = (wanted.gen_length / 2).max(1).next_multiple_of(own.num_blocks());
    let option =
        |name: &str, value: String, is_own: bool| if is_own { String::new() } else { format!(" --{name} {value}") };
    let flag = |name: &str, is_set: bool| if is_set { format!(" --{name}") } else { String::new() };
    let number = |name: &str, wanted: f64, own: f64| option(name, wanted.to_string(), wanted == own);
    let steps = wanted.confidence_threshold.is_some() || wanted.diffusion_steps == half;
    let threshold = wanted.confidence_threshold;
    let in_blocks = wanted.is_block_causal();
    [
        option("gen-length", wanted.gen_length.to_string(), false),
        option("block-length", wanted.block_length.to_string(), !in_blocks && wanted.block_length == own.block_length),
        wanted.attention.map(|attention| option("attention", attention.name().to_owned(), false)).unwrap_or_default(),
        option("diffusion-steps", wanted.diffusion_steps.to_string(), steps && !in_blocks),
        option("confidence-threshold", threshold.unwrap_or_default().to_string(), threshold.is_none()),
        option("cache", wanted.cache.name().to_owned(), wanted.cache == own.cache),
        number("temperature", wanted.temperature, own.temperature),
        number("top-p", wanted.top_p, own.top_p),
        option("top-k", wanted.top_k.to_string(), wanted.top_k == own.top_k),
        number("alg-temp", wanted.alg_temp, own.alg_temp),
        number("cfg-scale", wanted.cfg_scale, own.cfg_scale),
        wanted.remasking.map(|remasking| option("remasking", remasking.name().to_owned(), false)).unwrap_or_default(),
        flag("whole-canvas", wanted.whole_canvas),
        flag("forbid-eos", wanted.forbid_eos),
        flag("defer-eos", wanted.defer_eos),
        option("seed", wanted.seed.to_string(), wanted.seed == own.seed),
    ]
    .concat()
}

/// Warns of settings without effect.
pub fn tell_idle(sampling: &Sampling) {
    let warnings = sampling.remasking.map(|remasking| sampling.warnings(remasking));
    warnings.into_iter().flatten().for_each(|warning| tell!("warning: {warning}"));
}

impl Generate {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        self.sampling.given().check()?;
        let base = self.model.open()?;
        match (&self.data, &self.out) {
            (Some(data), Some(out)) => self.answer_rows(&base, (data, out), quiet)?,
            _ if self.infill => self.infill(&base, quiet)?,
            _ if self.asking.is_chat() => {
                let sampling = self.sampling.sampling(&base)?;
                if self.trace {
                    tell!("warning: --trace has no effect in a chat; add --prompt 'TEXT'");
                }
                chat::run(&base, self.asking.system.clone(), &sampling, self.keep_special_tokens)?;
            }
            _ => self.answer(&base, quiet)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// How special tokens in a `--raw` prompt are read: by default as tokens, because its author writes what the template
    /// would have written.
    fn raw_tokens(&self) -> SpecialTokens {
        self.model.special_tokens.unwrap_or(SpecialTokens::Tokens)
    }

    fn answer(&self, base: &Base, quiet: bool) -> Result<()> {
        let sampling = self.sampling.sampling(base)?;
        let ids = self.asking.prompt_ids(base, self.raw_tokens())?;
        warn_of_positions(base, ids.len() + sampling.gen_length);
        let prompts = [Prompt { ids: &ids, example: 0 }];
        let output = self.shown_while(base, (ids.len(), quiet), |steps| {
            generate_told(&base.model, &prompts, &sampling, steps).map(|mut outputs| outputs.remove(0))
        })?;
        say!("{}", shown(base, &output.ids[ids.len()..], self.keep_special_tokens));
        Ok(())
    }

    fn infill(&self, base: &Base, quiet: bool) -> Result<()> {
        let [before, text, after] = self.asking.parts(base, self.raw_tokens())?;
        let masks = text.iter().filter(|id| **id == base.model.config.mask_token_id).count();
        let mask = base.text.decode_canvas(&[base.model.config.mask_token_id]);
        if masks == 0 {
            return Err(Error::Usage(format!(
                "--infill: the text holds no mask token to fill; write {mask} for each token that is missing"
            )));
        }
        let ids = [&before[..], &text, &after].concat();
        warn_of_positions(base, ids.len());
        let sampling = self.sampling.filling(base, masks);
        let prompt = Prompt { ids: &ids, example: 0 };
        let output =
            self.shown_while(base, (before.len(), quiet), |steps| infill(&base.model, prompt, &sampling, steps))?;
        let filled = &output.ids[before.len()..before.len() + text.len()];
        match self.keep_special_tokens {
            true => say!("{}", base.text.decode_canvas(filled)),
            false => {
                // An end token within the text doesn't end it.
                let ends = base.text.end_token_ids();
                let inner: Vec<u32> = filled.iter().copied().filter(|id| !ends.contains(id)).collect();
                say!("{}", base.text.decode_answer(&inner));
            }
        }
        Ok(())
    }

    fn answer_rows(&self, base: &Base, (data, out): (&Path, &Path), quiet: bool) -> Result<()> {
        super::warn_of_split(self.split.as_ref(), data);
        if out.extension().is_some_and(|end| ["csv", "tsv", "parquet"].iter().any(|other| end == *other)) {
            tell!("warning: {} is written as JSONL, whatever its name", out.display());
        }
        let asking = Asking {
            sampling: self.sampling.sampling(base)?,
            system: self.asking.system.clone(),
            raw: self.asking.raw.then(|| self.raw_tokens()),
            keep_special_tokens: self.keep_special_tokens,
            split: self.split.clone(),
            on_bad_row: self.on_bad_row.unwrap_or_default(),
        };
        let Answered { before, now, skipped, longest, told } = answer_rows(base, (data, out), &asking, &bar(quiet))?;
        warn_of_positions(base, longest);
        told.iter().for_each(|line| tell!("warning: {line}"));
        let earlier =
            if before > 0 { format!(" ({before} {} there)", verb(before, ["was", "were"])) } else { String::new() };
        let are = verb(before + now, ["is", "are"]);
        let fewer = if skipped > 0 { format!("; {} skipped", counted(skipped, "row")) } else { String::new() };
        say!("{} {are} in {}{earlier}{fewer}", counted(before + now, "answer"), out.display());
        Ok(())
    }

    /// Runs the sampler while its steps are shown: on request as a trace, else as a bar. The answer begins at `start`.
    fn shown_while(
        &self,
        base: &Base,
        (start, quiet): (usize, bool),
        sample: impl FnOnce(Option<Sender<Vec<Vec<u32>>>>) -> Result<Output>,
    ) -> Result<Output> {
        let (sender, steps) = channel();
        let trace = Trace { text: &base.text, prompt_len: start, mask_token_id: base.model.config.mask_token_id };
        std::thread::scope(|scope| {
            let bar = drawn(quiet);
            let is_shown = self.trace || !bar.is_hidden();
            scope.spawn(move || match self.trace {
                true => trace.show(&steps),
                false => count_unmasked(&steps, (trace.prompt_len, trace.mask_token_id), &bar),
            });
            sample(is_shown.then_some(sender))
        })
    }
}

/// Warns of more tokens than the model was trained for.
fn warn_of_positions(base: &Base, longest: usize) {
    let fix = |_| "shorten the prompt or --gen-length".to_owned();
    let warning = positions::warning(base.config(), longest, "the longest prompt with its answer", fix);
    warning.into_iter().for_each(|warning| tell!("warning: {warning}"));
}
