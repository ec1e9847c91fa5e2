//! Which predictions a denoising step keeps, and how many.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::settings::in_plain_words;

/// The time at which Dream's schedule ends (`eps` in its code).
pub(crate) const T_END: f32 = 1e-3;

/// A sampling loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// LLaDA's: block by block, with a fixed number of tokens unmasked at each step.
    Llada,
    /// Dream's: the whole answer at once, with the tokens at each step given by a schedule of times.
    Dream,
}

/// How the confidence of a prediction is computed. The first two variants are LLaDA's, the others Dream's (its `alg`);
/// each variant uses the loop that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remasking {
    /// The predicted token's probability; the least confident stay masked.
    LowConfidence,
    /// A random number instead of a confidence; the lowest stay masked.
    Random,
    /// Keeps each masked token with the probability that the schedule gives, whatever its prediction.
    Origin,
    /// The predicted token's probability.
    MaskgitPlus,
    /// The probability of the likeliest token minus that of the second likeliest.
    TopkMargin,
    /// The negative entropy of the prediction.
    Entropy,
}

impl Remasking {
    /// The remasking that a model's authors recommend: Dream's where logits are shifted, as in Dream, DiffuCoder and
    /// Open-dLLM, else LLaDA's, as in LLaDA, iLLaDA and dLLM's A2D models.
    pub fn of(logits_shifted: bool) -> Self {
        if logits_shifted { Self::Entropy } else { Self::LowConfidence }
    }

    /// The sampling loop that uses this remasking.
    pub fn sampling_loop(self) -> Loop {
        match self {
            Self::LowConfidence | Self::Random => Loop::Llada,
            Self::Origin | Self::MaskgitPlus | Self::TopkMargin | Self::Entropy => Loop::Dream,
        }
    }

    /// Parses the name of a remasking.
    ///
    /// # Errors
    /// An unknown name, with those that are known.
    pub fn parse(name: &str) -> Result<Self> {
        serde_json::from_value(name.into()).map_err(|e: serde_json::Error| Error::Usage(in_plain_words(&e.to_string())))
    }

    /// The remasking's name.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).expect("a name is JSON");
        name.as_str().expect("a name is text").to_owned()
    }
}

/// How many tokens are unmasked at each of a block's steps: an even split, with the remainder in the first steps.
pub fn num_transfer_tokens(num_masked: usize, diffusion_steps: usize) -> Vec<usize> {
    let (base, extra) = (num_masked / diffusion_steps, num_masked % diffusion_steps);
    (0..diffusion_steps).map(|step| base + usize::from(step < extra)).collect()
}

/// The share of the masked tokens that is unmasked at each of Dream's steps: `1 - t_(i+1) / t_i` for times spaced
/// evenly from 1 to `T_END`, and all of them at the last step. The times are computed in f32 from both ends, as
/// `torch.linspace` does: the number of tokens is rounded down, so a single bit may move a token to another step.
pub fn transfer_shares(diffusion_steps: usize) -> Vec<f32> {
    let stride = (T_END - 1.0) / diffusion_steps as f32;
    let time = |i: usize| match i < diffusion_steps.div_ceil(2) {
        true => 1.0 + stride * i as f32,
        false => T_END - stride * (diffusion_steps - i) as f32,
    };
    let is_last = |i| i + 1 == diffusion_steps;
    (0..diffusion_steps).map(|i| if is_last(i) { 1.0 } else { 1.0 - time(i + 1) / time(i) }).collect()
}

/// The `count` indices of highest confidence; of equal ones, the earlier come first.
pub(crate) fn most_confident(confidence: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..confidence.len()).collect();
    order.sort_by(|a, b| confidence[*b].total_cmp(&confidence[*a]));
    order.truncate(count);
    order
}

/// The indices whose confidence is at least `threshold`, and always the most confident one.
///
/// # Source
/// Fast-dLLM, arXiv 2505.22618, algorithm 1.
pub fn confident(confidence: &[f64], threshold: f64) -> Vec<usize> {
    let count = confidence.iter().filter(|c| **c >= threshold).count();
    most_confident(confidence, count.max(1))
}
