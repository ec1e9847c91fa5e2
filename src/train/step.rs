//! What a step tells of itself: loss, gradient, masks, entropies, times.

use serde::Serialize;

use super::entropy_reuse::Drift;
use super::guard::Skip;
use crate::parallel::collective::Traffic;

/// The shares of a step's answer tokens that lie below [`EntropySummary::quantiles`].
pub const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// Passes over the data that are done, in parts.
    pub epoch: f64,
    /// The loss, in nats.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Tokens of the batch, prompts included.
    pub tokens: usize,
    /// The share of answer tokens that was masked.
    pub masked_share: f64,
    /// Which answer tokens were, example for example; of several ranks this one's.
    pub masked: Vec<Vec<bool>>,
    /// The answer tokens' entropies, where the objective asks for them.
    pub entropy: Option<EntropySummary>,
    /// How far the entropies that this step computed lie from the reused ones they replace.
    pub entropy_drift: Option<Drift>,
    /// Why the step was passed over, where it was: model and optimizer are as before it.
    pub skipped: Option<Skip>,
    /// The run's steps so far that were passed over.
    pub skipped_steps: u64,
    /// Where the time went.
    pub phases: Phases,
    /// What this rank sent to others, and the part of that time that it took.
    pub traffic: Traffic,
}

/// Seconds of a step's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Phases {
    /// Pass 1 and the masks.
    pub entropy: f64,
    /// The layers' forward in pass 2.
    pub forward: f64,
    /// The head's forward and backward.
    pub head: f64,
    /// The layers' backward, recomputation included.
    pub backward: f64,
    /// Gradient norm and update.
    pub optimizer: f64,
}

/// How a step's answer tokens' entropies are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntropySummary {
    /// Their mean, in nats.
    pub mean: f64,
    /// Their [`QUANTILES`], in nats.
    pub quantiles: [f64; 5],
    /// The standard deviation of the `r_i`, whose mean is 1: 0 is SFT's one rate.
    pub uncertainty_spread: f64,
}

impl EntropySummary {
    /// The summary of some entropies and of the relative uncertainties they came to; `None` where there are none.
    pub fn of(mut token_entropy: Vec<f32>, relative_uncertainty: impl Iterator<Item = f32>) -> Option<Self> {
        let last = token_entropy.len().checked_sub(1)?;
        let mean = token_entropy.iter().map(|h| f64::from(*h)).sum::<f64>() / token_entropy.len() as f64;
        token_entropy.sort_by(f32::total_cmp);
        let quantiles = QUANTILES.map(|q| f64::from(token_entropy[(q * last as f64).round() as usize]));
        let r: Vec<f64> = relative_uncertainty.map(f64::from).collect();
        let mean_r = r.iter().sum::<f64>() / r.len() as f64;
        let squares: f64 = r.iter().map(|r| (r - mean_r).powi(2)).sum();
        Some(Self { mean, quantiles, uncertainty_spread: (squares / r.len() as f64).sqrt() })
    }
}

impl Phases {
    pub(super) fn add(&mut self, [forward, head, backward]: [f64; 3]) {
        self.forward += forward;
        self.head += head;
        self.backward += backward;
    }

    /// All parts together.
    pub fn total(&self) -> f64 {
        self.entropy + self.forward + self.head + self.backward + self.optimizer
    }
}
