//! `weft bench`: measures training steps.

use std::process::ExitCode;

use clap::Args;
use weft::bench::kernels::{Kernel, slowest};
use weft::bench::{Measurement, Plan, measure};
use weft::device;
use weft::error::{Error, Result};
use weft::objective::Kind;
use weft_kernels::precision::Precision;

use super::progress::doing;

/// Measure training steps of a model shape
///
/// A quarter of each sequence is prompt. Prints the median step time, its phases, the peak resident size, the share of
/// this machine's matmul rate that a step reaches, and the rate in each format.
#[derive(Args)]
#[command(after_help = "Example:\n  weft bench --shape P --objective sft,weft --trainable lora --json\n  \
weft bench --shape llada-8b --dtype bf16 --objective weft --sequences 1 --warm-up 1 --steps 1")]
pub struct Bench {
    /// P (width 512, 8 layers, vocabulary 32,000), qwen3-0.6b (a2d-qwen3 of dLLM's sizes), llada-8b (with bf16: 16 GB on
    /// disk), or a checkpoint's folder
    #[arg(long, default_value = "P", value_name = "SHAPE")]
    shape: String,
    #[command(flatten)]
    facts: super::FactArgs,
    /// The format that matmuls round their operands to, and that a named shape's weights are stored in: f32, bf16, bf16x3 (f32
    /// weights) or auto
    #[arg(long, default_value = "f32", value_name = "DTYPE", value_parser = super::precision)]
    dtype: Precision,
    /// Like --dtype, for the pass for entropies; default: --dtype
    #[arg(long, value_name = "DTYPE", value_parser = super::precision)]
    entropy_dtype: Option<Precision>,
    /// The objectives to measure, one after the other: sft, weft, cart, token_weight
    #[arg(long, value_delimiter = ',', default_value = "sft,weft", value_name = "LIST")]
    objective: Vec<String>,
    /// What is trained: lora (rank 32 on q, k, v; llada-8b: 128) or full
    #[arg(long, default_value = "lora", value_name = "WHAT")]
    trainable: String,
    /// Sequences per step
    #[arg(long, default_value_t = 4, value_name = "N")]
    sequences: usize,
    /// Tokens per sequence
    #[arg(long, default_value_t = 512, value_name = "N")]
    tokens: usize,
    /// Recompute the entropies every N steps; means are over the same sequences, in whole rounds of N
    #[arg(long, default_value_t = 1, value_name = "N")]
    entropy_every: u64,
    /// Warm-up steps before the measured ones
    #[arg(long, default_value_t = 2, value_name = "N")]
    warm_up: usize,
    /// Measured steps
    #[arg(long, default_value_t = 5, value_name = "N")]
    steps: usize,
    /// Memory for the matmul results that backward needs, in GB, like train.activation_memory_gb; 0 checkpoints every
    /// layer; default: 0.35 on a CPU, no limit on a GPU
    #[arg(long, value_name = "GB", value_parser = granted)]
    activation_memory_gb: Option<f64>,
    /// On a GPU: profile one more step kernel by kernel, and name the three kernels that lose the most time
    #[arg(long)]
    profile: bool,
    /// Print one line of JSON per objective
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let one_of = |option: &str, value: &str, [yes, no]: [&str; 2]| match value {
            _ if value == yes => Ok(true),
            _ if value == no => Ok(false),
            _ => Err(Error::Usage(format!("--{option} {value}: the known values are {yes} and {no}"))),
        };
        if self.profile && device::gpu().is_none() {
            let why = "--profile measures the kernels of a GPU, and this is the CPU; leave it out, or compute with --device cuda";
            return Err(Error::Usage(why.to_owned()));
        }
        let plan = Plan {
            precision: self.dtype,
            entropy_precision: self.entropy_dtype.unwrap_or(self.dtype),
            full: one_of("trainable", &self.trainable, ["full", "lora"])?,
            sequences: self.sequences.max(1),
            tokens: self.tokens.max(4),
            entropy_every: self.entropy_every.max(1),
            warm_up: self.warm_up,
            steps: self.steps.max(1).next_multiple_of(self.entropy_every.max(1) as usize),
            activation_memory_gb: self.activation_memory_gb,
            profile: self.profile,
            overrides: self.facts.overrides(),
            shape: self.shape,
        };
        let kinds = self.objective.iter().map(|name| kind(name)).collect::<Result<Vec<_>>>()?;
        let measuring = doing(quiet, "measuring");
        let measurements = measure(&plan, &kinds)?;
        drop(measuring);
        for measurement in measurements {
            match self.json {
                true => say!("{}", serde_json::to_string(&measurement).expect("a measurement is JSON")),
                false => print(&measurement),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Parses a number of GB.
fn granted(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(gb) if gb >= 0.0 && gb.is_finite() => Ok(gb),
        _ => Err("give a number of GB, or 0 for nothing".to_owned()),
    }
}

fn kind(name: &str) -> Result<Kind> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| Error::Usage(format!("--objective {name}: the known objectives are {}", known())))
}

fn print(m: &Measurement) {
    let p = m.phases;
    say!("{} {} {}, {} x {} tokens", m.objective, m.trainable, m.dtype, m.sequences, m.tokens);
    let planned = m.planned_step_seconds;
    say!("  step        {:.3} s, {:.0} tokens/s; planned {planned:.3} s", m.step_seconds, m.tokens_per_second);
    say!(
        "  phases      pass 1 {:.3}, forward {:.3}, head {:.3}, backward {:.3}, optimizer {:.3} s",
        p.entropy,
        p.forward,
        p.head,
        p.backward,
        p.optimizer
    );
    let [peak, planned] = [m.peak_rss_bytes, m.planned_rss_bytes].map(|bytes| bytes as f64 / 1e9);
    match [m.peak_gpu_bytes, m.planned_gpu_bytes].map(|bytes| bytes.unwrap_or(0) as f64 / 1e9) {
        [0.0, _] => say!("  peak        {peak:.2} GB resident; planned {planned:.2} GB"),
        [of_gpu, planned] => {
            say!("  peak        {of_gpu:.2} GB of {}; planned {planned:.2} GB; {peak:.2} GB resident", m.device);
        }
    }
    say!(
        "  matmuls    {:.0} GFLOP/s on this machine ({}): {:.3} s for the step's arithmetic, {:.0} % of its time",
        m.gemm_gflops,
        m.instructions,
        m.floor_seconds,
        100.0 * m.gemm_share
    );
    let rates: Vec<String> =
        m.matmul_rates.iter().map(|r| format!("{} {:.0} ({})", r.dtype, r.gflops, r.instructions)).collect();
    say!("  by format   {} GFLOP/s", rates.join(", "));
    print_kernels(&m.kernels);
}

/// The kernels of the profiled step, and the three that lose the most time.
fn print_kernels(kernels: &[Kernel]) {
    if kernels.is_empty() {
        return;
    }
    say!("  kernels of one step: launches, seconds, TFLOP/s, GB/s, seconds that the GPU's rates would allow");
    for k in kernels {
        let Kernel { kernel, launches, seconds, tflops, gbps, bound_seconds } = k;
        say!("    {kernel:34}{launches:>6}{seconds:>10.4}{tflops:>8.1}{gbps:>8.0}{bound_seconds:>10.4}");
    }
    let named = |k: &&Kernel| format!("{} ({:.4} s)", k.kernel, k.lost_seconds());
    let three: Vec<String> = slowest(kernels).iter().map(named).collect();
    say!("  most time beyond that: {}", three.join(", "));
}
