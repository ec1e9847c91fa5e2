//! `weft plan`: what a recipe's run will take, before it begins.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use weft::base::{Base, is_embedded};
use weft::device::Name;
use weft::error::{Error, Result};
use weft::experiment::Experiment;
use weft::parallel::session::local_rank;
use weft::plan::{Plan as Planned, Planner, Stored};
use weft::recipe::Recipe;

use super::data::read_aside;
use super::train::read_recipe;

/// Predict a run's peak memory and step time before anything is loaded
///
/// Reads the recipe, its rows and the base's config.json and headers, no weight. Prints the largest resident size by
/// part, and what a step takes at this machine's rate of products, measured for a second; of a card its memory alone. A run that doesn't fit is
/// refused (exit 2) with the settings that make it fit. docs/memory.md tells what each part is and which setting moves it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft plan recipes/gsm8k.toml\n  weft plan recipes/llada-8b-s1k-weft-lora.toml --set model.path=DIR --set data.train=DIR --memory-gb 32"
)]
pub struct Plan {
    /// The recipe (TOML); the quick start where absent
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    /// Plan for so much memory, of another machine for one; what this one has free where absent
    #[arg(long, value_name = "GB", value_parser = positive)]
    memory_gb: Option<f64>,
    /// Plan for one of so many ranks of an mpirun: its memory, and what it sends in a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    ranks: usize,
    /// The speed of what the ranks are connected by, in 10^9 bits per second, for the time of what they send
    #[arg(long, value_name = "GBIT", value_parser = positive)]
    wire_gbit: Option<f64>,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self, quiet: bool, device: Name) -> Result<ExitCode> {
        let recipe = read_recipe(self.recipe.as_deref(), &self.settings, true)?;
        let (text, model) = Base::open_outline(&recipe.model.path)?;
        let experiment = read_aside(quiet, |scratch| Experiment::read(recipe, (&text, &model.config), scratch))?;
        let is_narrow = model.config.width < NARROW;
        let stored = if is_embedded(&experiment.recipe.model.path) { Stored::Embedded } else { Stored::Mapped };
        let mut planner = Planner::new(&experiment, (model, &text), stored)?.with_ranks(self.ranks);
        let is_on_card = match device {
            // A card that isn't here yet may be planned for.
            Name::Cuda(_) if self.memory_gb.is_some() => true,
            device => {
                let opened = device
                    .open(local_rank())
                    .map_err(|error| Error::Usage(format!("{error}; --memory-gb plans for a card that isn't here")));
                weft::device::set(opened?);
                weft::device::card().is_some()
            }
        };
        if is_on_card {
            planner = planner.on_card(weft::device::card().map(|card| card.available_bytes()));
        }
        let plan = planner.plan(self.memory_gb.map(as_bytes))?;
        let sending = plan.communication.zip(self.wire_gbit).map(|(c, gbit)| c.sent_bytes() * 8e-9 / gbit);
        // What parts of a card's rate steps reach isn't known (docs/cuda.md).
        let time = (!is_on_card).then(|| Time::of(&planner, plan.steps, sending)).transpose()?;
        match self.json {
            true => {
                let mut object = serde_json::to_value(&plan).expect("a plan is JSON");
                object["fits"] = json!(plan.fits());
                object["step_seconds"] = json!(time.map(|time| time.step_seconds));
                object["communication_seconds"] = json!(sending);
                object["hours"] = json!(time.map(|time| time.hours));
                object["gemm_gflops"] = json!(time.map(|time| time.gemm_gflops));
                say!("{object}");
            }
            false => print(&plan, (&experiment.recipe, is_narrow), time, sending),
        }
        plan.check()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A run's time.
#[derive(Clone, Copy)]
struct Time {
    step_seconds: f64,
    hours: f64,
    /// The machine's rate of products, in 10^9 operations per second.
    gemm_gflops: f64,
}

impl Time {
    /// Of the steps, at this machine's rate, and what is sent in each.
    fn of(planner: &Planner, steps: u64, sending: Option<f64>) -> Result<Self> {
        let rates = planner.rates()?;
        let step_seconds = planner.step_seconds(rates)? + sending.unwrap_or(0.0);
        Ok(Self { step_seconds, hours: step_seconds * steps as f64 / 3600.0, gemm_gflops: rates.training })
    }
}

/// The width below which a step's time is more than its products' (docs/memory.md).
const NARROW: usize = 512;

fn print(plan: &Planned, (recipe, is_narrow): (&Recipe, bool), time: Option<Time>, sending: Option<f64>) {
    let line = |name: &str, bytes: usize| say!("  {name:26}{:>9.3} GB", bytes as f64 / 1e9);
    say!(
        "memory at its largest moment, by what is held then; the largest micro-batch has {} tokens",
        plan.largest_micro_batch
    );
    for part in plan.parts.iter().filter(|part| part.bytes > 0) {
        line(part.name, part.bytes);
    }
    line("together", plan.peak_bytes);
    match plan.available_bytes {
        Some(available) if time.is_none() => line("available, 15 of 16 parts", available),
        Some(available) => line("available", available),
        None => say!("  this system doesn't say what is available"),
    }
    if let Some(c) = &plan.communication {
        say!("each of {} ranks sends in a step, of {} examples", c.ranks, c.ranks * recipe.train.global_batch_size());
        let parts =
            [("gradients", c.gradient_bytes), ("updated numbers", c.update_bytes), ("told of answers", c.told_bytes)];
        parts.iter().for_each(|(name, bytes)| say!("  {name:26}{:>9.3} MB", bytes / 1e6));
        say!("the rank with most tokens has {:.2} times the mean; the others wait for it", c.imbalance);
    }
    let (precision, steps) = (recipe.model.precision, plan.steps);
    let Some(Time { step_seconds, hours, gemm_gflops: rate }) = time else {
        say!("{steps} steps; weft bench --device cuda measures what one takes on a card");
        return;
    };
    say!("time, at {rate:.0} GFLOP/s of {precision} products on this machine now; evaluations come on top");
    let duration = match 3600.0 * hours {
        seconds if seconds < 120.0 => format!("{seconds:.0} seconds"),
        seconds if seconds < 7200.0 => format!("{:.0} minutes", seconds / 60.0),
        _ => format!("{hours:.1} hours"),
    };
    if is_narrow {
        say!("  a model as narrow as this takes up to 1.5 times that: what lies between its products weighs more");
    }
    if let Some(seconds) = sending {
        say!("  of a step {} s for what is sent, nothing of it meanwhile", significant(seconds));
    }
    say!("  {} s a step, {steps} steps, {duration}", significant(step_seconds));
}

/// A number with at least three digits that matter.
fn significant(value: f64) -> String {
    let decimals = (2 - value.max(1e-6).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

/// A number of ranks on the command line.
fn ranks(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<usize>() {
        Ok(ranks) if (1..=MAX_RANKS).contains(&ranks) => Ok(ranks),
        _ => Err(format!("give 1 to {MAX_RANKS}")),
    }
}

/// Most ranks that are planned for.
const MAX_RANKS: usize = 1 << 16;

/// A positive number on the command line, of GB for one.
pub(super) fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(gb) if gb > 0.0 && gb.is_finite() => Ok(gb),
        _ => Err("give a positive number".to_owned()),
    }
}

pub(super) fn as_bytes(gb: f64) -> usize {
    (gb * 1e9) as usize
}
