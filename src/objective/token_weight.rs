//! Token weights: WeFT's uncertainty as a weight instead of a rate, the simple alternative with which the paper
//! compares.
//!
//! ```text
//! t_i = t          the rate: SFT's
//! w_i = r_i / t_i  the weight of a masked token's nll; r_i as in WeFT
//! ```
//!
//! The mean of `r_i` over an answer is 1, so an answer weighs what it weighs in SFT; within it, uncertain tokens count
//! more. The context in which they are predicted is SFT's: that is the difference from WeFT.
//!
//! # Source
//! WeFT, arXiv 2509.20863, the weighting with which its rates are compared.

/// `t_i = t`, the same for every token.
pub use super::sft::rate;

/// `r_i / t_i`, where `t_i` is the rate at which the token was masked.
pub fn weight(r: f64, p_mask: f64) -> f64 {
    r / p_mask
}
