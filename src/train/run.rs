//! A run as its folder sees it: start or resume, steps, evaluations, checkpoints. A step is defined by the parent
//! module; what is saved at the end is up to the caller.

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::best::{self, Best, BestBy, Record};
use super::entropy_reuse::Drift;
use super::guard::Skipped;
use super::held_out::{self, HeldOutRows};
use super::metrics::{Earlier, Metrics, scores_in};
use super::resolved::Resolved;
use super::step::StepReport;
use super::{Trainer, checkpoint};
use crate::data::Example;
use crate::error::{Error, Result};
use crate::eval::task_score::TaskScore;
use crate::files::{RECIPE, make_folder, write_whole};
use crate::interrupt;
use crate::progress::{Progress, tell};

/// What a finished run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The step at which the run started: 0, or that of the checkpoint from which it resumed.
    pub first_step: u64,
    /// The last step's report; `None` if nothing was left to do.
    pub last: Option<StepReport>,
    /// The held-out loss before the first step and after the last, in nats per answer token; a resumed run includes its
    /// earlier parts.
    pub held_out: Option<[f64; 2]>,
    /// How far the reused entropies were from fresh ones at the end.
    pub entropy_drift: Option<Drift>,
    /// Steps that were skipped, including those before the run was resumed.
    pub skipped: Skipped,
    /// Seconds of training without evaluations, including the earlier parts of a resumed run.
    pub train_secs: f64,
    /// The best evaluation after a step; `None` if there was none.
    pub best: Option<Best>,
    /// Whether the run ended before its last step because the held-out loss didn't fall any more.
    pub ended_early: bool,
}

/// The file in a run folder with the results of a finished run: the object that `weft train --json` prints.
pub const RESULTS: &str = "results.json";

/// Refuses, before any work is done, a folder that holds another run, a folder without a run to resume, and a file.
///
/// # Errors
/// The folder, and what to do about it.
pub fn check_output(output: &Path, resume: bool) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(Error::Usage(format!("train.output = {} is a file; name a folder", output.display())));
    }
    let path = output.display();
    let has_run = [RECIPE, "checkpoints"].iter().any(|name| output.join(name).exists());
    match (resume, has_run) {
        (false, true) => Err(Error::Usage(format!(
            "{path} already holds a run; add --resume to continue it, or set train.output to another folder"
        ))),
        (true, false) => Err(Error::Usage(format!("{path} holds no run to resume; leave out --resume to begin one"))),
        _ => Ok(()),
    }
}

/// The file that a run locks while it is at work.
const LOCK: &str = "lock";

/// Locks a folder for this process until the returned file is dropped; after a crash nothing has to be removed. On a
/// file system without locks there is no protection.
///
/// # Errors
/// A folder in which another run is at work, or that can't be created.
pub fn lock(output: &Path) -> Result<File> {
    make_folder(output)?;
    let path = output.join(LOCK);
    let file = File::create(&path).map_err(|source| Error::Write { path, source })?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Usage(format!(
            "another run is using {}; wait until it ends, or set train.output to another folder",
            output.display()
        ))),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// How [`train`] begins and what it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether to resume the run in the folder instead of starting one.
    pub resume: bool,
    /// Whether to hide the progress.
    pub quiet: bool,
}

/// Trains to the last step. A resumed run must have the same `recipe`. `observe` gets the report of every step, after the
/// evaluation that follows it. If it returns `ControlFlow::Break`, the run stops as on SIGINT: a checkpoint is saved, the error is
/// [`Error::Stopped`], and [`Options::resume`] continues from there.
///
/// # Errors
/// Those of [`Run::open`] and [`Run::advance`].
pub fn train(
    trainer: &mut Trainer,
    (held_out, output): (&[Example], &Path),
    recipe: &Resolved,
    options: Options,
    mut observe: impl FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<Summary> {
    let mut run = Run::start(trainer, (held_out, output), recipe, options)?.observed(&mut observe);
    run.advance(trainer, trainer.num_steps())?;
    run.finish(trainer)
}

/// Adds to a training error the newest checkpoint of the run folder.
fn with_saved(error: Error, output: &Path) -> Error {
    let Error::NonFinite(mut diagnosis) = error else { return error };
    diagnosis.saved = checkpoint::newest(output);
    Error::NonFinite(diagnosis)
}

/// A run in its folder, which advances as far as it is asked to. Every rank has one; the first one writes and reports.
pub struct Run<'a> {
    held_out: &'a [Example],
    output: &'a Path,
    recipe: Resolved,
    /// The log, which only the first rank has.
    metrics: Option<Metrics>,
    summary: Summary,
    record: Record,
    observe: Option<Observe<'a>>,
}

/// The function that is called after every step; `ControlFlow::Break` asks the run to stop.
pub type Observe<'a> = &'a mut dyn FnMut(&StepReport) -> ControlFlow<()>;

