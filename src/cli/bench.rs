//! `weft bench`: measures training steps.

use std::process::ExitCode;

use clap::Args;
use weft::bench::{Measurement, Plan, measure};
use weft::error::{Error, Result};
use weft::objective::Kind;

/// Measure training steps of a shape
///
/// 4 sequences of 512 tokens a step, 128 of them prompt. Prints the median step, its phases, the peak resident size, and
/// the machine's own rate of matrix products measured between the steps.
#[derive(Args)]
#[command(after_help = "Example:\n  weft bench --shape P --objective sft,weft --trainable lora --json")]
pub struct Bench {
    /// P (width 512, 8 layers, vocabulary 32,000), or a checkpoint's folder
    #[arg(long, default_value = "P", value_name = "SHAPE")]
    shape: String,
    /// How shape P's weights are stored: f32 or bf16
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    dtype: String,
    /// Objectives, one after the other
    #[arg(long, value_delimiter = ',', default_value = "sft,weft", value_name = "LIST")]
    objective: Vec<String>,
    /// What is trained: lora (rank 32 on q, k, v) or full
    #[arg(long, default_value = "lora", value_name = "WHAT")]
    trainable: String,
    /// Measured steps, after two that are not
    #[arg(long, default_value_t = 5, value_name = "N")]
    steps: usize,
    /// One line of JSON per objective
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(self) -> Result<ExitCode> {
        let one_of = |option: &str, value: &str, [yes, no]: [&str; 2]| match value {
            _ if value == yes => Ok(true),
            _ if value == no => Ok(false),
            _ => Err(Error::Usage(format!("--{option} {value}: the known ones are {yes} and {no}"))),
        };
        let plan = Plan {
            bf16: one_of("dtype", &self.dtype, ["bf16", "f32"])?,
            full: one_of("trainable", &self.trainable, ["full", "lora"])?,
            steps: self.steps.max(1),
            shape: self.shape,
        };
        let kind = |name: &String| match one_of("objective", name, ["weft", "sft"])? {
            true => Ok(Kind::Weft),
            false => Ok(Kind::Sft),
        };
        let kinds = self.objective.iter().map(kind).collect::<Result<Vec<_>>>()?;
        for measurement in measure(&plan, &kinds)? {
            match self.json {
                true => println!("{}", serde_json::to_string(&measurement).expect("a measurement is JSON")),
                false => print(&measurement),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(m: &Measurement) {
    let p = m.phases;
    println!("{} {} {}", m.objective, m.trainable, m.dtype);
    println!("  step        {:.3} s, {:.0} tokens/s", m.step_seconds, m.tokens_per_second);
    println!(
        "  phases      pass 1 {:.3}, forward {:.3}, head {:.3}, backward {:.3}, optimizer {:.3} s",
        p.entropy, p.forward, p.head, p.backward, p.optimizer
    );
    println!("  peak        {:.2} GB resident", m.peak_rss_bytes as f64 / 1e9);
    println!("  products    {:.0} GFLOP/s on this machine, {:.0} % of it reached", m.gemm_gflops, 100.0 * m.gemm_share);
}
