//! What a step reports: loss, gradient, masks, entropies and times.

use serde::Serialize;

use super::entropy_reuse::Drift;
use super::guard::Skip;
use crate::parallel::collective::Traffic;

/// The levels of [`EntropySummary::quantiles`]: the shares of a step's answer tokens that lie below them.
pub(crate) const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// How many passes over the data are done, as a fraction.
    pub epoch: f64,
    /// The loss as the objective weights and divides it, in nats.
    pub loss: f64,
    /// The mean nll of the masked tokens, unweighted, in nats per masked token; `None` if no token was masked.
    pub nll: Option<f64>,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Tokens of the batch, prompts included.
    pub tokens: usize,
    /// The share of answer tokens that were masked.
    pub masked_share: f64,
    /// Which answer tokens of each example were masked; with several ranks, this rank's only.
    pub masked: Vec<Vec<bool>>,
    /// A summary of the answer tokens' entropies, if the objective needs them.
    pub entropy: Option<EntropySummary>,
    /// How far the entropies that this step computed are from the reused ones that they replace.
    pub entropy_drift: Option<Drift>,
    /// Why the step was skipped, if it was: the model and the optimizer are then unchanged.
    pub skipped: Option<Skip>,
    /// How many of the run's steps so far were skipped.
    pub skipped_steps: u64,
    /// The loss on held-out rows after the step, in nats per answer token, if a run evaluated it there.
    pub held_out: Option<f64>,
    /// Where the time went.
    pub phases: Phases,
    /// What this rank sent to others, and how much of the step's time that took.
    #[doc(hidden)]
    pub traffic: Traffic,
}

/// Seconds of the parts of a step.
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
    /// Gradient norm, clipping and update.
    pub optimizer: f64,
}

/// How the entropies of a step's answer tokens are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntropySummary {
    /// The mean entropy, in nats.
    pub mean: f64,
    /// The entropies below which 5, 25, 50, 75 and 95 % of the tokens lie, in nats.
    pub quantiles: [f64; 5],
    /// The standard deviation of `r_i`, whose mean is 1; at 0 all tokens have SFT's one rate.
    pub uncertainty_spread: f64,
}

impl EntropySummary {
    /// Summarizes entropies and the relative uncertainties that follow from them; `None` if there are none.
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
