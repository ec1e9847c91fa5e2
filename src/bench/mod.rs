//! Measures training steps of a shape: seconds by phase, tokens/s, peak memory, and the share of the machine's own
//! matmul rate that a step's arithmetic reaches. Times are medians; nothing here is a test.

use std::time::Instant;

use serde::Serialize;
use weft_kernels::cuda::WORKSPACE;
use weft_kernels::precision::Precision;

use crate::data::Example;
use crate::data::mixing::Mixture;
use crate::data::packing::Padding;
use crate::device;
use crate::device::rate::gemm_gflops;
use crate::error::Result;
use crate::machine;
use crate::model::arithmetic::{self, MultiplyAdds};
use crate::model::block::Transformer;
use crate::model::facts::Overrides;
use crate::objective::{Kind, Objective};
use crate::plan::{Batches, GpuRates, Lengths, Rates, Stored, Work, gpu_step_time, step_time};
use crate::recipe::Recipe;
use crate::rng::{Draws, Stream};
use crate::train::settings::{ACTIVATION_BYTES, TrainTable};
use crate::train::step::Phases;
use crate::train::{Job, Trainer};
use kernels::Kernel;

pub mod kernels;
pub(crate) mod shapes;

/// More than any GPU has.
const EVERYTHING_GB: f64 = 1e6;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The shape: `P`, `llada-8b`, `qwen3-0.6b`, or a checkpoint's folder.
    pub shape: String,
    /// What the user says of a checkpoint, against its files.
    pub overrides: Overrides,
    /// The format of matmuls' operands, and of a named shape's stored weights.
    pub precision: Precision,
    /// The format of matmuls' operands in the pass for entropies.
    pub entropy_precision: Precision,
    /// Whether every weight is trained; otherwise LoRA of rank 32 (`llada-8b`: 128) on queries, keys and values.
    pub full: bool,
    /// Sequences per step.
    pub sequences: usize,
    /// Tokens per sequence; a quarter of them is the prompt.
    pub tokens: usize,
    /// Steps between computations of the entropies; each step is an epoch of its own.
    pub entropy_every: u64,
    /// Steps before the measured ones.
    pub warm_up: usize,
    /// Measured steps.
    pub steps: usize,
    /// Memory in GB for matmul results that are saved for backward; the others are recomputed. `None` takes the
    /// recipe's default on a CPU, and saves everything on a GPU.
    pub activation_memory_gb: Option<f64>,
    /// Whether to take one more step on a GPU that measures each kernel's time.
    pub profile: bool,
}

/// The measurement of one objective.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Sequences per step.
    pub sequences: usize,
    /// Tokens per sequence.
    pub tokens: usize,
    /// The format of matmuls' operands.
    pub dtype: Precision,
    /// The format of matmuls' operands in the pass for entropies.
    pub entropy_dtype: Precision,
    /// The instructions with which this processor computes such matmuls.
    pub instructions: &'static str,
    /// What is trained: `lora` or `full`.
    pub trainable: &'static str,
    /// The objective's name in recipes.
    pub objective: &'static str,
    /// Seconds of the median step, or of the mean step where entropies are reused.
    pub step_seconds: f64,
    /// Tokens of a step divided by `step_seconds`.
    pub tokens_per_second: f64,
    /// Seconds that the plan gives for such a step (docs/memory.md): on a GPU a prediction from its measured rates.
    pub planned_step_seconds: f64,
    /// The device it was measured on.
    pub device: String,
    /// The largest resident size of the process so far.
    pub peak_rss_bytes: u64,
    /// The largest resident size as planned before the first step.
    pub planned_rss_bytes: u64,
    /// The most GPU memory in use at once so far; `None` on the CPU.
    pub peak_gpu_bytes: Option<u64>,
    /// The most GPU memory in use at once, as planned before the first step; `None` on the CPU.
    pub planned_gpu_bytes: Option<u64>,
    /// The step's seconds by phase.
    pub phases: Phases,
    /// The machine's rate of such matmuls, in 10^9 operations per second, measured in the same run.
    pub gemm_gflops: f64,
    /// The machine's matmul rates in f32, in bf16, and, if it has tiles, in bf16x3, measured before the steps.
    pub matmul_rates: Vec<MatmulRate>,
    /// Seconds of the step's arithmetic, without recomputation, at `gemm_gflops`.
    pub floor_seconds: f64,
    /// `floor_seconds` as a share of the step.
    pub gemm_share: f64,
    /// The kernels of one step, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<Kernel>,
}

/// The machine's matmul rate in one format.
#[derive(Clone, Debug, Serialize)]
pub struct MatmulRate {
    /// The format of the operands.
    pub dtype: Precision,
    /// The instructions with which this processor computes such matmuls.
    pub instructions: &'static str,
    /// The rate, in 10^9 operations per second.
    pub gflops: f64,
}

