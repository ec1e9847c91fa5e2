//! The time table: every arm's step under one setting, timed in turns on one model with the machine to itself, so that
//! what slows one arm slows all.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::run::drop_spent;
use super::study::Study;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::experiment::Experiment;
use crate::files::{make_folder, read_text, write_whole};
use crate::recipe::Recipe;

/// Steps of each arm before those that count.
const WARM_UP: usize = 2;

/// Seconds of a step by arm, in the table's order: the median of the timed ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Threads that computed.
    pub threads: usize,
    /// A median for each arm.
    pub step_seconds: Vec<f64>,
}

/// Reads or takes the times of a setting.
///
/// # Errors
/// A step that fails; a file that can't be read or written.
pub fn of_setting(study: &Study, setting: usize) -> Result<Times> {
    let folder = study.output.join(&study.table.settings[setting].name);
    let path = folder.join("times.json");
    let arms: Vec<&Recipe> = study.runs.iter().filter(|r| r.setting == setting).map(|r| &r.recipe).collect();
    let arms = &arms[..study.table.arms.len()];
    // Other arms, rounds or a changed recipe are other times.
    let key = json!({ "recipes": arms, "rounds": study.table.timing_rounds });
    if path.exists() {
        let format = |e: serde_json::Error| Error::Format { path: path.clone(), reason: e.to_string() };
        let mut saved: serde_json::Value = serde_json::from_str(&read_text(&path)?).map_err(format)?;
        if saved["key"] == key {
            return serde_json::from_value(saved["times"].take()).map_err(format);
        }
    }
    let times = measure(study, setting, arms)?;
    make_folder(&folder)?;
    let text = serde_json::to_string_pretty(&json!({ "key": key, "times": times })).expect("times are JSON");
    write_whole(&path, text.as_bytes())?;
    Ok(times)
}

fn measure(study: &Study, setting: usize, arms: &[&Recipe]) -> Result<Times> {
    let mut recipe = study.bases[setting].clone();
    // The steps go beyond the recipe's end; what they learn is thrown away.
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
