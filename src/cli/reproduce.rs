//! `weft reproduce`: the paper's comparison, resumed wherever it was.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::error::Result;
use weft::parallel::Ranks;
use weft::reproduce::study::Study;
use weft::reproduce::{go, write};

/// Run the paper's comparison: SFT, WeFT and the ablations, over several seeds
///
/// Trains every arm under every setting and seed of the recipe's [reproduce], scores all on the way, and writes
/// report.md, report.json and charts into its train.output: accuracy with confidence intervals and paired tests,
/// ablations, gradient norms, step times. Under mpirun ranks deal the runs. What is done isn't done again: a comparison that was stopped goes on.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft reproduce recipes/reproduce.toml\n  weft reproduce recipes/reproduce.toml --set reproduce.seeds=3 --set train.output=runs/three-seeds"
)]
pub struct Reproduce {
    /// The recipe (TOML), one for `weft train` with a [reproduce] table
    recipe: PathBuf,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    /// Write the report of the runs that are done, and do none
    #[arg(long)]
    report_only: bool,
}

impl Reproduce {
    pub fn run(self, quiet: bool, ranks: &Ranks) -> Result<ExitCode> {
        let study = Study::read(&self.recipe, &self.settings)?;
        let outcomes = go(&**ranks, &study, !self.report_only, &|line| {
            if !quiet && ranks.is_first() {
                eprintln!("{line}")
            }
        })?;
        if !ranks.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        write(&study, &outcomes, &self.recipe)?;
        say!("the report lies in {}", study.output.join("report.md").display());
        Ok(ExitCode::SUCCESS)
    }
}