impl<'a> Run<'a> {
    /// Opens a folder like [`Run::open`], once it is known to be empty or, to resume, to hold a run.
    pub(super) fn start(
        trainer: &mut Trainer,
        (held_out, output): (&'a [Example], &'a Path),
        recipe: &Resolved,
        Options { resume, quiet }: Options,
    ) -> Result<Self> {
        if trainer.ranks.is_first() {
            check_output(output, resume)?;
        }
        let progress = if quiet { Progress::hidden() } else { Progress::shown() };
        Self::open(trainer, held_out, output, recipe.clone(), progress)
    }

    /// Opens a folder. A run in it resumes from its newest checkpoint, which is loaded into the trainer; in an empty
    /// folder a run begins.
    ///
    /// # Errors
    /// A checkpoint of another recipe, or only damaged ones; a file that can't be written.
    pub fn open(
        trainer: &mut Trainer,
        held_out: &'a [Example],
        output: &'a Path,
        recipe: Resolved,
        progress: Progress,
    ) -> Result<Self> {
        let is_first = trainer.ranks.is_first();
        if is_first {
            make_folder(output)?;
        }
        if checkpoint::load_newest(output, trainer, &recipe)? && progress.is_shown() && is_first {
            tell(&format!("resuming at step {}", trainer.step));
        }
        let first_step = trainer.step;
        let (metrics, Earlier { train_secs, held_out: earlier, record }) = match is_first {
            true => {
                let saved = json!({ "weft": env!("CARGO_PKG_VERSION"), "recipe": recipe.recipe });
                let saved = serde_json::to_string_pretty(&saved).expect("a recipe is JSON");
                write_whole(&output.join(RECIPE), saved.as_bytes())?;
                let eval_every = (!held_out.is_empty()).then(|| trainer.settings().eval_every);
                let opened = ([first_step, trainer.num_steps()], eval_every, trainer.settings().best_by);
                let (metrics, earlier) = Metrics::open(output, opened, progress)?;
                (Some(metrics), earlier)
            }
            false => (None, Earlier::default()),
        };
        // The first rank alone has the log, and all have to end after the same step.
        let record = trainer.ranks.bytes_of_first(&serde_json::to_vec(&record).expect("numbers are JSON"));
        let record = serde_json::from_slice(&record).expect("the first wrote it");
        let summary = Summary {
            first_step,
            last: None,
            held_out: earlier,
            entropy_drift: None,
            skipped: Skipped::default(),
            train_secs,
            best: None,
            ended_early: false,
        };
        let mut run = Self { held_out, output, recipe, metrics, summary, record, observe: None };
        if first_step == 0 {
            run.evaluate(trainer)?;
        }
        Ok(run)
    }

    /// Calls `observe` after every step. Each rank calls its own, with the report of the same step; if one of them asks to
    /// stop, all ranks stop.
    pub(crate) fn observed(mut self, observe: Observe<'a>) -> Self {
        self.observe = Some(observe);
        self
    }

