//! A run from its folder's point of view: start or resume, steps, evaluations, checkpoints. What a step does is the
//! parent module's; what is saved at the end is the caller's.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use super::entropy_reuse::Drift;
use super::guard::Skipped;
use super::held_out::nll_bound;
use super::metrics::{Earlier, Metrics, Progress, tell};
use super::resolved::Resolved;
use super::step::StepReport;
use super::{Trainer, checkpoint};
use crate::data::Example;
use crate::error::{Error, Result};
use crate::files::{make_folder, write_whole};
use crate::interrupt;

/// What a finished run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The step that the run started at: 0, or that of the checkpoint it resumed from.
    pub first_step: u64,
    /// The last step's report; none where nothing was left to do.
    pub last: Option<StepReport>,
    /// The held-out loss before the first step and after the last, in nats per answer token; a resumed run has them of its
    /// earlier pieces.
    pub held_out: Option<[f64; 2]>,
    /// How far the reused entropies lay from fresh ones at the end.
    pub entropy_drift: Option<Drift>,
    /// Steps that were passed over, those before it was resumed included.
    pub skipped: Skipped,
    /// Seconds of training, evaluations left out and a resumed run's earlier pieces included.
    pub train_secs: f64,
}

/// The resolved recipe in a run's folder; it is there from the run's first moment on.
pub const RECIPE: &str = "recipe.json";

/// Refuses a folder that holds another run, or none to resume, and a file, before any work is done.
///
/// # Errors
/// The folder, and how to go on.
pub fn check_output(output: &Path, resume: bool) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(Error::Usage(format!("train.output = {} is a file; name a folder", output.display())));
    }
    let path = output.display();
    let has_run = [RECIPE, "checkpoints"].iter().any(|name| output.join(name).exists());
    match (resume, has_run) {
        (false, true) => Err(Error::Usage(format!(
            "{path} already holds a run; add --resume to go on with it, or set train.output to another folder"
        ))),
        (true, false) => Err(Error::Usage(format!("{path} holds no run to resume; leave out --resume to begin one"))),
        _ => Ok(()),
    }
}

/// The file that a run holds while it is at work.
const LOCK: &str = "lock";

/// Makes a folder one process's own until what is returned is dropped; a crash leaves nothing that has to be removed.
/// Where the file system has no locks there is none.
///
/// # Errors
/// A folder in which another run is at work, or that can't be made.
pub fn lock(output: &Path) -> Result<File> {
    make_folder(output)?;
    let path = output.join(LOCK);
    let file = File::create(&path).map_err(|source| Error::Write { path, source })?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Usage(format!(
            "another run is at work in {}; wait for its end, or set train.output to another folder",
            output.display()
        ))),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// How [`train`] begins and what it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Goes on with the run in the folder, instead of beginning one.
    pub resume: bool,
    /// Shows no progress.
    pub quiet: bool,
}

/// Trains to the last step. A resumed run must share the `recipe`.
///
/// # Errors
/// As [`Run::open`] and [`Run::advance`].
pub fn train(
    trainer: &mut Trainer,
    (held_out, output): (&[Example], &Path),
    recipe: &Resolved,
    Options { resume, quiet }: Options,
) -> Result<Summary> {
    if trainer.ranks.is_first() {
        check_output(output, resume)?;
    }
    let bar = match quiet {
        true => ProgressBar::hidden(),
        false => ProgressBar::with_draw_target(Some(trainer.num_steps()), ProgressDrawTarget::stderr()),
    };
    let mut run = Run::open(trainer, held_out, output, recipe.clone(), Progress { bar, tells: !quiet })?;
    run.advance(trainer, trainer.num_steps())?;
    run.finish(trainer)
}

/// A run in its folder, which goes on as far as it is asked to. Every rank has one; the first writes and tells.
pub struct Run<'a> {
    held_out: &'a [Example],
    output: &'a Path,
    recipe: Resolved,
    /// Of the first rank.
    metrics: Option<Metrics>,
    summary: Summary,
}

impl<'a> Run<'a> {
    /// Opens a folder: the run in it goes on from its newest checkpoint, which is put into the trainer, and in an
    /// empty one begins.
    ///
    /// # Errors
    /// A checkpoint of another recipe, or damaged ones only; a file that can't be written.
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
        if checkpoint::load_newest(output, trainer, &recipe)? && progress.tells && is_first {
            tell(&format!("resuming at step {}", trainer.step));
        }
        let first_step = trainer.step;
        let (metrics, Earlier { train_secs, held_out: earlier }) = match is_first {
            true => {
                let saved = json!({ "weft": env!("CARGO_PKG_VERSION"), "recipe": recipe.recipe });
                let saved = serde_json::to_string_pretty(&saved).expect("a recipe is JSON");
                write_whole(&output.join(RECIPE), saved.as_bytes())?;
                let (metrics, earlier) = Metrics::open(output, first_step, progress)?;
                (Some(metrics), earlier)
            }
            false => (None, Earlier::default()),
        };
        let (entropy_drift, skipped) = (None, Skipped::default());
        let summary = Summary { first_step, last: None, held_out: earlier, entropy_drift, skipped, train_secs };
        let mut run = Self { held_out, output, recipe, metrics, summary };
        if first_step == 0 {
            run.evaluate(trainer)?;
        }
        Ok(run)
    }

    /// Trains to a step, with the evaluations and checkpoints that fall due.
    ///
    /// # Errors
    /// As [`Trainer::step`]; a file that can't be written; a wish to stop ([`interrupt`]).
    pub fn advance(&mut self, trainer: &mut Trainer, to: u64) -> Result<()> {
        let num_steps = trainer.num_steps();
        let (eval_every, checkpoint_every) = (trainer.settings().eval_every, trainer.settings().checkpoint_every);
        let is_due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every) || step == num_steps;
        while trainer.step < to.min(num_steps) {
            let start = Instant::now();
            let report = trainer.step()?;
            let step_secs = start.elapsed().as_secs_f64();
            self.summary.train_secs += step_secs;
            if let Some(metrics) = &mut self.metrics {
                metrics.step(&report, step_secs)?;
            }
            if is_due(report.step, eval_every) {
                self.evaluate(trainer)?;
            }
            // A signal reaches ranks at different moments: they stop after the same step.
            let stops = trainer.ranks.any(interrupt::is_asked()) && report.step < num_steps;
            if stops || is_due(report.step, checkpoint_every) {
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

    /// Ends the run: what it did. Its logs are on the disk then.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn finish(self, trainer: &Trainer) -> Result<Summary> {
        if let Some(metrics) = &self.metrics {
            metrics.finish();
            metrics.sync()?;
        }
        Ok(Summary { entropy_drift: trainer.entropy_drift(), skipped: trainer.guard.skipped, ..self.summary })
    }

    fn evaluate(&mut self, trainer: &Trainer) -> Result<()> {
        if self.held_out.is_empty() {
            return Ok(());
        }
        let loss = nll_bound(&*trainer.ranks, &trainer.model, self.held_out);
        if let Some(metrics) = &mut self.metrics {
            metrics.held_out(trainer.step, loss)?;
        }
        let first = self.summary.held_out.map_or(loss, |[first, _]| first);
        self.summary.held_out = Some([first, loss]);
        Ok(())
    }
}
