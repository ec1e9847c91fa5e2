//! `weft eval`: answers the problems of tasks and scores the answers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use weft::counted::{counted, verb};
use weft::data::sources::Source;
use weft::error::{Error, Result};
use weft::eval::Problem;
use weft::eval::any_task::AnyTask;
use weft::eval::generations::{Answering, Generation, answer, save};
use weft::eval::likelihood::MonteCarlo;
use weft::eval::sandbox::{Limits, Sandbox, refusal};
use weft::eval::task_score::TaskScore;
use weft::parallel::Ranks;
use weft::sampler::cache::Work;

use super::generate::SamplingArgs;
use super::progress::bar;

/// Answer the problems of tasks and score the answers
///
/// sudoku, countdown, gsm8k and math500 follow d1's protocol: zero-shot, the answer prefilled with <reasoning>, greedy, block
/// length 32, half as many diffusion steps as tokens. hellaswag, arc and raft choose the likeliest of given answers by
/// LLaDA's bound, naturalquestions is scored by exact match and F1, and humaneval and mbpp run the programs that the model
/// writes (docs/tasks.md). Under mpirun the ranks share the problems. Rows with their own prompt and truth (messages,
/// question, ground_truth) are used as they are.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft eval --model tiny-base --task sudoku --data runs/quickstart/data/held-out.jsonl --limit 64 --gen-length 32 --diffusion-steps 32 --out base.json\n  weft eval --model GSAI-ML/LLaDA-8B-Instruct --task hellaswag,arc --limit 200 --out scores.json\n  weft eval --model tiny-base --task examples/capitals.toml --out capitals.json"
)]
pub struct Eval {
    #[command(flatten)]
    model: super::ModelArgs,
    /// A task, or several (repeated, or with commas): sudoku, countdown, gsm8k, math500, hellaswag, arc, naturalquestions,
    /// raft, humaneval, mbpp, or a file that describes one (FILE.toml, docs/tasks.md)
    #[arg(long, value_name = "TASK", required = true, value_delimiter = ',', help_heading = "Tasks")]
    task: Vec<String>,
    /// The problems: the task's rows (JSONL, JSON, CSV, parquet), rows with their own prompts, or a data set of the hub;
    /// repeated, one for each --task in order, or one for all. Default: the rows that a task file names, or the task's data
    /// set of the hub (hellaswag, arc, naturalquestions, humaneval, mbpp)
    #[arg(long, value_name = "FILE", help_heading = "Tasks")]
    data: Vec<PathBuf>,
    /// The split where --data is a folder or a data set of the hub; default: test, or validation for hellaswag and
    /// naturalquestions
    #[arg(long, value_name = "NAME", help_heading = "Tasks")]
    split: Option<String>,
    /// The number of problems of each task; default: all
    #[arg(long, value_name = "N", help_heading = "Tasks")]
    limit: Option<usize>,
    /// The masks drawn for each choice, the same for all choices of a question
    #[arg(long, value_name = "N", default_value_t = MonteCarlo::default().mc_samples, help_heading = "Choices")]
    mc_samples: usize,
    /// Let choices continue the prompt's text, without the chat template, as base models are scored
    #[arg(long, help_heading = "Choices")]
    raw: bool,
    /// Run the programs that the model writes, each in a child with limits (docs/tasks.md)
    #[arg(long, help_heading = "Programs")]
    run_code: bool,
    /// The seconds that each program may take; default: 10
    #[arg(long, value_name = "N", requires = "run_code", value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = "Programs")]
    code_seconds: Option<u64>,
    /// The Python to run programs with; default: python3
    #[arg(long, value_name = "PROGRAM", requires = "run_code", help_heading = "Programs")]
    python: Option<PathBuf>,
    /// Write the generations and the accuracy to this new file (JSON); with several tasks, to a file for each:
    /// NAME-TASK.json
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    /// Print the scores as JSON, a line for each task
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl Eval {
    pub fn run(self, quiet: bool, ranks: &Ranks) -> Result<ExitCode> {
        let quiet = quiet || !ranks.is_first();
        if self.limit == Some(0) {
            return Err(Error::Usage("--limit 0 scores nothing; give at least 1, or leave it out".to_owned()));
        }
        self.sampling.given().check()?;
        let tasks = self.tasks(quiet, ranks.is_first())?;
        let runs_code = tasks.iter().any(|(task, _)| task.is_code());
        let sandbox = runs_code.then(|| self.sandbox(!quiet)).transpose()?;
        if ranks.is_first() {
            self.tell_idle(&tasks);
        }
        let base = self.model.open()?;
        let sampling = self.sampling.sampling(&base)?;
        let draws = MonteCarlo { mc_samples: self.mc_samples, seed: self.sampling.seed(), ..MonteCarlo::default() };
        let how = Answering { sampling, draws, raw: self.raw, sandbox };
        for (task, problems) in &tasks {
            let started = Instant::now();
            let generations = answer((&base.model, &base.text), (task, problems), &how, (&**ranks, &bar(quiet)))?;
            if ranks.is_first() {
                if !quiet {
                    tell_work(task, &generations, started.elapsed().as_secs_f64());
                }
                self.finish(task, &generations)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The tasks with their problems; on the first rank also checks that their files are new.
    fn tasks(&self, quiet: bool, is_first: bool) -> Result<Vec<(AnyTask, Vec<Problem>)>> {
        let (tasks, data) = (self.task.len(), self.data.len());
        if data > tasks || (data > 1 && data < tasks) {
            return Err(Error::Usage(format!(
                "there are {tasks} --task and {data} --data; give --data once for each task, in the same order"
            )));
        }
        let mut opened: Vec<(AnyTask, Vec<Problem>)> = vec![];
        for (index, name) in self.task.iter().enumerate() {
            let task = AnyTask::parse(name)?;
            if opened.iter().any(|(other, _)| other.name() == task.name()) {
                return Err(Error::Usage(format!("two tasks are named {:?}; name each once", task.name())));
            }
            if is_first {
                super::check_new(&self.out_of(&task))?;
            }
            // A single file is that of every task.
            let data = self.data.get(if data == 1 { 0 } else { index });
            let source = self.source(&task, data.map(PathBuf::as_path))?;
            if data.is_none() && !quiet {
                tell!("{}: the rows are {}", task.name(), source.name());
            }
            if task.is_code() && !self.run_code {
                return Err(refusal(task.name()));
            }
            let mut problems = task.problems(&source)?;
            problems.truncate(self.limit.unwrap_or(problems.len()));
            opened.push((task, problems));
        }
        Ok(opened)
    }

    fn source(&self, task: &AnyTask, data: Option<&Path>) -> Result<Source> {
        let source = match data {
            Some(data) => Source::at(data, task.split()),
            None => task.own_rows().ok_or_else(|| {
                let name = task.name();
                let rows = if matches!(task, AnyTask::Own(_)) { " or name them as task.rows in its file" } else { "" };
                Error::Usage(format!("{name} has no rows of its own; give its rows as --data FILE{rows}"))
            })?,
        };
        Ok(Source { split: self.split.clone().or(source.split), ..source })
    }

    /// Where programs run; what it can't protect is told.
    fn sandbox(&self, tells: bool) -> Result<Sandbox> {
        let limits = Limits::default();
        let limits = Limits { seconds: self.code_seconds.unwrap_or(limits.seconds), ..limits };
        let sandbox = Sandbox::open(self.python.as_deref(), limits)?;
        if tells && !sandbox.lacking().is_empty() {
            tell!("warning: --run-code on this machine: {} (docs/tasks.md)", sandbox.lacking().join("; "));
        }
        Ok(sandbox)
    }

    /// Warns of options that none of the tasks reads.
    fn tell_idle(&self, tasks: &[(AnyTask, Vec<Problem>)]) {
        let has_choices = tasks.iter().any(|(task, _)| task.is_choice());
        let is_set = self.mc_samples != MonteCarlo::default().mc_samples;
        let idle = [(is_set && !has_choices, "--mc-samples"), (self.raw && !has_choices, "--raw")];
        for (_, option) in idle.iter().filter(|(is_idle, _)| *is_idle) {
            tell!("warning: {option} has no effect: no task chooses among given answers");
        }
        if self.sampling.are_given() && tasks.iter().all(|(task, _)| task.is_choice()) {
            tell!("warning: the sampler's options have no effect: every answer is chosen, none is generated");
        }
        if self.split.is_some() && !self.data.is_empty() && self.data.iter().all(|data| data.is_file()) {
            tell!("warning: --split has no effect: --data is a file");
        }
        if self.run_code && !tasks.iter().any(|(task, _)| task.is_code()) {
            tell!("warning: --run-code has no effect: no task's answers are programs");
        }
    }

    /// The file of a task.
    fn out_of(&self, task: &AnyTask) -> PathBuf {
        if self.task.len() == 1 { self.out.clone() } else { of_task(&self.out, task.name()) }
    }

    /// Saves and prints a task's score.
    fn finish(&self, task: &AnyTask, generations: &[Generation]) -> Result<()> {
        let out = self.out_of(task);
        save(&out, task, generations)?;
        let score = TaskScore::of(task, generations);
        if self.json {
            say!("{}", score.to_json());
            return Ok(());
        }
        say!("{} on {}: {score}", score.task, counted(score.problems, "problem"));
        if let Some(count @ 1..) = score.unsettled {
            let lead = verb(count, ["leads", "lead"]);
            sentence!(
                2,
                "  {count} of {} {lead} by less than two Monte Carlo standard errors; --mc-samples above {} settles more",
                score.problems,
                self.mc_samples
            );
        }
        say!("generations are in {}", out.display());
        Ok(())
    }
}

/// The file of one of several tasks: `scores-arc.json` for `scores.json`.
fn of_task(out: &Path, task: &str) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension = out.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    out.with_file_name(format!("{stem}-{task}{extension}"))
}

/// Says how long the answers took.
fn tell_work(task: &AnyTask, generations: &[Generation], seconds: f64) {
    let count = generations.len();
    let answers = counted(count, "answer");
    if task.is_choice() {
        tell!("{answers} in {seconds:.1} s");
        return;
    }
    let Work { forwards, rows } = generations.iter().map(|g| g.work).sum();
    let [forwards, rows] = [forwards, rows].map(|total| total as f64 / count as f64);
    tell!("{answers} in {seconds:.1} s: {forwards:.1} evaluations of the network each, {rows:.0} rows each");
}
