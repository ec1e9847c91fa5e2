//! `[train]` of a recipe: the loop's settings, and what is wrong with their values.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::guard::OnNonFinite;
use super::lr_schedule::LrSchedule;

/// What backward may keep of the forward where a recipe doesn't say: on a CPU with its caches it hardly pays to keep more.
pub const ACTIVATION_BYTES: usize = 350_000_000;

/// `[train]`: the loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainTable {
    /// The folder that holds everything the run writes.
    pub output: PathBuf,
    /// Names every draw.
    pub seed: u64,
    /// Passes over the examples.
    pub epochs: u64,
    /// Optimizer steps, if fewer than the epochs have.
    pub max_steps: Option<u64>,
    /// Examples per forward.
    pub micro_batch_size: usize,
    /// Forwards per optimizer step.
    pub grad_accum_steps: usize,
    /// Memory in GB for what the last layers computed, kept until backward; the others are recomputed (gradient
    /// checkpointing). It changes time and memory, not a bit of the result; 0 recomputes all. Where absent 0.35 on a CPU,
    /// and on a GPU what the rest of the run leaves free.
    pub activation_memory_gb: Option<f64>,
    /// Highest learning rate.
    pub lr: f64,
    /// How it moves after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps from 0 to the highest learning rate.
    pub warmup_steps: u64,
    /// Decoupled weight decay; vectors are never decayed.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_eps: f64,
    /// Largest gradient norm; 0 is off.
    pub max_grad_norm: f64,
    /// What a loss or gradient that isn't finite does: `stop` ends the run, `skip` passes over the step and counts it.
    pub on_non_finite: OnNonFinite,
    /// A step whose gradient norm is more than so many times the median of the last 64 is passed over; 0 is off.
    pub spike_factor: f64,
    /// Steps between evaluations on held-out rows; 0 leaves the last only.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 leaves the last only.
    pub checkpoint_every: u64,
}

impl Default for TrainTable {
    fn default() -> Self {
        Self {
            output: PathBuf::from("runs/weft"),
            seed: 1,
            epochs: 1,
            max_steps: None,
            micro_batch_size: 1,
            grad_accum_steps: 1,
            activation_memory_gb: None,
            lr: 1e-4,
            lr_schedule: LrSchedule::default(),
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_eps: 1e-8,
            max_grad_norm: 1.0,
            on_non_finite: OnNonFinite::default(),
            spike_factor: 0.0,
            eval_every: 0,
            checkpoint_every: 0,
        }
    }
}

impl TrainTable {
    /// What is wrong with the values, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let counts = [
            ("epochs", self.epochs),
            ("micro_batch_size", self.micro_batch_size as u64),
            ("grad_accum_steps", self.grad_accum_steps as u64),
        ];
        let zero = counts.iter().filter(|(_, n)| *n == 0).map(|(k, _)| format!("train.{k} = 0; give at least 1"));
        let positive = [("lr", self.lr), ("adam_eps", self.adam_eps)];
        let not_positive = positive
            .iter()
            .filter(|(_, x)| !(*x > 0.0 && x.is_finite()))
            .map(|(k, x)| format!("train.{k} = {x} is not a positive number"));
        let fractions = [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)];
        let outside = fractions
            .iter()
            .filter(|(_, x)| !(0.0..1.0).contains(x))
            .map(|(k, x)| format!("train.{k} = {x} lies outside [0, 1)"));
        let least = [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("activation_memory_gb", self.activation_memory_gb.unwrap_or(0.0)),
        ];
        let negative = least
            .iter()
            .filter(|(_, x)| !(*x >= 0.0 && x.is_finite()))
            .map(|(k, x)| format!("train.{k} = {x} is negative or not a number"));
        let factor = self.spike_factor;
        let low = (factor != 0.0 && !(factor > 1.0 && factor.is_finite())).then(|| {
            format!("train.spike_factor = {factor} would pass over ordinary steps; give more than 1, or 0 for none")
        });
        let empty = self.output.as_os_str().is_empty();
        let output = empty.then(|| "train.output is empty; name a folder, or leave it out".to_owned());
        let none =
            (self.max_steps == Some(0)).then(|| "train.max_steps = 0 trains nothing; leave it out for all".to_owned());
        output
            .into_iter()
            .chain(none)
            .chain(zero)
            .chain(not_positive)
            .chain(outside)
            .chain(negative)
            .chain(low)
            .collect()
    }

    /// Examples per optimizer step.
    pub fn global_batch_size(&self) -> usize {
        self.micro_batch_size.saturating_mul(self.grad_accum_steps)
    }

    /// `activation_memory_gb` in bytes, or `otherwise`.
    pub fn activation_bytes(&self, otherwise: usize) -> usize {
        self.activation_memory_gb.map_or(otherwise, |gb| (gb * 1e9) as usize)
    }
}
