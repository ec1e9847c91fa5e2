//! The command line, one file per command. Commands read their options, call the library and print the results; they
//! compute nothing themselves.

/// Prints a line of results. If standard output can't be written, because a disk is full for example, the program says
/// so and exits.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        if let Err(error) = writeln!(std::io::stdout(), $($text)*) {
            eprintln!("error: cannot write to standard output: {error}; redirect it elsewhere");
            std::process::exit(1);
        }
    }};
}

/// Prints a line on standard error. If that fails, on a full disk for example, only the line is lost: `eprintln` would end
/// the program. On a terminal it is broken between words.
macro_rules! tell {
    ($($text:tt)*) => {
        weft::progress::tell(&$crate::cli::window::told(&format!($($text)*)))
    };
}

/// Prints a line of results like `say`. On a terminal it is broken between words, and what follows a break is indented by so
/// many columns.
macro_rules! sentence {
    ($indent:expr, $($text:tt)*) => {
        say!("{}", $crate::cli::window::said(&format!($($text)*), $indent))
    };
}

mod asking;
mod bench;
mod chat;
mod compare;
mod completions;
mod convert;
mod data;
mod eval;
mod generate;
pub mod hints;
mod inspect;
mod installation;
mod likelihood;
mod line_editor;
mod merge;
mod model_card;
mod parity;
mod plan;
mod pretrain;
mod progress;
mod question;
mod recipe;
mod reproduce;
mod results;
mod rows;
mod score;
mod scores;
mod serve;
mod signals;
mod trace;
mod train;
mod version;
mod window;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use weft::base::Base;
use weft::counted::counted;
use weft::data::settings::OnRow;
use weft::data::typed_tokens::SpecialTokens;
use weft::device::Name;
use weft::error::{Error, Result};
use weft::model::facts::Overrides;
use weft::model::lora;
use weft::model::quantize::{Quantization, Quantize};
use weft::model::settings::{ModelTable, without_tiles};
use weft::parallel::Ranks;
use weft::parallel::nccl::{Launched, Nccl};
use weft::parallel::session::{local_rank, threads_per_rank};
use weft_kernels::precision::Precision;

pub use signals::STOPPED;

/// The largest number of threads; starting more takes longer than any work they could share.
const MAX_THREADS: usize = 1024;

/// Fine-tunes masked diffusion language models by entropy-weighted masking (WeFT).
#[derive(Parser)]
#[command(name = "weft", version, long_version = version::VERSION.as_str(), propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Where to compute: cpu, cuda (an NVIDIA GPU), cuda:N, or auto, which takes a GPU if there is one; default:
    /// WEFT_DEVICE, else auto
    #[arg(long, global = true, value_name = "DEVICE", help_heading = "Machine")]
    device: Option<String>,
    /// The number of threads; default: all cores, divided among the ranks of an mpirun on one machine
    #[arg(long, global = true, value_name = "N", help_heading = "Machine")]
    threads: Option<usize>,
    /// Print results and errors only: no progress, no evaluations during training
    #[arg(short, long, global = true, help_heading = "Output")]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
    Recipe(recipe::Recipe),
    Data(data::Data),
    Eval(eval::Eval),
    Score(score::Score),
    Generate(generate::Generate),
    Serve(serve::Serve),
    Inspect(inspect::Inspect),
    Likelihood(likelihood::Likelihood),
    Merge(merge::Merge),
    Convert(convert::Convert),
    Parity(parity::Parity),
    Plan(plan::Plan),
    Compare(compare::Compare),
    Pretrain(pretrain::Pretrain),
    Reproduce(reproduce::Reproduce),
    Bench(bench::Bench),
    Completions(completions::Completions),
}

