//! SFT: one rate for a whole answer.
//!
//! ```text
//! t_i = t        the rate: every answer token is masked with probability t
//! w_i = 1 / t_i  the weight of a masked token's nll
//! ```
//!
//! Divided by the answer's tokens, its expectation over `t ~ U(0, 1)` bounds the answer's negative log-likelihood.
//!
//! # Source
//! LLaDA, arXiv 2502.09992, equation 5; in code `p_mask` of ML-GSAI/LLaDA, GUIDELINES.md.

/// `t_i = t`, the same for every token.
pub fn rate(t: f64) -> f64 {
    t
}

/// `1 / t_i`, where `t_i` is the rate at which the token was masked.
pub fn weight(p_mask: f64) -> f64 {
    1.0 / p_mask
}
