//! `weft merge`: writes an adapter and its base as one checkpoint.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::base::Base;
use weft::error::Result;
use weft::merge::{check_out, write};
use weft::model::lora;

use super::progress::doing;

/// Merge an adapter into its base
///
/// Writes a checkpoint that transformers loads: the base's tensors plus the adapter's product lora_b lora_a, each in
/// the number format it has in the base, and the base's other files unchanged. An adapter that was trained on a base in
/// 4 bits is merged onto the original weights; with --quantize nf4, and into a base that is stored in 4 bits, it is merged
/// onto the dequantized weights that it was trained on.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft merge --model tiny-base --adapter runs/quickstart/adapter --out runs/quickstart/merged"
)]
pub struct Merge {
    /// The checkpoint's folder, a model of the hub (ORG/NAME or ORG/NAME@REVISION), or tiny-base
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A PEFT adapter's folder, or one of the hub
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The folder for the merged checkpoint, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    facts: super::FactArgs,
}

impl Merge {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        check_out(&self.out)?;
        let mut base = Base::open_with(&self.model, self.facts.overrides())?;
        lora::load(&self.adapter, &mut base.model)?;
        let merging = doing(quiet, "merging");
        write(&base, &self.out)?;
        drop(merging);
        match (base.model.quantization(), lora::base_quantization(&self.adapter)) {
            (Some(of), _) => {
                say!("the base is in {of}: its layers were dequantized, and the adapter was merged onto those")
            }
            (None, Some(of)) => say!(
                "the adapter was trained on a base in {of}, and was merged onto the original weights; --quantize nf4 merges \
                 it onto those that it was trained on"
            ),
            (None, None) => {}
        }
        say!("the merged checkpoint is in {}", self.out.display());
        Ok(ExitCode::SUCCESS)
    }
}
