//! Measures training steps of a shape: seconds by phase, tokens/s, peak memory, and the share of the machine's own
//! matrix rate that a step's arithmetic reached. Times are medians; nothing here is a test.

use std::time::Instant;

use serde::Serialize;
use weft_kernels::matrix::{self, Into, View};
use weft_kernels::precision::Precision;

use crate::data::Example;
use crate::data::mixing::Mixture;
use crate::data::packing::Padding;
use crate::error::Result;
use crate::model::block::Transformer;
use crate::objective::{Kind, Objective};
use crate::recipe::TrainTable;
use crate::rng::{Draws, Stream};
use crate::train::step::Phases;
use crate::train::{Job, Trainer};

mod shapes;

/// The side of the matrices that the machine's rate is measured with.
const GEMM_SIDE: usize = 1024;
/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `P`, `llada-8b`, or a checkpoint's folder.
    pub shape: String,
    /// What products round their factors to, and how a named shape's weights are stored.
    pub precision: Precision,
    /// The same for the pass for entropies.
    pub entropy_precision: Precision,
    /// Whether everything is trained; else LoRA on queries, keys and values, of rank 32 (`llada-8b`: 128).
    pub full: bool,
    /// Sequences of a step.
    pub sequences: usize,
    /// Tokens of a sequence; a quarter is prompt.
    pub tokens: usize,
    /// Steps, each an epoch of its own, between computations of the entropies.
    pub entropy_every: u64,
    /// Steps before the measured ones.
    pub warm_up: usize,
    /// Measured steps.
    pub steps: usize,
}

/// One objective's measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Sequences of a step.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// What products round their factors to.
    pub dtype: Precision,
    /// The same for the pass for entropies.
    pub entropy_dtype: Precision,
    /// How this processor computes such products.
    pub instructions: &'static str,
    /// `lora` or `full`.
    pub trainable: &'static str,
    /// Its name in recipes.
    pub objective: &'static str,
    /// The median step; the mean where entropies are reused.
    pub step_seconds: f64,
    /// Tokens of a step over that.
    pub tokens_per_second: f64,
    /// The largest resident size of the process so far.
    pub peak_rss_bytes: u64,
    /// The same of each phase.
    pub phases: Phases,
    /// The machine's rate of such products, in 10^9 operations per second, measured beside.
    pub gemm_gflops: f64,
    /// The step's arithmetic, recomputation left out, at that rate.
    pub floor_seconds: f64,
    /// The part that this is of the step.
    pub gemm_share: f64,
}

/// Measures some objectives one after the other.
///
/// # Errors
/// A shape that is neither known nor a checkpoint's folder; a step that fails.
pub fn measure(plan: &Plan, objectives: &[Kind]) -> Result<Vec<Measurement>> {
    let mut model = shapes::model(plan)?;
    let mut measurements = vec![];
    for kind in objectives {
        let (measurement, trained) = measure_objective(plan, model, *kind)?;
        measurements.push(measurement);
        model = trained;
    }
    Ok(measurements)
}

