//! `weft parity`: recomputes a reference file made by PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::error::{Error, Result};
use weft::model::{checkpoint, from_hub, lora};
use weft::objective::Blocks;
use weft::parity::{Row, Tolerances, check_blocks, check_sampling};
use weft_kernels::precision::Precision;

use super::progress::doing;

/// Recompute a reference file made by PyTorch and compare
///
/// Prints one row per quantity: how many numbers were compared, and the largest difference relative to the largest
/// magnitude in the reference. Exits with 1 if a quantity exceeds its tolerance.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft parity --model tests/golden/llada --reference tests/golden/llada/objectives.safetensors\n  weft parity --model tests/golden/a2d-qwen3 --reference tests/golden/a2d-qwen3/bd3lm.safetensors --blocks bd3lm --block-length 8"
)]
pub struct Parity {
    /// The checkpoint's folder, or a model of the hub (ORG/NAME or ORG/NAME@REVISION)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    facts: super::FactArgs,
    /// A PEFT adapter's folder, or one of the hub; its tensors are then the trained ones
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The reference file with logits, entropies, rates, masks, losses and gradients
    #[arg(long, value_name = "FILE", required_unless_present = "sampling")]
    reference: Option<PathBuf>,
    /// What the reference is of: none (whole answers) or bd3lm (block diffusion); default: what the file says
    #[arg(long, value_name = "BLOCKS", value_parser = Blocks::parse, requires = "reference")]
    blocks: Option<Blocks>,
    /// Tokens per block of a bd3lm reference; default: what the file says
    #[arg(long, value_name = "N", requires = "reference")]
    block_length: Option<usize>,
    /// The reference file with prompts and greedy outputs
    #[arg(long, value_name = "FILE", requires = "cases")]
    sampling: Option<PathBuf>,
    /// The sampler's settings for each prompt (JSON)
    #[arg(long, value_name = "FILE", requires = "sampling")]
    cases: Option<PathBuf>,
    /// The format that matmuls round their operands to: f32, bf16, bf16x3 or auto
    #[arg(long, default_value = "f32", value_name = "DTYPE", value_parser = super::precision)]
    dtype: Precision,
    /// The largest relative difference allowed; default: 1e-4 in f32; in bf16 0.1, for gradients 0.3, for rates and
    /// masks 1e-4
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// Print every gradient on a line of its own
    #[arg(long)]
    verbose: bool,
    /// Print one JSON object instead, with every gradient in it
    #[arg(long)]
    json: bool,
}

impl Parity {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        if self.dtype == Precision::Bf16 && self.sampling.is_some() {
            let why = "--sampling compares greedy tokens, and rounding to bf16 may change them; leave --dtype out";
            return Err(Error::Usage(why.to_owned()));
        }
        let (mut model, _) = checkpoint::load_with(&from_hub::checkpoint(&self.model)?, self.facts.overrides())?;
        match &self.adapter {
            Some(adapter) => drop(lora::load(adapter, &mut model)?),
            None => model.params.iter_mut().for_each(|p| p.trainable = true),
        }
        (model.config.precision, model.config.entropy_precision) = (self.dtype, self.dtype);
        model.put_on(&weft::device::current());
        let computing = doing(quiet, "computing");
        let mut rows = vec![];
        if let Some(reference) = &self.reference {
            rows.extend(check_blocks(&model, reference, (self.blocks, self.block_length))?);
        }
        if let (Some(sampling), Some(cases)) = (&self.sampling, &self.cases) {
            rows.extend(check_sampling(&model, sampling, cases)?);
        }
        drop(computing);
        if rows.is_empty() {
            return Err(Error::Usage("the reference holds nothing that Weft computes".to_owned()));
        }
        let past: Vec<&str> = rows.iter().filter(|row| !self.passes(row)).map(|row| row.name.as_str()).collect();
        let num_past = past.len();
        let code = ExitCode::from(u8::from(num_past > 0));
        if self.json {
            let tolerances = self.tolerances();
            say!(
                "{}",
                serde_json::json!({
                    "dtype": self.dtype,
                    "tolerance": tolerances.forward,
                    "tolerances": tolerances,
                    "past": num_past,
                    "names_past": past,
                    "rows": rows,
                })
            );
            return Ok(code);
        }
        let shown = if self.verbose { rows } else { self.fold_gradients(rows) };
        say!("{:40} {:>9}  {:>10}", "quantity", "numbers", "difference");
        for row in &shown {
            let verdict = if self.passes(row) { "" } else { "  past the tolerance" };
            say!("{:40} {:>9}  {:>10.2e}{verdict}", row.name, row.count, row.error);
        }
        match num_past {
            0 => say!("every quantity is within {}", self.words()),
            _ => say!("{num_past} quantities are past the tolerance of {}", self.words()),
        }
        Ok(code)
    }

    fn tolerances(&self) -> Tolerances {
        self.tolerance.map_or_else(|| Tolerances::of(self.dtype), Tolerances::all)
    }

    fn passes(&self, row: &Row) -> bool {
        self.tolerances().pass(row)
    }

    /// The tolerances as text.
    fn words(&self) -> String {
        let Tolerances { exact, forward, gradients } = self.tolerances();
        match exact == forward && forward == gradients {
            true => format!("{exact:e}"),
            false => format!("{forward:e}, gradients {gradients:e}, rates and masks {exact:e}"),
        }
    }

    /// One row for all gradients of an objective that pass.
    fn fold_gradients(&self, rows: Vec<Row>) -> Vec<Row> {
        let mut shown: Vec<Row> = vec![];
        for row in rows {
            let is_gradient = row.name.starts_with("grad.");
            let prefix = match row.name.split_once(".grad.") {
                Some((objective, _)) => Some(format!("{objective}.")),
                None => is_gradient.then(String::new),
            };
            let Some(prefix) = prefix.filter(|_| self.passes(&row)) else {
                shown.push(row);
                continue;
            };
            let name = format!("{prefix}grad (all parameters)");
            match shown.iter_mut().find(|r| r.name == name) {
                Some(folded) => {
                    folded.count += row.count;
                    folded.error = folded.error.max(row.error);
                }
                None => shown.push(Row { name, ..row }),
            }
        }
        shown
    }
}
