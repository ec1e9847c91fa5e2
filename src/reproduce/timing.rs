//! The table of times: a step of every arm under one setting. The arms take turns on one model with nothing else
//! running, so that whatever slows one arm slows all.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::run::drop_spent;
use super::study::Study;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::experiment::Experiment;
use crate::files::{read_text, write_whole};
use crate::recipe::Recipe;

/// The number of untimed warm-up steps of each arm.
const WARM_UP: usize = 2;

/// The seconds per step of each arm, in the order of the table: the median of the timed steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The number of threads that computed.
    pub threads: usize,
    /// The median of each arm.
    pub step_seconds: Vec<f64>,
}

/// Reads the times of a setting if they were measured already; other arms or another recipe make them invalid.
///
/// # Errors
/// A file that can't be read.
pub fn read(study: &Study, setting: usize) -> Result<Option<Times>> {
    let path = path(study, setting);
    if !path.exists() {
        return Ok(None);
    }
    let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
    let mut saved: Value = serde_json::from_str(&read_text(&path)?).map_err(format)?;
    match saved["recipes"] == json!(arms(study, setting)) {
        true => serde_json::from_value(saved["times"].take()).map(Some).map_err(format),
        false => Ok(None),
    }
}

/// Measures the times of a setting.
///
/// # Errors
/// A step that fails; a file that can't be written.
pub fn take(study: &Study, setting: usize) -> Result<Times> {
    let arms = arms(study, setting);
    let times = measure(study, setting, &arms)?;
    let saved = serde_json::to_string_pretty(&json!({ "recipes": arms, "times": times })).expect("times are JSON");
    write_whole(&path(study, setting), saved.as_bytes())?;
    Ok(times)
}

fn path(study: &Study, setting: usize) -> PathBuf {
    study.output.join(&study.table.settings[setting].name).join("times.json")
}

/// One recipe for each arm.
fn arms(study: &Study, setting: usize) -> Vec<&Recipe> {
    let runs = study.runs.iter().filter(|run| run.setting == setting);
    runs.take(study.table.arms.len()).map(|run| &run.recipe).collect()
}

fn measure(study: &Study, setting: usize, arms: &[&Recipe]) -> Result<Times> {
    let mut recipe = study.bases[setting].recipe.clone();
    // The steps may go beyond the end of the recipe; the trained weights are discarded.
    (recipe.train.max_steps, recipe.train.epochs) = (None, u64::MAX);
    let folder = recipe.train.output.clone();
    let (experiment, Base { model, text, .. }) = Experiment::open(recipe)?;
    drop_spent(&folder)?;
    let (mut trainer, _) = experiment.trainer(model, &text)?;
    let mut seconds = vec![vec![]; arms.len()];
    for round in 0..WARM_UP + study.table.timing_rounds {
        for (arm, seconds) in arms.iter().zip(&mut seconds) {
            trainer.set_objective(arm.objective);
            let report = trainer.step()?;
            if round >= WARM_UP {
                seconds.push(report.phases.total());
            }
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Times { threads: rayon::current_num_threads(), step_seconds: seconds.into_iter().map(median).collect() })
}
