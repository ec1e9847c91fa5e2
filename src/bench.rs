//! Measures training steps of a shape: seconds by phase, tokens/s, peak memory, and the share of the machine's own
//! matrix rate that a step's arithmetic reached. Times are medians; nothing here is a test.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use weft_kernels::matrix::{self, Into, View};

use crate::data::Example;
use crate::data::packing::Padding;
use crate::error::{Error, Result};
use crate::model::block::Transformer;
use crate::model::llada::{self, LladaConfig, Sizes};
use crate::model::lora::{self, LoraConfig};
use crate::objective::{Kind, Objective};
use crate::recipe::TrainTable;
use crate::rng::{Draws, Stream};
use crate::train::{Job, Phases, Trainer};

/// Steps before the measured ones.
const WARM_UP: usize = 2;
/// The side of the matrices that the machine's rate is measured with.
const GEMM_SIDE: usize = 1024;
/// Sequences of a step, their tokens, and how many of those are prompt.
const SEQUENCES: usize = 4;
const TOKENS: usize = 512;
const PROMPT: usize = 128;

/// The sizes of shape P, at which speeds are compared.
const SHAPE_P: Sizes = Sizes {
    width: 512,
    layers: 8,
    heads: 8,
    mlp_hidden_size: 1536,
    vocab_size: 32_000,
    max_seq_len: 512,
    mask_token_id: 31_999,
    eos_token_id: 31_998,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `P`, or a checkpoint's folder.
    pub shape: String,
    /// Whether weights are stored in bf16; else f32. A checkpoint keeps its own.
    pub bf16: bool,
    /// Whether everything is trained; else LoRA of rank 32 on queries, keys and values.
    pub full: bool,
    /// Measured steps.
    pub steps: usize,
}

/// One objective's measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// `f32` or `bf16`.
    pub dtype: &'static str,
    /// `lora` or `full`.
    pub trainable: &'static str,
    /// `sft` or `weft`.
    pub objective: &'static str,
    /// The median step.
    pub step_seconds: f64,
    /// Tokens of a step over that.
    pub tokens_per_second: f64,
    /// The largest resident size of the process so far.
    pub peak_rss_bytes: u64,
    /// The median of each phase.
    pub phases: Phases,
    /// The machine's rate of products of f32 matrices, measured beside.
    pub gemm_gflops: f64,
    /// The rate of the step's arithmetic, recomputation left out, over that.
    pub gemm_share: f64,
}

/// Measures some objectives one after the other.
///
/// # Errors
/// A shape that is neither known nor a checkpoint's folder; a step that fails.
pub fn measure(plan: &Plan, objectives: &[Kind]) -> Result<Vec<Measurement>> {
    let mut model = model(plan)?;
    let mut measurements = vec![];
    for kind in objectives {
        let (measurement, trained) = measure_objective(plan, model, *kind)?;
        measurements.push(measurement);
        model = trained;
    }
    Ok(measurements)
}

fn model(plan: &Plan) -> Result<Transformer> {
    let mut model = match (plan.shape.as_str(), plan.bf16) {
        ("P", false) => llada::fresh(&LladaConfig::new(SHAPE_P), 1),
        ("P", true) => {
            // By way of a file, as checkpoints come.
            let folder = Scratch::new()?;
            let config = LladaConfig::new(SHAPE_P);
            llada::save(&folder.0, &llada::fresh(&config, 1), &config)?;
            llada::load(&folder.0)?
        }
        (folder, _) if Path::new(folder).is_dir() => llada::load(Path::new(folder))?,
        (shape, _) => {
            return Err(Error::Usage(format!("--shape {shape} is neither P nor a checkpoint's folder")));
        }
    };
    model.params.iter_mut().for_each(|p| p.trainable = plan.full);
    if !plan.full {
        let targets = ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec();
        lora::attach_fresh(&mut model, &LoraConfig::new(32, 64.0, 0.0, targets, false), 1).map_err(Error::Usage)?;
    }
    Ok(model)
}