/// A measurement, and the model for the next one.
fn measure_objective(plan: &Plan, model: Transformer, kind: Kind) -> Result<(Measurement, Transformer)> {
    let [matrices, head] = products(&model);
    let attention = model.blocks.len() * plan.tokens * model.config.width;
    let prompt = plan.tokens / 4;
    let vocab = model.params[model.embedding].weight.rows() as f64;
    let ids = |example: u64, tokens: std::ops::Range<usize>| -> Vec<u32> {
        let draws = Draws::new(1, Stream::Text, 0, example);
        // The last ids are special tokens.
        tokens.map(|p| (draws.unit_f64(p as u64) * (vocab - 10.0)) as u32).collect()
    };
    let all_steps = plan.steps + plan.warm_up;
    // Where entropies are reused, every step is an epoch of the same examples.
    let reuses = plan.entropy_every > 1;
    let (epochs, steps_per_epoch) = if reuses { (all_steps, 1) } else { (1, all_steps) };
    let count = (plan.sequences * steps_per_epoch) as u64;
    let example = |e| Example { prompt_ids: ids(e, 0..prompt), answer_ids: ids(e, prompt..plan.tokens) };
    let job = Job {
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
            ..TrainTable::default()
        },
    };
    let mut trainer = Trainer::new(model, job);
    let (mut steps, mut rates) = (vec![], vec![]);
    for i in 0..all_steps {
        let report = trainer.step()?;
        if i >= plan.warm_up {
            let rate = gemm_gflops(plan.precision);
            let is_one = plan.entropy_precision == plan.precision;
            rates.push([rate, if is_one { rate } else { gemm_gflops(plan.entropy_precision) }]);
            steps.push((report.phases, report.masked_share));
        }
    }
    // A median would not see the few steps that compute entropies.
    let middle = if reuses { mean } else { median };
    let of = |f: &dyn Fn(&Phases) -> f64| middle(steps.iter().map(|(p, _)| f(p)).collect());
    let step_seconds = of(&Phases::total);
    let tokens = (plan.sequences * plan.tokens) as f64;
    let answers = (plan.sequences * (plan.tokens - prompt)) as f64;
    let masked = answers * median(steps.iter().map(|(_, share)| *share).collect());
    // Multiply-adds of a forward; a backward to the inputs costs as much again, and to the weights once more.
    let layers = tokens * (matrices + 2 * attention) as f64;
    let passes = if plan.full { 3.0 } else { 2.0 };
    let pass_1 = if kind.needs_entropy() { (layers + answers * head as f64) / plan.entropy_every as f64 } else { 0.0 };
    let [rate, pass_1_rate] = [0, 1].map(|i| median(rates.iter().map(|r| r[i]).collect()));
    let floor_seconds = 2e-9 * ((passes * layers + passes * masked * head as f64) / rate + pass_1 / pass_1_rate);
    let measurement = Measurement {
        sequences: plan.sequences,
        tokens: plan.tokens,
        dtype: plan.precision,
        entropy_dtype: plan.entropy_precision,
        instructions: plan.precision.instructions(),
        trainable: if plan.full { "full" } else { "lora" },
        objective: kind.name(),
        step_seconds,
        tokens_per_second: tokens / step_seconds,
        peak_rss_bytes: peak_rss_bytes(),
        phases: Phases {
            entropy: of(&|p| p.entropy),
            forward: of(&|p| p.forward),
            head: of(&|p| p.head),
            backward: of(&|p| p.backward),
            optimizer: of(&|p| p.optimizer),
        },
        gemm_gflops: rate,
        floor_seconds,
        gemm_share: floor_seconds / step_seconds,
    };
    Ok((measurement, trainer.model))
}

/// Weights of the layers' matrices, and of the head.
fn products(model: &Transformer) -> [usize; 2] {
    let of = |id: usize| model.params[id].weight.rows() * model.params[id].weight.cols();
    let block = |b: &crate::model::block::Block| {
        b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]).map(|l| of(l.weight)).sum::<usize>()
    };
    [model.blocks.iter().map(block).sum(), of(model.head.weight)]
}

/// The machine's rate of products, in 10^9 operations per second: the best of nine.
fn gemm_gflops(precision: Precision) -> f64 {
    let side = GEMM_SIDE;
    let (a, b, mut c) = (vec![1.0f32; side * side], vec![1.0f32; side * side], vec![0.0f32; side * side]);
    let rate = || {
        let started = Instant::now();
        matrix::par_product(&mut c, View::new(&a, side, side), View::new(&b, side, side), 1.0, Into::Set, precision);
        2.0 * (side as f64).powi(3) / started.elapsed().as_secs_f64() / 1e9
    };
    std::iter::repeat_with(rate).take(9).fold(0.0, f64::max)
}

/// The largest resident size of this process, in bytes; 0 where the system doesn't say.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kilobytes| kilobytes * 1024)
}

fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