impl Command {
    /// Whether the command runs or trains a network.
    fn computes(&self) -> bool {
        match self {
            Self::Train(_) | Self::Eval(_) | Self::Generate(_) | Self::Inspect(_) | Self::Likelihood(_) => true,
            Self::Parity(_) | Self::Pretrain(_) | Self::Reproduce(_) | Self::Bench(_) | Self::Serve(_) => true,
            Self::Recipe(_) | Self::Data(_) | Self::Score(_) | Self::Merge(_) | Self::Plan(_) => false,
            Self::Compare(_) | Self::Convert(_) | Self::Completions(_) => false,
        }
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Any failure of the command, as one sentence.
    pub fn run(self, ranks: &Ranks) -> Result<ExitCode> {
        let device = self.device.as_deref().map_or_else(Name::of_environment, Name::parse)?;
        if let Some(threads) = self.threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
            return Err(Error::Usage(format!("--threads {threads}: give 1 to {MAX_THREADS}")));
        }
        progress::install();
        if self.quiet {
            weft::hub::be_quiet();
        }
        let shares = matches!(self.command, Command::Train(_) | Command::Eval(_) | Command::Reproduce(_));
        let launched = Launched::read()?.map_or(1, |launched| launched.size).max(ranks.size());
        if launched > 1 && !shares && !matches!(self.command, Command::Plan(_)) {
            return Err(Error::Usage(format!(
                "{} processes were started together, but only train, eval and reproduce share work among processes; start \
                 other commands without a launcher",
                launched
            )));
        }
        let ranks = &match self.command.computes() {
            true => {
                weft::device::set(device.open(local_rank())?);
                if shares { Nccl::ranks(ranks, &weft::device::current())? } else { ranks.clone() }
            }
            false => ranks.clone(),
        };
        // The work runs on one of the pool's threads, because handing over every matmul from outside costs a wake-up
        // each.
        let threads = self.threads.unwrap_or_else(|| threads_per_rank(ranks));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads.is_some_and(|threads| threads > processors) && ranks.is_first() {
            let available = counted(processors, "processor");
            tell!(
                "warning: --threads {threads}: {available} can be used here; more threads change no result, but take longer"
            );
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Run(format!("{} can't be started: {e}", counted(threads, "thread"))))?;
        if matches!(self.command, Command::Train(_) | Command::Pretrain(_) | Command::Reproduce(_)) {
            signals::listen(ranks);
        }
        let ended = pool.install(|| match self.command {
            Command::Train(command) => command.run(self.quiet, ranks),
            Command::Recipe(command) => command.run(),
            Command::Data(command) => command.run(self.quiet),
            Command::Eval(command) => command.run(self.quiet, ranks),
            Command::Score(command) => command.run(),
            Command::Generate(command) => command.run(self.quiet),
            Command::Serve(command) => command.run(self.quiet),
            Command::Inspect(command) => command.run(self.quiet),
            Command::Likelihood(command) => command.run(self.quiet),
            Command::Merge(command) => command.run(self.quiet),
            Command::Compare(command) => command.run(),
            Command::Convert(command) => command.run(self.quiet),
            Command::Parity(command) => command.run(self.quiet),
            Command::Plan(command) => command.run(self.quiet, device),
            Command::Pretrain(command) => command.run(self.quiet),
            Command::Reproduce(command) => command.run(self.quiet, ranks),
            Command::Bench(command) => command.run(self.quiet),
            Command::Completions(command) => command.run(),
        })?;
        ranks.leave();
        Ok(ended)
    }
}

/// What the user says of a checkpoint, against its files.
#[derive(Args, Clone, Default)]
struct FactArgs {
    /// The id of the mask token; default: as config.json, the tokenizer or the model's family says
    #[arg(long, value_name = "N")]
    mask_token_id: Option<u32>,
    /// Whether the logits that predict a position sit one position before it (true or false); default: as is known of the
    /// model's family
    #[arg(long, value_name = "BOOL")]
    logits_shifted: Option<bool>,
    /// Quantize the linear layers to 4 bits as they are loaded: nf4; default: as they are stored
    #[arg(long, value_name = "FORMAT", value_parser = quantize)]
    quantize: Option<Quantize>,
    /// Whether the scales of --quantize are quantized to 8 bits (true or false); default: true
    #[arg(long, value_name = "BOOL", requires = "quantize")]
    double_quant: Option<bool>,
}

impl FactArgs {
    fn of(model: &ModelTable) -> Self {
        Self {
            mask_token_id: model.mask_token_id,
            logits_shifted: model.logits_shifted,
            quantize: model.quantize,
            double_quant: model.quantize.map(|_| model.double_quant).filter(|double| !double),
        }
    }

    /// The options as a command line has them, each after a space.
    fn as_options(&self) -> String {
        let mask = self.mask_token_id.map(|id| format!(" --mask-token-id {id}"));
        let shift = self.logits_shifted.map(|shifted| format!(" --logits-shifted {shifted}"));
        let quantize = self.quantize.map(|Quantize::Nf4| " --quantize nf4".to_owned());
        let double = self.double_quant.map(|double| format!(" --double-quant {double}"));
        [mask, shift, quantize, double].into_iter().flatten().collect()
    }

    fn overrides(&self) -> Overrides {
        let quantize = |Quantize::Nf4| Quantization { double_quant: self.double_quant.unwrap_or(true) };
        Overrides {
            mask_token_id: self.mask_token_id,
            logits_shifted: self.logits_shifted,
            rounds_halves: false,
            quantize: self.quantize.map(quantize),
        }
    }

    /// A recipe's settings, followed by these options as settings.
    fn after(&self, settings: &[String]) -> Vec<String> {
        let mask = self.mask_token_id.map(|id| format!("model.mask_token_id={id}"));
        let shift = self.logits_shifted.map(|shifted| format!("model.logits_shifted={shifted}"));
        let quantize = self.quantize.map(|Quantize::Nf4| "model.quantize=nf4".to_owned());
        let double = self.double_quant.map(|double| format!("model.double_quant={double}"));
        settings.iter().cloned().chain([mask, shift, quantize, double].into_iter().flatten()).collect()
    }
}

