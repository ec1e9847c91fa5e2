//! The forward process: relative uncertainties, diffusion time, and which answer tokens are masked. These are pure
//! functions of entropies and draws; the rate at which a token is masked and the weight of its loss are `objective`'s.

pub mod entropy;
pub mod schedule;

/// Masks answer token `i` if its draw `u_i` in `[0, 1)` is below its rate: `P(masked) = p_mask_i`. Prompt tokens aren't
/// passed here, so they are never masked.
pub fn forward_process(p_mask: &[f32], u: &[f32]) -> Vec<bool> {
    assert_eq!(p_mask.len(), u.len(), "one draw for each answer token");
    p_mask.iter().zip(u).map(|(p, u)| u < p).collect()
}
