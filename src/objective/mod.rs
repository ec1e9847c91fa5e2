//! What is trained: each objective defines how often a token is masked (its rate) and the weight of its loss. One file
//! per objective holds the two formulas; here they are combined with the draws and the normaliser. Everything is a pure
//! function of entropies and draws, with no model and no randomness.

use serde::{Deserialize, Serialize};
use weft_kernels::precision::Precision;

use crate::noising::entropy::{AnswerEntropy, Reference, Transform, relative_uncertainty};
use crate::noising::forward_process;
use crate::noising::schedule::T_MIN;

pub mod blocks;
pub mod cart;
pub mod lift;
pub(crate) mod normalizer;
pub(crate) mod sft;
pub(crate) mod token_weight;
pub mod weft;

pub use blocks::Blocks;
pub use lift::{LiftDraws, LiftPolicy};
pub use normalizer::{Counts, Normalizer};
pub use weft::Weighting;

/// The objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// WeFT: rates from entropies ([`weft`]).
    #[default]
    #[serde(alias = "gift")]
    Weft,
    /// SFT: one rate for a whole answer, as in LLaDA's loss (`sft`).
    Sft,
    /// CART: SFT's rates, and weights from the clean context, as in Dream's loss ([`cart`]).
    Cart,
    /// Token weights: SFT's rates, and weights from entropies (`token_weight`).
    TokenWeight,
    /// LIFT: of a larger mask, the easiest, the hardest or random tokens stay masked ([`lift`]).
    Lift,
}

impl Kind {
    /// Every objective.
    pub const ALL: [Self; 5] = [Self::Weft, Self::Sft, Self::Cart, Self::TokenWeight, Self::Lift];

    /// The objective's name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Sft => "sft",
            Self::Cart => "cart",
            Self::TokenWeight => "token_weight",
            Self::Lift => "lift",
        }
    }

    /// Whether the objective needs token entropies, and so pass 1.
    pub fn needs_entropy(self) -> bool {
        matches!(self, Self::Weft | Self::TokenWeight)
    }

    /// Whether the objective needs a pass without gradient before its own: for entropies, or to rank tokens.
    pub fn needs_pass_1(self) -> bool {
        self.needs_entropy() || self == Self::Lift
    }

    /// The default divisor: the masked tokens for WeFT, as in its paper's algorithm, for token weights, which are there
    /// to be compared with it, and for CART, as in Dream's code; the answer tokens for SFT, whose sum over them is a
    /// bound, and for LIFT, as in its code.
    pub fn normalizer(self) -> Normalizer {
        match self {
            Self::Sft | Self::Lift => Normalizer::Answer,
            Self::Weft | Self::Cart | Self::TokenWeight => Normalizer::Masked,
        }
    }
}

/// What is trained: the recipe's `objective` table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Objective {
    /// The objective, which sets the rates and weights.
    pub kind: Kind,
    /// How an entropy becomes `beta` (weft, token_weight).
    pub transform: Transform,
    /// The scope of `beta_ref` (weft, token_weight).
    pub reference: Reference,
    /// The factor of a masked token's loss (weft).
    pub weighting: Weighting,
    /// The success probability of the geometric distribution of distances (cart).
    pub geo_p: f64,
    /// The divisor of the loss; `None` takes the kind's own (see [`Kind::normalizer`]).
    pub normalizer: Option<Normalizer>,
    /// A lower bound on `t_i`; 0 turns it off.
    pub rate_floor: f64,
    /// The lower cut of `t`.
    pub t_min: f64,
    /// An example's entropies are computed once in this many epochs and reused in between (weft, token_weight); 1 reuses
    /// none.
    pub entropy_every: u64,
    /// The format of matmuls' operands in the pass for entropies; `None` takes `model.precision` (weft, token_weight).
    pub entropy_precision: Option<Precision>,
    /// Which part of an answer is noised at once, and what the network sees of the rest.
    pub blocks: Blocks,
    /// Tokens per block (blockwise, bd3lm).
    pub block_length: usize,
    /// How the tokens of the larger mask that stay masked are chosen (lift).
    pub lift_policy: LiftPolicy,
    /// Whether an example is trained twice, with its mask and with the mask's complement in the answer.
    pub complementary: bool,
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
            blocks: Blocks::None,
            block_length: blocks::BLOCK_LENGTH,
            lift_policy: LiftPolicy::Random,
            complementary: false,
        }
    }
}

/// One answer and its draws, before the forward process.
#[derive(Clone, Copy, Debug)]
pub struct DrawnAnswer<'a> {
    /// The number of prompt tokens before the answer.
    pub prompt_len: usize,
    /// The answer's token entropies; not read if [`Kind::needs_entropy`] is false.
    pub entropy: AnswerEntropy<'a>,
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// A uniform draw in `[0, 1)` for each token.
    pub u: &'a [f32],
}

