//! `weft eval`: generates answers to a task and scores them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use weft::counted::counted;
use weft::error::{Error, Result};
use weft::eval::generations::{accuracy_of, answer, save};
use weft::eval::{Accuracy, Task, read_problems};
use weft::parallel::Ranks;
use weft::sampler::cache::Work;

use super::generate::SamplingArgs;
use super::progress::bar;

/// Generate answers to a task's problems and score them
///
/// Follows d1's protocol: zero-shot, the answer prefilled with <reasoning>, greedy, block length 32, half as many
/// diffusion steps as tokens. Under mpirun the ranks share the problems. Rows with their own prompt and truth
/// (messages, question, ground_truth) are used as they are.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft eval --model tiny-base --task sudoku --data runs/quickstart/data/held-out.jsonl --limit 64 --gen-length 32 --diffusion-steps 32 --out base.json"
)]
pub struct Eval {
    #[command(flatten)]
    model: super::ModelArgs,
    /// The task: sudoku, countdown, gsm8k or math500
    #[arg(long, value_name = "TASK")]
    task: String,
    /// The problems: d1's test file, GSM8K's or MATH-500's JSONL, JSONL rows with their own prompts, or a data set of
    /// the hub (its split test)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The number of problems to answer; default: all
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Write the generations and the accuracy to this new file (JSON)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the accuracy as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl Eval {
    pub fn run(self, quiet: bool, ranks: &Ranks) -> Result<ExitCode> {
        let quiet = quiet || !ranks.is_first();
        let task = Task::parse(&self.task)?;
        if ranks.is_first() {
            super::check_new(&self.out)?;
        }
        if self.limit == Some(0) {
            return Err(Error::Usage("--limit 0 scores nothing; give at least 1, or leave it out".to_owned()));
        }
        let mut problems = read_problems(task, &self.data)?;
        problems.truncate(self.limit.unwrap_or(problems.len()));
        let base = self.model.open()?;
        let sampling = self.sampling.sampling(&base)?;
        let started = Instant::now();
        let generations = answer((&base.model, &base.text), (task, &problems), &sampling, (&**ranks, &bar(quiet)))?;
        if !ranks.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        let Work { forwards, rows } = generations.iter().map(|g| g.work).sum();
        if !quiet {
            let (count, seconds) = (problems.len(), started.elapsed().as_secs_f64());
            let [forwards, rows] = [forwards, rows].map(|total| total as f64 / count as f64);
            let answers = counted(count, "answer");
            tell!("{answers} in {seconds:.1} s: {forwards:.1} evaluations of the network each, {rows:.0} rows each");
        }
        save(&self.out, task, &generations)?;
        let accuracy = accuracy_of(&generations);
        if self.json {
            say!("{}", as_json(task, problems.len(), &accuracy));
            return Ok(ExitCode::SUCCESS);
        }
        say!("{} on {}: {}", self.task, counted(problems.len(), "problem"), in_percent(&accuracy));
        say!("generations are in {}", self.out.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// A task's accuracy as one line of JSON.
pub fn as_json(task: Task, problems: usize, accuracy: &Accuracy) -> Value {
    let mut line = json!({ "task": task, "problems": problems });
    let Value::Object(numbers) = json!(accuracy) else { unreachable!("an accuracy is a table") };
    line.as_object_mut().expect("it is a table").extend(numbers);
    line
}

/// The accuracy as text, such as `12.3 % +- 1.2 (64 of 520)`.
pub fn in_percent(a: &Accuracy) -> String {
    let Accuracy { accuracy, standard_error, correct, total } = a;
    format!("{:.1} % +- {:.1} ({correct} of {total})", 100.0 * accuracy, 100.0 * standard_error)
}