impl MatmulRate {
    /// Measures the rates in f32 and bf16, and in bf16x3 on a CPU with tiles (on other CPUs it is merely slow).
    fn measure_all() -> Vec<Self> {
        let is_offered = |dtype: &Precision| *dtype != Precision::Bf16x3 || dtype.is_fast() && device::gpu().is_none();
        Precision::ALL
            .into_iter()
            .filter(is_offered)
            .map(|dtype| Self { dtype, instructions: instructions(dtype), gflops: gemm_gflops(dtype, 0.0) })
            .collect()
    }
}

/// How the process's device computes matmuls in a format.
fn instructions(dtype: Precision) -> &'static str {
    if device::gpu().is_some() { "cuBLASLt" } else { dtype.instructions() }
}

/// Measures the objectives one after the other.
///
/// # Errors
/// A shape that is neither known nor a checkpoint's folder; a step that fails.
pub fn measure(plan: &Plan, objectives: &[Kind]) -> Result<Vec<Measurement>> {
    let program_bytes = machine::resident_bytes() as usize;
    let (mut model, stored) = shapes::model(plan)?;
    let gpu_rates = device::gpu().map(|_| GpuRates::measure());
    let matmul_rates = MatmulRate::measure_all();
    let mut measurements: Vec<Measurement> = vec![];
    for kind in objectives {
        let job = job(plan, &model, *kind);
        let (planned_bytes, batches) = planned(&model, &job, (stored, program_bytes));
        let (mut measurement, trained) = measure_objective(plan, model, job, (&batches, gpu_rates))?;
        match device::gpu() {
            Some(_) => measurement.planned_gpu_bytes = Some(planned_bytes),
            None => {
                // The process already holds the memory of the largest objective so far.
                let earlier = measurements.iter().map(|m| m.planned_rss_bytes).max().unwrap_or(0);
                measurement.planned_rss_bytes = earlier.max(planned_bytes);
            }
        }
        measurement.matmul_rates = matmul_rates.clone();
        measurements.push(measurement);
        model = trained;
    }
    Ok(measurements)
}

/// The training job on random tokens that is measured.
fn job(plan: &Plan, model: &Transformer, kind: Kind) -> Job {
    let prompt = plan.tokens / 4;
    let vocab = model.params[model.embedding].weight.rows() as f64;
    let ids = |example: u64, tokens: std::ops::Range<usize>| -> Vec<u32> {
        let draws = Draws::new(1, Stream::Text, 0, example);
        // The last ids are special tokens.
        tokens.map(|p| (draws.unit_f64(p as u64) * (vocab - 10.0)) as u32).collect()
    };
    // Where entropies are reused, every step is an epoch over the same examples.
    let all_steps = plan.steps + plan.warm_up + usize::from(plan.profile);
    let (epochs, steps_per_epoch) = if plan.entropy_every > 1 { (all_steps, 1) } else { (1, all_steps) };
    let count = (plan.sequences * steps_per_epoch) as u64;
    let example = |e| Example { prompt_ids: ids(e, 0..prompt), answer_ids: ids(e, prompt..plan.tokens) };
    Job {
        examples: (0..count).map(example).collect(),
        mixture: Mixture::default(),
        objective: Objective {
            kind,
            entropy_every: plan.entropy_every,
            entropy_precision: Some(plan.entropy_precision),
            ..Objective::default()
        },
        padding: Padding::None,
        eos_token_id: 0,
        settings: TrainTable {
            micro_batch_size: plan.sequences,
            epochs: epochs as u64,
            lr: 1e-5,
            activation_memory_gb: plan.activation_memory_gb.or_else(|| device::gpu().map(|_| EVERYTHING_GB)),
            ..TrainTable::default()
        },
    }
}

/// The planned largest resident size of the job, or the planned most of a GPU's memory, and its steps.
fn planned(model: &Transformer, job: &Job, (stored, program_bytes): (Stored, usize)) -> (u64, Batches) {
    let mut model = model.to_meta();
    model.config.activation_bytes = job.settings.activation_bytes(ACTIVATION_BYTES);
    model.config.entropy_precision = job.objective.entropy_precision.unwrap_or(model.config.precision);
    let lengths: Vec<Lengths> = job.examples.iter().map(|e| Lengths::of(e, usize::MAX)).collect();
    let recipe = Recipe { objective: job.objective, train: job.settings.clone(), ..Recipe::default() };
    let batches = Batches::of(&recipe, &job.mixture, &lengths);
    let work = Work {
        program_bytes,
        rows_bytes: size_of::<u32>() * lengths.iter().map(|l| l.total()).sum::<usize>(),
        needs_entropy: job.objective.kind.needs_pass_1(),
        ..Work::of_steps(&model, stored, &batches.largest_steps)
    };
    let parts = if device::gpu().is_some() { work.parts_of_gpu() } else { work.parts() };
    let bytes = parts.iter().map(|part| part.bytes as u64).sum();
    (bytes, batches)
}