/// The options that choose a command's model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// The checkpoint's folder, a model of the hub (ORG/NAME or ORG/NAME@REVISION), or tiny-base
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A PEFT adapter's folder, or one of the hub
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The format that matmuls round their operands to: f32 (no rounding), bf16 (faster on some processors), bf16x3 (two bf16
    /// numbers for each, on processors with AMX), or auto (bf16x3 where there is AMX, else f32)
    #[arg(long, default_value = "f32", value_name = "FORMAT", value_parser = precision)]
    precision: Precision,
    #[command(flatten)]
    facts: FactArgs,
    /// Variables for the chat template, as a recipe's data.chat_template_kwargs: '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    chat_template_kwargs: Option<Object>,
    /// How to read special tokens in the turns of a prompt, like a recipe's data.special_tokens: as text or tokens;
    /// default: text
    #[arg(long, value_name = "WHAT", value_parser = SpecialTokens::parse)]
    special_tokens: Option<SpecialTokens>,
}

/// The fields of an object of JSON.
type Object = serde_json::Map<String, serde_json::Value>;

impl ModelArgs {
    /// Opens the base on the process's device, with its adapter if one is given.
    fn open(&self) -> Result<Base> {
        let rounds_halves = self.precision == Precision::Bf16;
        let mut base = Base::open_with(&self.model, Overrides { rounds_halves, ..self.facts.overrides() })?;
        if rounds_halves {
            base.told_of_halves().iter().for_each(|told| tell!("note: {told}"));
        }
        base.told_of_quantizing().iter().for_each(|told| tell!("warning: --quantize {told}"));
        if let Some(adapter) = &self.adapter {
            lora::load(adapter, &mut base.model)?;
            warn_of_base(adapter, &base.name);
            warn_of_bits(adapter, base.model.quantization());
            base.adapter = Some(adapter.clone());
        }
        base.text.set_special_tokens(self.special_tokens.unwrap_or_default());
        if let Some(kwargs) = &self.chat_template_kwargs {
            base.text.set_template_kwargs(kwargs, "--chat-template-kwargs: ")?;
        }
        base.model.config.precision = self.precision;
        base.model.put_on(&weft::device::current());
        Ok(base)
    }
}

/// Refuses a file of results that is there already, before any work is done.
fn check_new(out: &Path) -> Result<()> {
    match out.exists() {
        true => Err(Error::Usage(format!("--out {} is there already; name another file, or remove it", out.display()))),
        false => Ok(()),
    }
}

/// Warns if the adapter names another base than this one. A base may have moved: only the last part of its name counts.
fn warn_of_base(adapter: &Path, base: &str) {
    let last = |name: &str| {
        let name = name.split('@').next().unwrap_or_default().trim_end_matches('/');
        name.rsplit('/').next().unwrap_or_default().to_owned()
    };
    if let Some(named) = lora::named_base(adapter).filter(|named| last(named) != last(base)) {
        let adapter = adapter.display();
        tell!("warning: {adapter} was trained on {named} but is applied to {base}; it is meaningless on another base");
    }
}

/// Warns if the adapter was trained on a base in 4 bits and this one isn't.
fn warn_of_bits(adapter: &Path, quantization: Option<Quantization>) {
    if let (Some(of), None) = (lora::base_quantization(adapter), quantization) {
        let adapter = adapter.display();
        tell!(
            "warning: {adapter} was trained on a base in {of} but is applied to the original weights; --quantize nf4 \
             applies it to those that it was trained on"
        );
    }
}

fn object(json: &str) -> std::result::Result<Object, String> {
    serde_json::from_str(json).map_err(|_| "give an object of JSON, such as '{\"enable_thinking\": false}'".to_owned())
}

/// Warns of a split that is given for a file.
fn warn_of_split(split: Option<&String>, data: &Path) {
    if split.is_some() && data.is_file() {
        tell!("warning: --split has no effect: --data is a file");
    }
}

/// The value of `--on-bad-row`, by the names of a recipe's `data.on_bad_row`.
fn on_bad_row(name: &str) -> std::result::Result<OnRow, String> {
    match name {
        "stop" => Ok(OnRow::Stop),
        "skip" => Ok(OnRow::Skip),
        _ => Err("the known values are stop and skip".to_owned()),
    }
}

fn quantize(name: &str) -> std::result::Result<Quantize, String> {
    match name {
        "nf4" => Ok(Quantize::Nf4),
        _ => Err("the known value is nf4".to_owned()),
    }
}

fn precision(name: &str) -> std::result::Result<Precision, String> {
    let precision = match name {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        "bf16x3" => Precision::Bf16x3,
        "auto" => Precision::fastest_accurate(),
        _ => return Err("the known values are f32, bf16, bf16x3 and auto".to_owned()),
    };
    without_tiles(precision).map_or(Ok(precision), Err)
}
