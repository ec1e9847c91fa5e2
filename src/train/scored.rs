//! A run that is scored on tasks: before the first step, after each epoch if that is asked for, and at its end. `run` does
//! everything else; what the tasks are is up to the caller.

use std::path::Path;
use std::time::Instant;

use super::Trainer;
use super::resolved::Resolved;
use super::run::{Observe, Options, Run, Summary};
use crate::data::Example;
use crate::error::Result;
use crate::eval::task_score::TaskScore;
use crate::interrupt;

/// Scores a model that is being trained.
pub type Score<'a> = &'a mut dyn FnMut(&Trainer) -> Result<Vec<TaskScore>>;

/// How a run is scored.
pub struct Scoring<'a> {
    /// The scores before the first step.
    pub before: &'a [TaskScore],
    /// The seconds that those scores took, from which the time that is left is estimated; `None` if that isn't known.
    pub seconds: Option<f64>,
    /// Whether each epoch is scored, or the end alone.
    pub each_epoch: bool,
    /// Computes the scores. Every rank calls it.
    pub score: Score<'a>,
}

/// Trains like [`super::run::train`], observer included, and writes the scores into the log. The end of a run that ends early is
/// scored too. A run that resumes at a step whose scores are in its log takes them from there. Also returns the last scores.
///
/// # Errors
/// Those of [`super::run::train`] and of the scoring.
pub fn train_scored(
    trainer: &mut Trainer,
    rows_and_folder: (&[Example], &Path),
    recipe: &Resolved,
    options: Options,
    (scoring, observe): (Scoring, Observe),
) -> Result<(Summary, Vec<TaskScore>)> {
    let (num_steps, epoch) = (trainer.num_steps(), trainer.steps_per_epoch());
    let mut run = Run::start(trainer, rows_and_folder, recipe, options)?.observed(observe);
    let every = if scoring.each_epoch { epoch } else { 0 };
    run.expects_scores(every, scoring.seconds);
    let mut known = None;
    // A run that was killed after a checkpoint may lack the scores of its step.
    let mut is_scored = false;
    match trainer.step {
        0 => run.scored(trainer, scoring.before)?,
        step => {
            known = run.logged(trainer, scoring.before)?;
            let is_due = step >= num_steps || scoring.each_epoch && step.is_multiple_of(epoch);
            is_scored = known.is_some() || is_due || run.ends(trainer);
        }
    }
    loop {
        let next = if scoring.each_epoch { (trainer.step / epoch + 1) * epoch } else { num_steps };
        run.advance(trainer, if is_scored { trainer.step } else { next })?;
        is_scored = false;
        let scores = match known.take() {
            Some(scores) => scores,
            None => {
                let start = Instant::now();
                let scores = (scoring.score)(trainer)?;
                run.expects_scores(every, Some(start.elapsed().as_secs_f64()));
                run.scored(trainer, &scores)?;
                scores
            }
        };
        if trainer.step >= num_steps || run.ends(trainer) {
            run.save_early_end(trainer)?;
            return Ok((run.finish(trainer)?, scores));
        }
        // Whoever asked meanwhile doesn't wait for another step.
        if trainer.ranks.any(interrupt::is_asked()) {
            return Err(run.stop(trainer)?);
        }
    }
}
