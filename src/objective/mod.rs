//! What a masked token's loss weighs: `1 / t_i` as published or the exact ELBO weight, over a normaliser.
//! The rates come from `noising`; SFT is the same loss with `r_i = 1`.

use serde::{Deserialize, Serialize};
use weft_kernels::precision::Precision;

use crate::noising::entropy::{Reference, Transform};
use crate::noising::schedule::T_MIN;

pub mod normalizer;

pub use normalizer::Normalizer;

/// The schedule factor of a masked token's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// `1 / t_i`, as published.
    #[default]
    Inverse,
    /// `r_i (1 - t)^(r_i - 1) / t_i`, the exact continuous-time weight, which the paper drops.
    Elbo,
}

impl Weighting {
    /// The weight of a masked token with rate `p_mask = t_i` and relative uncertainty `r` at time `t`.
    pub fn time_weight(self, t: f64, r: f32, p_mask: f32) -> f64 {
        let r = f64::from(r);
        let factor = match self {
            Self::Inverse => 1.0,
            // At r = 1 the power is 1 for every t, 0^0 at t = 1 included.
            Self::Elbo => r * (1.0 - t).powf(r - 1.0),
        };
        factor / f64::from(p_mask)
    }
}

/// Where the rates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each token's rate from its entropy: WeFT.
    #[default]
    #[serde(alias = "gift")]
    Weft,
    /// One rate for a whole answer, `t_i = t`: LLaDA's loss.
    Sft,
}

/// What is trained: the recipe's `objective` table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Objective {
    /// WeFT or SFT.
    pub kind: Kind,
    /// How an entropy becomes `beta`.
    pub transform: Transform,
    /// The scope of `beta_ref`.
    pub reference: Reference,
    /// The schedule factor.
    pub weighting: Weighting,
    /// The divisor; `None` is the kind's own (see [`Objective::normalizer`]).
    pub normalizer: Option<Normalizer>,
    /// A floor on `t_i`; 0 is off.
    pub rate_floor: f64,
    /// The lower cut of `t`.
    pub t_min: f64,
    /// Epochs between computations of an example's entropies (WeFT), which are reused in between; 1 reuses none.
    pub entropy_every: u64,
    /// The format of products' factors in the pass for entropies; `None` is `model.precision` (WeFT).
    pub entropy_precision: Option<Precision>,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            transform: Transform::default(),
            reference: Reference::default(),
            weighting: Weighting::default(),
            normalizer: None,
            rate_floor: 0.0,
            t_min: T_MIN,
            entropy_every: 1,
            entropy_precision: None,
        }
    }
}

impl Objective {
    /// The divisor of the loss: masked tokens for WeFT as the paper has it, answer tokens for SFT, unless chosen.
    pub fn normalizer(&self) -> Normalizer {
        self.normalizer.unwrap_or(match self.kind {
            Kind::Weft => Normalizer::Masked,
            Kind::Sft => Normalizer::Answer,
        })
    }
}

/// One answer after the forward process.
#[derive(Clone, Debug)]
pub struct NoisedAnswer {
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// `r_i` of each token.
    pub relative_uncertainty: Vec<f32>,
    /// `t_i` of each token.
    pub p_mask: Vec<f32>,
    /// Which tokens were masked.
    pub masked: Vec<bool>,
}

/// The factor of each answer token's `nll` in the batch's loss, normaliser included; 0 where it isn't masked.
pub fn loss_weights(batch: &[NoisedAnswer], weighting: Weighting, normalizer: Normalizer) -> Vec<Vec<f32>> {
    let divisors = normalizer.divisors(batch);
    let of_answer = |(answer, divisor): (&NoisedAnswer, f64)| {
        let tokens = answer.masked.iter().zip(&answer.relative_uncertainty).zip(&answer.p_mask);
        tokens
            .map(
                |((masked, r), p)| {
                    if *masked { (weighting.time_weight(answer.t, *r, *p) / divisor) as f32 } else { 0.0 }
                },
            )
            .collect()
    };
    batch.iter().zip(divisors).map(of_answer).collect()
}