/// One answer after the forward process.
#[derive(Clone, Debug)]
pub struct NoisedAnswer {
    /// The number of prompt tokens before the answer, which are clean.
    pub prompt_len: usize,
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// `r_i` of each token; 1 if the objective uses no entropies.
    pub relative_uncertainty: Vec<f32>,
    /// `t_i` of each token.
    pub p_mask: Vec<f32>,
    /// Whether each token was masked.
    pub masked: Vec<bool>,
    /// Whether the mask is the complement of a drawn one.
    pub is_complement: bool,
}

impl Objective {
    /// The divisor of the loss.
    pub fn normalizer(&self) -> Normalizer {
        self.normalizer.unwrap_or(self.kind.normalizer())
    }

    /// The forward process of a micro-batch: relative uncertainties, rates, masks. LIFT gets SFT's masks here, because its own
    /// depend on the model and are made by [`Objective::lift`].
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
            NoisedAnswer { prompt_len, t, relative_uncertainty, p_mask, masked, is_complement: false }
        };
        batch.iter().zip(relative).map(noise).collect()
    }

    /// LIFT's forward process of an answer, given the log-probability of each of its tokens with all candidates masked.
    pub fn lift(&self, prompt_len: usize, draws: &LiftDraws, log_probability: &[f32]) -> NoisedAnswer {
        let (masked, t) = (draws.kept(self.lift_policy, log_probability), draws.t);
        let [relative_uncertainty, p_mask] = [1.0, self.rate(t, 1.0)].map(|x| vec![x; masked.len()]);
        NoisedAnswer { prompt_len, t, relative_uncertainty, p_mask, masked, is_complement: false }
    }

    /// The rate of a token with relative uncertainty `r` at time `t`, raised to `rate_floor` unless it is 0.
    pub fn rate(&self, t: f64, r: f32) -> f32 {
        let rate = match self.kind {
            Kind::Weft => weft::rate(t, f64::from(r)),
            Kind::Sft => sft::rate(t),
            Kind::Cart => cart::rate(t),
            Kind::TokenWeight => token_weight::rate(t),
            Kind::Lift => lift::rate(t),
        };
        if rate == 0.0 { 0.0 } else { (rate as f32).max(self.rate_floor as f32) }
    }

    /// The weight of each answer token's `nll` in the batch's loss, including the normaliser; 0 if the token isn't
    /// masked.
    pub fn loss_weights(&self, batch: &[NoisedAnswer]) -> Vec<Vec<f32>> {
        self.loss_weights_within(batch, Counts::of(batch))
    }

    /// Like [`Objective::loss_weights`], for some of a batch's answers.
    pub fn loss_weights_within(&self, answers: &[NoisedAnswer], batch: Counts) -> Vec<Vec<f32>> {
        let divided = |(answer, divisor): (&NoisedAnswer, f64)| {
            self.token_weights(answer).iter().map(|weight| (weight / divisor) as f32).collect()
        };
        answers.iter().zip(self.normalizer().divisors(answers, batch)).map(divided).collect()
    }

    /// The weight of each token before normalisation; 0 if it isn't masked.
    fn token_weights(&self, answer: &NoisedAnswer) -> Vec<f64> {
        let weft = |r: f64, p: f64| match answer.is_complement {
            false => weft::weight(self.weighting, answer.t, r, p),
            true => weft::complement_weight(self.weighting, answer.t, r, p),
        };
        match self.kind {
            Kind::Weft => answer.of_masked(weft),
            Kind::Sft => answer.of_masked(|_, p| sft::weight(p)),
            Kind::Cart => cart::weights(answer.prompt_len, &answer.masked, self.geo_p),
            Kind::TokenWeight => answer.of_masked(token_weight::weight),
            Kind::Lift => answer.of_masked(|_, p| lift::weight(p)),
        }
    }
}

impl NoisedAnswer {
    /// The answer under the complement of its mask: a token that was masked at rate `t_i` is masked at `1 - t_i`, and time
    /// is `1 - t`. Neither falls below `t_min`, so that no weight explodes.
    pub fn complement(&self, t_min: f64) -> Self {
        Self {
            prompt_len: self.prompt_len,
            t: (1.0 - self.t).max(t_min),
            relative_uncertainty: self.relative_uncertainty.clone(),
            p_mask: self.p_mask.iter().map(|p| (1.0 - p).max(t_min as f32)).collect(),
            masked: self.masked.iter().map(|masked| !masked).collect(),
            is_complement: true,
        }
    }

    /// `weight(r_i, t_i)` of each token; 0 if it isn't masked.
    fn of_masked(&self, weight: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let tokens = self.masked.iter().zip(&self.relative_uncertainty).zip(&self.p_mask);
        tokens.map(|((masked, r), p)| if *masked { weight((*r).into(), (*p).into()) } else { 0.0 }).collect()
    }
}
