//! `weft convert`: writes an autoregressive checkpoint as a diffusion checkpoint to be trained.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::convert::{Converted, convert};
use weft::error::Result;

use super::progress::doing;

/// Convert an autoregressive checkpoint into a diffusion checkpoint, to be trained as one
///
/// Takes a checkpoint of model_type llama, qwen2 or qwen3 and writes one of a2d-llama, a2d-qwen2 or a2d-qwen3, as dLLM
/// does: the same weights, and a mask token in the tokenizer. It answers nothing before it is trained.
#[derive(Args)]
#[command(after_help = "Example:\n  weft convert --model Qwen/Qwen3-0.6B-Base --out qwen3-0.6b-a2d\n  weft train \
                  recipes/continued-pretraining.toml --set model.path=qwen3-0.6b-a2d")]
pub struct Convert {
    /// The checkpoint's folder, or a model of the hub (ORG/NAME or ORG/NAME@REVISION)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The folder for the converted checkpoint, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Convert {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let converting = doing(quiet, "converting");
        let converted = convert(&self.model, &self.out)?;
        drop(converting);
        let out = self.out.display();
        say!("the converted checkpoint is in {out}, with model_type {}", converted.model_type);
        say!("mask token  {}", mask_token(&converted));
        say!("embedding   {}", embedding(&converted));
        say!("files       {}", files(&converted));
        if !converted.left_out.is_empty() {
            say!("left out    {}", listed(&converted.left_out));
        }
        say!(
            "It was trained to predict the next token from the left and never saw a mask: train it before you ask it \
             anything."
        );
        let recipe = format!("recipes/continued-pretraining.toml --set model.path={out}");
        say!("next: weft plan {recipe}");
        say!("      weft train {recipe}");
        Ok(ExitCode::SUCCESS)
    }
}

fn mask_token(converted: &Converted) -> String {
    let origin = if converted.is_mask_new { "added to the tokenizer" } else { "which the tokenizer has already" };
    format!("{} with id {}, {origin}", converted.mask_token, converted.mask_token_id)
}

fn embedding(converted: &Converted) -> String {
    match converted.extended[..] {
        [] if converted.is_mask_new => format!("{} rows as before; the mask token takes a free one", converted.rows),
        [] => format!("{} rows as before, the mask token's among them", converted.rows),
        _ => format!(
            "{} rows, one more than before: the mean of the others, in {}",
            converted.rows,
            listed(&converted.extended)
        ),
    }
}

fn files(converted: &Converted) -> String {
    let Converted { num_copied, copied_bytes, edited, .. } = converted;
    format!("{num_copied} copied unchanged ({copied_bytes} bytes); edited: {}", listed(edited))
}

fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| name.as_ref().to_owned()).collect::<Vec<_>>().join(", ")
}