/// A measurement, and the model for the next one.
fn measure_objective(plan: &Plan, model: Transformer, kind: Kind) -> Result<(Measurement, Transformer)> {
    let [matrices, head] = products(&model);
    let attention = model.blocks.len() * TOKENS * model.config.width;
    let dtype = match model.params[model.blocks[0].qkv[0].weight].weight.dtype() {
        weft_kernels::weight::Dtype::F32 => "f32",
        weft_kernels::weight::Dtype::Bf16 => "bf16",
    };
    let vocab = model.params[model.embedding].weight.rows() as f64;
    let ids = |example: u64, tokens: std::ops::Range<usize>| -> Vec<u32> {
        let draws = Draws::new(1, Stream::Text, 0, example);
        // The last ids are special tokens.
        tokens.map(|p| (draws.unit_f64(p as u64) * (vocab - 10.0)) as u32).collect()
    };
    let count = (SEQUENCES * (plan.steps + WARM_UP)) as u64;
    let example = |e| Example { prompt_ids: ids(e, 0..PROMPT), answer_ids: ids(e, PROMPT..TOKENS) };
    let job = Job {
        examples: (0..count).map(example).collect(),
        objective: Objective { kind, ..Objective::default() },
        padding: Padding::None,
        eos_token_id: 0,
        settings: TrainTable { micro_batch_size: SEQUENCES, lr: 1e-5, ..TrainTable::default() },
    };
    let mut trainer = Trainer::new(model, job);
    let (mut steps, mut rates) = (vec![], vec![]);
    for i in 0..plan.steps + WARM_UP {
        let report = trainer.step()?;
        if i >= WARM_UP {
            rates.push(gemm_gflops());
            steps.push((report.phases, report.masked_share));
        }
    }
    let of = |f: &dyn Fn(&Phases) -> f64| median(steps.iter().map(|(p, _)| f(p)).collect());
    let step_seconds = of(&Phases::total);
    let tokens = (SEQUENCES * TOKENS) as f64;
    let answers = (SEQUENCES * (TOKENS - PROMPT)) as f64;
    let masked = answers * median(steps.iter().map(|(_, share)| *share).collect());
    // Multiply-adds of a forward; a backward to the inputs costs as much again, and to the weights once more.
    let layers = tokens * (matrices + 2 * attention) as f64;
    let passes = if plan.full { 3.0 } else { 2.0 };
    let pass_1 = if kind == Kind::Weft { layers + answers * head as f64 } else { 0.0 };
    let flop = 2.0 * (passes * layers + passes * masked * head as f64 + pass_1);
    let gemm_gflops = median(rates);
    let measurement = Measurement {
        dtype,
        trainable: if plan.full { "full" } else { "lora" },
        objective: if kind == Kind::Weft { "weft" } else { "sft" },
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
        gemm_gflops,
        gemm_share: flop / step_seconds / 1e9 / gemm_gflops,
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

/// The machine's rate of f32 products, in 10^9 operations per second: the best of nine.
fn gemm_gflops() -> f64 {
    let side = GEMM_SIDE;
    let (a, b, mut c) = (vec![1.0f32; side * side], vec![1.0f32; side * side], vec![0.0f32; side * side]);
    let rate = || {
        let started = Instant::now();
        matrix::par_product(&mut c, View::new(&a, side, side), View::new(&b, side, side), 1.0, Into::Set);
        2.0 * (side as f64).powi(3) / started.elapsed().as_secs_f64() / 1e9
    };
    std::iter::repeat_with(rate).take(9).fold(0.0, f64::max)
}

/// The largest resident size of this process, in bytes; 0 where the system doesn't say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kilobytes| kilobytes * 1024)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A temporary folder that goes when it is dropped; what is mapped from it stays readable.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
        crate::files::make_folder(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind in the system's temporary one harms nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
