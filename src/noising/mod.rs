//! The forward process: relative uncertainties, diffusion time, and which answer tokens are masked. Pure functions of
//! entropies and draws; at what rate a token is masked and what its loss then weighs is `objective`'s.

pub mod entropy;
pub mod schedule;

/// Masks answer token `i` where its draw `u_i` in `[0, 1)` lies below its rate: `P(masked) = p_mask_i`.
/// Prompt tokens are not passed here and so never masked.
pub fn forward_process(p_mask: &[f32], u: &[f32]) -> Vec<bool> {
    assert_eq!(p_mask.len(), u.len(), "one draw for each answer token");
    p_mask.iter().zip(u).map(|(p, u)| u < p).collect()
}
