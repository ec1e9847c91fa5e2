//! A sampler's predictions: for each row, the token that a rule chooses from the head's logits, and the confidence of
//! that choice. Logits exist for a chunk of rows at a time and stay on the device; the caller decides which predictions
//! are kept.

use crate::cpu;
use crate::cuda;
use crate::head_loss::Head;
use crate::tensor::Tensor;

/// How a token is chosen from a row of logits. The steps are applied in the order of the fields.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Tokens that become impossible before any other step.
    pub forbidden: &'a [u32],
    /// The logits are divided by this.
    pub divisor: f32,
    /// Keeps the most likely tokens until together they hold more than this probability; 1 keeps all.
    pub top_p: f64,
    /// Keeps the tokens that are no less likely than the k-th; 0 keeps all.
    pub top_k: usize,
    /// A token that is never chosen but keeps its share of the probability.
    pub excluded: Option<u32>,
    /// The factor of the Gumbel noise that is added to the logits before the largest is chosen; 0 is greedy.
    pub noise: f64,
    /// How the confidence of the choice is measured.
    pub confidence: Confidence,
}

impl Rule<'_> {
    /// Chooses the most likely token, with its probability as the confidence.
    pub const GREEDY: Self = Self {
        forbidden: &[],
        divisor: 1.0,
        top_p: 1.0,
        top_k: 0,
        excluded: None,
        noise: 0.0,
        confidence: Confidence::Probability,
    };
}

/// A measure of confidence, in terms of the probabilities `p` that are left after `top_p` and `top_k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// The chosen token's probability.
    Probability,
    /// The largest probability minus the second largest.
    Margin,
    /// The negative entropy, `sum p ln(p + 1e-10)`.
    NegativeEntropy,
}

/// Names the Gumbel noise of a row: the uniform number of token `v` is drawn with this key at the counter `[v, position
/// + 1, 0, 2]`.
#[derive(Clone, Copy, Debug)]
pub struct RowDraw {
    /// The key for Philox.
    pub key: u64,
    /// The row's position in its sequence.
    pub position: u32,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The id of the token.
    pub token: u32,
    /// The confidence in the token, as the rule measures it.
    pub confidence: f64,
}

/// A second pass over the same rows whose logits guide the first pass: `u + (scale + 1) (l - u)`.
#[derive(Clone, Copy, Debug)]
pub struct Guidance<'a> {
    /// The head's inputs without the prompt, `[N, D]`.
    pub x: &'a Tensor,
    /// The scale of the guidance.
    pub scale: f32,
}

impl Head<'_> {
    /// A prediction for each row of `x` `[N, D]`; `draws` `[N]` name the noise of each row.
    ///
    /// # Source
    /// LLaDA's public `generate` (Gumbel noise in f64) and Dream's public `generation_utils` (`top_p`, `top_k`, margin and
    /// entropy).
    pub fn predict(&self, x: &Tensor, guidance: Option<Guidance>, draws: &[RowDraw], rule: &Rule) -> Vec<Prediction> {
        match x {
            Tensor::Host(x) => {
                let guidance = guidance.map(|g| (g.x.host().into(), g.scale));
                cpu::predict::predict(self, x.into(), guidance, draws, rule)
            }
            Tensor::Gpu(x) => {
                let guidance = guidance.map(|g| (g.x.array(), g.scale));
                cuda::predict::predict(self, x, guidance, draws, rule)
            }
        }
    }
}
