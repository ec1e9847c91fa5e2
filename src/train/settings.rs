//! `[train]` of a recipe: the settings of the loop, and what is wrong with their values.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::best::BestBy;
use super::guard::OnNonFinite;
use super::lr_schedule::LrSchedule;

/// The default of `activation_memory_gb` on a CPU, in bytes: with a CPU's caches it hardly pays to save more.
pub(crate) const ACTIVATION_BYTES: usize = 350_000_000;

/// `[train]`: the settings of the loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainTable {
    /// The folder that holds everything the run writes.
    pub output: PathBuf,
    /// The seed of all draws.
    pub seed: u64,
    /// Passes over the examples.
    pub epochs: u64,
    /// The most optimizer steps, if the epochs have more.
    pub max_steps: Option<u64>,
    /// Examples per forward.
    pub micro_batch_size: usize,
    /// Micro-batches per optimizer step.
    pub grad_accum_steps: usize,
    /// Memory in GB for matmul results of the last layers that are saved for backward; the other layers are recomputed
    /// (activation checkpointing). It affects time and memory, but not a bit of the result; 0 recomputes all layers. If
    /// absent, it is 0.35 on a CPU, and on a GPU what the rest of the run leaves free.
    pub activation_memory_gb: Option<f64>,
    /// The highest learning rate.
    pub lr: f64,
    /// How the learning rate changes after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps in which the learning rate rises from 0 to its highest value.
    pub warmup_steps: u64,
    /// Decoupled weight decay; vectors aren't decayed.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// A constant added to the root of the second moment.
    pub adam_eps: f64,
    /// The largest gradient norm, to which larger ones are clipped; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// What a loss or gradient that isn't finite does: `stop` ends the run, `skip` skips the step and counts it.
    pub on_non_finite: OnNonFinite,
    /// A step is skipped if its gradient norm is more than this many times the median of the last 64; 0 turns this off.
    pub spike_factor: f64,
    /// Steps between evaluations on held-out rows; 0 evaluates only at the end.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 saves only the last one.
    pub checkpoint_every: u64,
    /// Whether the weights of the best evaluation are saved beside the last ones.
    pub keep_best: bool,
    /// What the best evaluation is: that of the lowest held-out loss, or of the highest accuracy on the first task.
    pub best_by: BestBy,
    /// The run ends after this many evaluations without a better one; 0 never ends it early.
    pub patience: u64,
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
            keep_best: false,
            best_by: BestBy::HeldOutLoss,
            patience: 0,
        }
    }
}

impl TrainTable {
    /// What is wrong with the values, one sentence per problem.
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
            format!("train.spike_factor = {factor} would skip ordinary steps; give more than 1, or 0 for none")
        });
        let empty = self.output.as_os_str().is_empty();
        let output = empty.then(|| "train.output is empty; name a folder, or leave it out".to_owned());
        let none = (self.max_steps == Some(0))
            .then(|| "train.max_steps = 0 trains nothing; leave it out to train all epochs".to_owned());
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

    /// Examples per optimizer step of one rank.
    pub fn global_batch_size(&self) -> usize {
        self.micro_batch_size.saturating_mul(self.grad_accum_steps)
    }

    /// Optimizer steps of an epoch of so many examples that so many ranks share; the last one may have fewer examples.
    pub fn steps_per_epoch(&self, epoch_len: usize, ranks: usize) -> u64 {
        epoch_len.div_ceil(self.global_batch_size().saturating_mul(ranks)) as u64
    }

    /// Optimizer steps of a run with such epochs.
    pub fn num_steps(&self, epoch_len: usize, ranks: usize) -> u64 {
        let all = self.epochs.saturating_mul(self.steps_per_epoch(epoch_len, ranks));
        self.max_steps.map_or(all, |max| max.min(all))
    }

    /// `activation_memory_gb` in bytes, or `otherwise` if it is absent.
    pub fn activation_bytes(&self, otherwise: usize) -> usize {
        self.activation_memory_gb.map_or(otherwise, |gb| (gb * 1e9) as usize)
    }
}
