//! A run from its folder's point of view: start or resume, steps, evaluations, checkpoints. What a step does is the
//! parent module's; what is saved at the end is the caller's.

use std::path::Path;

use serde_json::{Value, json};

use super::entropy_reuse::Drift;
use super::held_out::nll_bound;
use super::metrics::Metrics;
use super::{StepReport, Trainer, checkpoint};
use crate::data::Example;
use crate::error::{Error, Result};
use crate::files::{make_folder, write_whole};

/// What a finished run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The step that the run started at: 0, or that of the checkpoint it resumed from.
    pub first_step: u64,
    /// The last step's report; none where nothing was left to do.
    pub last: Option<StepReport>,
    /// The held-out loss before the first step and after the last, in nats per answer token.
    pub held_out: Option<[f64; 2]>,
    /// How far the reused entropies lay from fresh ones at the end.
    pub entropy_drift: Option<Drift>,
    /// Seconds of training, evaluations left out.
    pub train_secs: f64,
}

/// The resolved recipe in a run's folder; it is there from the run's first moment on.
const RECIPE: &str = "recipe.json";

/// Refuses a folder that holds another run, before any work is done.
///
/// # Errors
/// The folder, and how to go on.
pub fn check_output(output: &Path, resume: bool) -> Result<()> {
    match !resume && output.join(RECIPE).exists() {
        true => Err(Error::Usage(format!(
            "{} already holds a run; add --resume to go on with it, or set train.output to another folder",
            output.display()
        ))),
        false => Ok(()),
    }
}

/// Trains to the last step. `recipe` is the resolved recipe, which a resumed run must share.
///
/// # Errors
/// A folder that holds another run, a loss that isn't finite, a file that can't be written.
pub fn train(
    trainer: &mut Trainer,
    held_out: &[Example],
    output: &Path,
    recipe: &Value,
    resume: bool,
) -> Result<Summary> {
    check_output(output, resume)?;
    make_folder(output)?;
    if resume && checkpoint::load_newest(output, trainer, recipe)? {
        eprintln!("resuming at step {}", trainer.step);
    }
    let saved = json!({ "weft": env!("CARGO_PKG_VERSION"), "recipe": recipe });
    write_whole(&output.join(RECIPE), serde_json::to_string_pretty(&saved).expect("a recipe is JSON").as_bytes())?;
    let (first_step, num_steps) = (trainer.step, trainer.num_steps());
    let mut metrics = Metrics::open(output, first_step, num_steps)?;
    let evaluate = |trainer: &Trainer, metrics: &mut Metrics| -> Result<Option<f64>> {
        if held_out.is_empty() {
            return Ok(None);
        }
        let loss = nll_bound(&trainer.model, held_out);
        metrics.held_out(trainer.step, loss)?;
        Ok(Some(loss))
    };
    let before = match first_step {
        0 => evaluate(trainer, &mut metrics)?,
        _ => None,
    };
    let (eval_every, checkpoint_every) = (trainer.settings().eval_every, trainer.settings().checkpoint_every);
    let is_due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every) || step == num_steps;
    let (mut last, mut after, mut train_secs) = (None, before, 0.0);
    while trainer.step < num_steps {
        let start = std::time::Instant::now();
        let report = trainer.step()?;
        let step_secs = start.elapsed().as_secs_f64();
        train_secs += step_secs;
        metrics.step(&report, step_secs)?;
        if is_due(report.step, eval_every) {
            after = evaluate(trainer, &mut metrics)?;
        }
        if is_due(report.step, checkpoint_every) {
            checkpoint::save(output, trainer, recipe)?;
        }
        last = Some(report);
    }
    metrics.finish();
    let entropy_drift = trainer.entropy_drift();
    let held_out = before.zip(after).map(|(before, after)| [before, after]);
    Ok(Summary { first_step, last, held_out, entropy_drift, train_secs })
}
