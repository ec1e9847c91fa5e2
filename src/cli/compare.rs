//! `weft compare`: prints the comparison of several runs and writes its page.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use weft::compare::Comparison;
use weft::compare::page::comparison_page;
use weft::error::Result;
use weft::files::write_whole;
use weft::report::visible::visible;

use super::window;

/// Compare runs: their settings, held-out losses, scores and curves
///
/// Prints the settings that differ, and each run's held-out loss and score with 95 % intervals. Differences from the first
/// run are paired: they are taken row by row on the same rows and masks. A page shows the same, and charts with the curves
/// of all runs. Runs with other held-out rows or another tokenizer are named, and their losses aren't compared; folders without
/// a run are left out, and named too.
#[derive(Args)]
#[command(
    after_help = "Example:\n  for lr in 1e-4 3e-4 1e-3; do\n    weft train my.toml --set train.lr=$lr --set train.output=runs/lr-$lr\n  done\n  weft compare runs/lr-*"
)]
pub struct Compare {
    /// The folders of the runs (their train.output); the others are compared with the first one
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write the page to this file
    #[arg(long, default_value = "compare.html", value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub fn run(self) -> Result<ExitCode> {
        let comparison = Comparison::of(&self.runs)?;
        write_whole(&self.out, comparison_page(&comparison).as_bytes())?;
        if self.json {
            let mut object = json!(comparison);
            object["page"] = json!(self.out);
            object["remarks"] = json!(comparison.remarks());
            say!("{object}");
            return Ok(ExitCode::SUCCESS);
        }
        comparison.remarks().iter().for_each(|remark| tell!("warning: {}", visible(remark)));
        for table in comparison.tables() {
            window::print(&table);
            say!();
        }
        say!("the page is in {}", self.out.display());
        Ok(ExitCode::SUCCESS)
    }
}
