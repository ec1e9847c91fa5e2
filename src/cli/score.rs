//! `weft score`: scores generations that are stored in a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::counted::counted;
use weft::error::Result;
use weft::eval::any_task::AnyTask;
use weft::eval::sandbox::{Limits, Sandbox};
use weft::eval::stored::{load, save_scores};
use weft::eval::task_score::TaskScore;

/// Score stored generations of a task
///
/// Scores each answer as weft eval does; prints the accuracy with its standard error over problems, and what else the task is
/// measured by.
#[derive(Args)]
#[command(after_help = "Example:\n  weft score --task gsm8k generations.json --out scores.jsonl")]
pub struct Score {
    /// The task: sudoku, countdown, gsm8k, math500, hellaswag, arc, naturalquestions, raft, humaneval, mbpp, or a file that
    /// describes one (FILE.toml)
    #[arg(long, value_name = "TASK")]
    task: String,
    /// The generations: d1's JSON, as weft eval writes it, or JSONL rows with question, generation and ground_truth, or with
    /// the task's own columns in place of ground_truth, as weft generate --data writes them
    file: PathBuf,
    /// Write one row per generation with the extracted answer and its points to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run the programs of humaneval, mbpp or a task file again, in a child with limits (docs/tasks.md); without it, the
    /// outcomes in the file count
    #[arg(long)]
    run_code: bool,
    /// Print the score as JSON
    #[arg(long)]
    json: bool,
}

impl Score {
    pub fn run(self) -> Result<ExitCode> {
        let task = AnyTask::parse(&self.task)?;
        let runs = self.run_code && task.is_code();
        let sandbox = runs.then(|| Sandbox::open(None, Limits::default())).transpose()?;
        if self.run_code && !runs {
            tell!("warning: --run-code has no effect: the answers to {} aren't programs", task.name());
        }
        let generations = load(&task, &self.file, sandbox.as_ref())?;
        if let Some(out) = &self.out {
            if out.is_file() {
                tell!("warning: {} was there already and is overwritten", out.display());
            }
            save_scores(out, &generations)?;
        }
        let score = TaskScore::of(&task, &generations);
        if self.json {
            say!("{}", score.to_json());
            return Ok(ExitCode::SUCCESS);
        }
        say!("{} on {}: {score}", task.name(), counted(generations.len(), "generation"));
        if let Some(out) = &self.out {
            say!("scores are in {}", out.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