/// Measures one objective and returns the model for the next one.
fn measure_objective(
    plan: &Plan,
    model: Transformer,
    job: Job,
    (batches, gpu_rates): (&Batches, Option<GpuRates>),
) -> Result<(Measurement, Transformer)> {
    let objective = job.objective;
    let mut trainer = Trainer::new(model, job);
    let (mut steps, mut rates) = (vec![], vec![]);
    let mut gpu_bytes = 0;
    for i in 0..plan.steps + plan.warm_up {
        device::gpu().iter().for_each(|gpu| gpu.forget_most_used());
        let started = Instant::now();
        let mut report = trainer.step()?;
        device::current().finish();
        gpu_bytes = device::gpu().map_or(0, |gpu| gpu.most_used_bytes().max(gpu_bytes));
        // A GPU may still be working when the call returns; that time counts as the last phase's.
        let rest = started.elapsed().as_secs_f64() - report.phases.total();
        report.phases.optimizer += if device::gpu().is_some() { rest } else { 0.0 };
        if i >= plan.warm_up {
            let rate = gemm_gflops(plan.precision, 0.0);
            let is_one = plan.entropy_precision == plan.precision;
            rates.push([rate, if is_one { rate } else { gemm_gflops(plan.entropy_precision, 0.0) }]);
            steps.push((report.phases, report.masked_share));
        }
    }
    // A median would miss the few steps that compute entropies.
    let middle = if plan.entropy_every > 1 { mean } else { median };
    let of = |f: &dyn Fn(&Phases) -> f64| middle(steps.iter().map(|(p, _)| f(p)).collect());
    let step_seconds = of(&Phases::total);
    let tokens = (plan.sequences * plan.tokens) as f64;
    let [training, entropy] = [0, 1].map(|i| median(rates.iter().map(|r| r[i]).collect()));
    let masked_share = median(steps.iter().map(|(_, share)| *share).collect());
    let floor_seconds = floor_seconds(plan, &trainer.model, objective.kind, (masked_share, [training, entropy]));
    let kernels = match device::gpu().zip(gpu_rates).filter(|_| plan.profile) {
        Some((gpu, rates)) => {
            gpu.start_counting();
            trainer.step()?;
            kernels::of_launches(&gpu.stop_counting(), &rates)
        }
        None => vec![],
    };
    let measurement = Measurement {
        sequences: plan.sequences,
        tokens: plan.tokens,
        dtype: plan.precision,
        entropy_dtype: plan.entropy_precision,
        instructions: instructions(plan.precision),
        trainable: if plan.full { "full" } else { "lora" },
        objective: objective.kind.name(),
        step_seconds,
        planned_step_seconds: match &gpu_rates {
            Some(rates) => gpu_step_time(&trainer.model, batches, &objective, *rates),
            None => step_time(&trainer.model, batches, &objective, Rates { training, entropy }),
        },
        tokens_per_second: tokens / step_seconds,
        device: device::name(),
        peak_rss_bytes: machine::peak_rss_bytes(),
        planned_rss_bytes: 0,
        peak_gpu_bytes: device::gpu().map(|_| (gpu_bytes + WORKSPACE) as u64),
        planned_gpu_bytes: None,
        phases: Phases {
            entropy: of(&|p| p.entropy),
            forward: of(&|p| p.forward),
            head: of(&|p| p.head),
            backward: of(&|p| p.backward),
            optimizer: of(&|p| p.optimizer),
        },
        gemm_gflops: training,
        matmul_rates: vec![],
        floor_seconds,
        gemm_share: floor_seconds / step_seconds,
        kernels,
    };
    Ok((measurement, trainer.model))
}

/// Seconds that a step's arithmetic alone takes at the machine's rates for training and for pass 1.
fn floor_seconds(plan: &Plan, model: &Transformer, kind: Kind, (masked_share, rates): (f64, [f64; 2])) -> f64 {
    let tokens = (plan.sequences * plan.tokens) as f64;
    let answers = (plan.sequences * (plan.tokens - plan.tokens / 4)) as f64;
    let squares = tokens * plan.tokens as f64;
    let a = MultiplyAdds::of(model, arithmetic::Work { tokens, squares, answers, masked: answers * masked_share });
    // A backward to the inputs costs as much as a forward, and one to the weights costs as much again.
    let layers = a.matrices + a.attention;
    let passes = if plan.full { 3.0 } else { 2.0 };
    let pass_1 = if kind.needs_pass_1() { (layers + a.head_of_answers) / plan.entropy_every as f64 } else { 0.0 };
    2e-9 * ((passes * layers + passes * a.head_of_masked) / rates[0] + pass_1 / rates[1])
}

fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
