//! The best point of a run: its lowest held-out loss after a step, or its highest accuracy on the first task
//! (`train.best_by`). Its weights may stay in the run folder beside the last ones (`train.keep_best`), and a run may end early
//! after it (`train.patience`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_kernels::weight::Dtype;

use super::Trainer;
use crate::error::{Error, Result};
use crate::files::{read_text, write_folder_whole, write_whole};
use crate::model::block::Transformer;
use crate::model::weights::{Checkpoint, make_in_order, write_tensors};

/// The names of the folder in the run folder and of its files.
const FOLDER: &str = "best";
const TENSORS: &str = "weights.safetensors";
const STATE: &str = "best.json";

/// What decides which point of a run is the best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// The lowest loss on the held-out rows.
    #[default]
    HeldOutLoss,
    /// The highest accuracy on the first task.
    Task,
}

/// The best evaluation so far, after a step; that of the start doesn't count. One of its numbers is there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which it was measured.
    pub step: u64,
    /// The held-out loss, in nats per answer token, if that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// The accuracy on the first task, if that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

impl Best {
    /// A held-out loss after a step.
    pub fn of_loss(step: u64, loss: f64) -> Self {
        Self { step, held_out_loss: Some(loss), accuracy: None }
    }

    /// An accuracy on the first task after a step.
    pub fn of_accuracy(step: u64, accuracy: f64) -> Self {
        Self { step, held_out_loss: None, accuracy: Some(accuracy) }
    }

    /// The number that decides, the lower the better.
    fn cost(&self) -> f64 {
        self.held_out_loss.or(self.accuracy.map(|accuracy| -accuracy)).unwrap_or(f64::NAN)
    }

    /// What the best point is, and its number, as text.
    pub fn told(&self) -> (&'static str, String) {
        match self.accuracy {
            Some(accuracy) => ("highest accuracy on the first task", format!("{:.1} %", 100.0 * accuracy)),
            None => ("lowest held-out loss", format!("{:.4}", self.held_out_loss.unwrap_or(f64::NAN))),
        }
    }
}

/// The best evaluation so far and how many have followed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The best evaluation; `None` before the first one after a step.
    pub best: Option<Best>,
    /// The evaluations since then, none of which was better.
    pub since: u64,
}

impl Record {
    /// Adds an evaluation; returns whether it is the best so far.
    pub fn add(&mut self, evaluation: Best) -> bool {
        if evaluation.step == 0 {
            return false;
        }
        let cost = evaluation.cost();
        let is_best = cost.is_finite() && self.best.is_none_or(|best| cost < best.cost());
        match is_best {
            true => *self = Self { best: Some(evaluation), since: 0 },
            false => self.since += 1,
        }
        is_best
    }

    /// Whether a run of this patience ends here; 0 never ends one early.
    pub fn ends(&self, patience: u64) -> bool {
        patience > 0 && self.since >= patience
    }
}

/// Saves the trained weights as the best ones, in place of earlier ones. Every rank calls it; the first one writes.
///
/// # Errors
/// A file that can't be written; in that case the earlier ones are untouched.
pub fn save(output: &Path, trainer: &Trainer, best: Best) -> Result<()> {
    let trained = trainer.model.params.iter().enumerate().filter(|(_, param)| param.trainable);
    let tensors = trained.map(|(id, param)| trainer.optimizer.saved(id, param, Dtype::F32)).collect();
    if !trainer.ranks.is_first() {
        make_in_order(tensors);
        return Ok(());
    }
    write_folder_whole(&folder(output), |partial| {
        write_tensors(&partial.join(TENSORS), tensors)?;
        let state = serde_json::to_string_pretty(&best).expect("numbers are JSON");
        write_whole(&partial.join(STATE), state.as_bytes())
    })
}

/// Puts a run's best weights into the model whose trained weights they were; returns which ones they are.
///
/// # Errors
/// A file that is missing or damaged.
pub fn load(output: &Path, model: &mut Transformer) -> Result<Best> {
    let folder = folder(output);
    let path = folder.join(STATE);
    let best = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    let mut tensors = Checkpoint::open_file(&folder, TENSORS)?;
    for param in model.params.iter_mut().filter(|param| param.trainable) {
        param.weight = tensors.take(&param.name, &param.shape)?;
    }
    Ok(best)
}

fn folder(output: &Path) -> PathBuf {
    output.join(FOLDER)
}