    /// Trains up to step `to`, with the evaluations and checkpoints that are due.
    ///
    /// # Errors
    /// The errors of [`Trainer::step`]; a file that can't be written; a request to stop, from [`interrupt`] or from
    /// `observe`.
    pub fn advance(&mut self, trainer: &mut Trainer, to: u64) -> Result<()> {
        let num_steps = trainer.num_steps();
        let (eval_every, checkpoint_every) = (trainer.settings().eval_every, trainer.settings().checkpoint_every);
        let is_due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every) || step == num_steps;
        let patience = trainer.settings().patience;
        while trainer.step < to.min(num_steps) && !self.record.ends(patience) {
            let start = Instant::now();
            let mut report = trainer.step().map_err(|error| with_saved(error, self.output))?;
            let step_secs = start.elapsed().as_secs_f64();
            self.summary.train_secs += step_secs;
            if let Some(metrics) = &mut self.metrics {
                metrics.step(&report, step_secs)?;
            }
            if is_due(report.step, eval_every) {
                report.held_out = self.evaluate(trainer)?;
            }
            let is_asked = self.observe.as_mut().is_some_and(|observe| observe(&report).is_break());
            // A signal reaches the ranks at different moments, but they must all stop after the same step.
            let stops = trainer.ranks.any(is_asked || interrupt::is_asked()) && report.step < num_steps;
            let ends = self.record.ends(patience);
            if stops || ends || is_due(report.step, checkpoint_every) {
                self.metrics.as_ref().map_or(Ok(()), Metrics::sync)?;
                checkpoint::save(self.output, trainer, &self.recipe)?;
            }
            if stops {
                self.metrics.iter().for_each(Metrics::finish);
                return Err(Error::Stopped { step: report.step, output: self.output.to_owned() });
            }
            self.summary.last = Some(report);
        }
        Ok(())
    }

    /// Whether the run ends before its last step.
    pub(super) fn ends(&self, trainer: &Trainer) -> bool {
        self.record.ends(trainer.settings().patience)
    }

    /// Saves a run that a score ended before its last step; where a loss ended it, [`Run::advance`] has saved it.
    pub(super) fn save_early_end(&self, trainer: &Trainer) -> Result<()> {
        match trainer.step < trainer.num_steps() && trainer.settings().best_by == BestBy::Task {
            true => {
                self.metrics.as_ref().map_or(Ok(()), Metrics::sync)?;
                checkpoint::save(self.output, trainer, &self.recipe)
            }
            false => Ok(()),
        }
    }

    /// Saves a run that is asked to stop after its current step; returns the error that says so.
    pub(super) fn stop(&self, trainer: &Trainer) -> Result<Error> {
        self.metrics.as_ref().map_or(Ok(()), Metrics::sync)?;
        checkpoint::save(self.output, trainer, &self.recipe)?;
        self.metrics.iter().for_each(Metrics::finish);
        Ok(Error::Stopped { step: trainer.step, output: self.output.to_owned() })
    }

    /// Counts the scoring of tasks in the time that is left: it follows every `every` steps and the last one, or the last one
    /// alone with 0, and takes so many seconds.
    pub(super) fn expects_scores(&mut self, every: u64, seconds: Option<f64>) {
        if let (Some(metrics), Some(seconds)) = (&mut self.metrics, seconds) {
            metrics.expects_scores(every, seconds);
        }
    }

    /// Adds a model's scores on tasks to the log.
    pub(super) fn scored(&mut self, trainer: &Trainer, scores: &[TaskScore]) -> Result<()> {
        let epoch = trainer.step as f64 / trainer.steps_per_epoch() as f64;
        if let Some(metrics) = self.metrics.as_mut() {
            scores.iter().try_for_each(|score| metrics.scored(trainer.step, epoch, score))?;
        }
        match scores.first().filter(|_| trainer.settings().best_by == BestBy::Task) {
            Some(first) => self.remember(trainer, Best::of_accuracy(trainer.step, first.accuracy.accuracy)),
            None => Ok(()),
        }
    }

    /// The scores that the log has of the trainer's step, for the tasks of other scores; `None` if it lacks one. Every rank calls
    /// it.
    pub(super) fn logged(&self, trainer: &Trainer, of_tasks: &[TaskScore]) -> Result<Option<Vec<TaskScore>>> {
        let own = if trainer.ranks.is_first() { scores_in(self.output, trainer.step)? } else { vec![] };
        let lines = trainer.ranks.bytes_of_first(&serde_json::to_vec(&own).expect("lines are JSON"));
        let lines: Vec<Value> = serde_json::from_slice(&lines).expect("the first wrote it");
        Ok(TaskScore::of_lines(&lines, of_tasks.iter().map(|score| (&*score.task, score.kind, score.problems))))
    }

    /// Adds an evaluation to the record, and saves the weights if they are the best and asked for.
    fn remember(&mut self, trainer: &Trainer, evaluation: Best) -> Result<()> {
        let is_best = self.record.add(evaluation);
        match is_best && trainer.settings().keep_best {
            true => best::save(self.output, trainer, evaluation),
            false => Ok(()),
        }
    }

    /// Ends the run and returns what it did. Its logs are on disk by then.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn finish(self, trainer: &Trainer) -> Result<Summary> {
        if let Some(metrics) = &self.metrics {
            metrics.finish();
            metrics.sync()?;
        }
        let (entropy_drift, skipped) = (trainer.entropy_drift(), trainer.guard.skipped);
        let ended_early = trainer.step < trainer.num_steps() && self.record.ends(trainer.settings().patience);
        Ok(Summary { entropy_drift, skipped, best: self.record.best, ended_early, ..self.summary })
    }

    /// The loss on held-out rows, if there are any. It is logged; with `keep_best`, the weights with the best loss are saved.
    fn evaluate(&mut self, trainer: &Trainer) -> Result<Option<f64>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let (start, view) = (Instant::now(), trainer.view());
        let (loss, rows) = held_out::evaluate_seen(&*trainer.ranks, &trainer.model, self.held_out, &view);
        if let Some(metrics) = &mut self.metrics {
            metrics.held_out(trainer.step, loss, start.elapsed().as_secs_f64())?;
            let answer_tokens = self.held_out.iter().map(|e| e.answer_ids.len()).collect();
            let nll_bound = rows.into_iter().map(|nll| nll.is_finite().then_some(nll)).collect();
            HeldOutRows { step: trainer.step, answer_tokens, nll_bound }.save(self.output)?;
        }
        if trainer.settings().best_by == BestBy::HeldOutLoss {
            self.remember(trainer, Best::of_loss(trainer.step, loss))?;
        }
        let first = self.summary.held_out.map_or(loss, |[first, _]| first);
        self.summary.held_out = Some([first, loss]);
        Ok(Some(loss))
    }
}
