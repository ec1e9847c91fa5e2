//! Which predictions a denoising step keeps.

use serde::{Deserialize, Serialize};

/// How confident a prediction counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remasking {
    /// The predicted token's probability; the least confident stay masked.
    #[default]
    LowConfidence,
    /// A random number.
    Random,
}

/// How many tokens unmask at each of a block's steps: an even split, the remainder in the first steps.
pub fn num_transfer_tokens(num_masked: usize, diffusion_steps: usize) -> Vec<usize> {
    let (base, extra) = (num_masked / diffusion_steps, num_masked % diffusion_steps);
    (0..diffusion_steps).map(|step| base + usize::from(step < extra)).collect()
}

/// The `count` indices of highest confidence, the earlier first among equals.
pub fn most_confident(confidence: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..confidence.len()).collect();
    order.sort_by(|a, b| confidence[*b].total_cmp(&confidence[*a]));
    order.truncate(count);
    order
}
