//! `weft plan`: predicts what a recipe's run will take before it starts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use weft::base::{Base, is_embedded};
use weft::counted::counted;
use weft::device::Name;
use weft::error::{Error, Result};
use weft::experiment::{Experiment, check_trainable, set_template_kwargs};
use weft::parallel::session::local_rank;
use weft::plan::{GPU_MODELS, GpuModel, GpuRates, Plan as Planned, Planner, Stored};
use weft::recipe::{Recipe, RunSize};
use weft_kernels::precision::Precision;

use super::data::read_aside;
use super::rows;
use super::train::{of_size, read_recipe};

/// Predict a run's peak memory and step time before anything is loaded
///
/// Reads the recipe, its rows, and the base's config.json and headers, but no weights. Prints the peak resident size by
/// part, and the step time at this machine's matmul rate, which it measures for a second; on a GPU the step time is
/// predicted from peak rate and bandwidth. A run that doesn't fit is refused (exit 2) with the settings that make it
/// fit. docs/memory.md explains each part and which setting changes it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft plan\n  weft plan my.toml --gpu h100-sxm\n  weft plan recipes/llada-8b-s1k-weft-lora.toml --set model.path=DIR --set data.train=DIR --memory-gb 32"
)]
pub struct Plan {
    /// The recipe (TOML), or the folder of a run, whose recipe is used; default: the quick start
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    #[command(flatten)]
    facts: super::FactArgs,
    /// Plan for this much memory, for example of another machine; default: what this one has free
    #[arg(long, value_name = "GB", value_parser = positive)]
    memory_gb: Option<f64>,
    /// Plan for an NVIDIA GPU that isn't here, by its data sheet: a100-40gb, a100-80gb, h100-pcie, h100-sxm, h200,
    /// b200, l40s, rtx-3090, rtx-4090 or rtx-5090; add --memory-gb to plan for less memory than it has
    #[arg(long, value_name = "NAME", value_parser = gpu)]
    gpu: Option<GpuModel>,
    /// Plan for one of N ranks of an mpirun: its memory, and what it sends per step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    ranks: usize,
    /// The speed of the connection between the ranks, in 10^9 bits per second, to predict the time of what they send
    #[arg(long, value_name = "GBIT", value_parser = positive)]
    wire_gbit: Option<f64>,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self, quiet: bool, device: Name) -> Result<ExitCode> {
        let recipe = read_recipe(self.recipe.as_deref(), &self.facts.after(&self.settings), true)?;
        let (mut text, config, model) = Base::open_meta(&recipe.model.path, recipe.model.overrides())?;
        check_trainable(&recipe, &model)?;
        set_template_kwargs(&recipe, &mut text)?;
        let (experiment, shared) = read_aside(quiet, |scratch| {
            let experiment = Experiment::read(recipe, (&text, &model.config), scratch)?;
            let shared = experiment.shared_rows();
            Ok((experiment, shared))
        })?;
        rows::warn(&config, [Some(&experiment.train), experiment.held_out.as_ref()], shared);
        let quantization = model.quantization();
        let (is_narrow, is_tied) = (model.config.width < NARROW, model.has_tied_head());
        let (path, overrides) = (&experiment.recipe.model.path, experiment.recipe.model.overrides());
        let stored = match is_embedded(path) {
            true => Stored::Embedded,
            false if Base::holds_halves(path, overrides)? => Stored::Owned,
            false => Stored::Mapped,
        };
        let mut planner = Planner::new(&experiment, (model, &text), stored)?.with_ranks(self.ranks);
        let on = On::of(device, self.gpu, self.memory_gb)?;
        if !matches!(on, On::Cpu) {
            planner = planner.on_gpu(weft::device::gpu().map(|gpu| gpu.available_bytes()));
        }
        let memory_gb = self.memory_gb.or(self.gpu.map(|gpu| gpu.memory_gb));
        let plan = planner.plan(memory_gb.map(as_bytes))?;
        rows::warn_of_run(&experiment.recipe, RunSize { ranks: self.ranks, ..of_size(&experiment, plan.steps) });
        let sending = plan.communication.zip(self.wire_gbit).map(|(c, gbit)| c.sent_bytes() * 8e-9 / gbit);
        let time = Time::of(&planner, on, plan.steps, sending)?;
        match self.json {
            true => {
                let mut object = serde_json::to_value(&plan).expect("a plan is JSON");
                object["facts"] = json!(config.facts());
                object["unknown_fields"] = json!(config.unknown_fields());
                object["rows"] = rows::as_json(&experiment.train, experiment.held_out.as_ref());
                object["fits"] = json!(plan.fits());
                object["step_seconds"] = json!(time.map(|time| time.step_seconds));
                object["communication_seconds"] = json!(sending);
                object["hours"] = json!(time.map(|time| time.hours));
                object["gemm_gflops"] = json!(time.map(|time| time.gemm_gflops));
                object["is_prediction"] = json!(time.map(|time| !matches!(time.on, On::Cpu)));
                say!("{object}");
            }
            false => {
                let in_bits = quantization.map(|of| format!("; its linear layers are in {of}")).unwrap_or_default();
                sentence!(7, "model: {}{in_bits}", config.told(is_tied));
                if let (Some(folder), Some(told)) = (&experiment.recipe.model.adapter, &plan.adapter) {
                    sentence!(9, "adapter: starts from {}: {told}", folder.display());
                }
                let unknown = config.unknown_fields();
                if !unknown.is_empty() {
                    sentence!(2, "fields of config.json that Weft doesn't know: {}", unknown.join(", "));
                }
                for part in
                    experiment.train.parts.iter().chain(experiment.held_out.iter().flat_map(|held_out| &held_out.parts))
                {
                    part.notes.lines().iter().for_each(|line| sentence!(2, "{}: {line}", part.name));
                }
                print(&plan, (&experiment.recipe, is_narrow), time, sending);
            }
        }
        plan.check()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The hardware that a run is planned for.
#[derive(Clone, Copy)]
enum On {
    /// This machine's processor.
    Cpu,
    /// A GPU of this machine, with its measured rates.
    Gpu(GpuRates),
    /// A GPU that is described by its data sheet.
    DataSheet(GpuModel),
    /// A GPU of which only the memory is known.
    SomeGpu,
}

impl On {
    fn of(device: Name, gpu: Option<GpuModel>, memory_gb: Option<f64>) -> Result<Self> {
        match (device, gpu) {
            (Name::Cpu, Some(gpu)) => Err(Error::Usage(format!(
                "--gpu {} plans for a GPU, and --device cpu for the CPU; leave one out",
                gpu.name
            ))),
            (_, Some(gpu)) => Ok(Self::DataSheet(gpu)),
            // The plan may be for a GPU that isn't here yet.
            (Name::Cuda(_), None) if memory_gb.is_some() => Ok(Self::SomeGpu),
            (device, None) => {
                let hint = "--gpu NAME, or --device cuda with --memory-gb, plans for a GPU that isn't here";
                let opened = device.open(local_rank()).map_err(|error| Error::Usage(format!("{error}; {hint}")));
                weft::device::set(opened?);
                Ok(weft::device::gpu().map_or(Self::Cpu, |_| Self::Gpu(GpuRates::measure())))
            }
        }
    }
}

/// The time that a run takes.
#[derive(Clone, Copy)]
struct Time {
    on: On,
    step_seconds: f64,
    hours: f64,
    /// The matmul rate that the prediction uses, in 10^9 operations per second.
    gemm_gflops: f64,
}

impl Time {
    /// The time of the steps at the rates of the planned hardware, and of what each step sends; `None` where no rate is
    /// known.
    fn of(planner: &Planner, on: On, steps: u64, sending: Option<f64>) -> Result<Option<Self>> {
        let (step_seconds, gemm_gflops) = match on {
            On::SomeGpu => return Ok(None),
            On::Cpu => {
                let rates = planner.rates()?;
                (planner.step_seconds(rates)?, rates.training)
            }
            On::Gpu(rates) => (planner.gpu_step_seconds(rates)?, rates.bf16 * 1e-9),
            On::DataSheet(gpu) => (planner.gpu_step_seconds(gpu.into())?, gpu.tflops[0] * 1e3),
        };
        let step_seconds = step_seconds + sending.unwrap_or(0.0);
        Ok(Some(Self { on, step_seconds, hours: step_seconds * steps as f64 / 3600.0, gemm_gflops }))
    }

    /// Says how the time was predicted.
    fn say_source(&self, precision: Precision) {
        let rate = self.gemm_gflops;
        match self.on {
            On::DataSheet(GpuModel { name, tflops: [bf16, f32], bandwidth, .. }) => {
                sentence!(
                    2,
                    "time, a prediction: what the data sheet of {name} allows ({bf16:.0} TFLOP/s of bf16 matmuls, {f32:.0} of f32,\n\
                     {bandwidth:.0} GB/s); no step is faster, and none has been measured; evaluations come on top"
                );
            }
            On::Gpu(rates) => {
                let [bf16, f32] = [rates.bf16, rates.f32].map(|rate| rate * 1e-12);
                let bandwidth = rates.bytes * 1e-9;
                sentence!(
                    2,
                    "time, a prediction: what this GPU's measured rates allow ({bf16:.0} TFLOP/s of bf16 matmuls, {f32:.0} of f32,\n\
                     {bandwidth:.0} GB/s); no step is faster; weft bench --device cuda measures one; evaluations come on top"
                );
            }
            On::Cpu | On::SomeGpu => {
                sentence!(
                    2,
                    "time, at {rate:.0} GFLOP/s of {precision} matmuls on this machine now; evaluations come on top"
                );
            }
        }
    }
}

/// The width below which a step takes noticeably longer than its matmuls (docs/memory.md).
const NARROW: usize = 512;

fn print(plan: &Planned, (recipe, is_narrow): (&Recipe, bool), time: Option<Time>, sending: Option<f64>) {
    let line = |name: &str, bytes: usize| say!("  {name:26}{:>9.3} GB", bytes as f64 / 1e9);
    say!("peak memory by part; the largest micro-batch has {}", counted(plan.largest_micro_batch, "token"));
    for part in plan.parts.iter().filter(|part| part.bytes > 0) {
        line(part.name, part.bytes);
    }
    line("together", plan.peak_bytes);
    match plan.available_bytes {
        Some(available) if !matches!(time, Some(Time { on: On::Cpu, .. })) => {
            line("15/16 of available memory", available)
        }
        Some(available) => line("available", available),
        None => say!("  this system doesn't report how much memory is available"),
    }
    if let Some(c) = &plan.communication {
        sentence!(
            2,
            "each of {} ranks sends in a step of {} examples",
            c.ranks,
            c.ranks * recipe.train.global_batch_size()
        );
        let parts = [
            ("gradients", c.gradient_bytes),
            ("updated parameters", c.update_bytes),
            ("gathered from answers", c.gathered_bytes),
        ];
        parts.iter().for_each(|(name, bytes)| say!("  {name:26}{:>9.3} MB", bytes / 1e6));
        sentence!(2, "the rank with the most tokens has {:.2} times the mean; the others wait for it", c.imbalance);
    }
    let (precision, steps) = (recipe.model.precision, counted(plan.steps, "step"));
    let Some(time) = time else {
        sentence!(2, "{steps}; --gpu NAME predicts what one takes, weft bench --device cuda measures it");
        return;
    };
    time.say_source(precision);
    let Time { on, step_seconds, hours, .. } = time;
    let duration = match 3600.0 * hours {
        seconds if seconds < 10.0 => format!("{seconds:.1} seconds"),
        seconds if seconds < 120.0 => format!("{seconds:.0} seconds"),
        seconds if seconds < 7200.0 => format!("{:.0} minutes", seconds / 60.0),
        _ => format!("{hours:.1} hours"),
    };
    if is_narrow && matches!(on, On::Cpu) {
        sentence!(
            2,
            "  a model this narrow takes 1.5 to 1.75 times that, because the work between its matmuls weighs more"
        );
    }
    if let Some(seconds) = sending {
        sentence!(2, "  sending takes {} s of each step, none of it overlapped", significant(seconds));
    }
    say!("  {} s a step, {steps}, {duration}", significant(step_seconds));
}

/// Formats a number with at least three significant digits.
fn significant(value: f64) -> String {
    let decimals = (2 - value.max(1e-6).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

/// Parses the name of a GPU.
fn gpu(name: &str) -> std::result::Result<GpuModel, String> {
    let known = || GPU_MODELS.map(|gpu| gpu.name).join(", ");
    GPU_MODELS.into_iter().find(|gpu| gpu.name == name).ok_or_else(|| format!("the known GPUs are {}", known()))
}

/// Parses a number of ranks.
fn ranks(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<usize>() {
        Ok(ranks) if (1..=MAX_RANKS).contains(&ranks) => Ok(ranks),
        _ => Err(format!("give 1 to {MAX_RANKS}")),
    }
}

/// The largest number of ranks that can be planned for.
const MAX_RANKS: usize = 1 << 16;

/// Parses a positive number, such as a number of GB.
pub(super) fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(gb) if gb > 0.0 && gb.is_finite() => Ok(gb),
        _ => Err("give a positive number".to_owned()),
    }
}

pub(super) fn as_bytes(gb: f64) -> usize {
    (gb * 1e9) as usize
}
