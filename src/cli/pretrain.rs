//! `weft pretrain`: trains a small model and its tokenizer from scratch on generated text.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::error::Result;
use weft::train::pretrain::{PretrainRecipe, pretrain};
use weft::train::run::Options;

/// Train a small masked diffusion model from scratch on generated text
///
/// Makes the base that is embedded in this program. Its training text is arithmetic, 4x4 Sudoku with unique solutions
/// and number puzzles, all drawn from the recipe's seed.
#[derive(Args)]
#[command(after_help = "Example:\n  weft pretrain recipes/tiny-base.toml --set model.output=/tmp/tiny-base")]
pub struct Pretrain {
    /// The recipe (TOML)
    recipe: PathBuf,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    /// Resume the run in the recipe's train.output
    #[arg(long)]
    resume: bool,
}

impl Pretrain {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let recipe = PretrainRecipe::read(&self.recipe, &self.settings)?;
        let summary = pretrain(&recipe, Options { resume: self.resume, quiet })?;
        if let Some([before, after]) = summary.held_out {
            say!("held-out loss {before:.4} -> {after:.4} nats per token");
        }
        say!("the model is in {}", recipe.model.output.display());
        Ok(ExitCode::SUCCESS)
    }
}
