//! A sampler's predictions: the token of each row that the head's logits and a rule choose, and how confident the choice
//! is. Logits exist for a chunk of rows at a time and stay on the device; which predictions are kept is the caller's.

use crate::cpu;
use crate::cuda;
use crate::head_loss::Head;
use crate::tensor::Tensor;

/// How a token is chosen from a row of logits. The steps are taken in the fields' order.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Tokens that become impossible before anything else.
    pub forbidden: &'a [u32],
    /// What the logits are divided by.
    pub divisor: f32,
    /// Keep the most likely tokens until they hold more than this probability together; 1 keeps all.
    pub top_p: f64,
    /// Keep the tokens that are no less likely than the k-th; 0 keeps all.
    pub top_k: usize,
    /// A token that isn't chosen but keeps its share of the probability.
    pub excluded: Option<u32>,
    /// The factor of the Gumbel noise that is added to the logits before the largest is chosen; 0 is greedy.
    pub noise: f64,
    /// How the choice is rated.
    pub confidence: Confidence,
}

impl Rule<'_> {
    /// The most likely token, rated by its probability.
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

/// How confident a choice counts, of the probabilities `p` that are left after `top_p` and `top_k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// The chosen token's probability.
    Probability,
    /// The largest probability less the second largest.
    Margin,
    /// The negative entropy, `sum p ln(p + 1e-10)`.
    NegativeEntropy,
}

/// Names the Gumbel noise of a row: token `v`'s uniform number is drawn with this key at the counter
/// `[v, position + 1, 0, 2]`.
#[derive(Clone, Copy, Debug)]
pub struct RowDraw {
    /// The key of Philox.
    pub key: u64,
    /// The row's position in its sequence.
    pub position: u32,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Its id.
    pub token: u32,
    /// The rule's confidence in it.
    pub confidence: f64,
}

/// A second pass of the same rows, from which the logits are guided away: `u + (scale + 1) (l - u)`.
#[derive(Clone, Copy, Debug)]
pub struct Guidance<'a> {
    /// The head's inputs without the prompt, `[N, D]`.
    pub x: &'a Tensor,
    /// The guidance's scale.
    pub scale: f32,
}

impl Head<'_> {
    /// A prediction for each row of `x` `[N, D]`; `draws` `[N]` name its noise.
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
