//! `weft score`: scores generations that are stored in a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft::counted::counted;
use weft::error::Result;
use weft::eval::Task;
use weft::eval::stored::{load, save_scores};

use super::eval::{as_json, in_percent};

/// Score stored generations of a task
///
/// Scores each answer as d1 does; prints the accuracy with its standard error over problems.
#[derive(Args)]
#[command(after_help = "Example:\n  weft score --task gsm8k generations.json --out scores.jsonl")]
pub struct Score {
    /// The task: sudoku, countdown, gsm8k or math500
    #[arg(long, value_name = "TASK")]
    task: String,
    /// The generations: d1's JSON, as weft eval writes it, or JSONL rows with question, generation and ground_truth
    file: PathBuf,
    /// Write one row per generation with the extracted answer and its points to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the accuracy as JSON
    #[arg(long)]
    json: bool,
}

impl Score {
    pub fn run(self) -> Result<ExitCode> {
        let task = Task::parse(&self.task)?;
        let scores = load(task, &self.file)?;
        if let Some(out) = &self.out {
            if out.is_file() {
                tell!("warning: {} was there already and is written over", out.display());
            }
            save_scores(out, &scores)?;
        }
        let accuracy = weft::eval::accuracy(&scores);
        if self.json {
            say!("{}", as_json(task, scores.len(), &accuracy));
            return Ok(ExitCode::SUCCESS);
        }
        say!("{} on {}: {}", self.task, counted(scores.len(), "generation"), in_percent(&accuracy));
        if let Some(out) = &self.out {
            say!("scores are in {}", out.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
