//! `weft reproduce`: runs the paper's comparison and resumes an interrupted one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::error::Result;
use weft::parallel::Ranks;
use weft::reproduce::sentences::summary;
use weft::reproduce::study::Study;
use weft::reproduce::{go, write};

use super::window;

/// Run the paper's comparison: SFT, WeFT and the ablations, over several seeds
///
/// Trains every arm under every setting and seed of the recipe's [reproduce] table, scores all of them during training,
/// and writes report.md, report.json and charts into train.output: the accuracy on eval.task if there is one, and the
/// held-out loss, with confidence intervals and paired tests; ablations, gradient norms and step times. Under mpirun the
/// runs are divided among the ranks. A comparison that was stopped resumes where it was; finished runs aren't repeated.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft reproduce recipes/reproduce.toml\n  weft reproduce recipes/reproduce.toml --set reproduce.seeds=3 --set train.output=runs/three-seeds\n  weft reproduce my.toml --set reproduce.seeds=5 --set 'reproduce.arms=[\"sft-masked\", \"weft-masked\"]'"
)]
pub struct Reproduce {
    /// The recipe (TOML), one for `weft train` with held-out rows; a [reproduce] table names arms, settings and seeds
    recipe: PathBuf,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    #[command(flatten)]
    facts: super::FactArgs,
    /// Continue a comparison that was stopped, or begin one. This has no effect: the command does so without the option too
    #[arg(long, conflicts_with = "report_only")]
    resume: bool,
    /// Write the report from the finished runs only, and start no others
    #[arg(long)]
    report_only: bool,
}

impl Reproduce {
    pub fn run(self, quiet: bool, ranks: &Ranks) -> Result<ExitCode> {
        let study = Study::read(&self.recipe, &self.facts.after(&self.settings))?;
        for warning in study.warnings.iter().filter(|_| ranks.is_first()) {
            tell!("warning: {warning}");
        }
        let outcomes = go(&**ranks, &study, !self.report_only, &|line| {
            if !quiet && ranks.is_first() {
                tell!("{line}")
            }
        })?;
        if !ranks.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        let findings = write(&study, &outcomes, &self.recipe)?;
        let (table, sentences) = summary(&findings);
        window::print(&table);
        sentences.iter().for_each(|line| sentence!(2, "{line}"));
        say!("the report is in {}", study.output.join("report.md").display());
        Ok(ExitCode::SUCCESS)
    }
}
