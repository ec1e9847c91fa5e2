//! What is trained: each objective says how often a token is masked (its rate) and what its loss then weighs. A page
//! per objective holds the two formulas; here they meet the draws and the normaliser. Everything is a pure function of
//! entropies and draws: no model, nothing random.

use serde::{Deserialize, Serialize};
use weft_kernels::precision::Precision;

use crate::noising::entropy::{AnswerEntropy, Reference, Transform, relative_uncertainty};
use crate::noising::forward_process;
use crate::noising::schedule::T_MIN;

pub mod cart;
pub mod normalizer;
pub mod sft;
pub mod token_weight;
pub mod weft;

pub use normalizer::{Counts, Normalizer};
pub use weft::Weighting;

/// The objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Rates from entropies: [`weft`].
    #[default]
    #[serde(alias = "gift")]
    Weft,
    /// One rate for a whole answer, LLaDA's loss: [`sft`].
    Sft,
    /// SFT's rates, weights from the clean context, Dream's loss: [`cart`].
    Cart,
    /// SFT's rates, weights from entropies: [`token_weight`].
    TokenWeight,
}

impl Kind {
    /// Every objective.
    pub const ALL: [Self; 4] = [Self::Weft, Self::Sft, Self::Cart, Self::TokenWeight];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Sft => "sft",
            Self::Cart => "cart",
            Self::TokenWeight => "token_weight",
        }
    }

    /// Whether it asks for token entropies, and so for pass 1.
    pub fn needs_entropy(self) -> bool {
        matches!(self, Self::Weft | Self::TokenWeight)
    }

    /// The divisor unless one is chosen: the masked tokens for WeFT, as its paper's algorithm has it, for token weights,
    /// which are there to be compared with it, and for CART, as Dream's code; the answer tokens for SFT, whose sum over
    /// them is a bound.
    pub fn normalizer(self) -> Normalizer {
        match self {
            Self::Sft => Normalizer::Answer,
            Self::Weft | Self::Cart | Self::TokenWeight => Normalizer::Masked,
        }
    }
}

/// What is trained: the recipe's `objective` table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Objective {
    /// The rates and weights.
    pub kind: Kind,
    /// How an entropy becomes `beta` (weft, token_weight).
    pub transform: Transform,
    /// The scope of `beta_ref` (weft, token_weight).
    pub reference: Reference,
    /// The schedule factor (weft).
    pub weighting: Weighting,
    /// The success probability of the distance's geometric distribution (cart).
    pub geo_p: f64,
    /// The divisor; `None` is the kind's own (see [`Kind::normalizer`]).
    pub normalizer: Option<Normalizer>,
    /// A floor on `t_i`; 0 is off.
    pub rate_floor: f64,
    /// The lower cut of `t`.
    pub t_min: f64,
    /// Epochs between computations of an example's entropies (weft, token_weight), reused in between; 1 reuses none.
    pub entropy_every: u64,
    /// The format of matmuls' operands in the pass for entropies; `None` is `model.precision` (weft, token_weight).
    pub entropy_precision: Option<Precision>,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            transform: Transform::default(),
            reference: Reference::default(),
            weighting: Weighting::default(),
            geo_p: cart::GEO_P,
            normalizer: None,
            rate_floor: 0.0,
            t_min: T_MIN,
            entropy_every: 1,
            entropy_precision: None,
        }
    }
}

/// One answer and its draws, before the forward process.
#[derive(Clone, Copy, Debug)]
pub struct DrawnAnswer<'a> {
    /// Tokens of the prompt before it.
    pub prompt_len: usize,
    /// Its tokens' entropies; not read where [`Kind::needs_entropy`] is false.
    pub entropy: AnswerEntropy<'a>,
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// A uniform number in `[0, 1)` for each token.
    pub u: &'a [f32],
}

/// One answer after the forward process.
#[derive(Clone, Debug)]
pub struct NoisedAnswer {
    /// Tokens of the prompt before it, which are clean.
    pub prompt_len: usize,
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// `r_i` of each token; 1 where the objective has no entropies.
    pub relative_uncertainty: Vec<f32>,
    /// `t_i` of each token.
    pub p_mask: Vec<f32>,
    /// Which tokens were masked.
    pub masked: Vec<bool>,
}

impl Objective {
    /// The divisor of the loss.
    pub fn normalizer(&self) -> Normalizer {
        self.normalizer.unwrap_or(self.kind.normalizer())
    }

    /// The forward process of a micro-batch: relative uncertainties, rates, masks.
    pub fn noise(&self, batch: &[DrawnAnswer]) -> Vec<NoisedAnswer> {
        let relative = match self.kind.needs_entropy() {
            true => {
                let entropies: Vec<AnswerEntropy> = batch.iter().map(|a| a.entropy).collect();
                relative_uncertainty(&entropies, self.transform, self.reference)
            }
            false => batch.iter().map(|a| vec![1.0; a.u.len()]).collect(),
        };
        let noise = |(&DrawnAnswer { prompt_len, t, u, .. }, relative_uncertainty): (&DrawnAnswer, Vec<f32>)| {
            let p_mask: Vec<f32> = relative_uncertainty.iter().map(|r| self.rate(t, *r)).collect();
            let masked = forward_process(&p_mask, u);
            NoisedAnswer { prompt_len, t, relative_uncertainty, p_mask, masked }
        };
        batch.iter().zip(relative).map(noise).collect()
    }

    /// The rate of a token with relative uncertainty `r` at time `t`, raised to the floor unless it is 0.
    pub fn rate(&self, t: f64, r: f32) -> f32 {
        let rate = match self.kind {
            Kind::Weft => weft::rate(t, f64::from(r)),
            Kind::Sft => sft::rate(t),
            Kind::Cart => cart::rate(t),
            Kind::TokenWeight => token_weight::rate(t),
        };
        if rate == 0.0 { 0.0 } else { (rate as f32).max(self.rate_floor as f32) }
    }

    /// The factor of each answer token's `nll` in the batch's loss, normaliser included; 0 where it isn't masked.
    pub fn loss_weights(&self, batch: &[NoisedAnswer]) -> Vec<Vec<f32>> {
        self.loss_weights_within(batch, Counts::of(batch))
    }

    /// The same of some of a batch's answers.
    pub fn loss_weights_within(&self, answers: &[NoisedAnswer], batch: Counts) -> Vec<Vec<f32>> {
        let divided = |(answer, divisor): (&NoisedAnswer, f64)| {
            self.token_weights(answer).iter().map(|weight| (weight / divisor) as f32).collect()
        };
        answers.iter().zip(self.normalizer().divisors(answers, batch)).map(divided).collect()
    }

    /// The weight of each token before the normaliser, 0 where it isn't masked.
    fn token_weights(&self, answer: &NoisedAnswer) -> Vec<f64> {
        let weft = |r: f64, p: f64| weft::weight(self.weighting, answer.t, r, p);
        match self.kind {
            Kind::Weft => answer.of_masked(weft),
            Kind::Sft => answer.of_masked(|_, p| sft::weight(p)),
            Kind::Cart => cart::weights(answer.prompt_len, &answer.masked, self.geo_p),
            Kind::TokenWeight => answer.of_masked(token_weight::weight),
        }
    }
}

impl NoisedAnswer {
    /// `weight(r_i, t_i)` of each token, 0 where it isn't masked.
    fn of_masked(&self, weight: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let tokens = self.masked.iter().zip(&self.relative_uncertainty).zip(&self.p_mask);
        tokens.map(|((masked, r), p)| if *masked { weight((*r).into(), (*p).into()) } else { 0.0 }).collect()
    }
}
