//! One run of a comparison: training with evaluations in between, and its outcome as a file. A run that was killed
//! resumes from its last checkpoint; the outcome of a finished run is read from its file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::domains::{DomainScore, PlannedDomain};
use super::rows::SettingRows;
use super::study::is_idle;
use crate::base::Base;
use crate::counted::counted;
use crate::data::Mixed;
use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::eval::Accuracy;
use crate::eval::generations::accuracy_of;
use crate::experiment::Experiment;
use crate::files::{make_folder, read_if_there, read_text, write_whole};
use crate::model::block::Transformer;
use crate::progress::{Progress, tell};
use crate::recipe::{Recipe, RunSize};
use crate::train::held_out::nll_bound_seen;
use crate::train::run::Run;
use crate::train::view::View;

/// The scores of a model at a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The number of steps done.
    pub step: u64,
    /// The accuracy on the task; `None` without a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// The held-out loss, in nats per answer token.
    pub nll_bound: f64,
}

/// The statistics of a quantity over the steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverSteps {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
    /// The largest value.
    pub max: f64,
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The scores, earliest first.
    pub points: Vec<Point>,
    /// The gradient norm before clipping.
    pub grad_norm: Option<OverSteps>,
    /// The mean entropy of the answer tokens, in nats, for objectives that use entropies.
    pub mean_entropy: Option<OverSteps>,
    /// The spread of their relative uncertainties, for objectives that use entropies.
    pub uncertainty_spread: Option<OverSteps>,
    /// Why the run stopped early: a non-finite loss.
    pub diverged: Option<String>,
    /// The scores on rows of other kinds at the end of the run; none if it diverged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<DomainScore>,
    /// The rows, if this is the outcome of a base; `None` if an earlier version scored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<SettingRows>,
}

impl Outcome {
    /// The outcome of a base, which has no steps.
    fn of_base(point: Point) -> Self {
        Self {
            points: vec![point],
            grad_norm: None,
            mean_entropy: None,
            uncertainty_spread: None,
            diverged: None,
            also: vec![],
            rows: None,
        }
    }
}

/// The file of a run's outcome, and the file of its scores so far.
const OUTCOME: &str = "outcome.json";
const POINTS: &str = "points.json";

/// The outcome in a folder, whatever its recipe; `None` if there is none.
///
/// # Errors
/// A file that can't be read or is damaged.
pub(crate) fn outcome_in(folder: &Path) -> Result<Option<Outcome>> {
    let path = folder.join(OUTCOME);
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
    let mut saved: Value = serde_json::from_str(&text).map_err(format)?;
    serde_json::from_value(saved["outcome"].take()).map(Some).map_err(format)
}

/// Reads a run's outcome if the run is finished.
///
/// # Errors
/// An outcome of another recipe, or without the scores on `also`; a file that can't be read.
pub fn read(recipe: &Recipe, also: &[PlannedDomain]) -> Result<Option<Outcome>> {
    let path = recipe.train.output.join(OUTCOME);
    if !path.exists() {
        return Ok(None);
    }
    let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
    let mut saved: Value = serde_json::from_str(&read_text(&path)?).map_err(format)?;
    let mut differing = recipe.resolved().differences(&saved["recipe"]);
    differing.extend(also.iter().filter_map(|domain| domain.differs_from(&saved["also_score"])));
    if !differing.is_empty() {
        let reason = format!(
            "the run was made with another recipe: {}; undo that, or choose another train.output",
            differing.join("; ")
        );
        return Err(Error::Config { path, reason });
    }
    serde_json::from_value(saved["outcome"].take()).map(Some).map_err(format)
}

/// Does a run, or the rest of it.
///
/// # Errors
/// Any failure of the run except a non-finite loss, which is an outcome.
pub fn go(recipe: &Recipe, also: &[PlannedDomain], evaluations: u64) -> Result<Outcome> {
    let folder = recipe.train.output.clone();
    make_folder(&folder)?;
    let (experiment, Base { model, text, .. }) = Experiment::open(recipe.clone())?;
    let (mut trainer, _) = experiment.trainer(model, &text)?;
    let num_steps = trainer.num_steps();
    let mut run = Run::open(&mut trainer, &[], &folder, experiment.resolved(), Progress::hidden())?;
    let mut points = read_points(&folder)?;
    // A checkpoint may be older than the last evaluation; the steps in between give the same result again.
    points.retain(|point| point.step <= trainer.step);
    let mut diverged = None;
    for step in (1..=evaluations).map(|i| (i * num_steps).div_ceil(evaluations)) {
        if points.iter().any(|point| point.step == step) {
            continue;
        }
        match run.advance(&mut trainer, step) {
            Err(Error::Run(reason)) => {
                diverged = Some(reason);
                break;
            }
            advanced => advanced?,
        }
        points.push(score(&experiment, &trainer.model, &text, step)?);
        let lines = serde_json::to_string_pretty(&points).expect("points are JSON");
        write_whole(&folder.join(POINTS), lines.as_bytes())?;
    }
    // After the last evaluation, the model is the one at the end of the run.
    let end = points.last().filter(|point| diverged.is_none() && point.step == num_steps);
    let also_scored = end.map(|end| score_also(recipe, also, (&trainer.model, &text), end)).transpose()?;
    let steps = read_steps(&folder.join("metrics.jsonl"))?;
    let over = |key: &str| over_steps(steps.iter().filter_map(|line| line[key].as_f64()).collect());
    let outcome = Outcome {
        points,
        grad_norm: over("grad_norm"),
        mean_entropy: over("mean_entropy"),
        uncertainty_spread: over("uncertainty_spread"),
        diverged,
        also: also_scored.unwrap_or_default(),
        rows: None,
    };
    save(recipe, also, &outcome)?;
    Ok(outcome)
}

