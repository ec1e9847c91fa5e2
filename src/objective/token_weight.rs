//! Token weights: WeFT's uncertainty as a weight instead of a rate, the simple way that the paper compares itself with.
//!
//! ```text
//! t_i = t          the rate: SFT's
//! w_i = r_i / t_i  the weight of a masked token's nll; r_i as in WeFT
//! ```
//!
//! The mean of `r_i` over an answer is 1, so an answer weighs what it weighs in SFT; within it uncertain tokens count
//! more. What is visible while they are predicted is as in SFT: that is the difference to WeFT.
//!
//! # Source
//! WeFT, arXiv 2509.20863, the weighting that its rates are compared with.

/// `t_i = t`, the same for every token.
pub use super::sft::rate;

/// `r_i / t_i`, with `t_i` the rate that the token was masked at.
pub fn weight(r: f64, p_mask: f64) -> f64 {
    r / p_mask
}