/// The base's scores under a recipe, before any training. Warns of what the rows show about the runs to come, of which each has
/// so many evaluations.
///
/// # Errors
/// The errors of [`go`].
pub fn base(recipe: &Recipe, also: &[PlannedDomain], evaluations: u64) -> Result<Outcome> {
    make_folder(&recipe.train.output)?;
    let (experiment, Base { model, text, .. }) = Experiment::open(recipe.clone())?;
    warnings(&experiment, evaluations).iter().for_each(|warning| tell(&format!("warning: {warning}")));
    let own = score(&experiment, &model, &text, 0)?;
    let also_scored = score_also(recipe, also, (&model, &text), &own)?;
    let outcome = Outcome { also: also_scored, rows: Some(SettingRows::of(&experiment)), ..Outcome::of_base(own) };
    save(recipe, also, &outcome)?;
    Ok(outcome)
}

/// The base's scores on the rows of one more seed.
///
/// # Errors
/// The errors of [`go`].
pub fn base_of_seed(recipe: &Recipe) -> Result<Outcome> {
    make_folder(&recipe.train.output)?;
    let (experiment, Base { model, text, .. }) = Experiment::open(recipe.clone())?;
    let outcome = Outcome::of_base(score(&experiment, &model, &text, 0)?);
    save(recipe, &[], &outcome)?;
    Ok(outcome)
}

/// Warnings of skipped rows, and of settings that have no effect in runs of this size.
fn warnings(experiment: &Experiment, evaluations: u64) -> Vec<String> {
    let Experiment { recipe, train, held_out, .. } = experiment;
    let steps = recipe.train.num_steps(train.epoch_len(), 1);
    let run = RunSize {
        train,
        held_out: held_out.as_ref(),
        problems: experiment.tasks.first().map(|posed| posed.problems.len()),
        steps,
        ranks: 1,
    };
    // An arm may use a setting of the objective that the recipe's own doesn't.
    let is_told = |warning: &String| !warning.starts_with("objective.") && !is_idle(warning);
    let of_run = recipe.warnings_of_run(&run).into_iter().filter(is_told);
    let skipped = [Some(train), held_out.as_ref()].into_iter().flatten().flat_map(Mixed::warnings);
    let fewer = (evaluations > steps).then(|| {
        let steps = counted(steps, "step");
        format!("reproduce.evaluations = {evaluations}, but a run has only {steps}, after each of which it is scored")
    });
    skipped.chain(of_run).chain(fewer).collect()
}

/// A model's scores on rows of other kinds.
fn score_also(
    recipe: &Recipe,
    also: &[PlannedDomain],
    of: (&Transformer, &TextModel),
    own: &Point,
) -> Result<Vec<DomainScore>> {
    let folder = recipe.train.output.join("data").join("also");
    also.iter().map(|domain| domain.score(of, (recipe, own), &folder)).collect()
}

fn score(experiment: &Experiment, model: &Transformer, text: &TextModel, step: u64) -> Result<Point> {
    let generations = experiment.evaluate(model, text, &Progress::hidden())?;
    let view = View::of(&experiment.recipe.objective, text.eos_token_id());
    let nll_bound = nll_bound_seen(model, experiment.held_out_examples(), &view);
    Ok(Point { step, accuracy: generations.as_deref().map(accuracy_of), nll_bound })
}

/// Saves an outcome and removes rows and checkpoints, which are no longer needed.
fn save(recipe: &Recipe, also: &[PlannedDomain], outcome: &Outcome) -> Result<()> {
    let folder = &recipe.train.output;
    let mut saved = json!({ "recipe": recipe, "outcome": outcome });
    if !also.is_empty() {
        saved["also_score"] = also.iter().map(|domain| domain.resolved().recipe).collect();
    }
    let text = serde_json::to_string_pretty(&saved).expect("an outcome is JSON");
    write_whole(&folder.join(OUTCOME), text.as_bytes())?;
    drop_spent(folder)
}

/// Removes the rows and checkpoints of a run.
pub(super) fn drop_spent(folder: &Path) -> Result<()> {
    for spent in ["data", "checkpoints"].map(|name| folder.join(name)).into_iter().filter(|path| path.exists()) {
        fs::remove_dir_all(&spent).map_err(|source| Error::Write { path: spent, source })?;
    }
    Ok(())
}

fn read_points(folder: &Path) -> Result<Vec<Point>> {
    let path = folder.join(POINTS);
    match path.exists() {
        true => serde_json::from_str(&read_text(&path)?).map_err(|e| Error::Format { path, reason: e.to_string() }),
        false => Ok(vec![]),
    }
}

/// The lines of metrics.jsonl; a run that diverged may have none.
fn read_steps(path: &Path) -> Result<Vec<Value>> {
    let text = read_text(path)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn over_steps(values: Vec<f64>) -> Option<OverSteps> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let max = values.iter().copied().reduce(f64::max)?;
    Some(OverSteps { mean, deviation: (squares / count).sqrt(), max })
}
