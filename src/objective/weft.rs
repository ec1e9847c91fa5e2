//! WeFT: a token that the model is uncertain about is masked more often.
//!
//! ```text
//! H_i = -sum_v p_iv ln p_iv       entropy of answer token i, the whole answer masked (pass 1)
//! r_i = sqrt(H_i) / beta_ref      its relative uncertainty; beta_ref: the answer's mean of sqrt(H)
//! t_i = 1 - (1 - t)^r_i           the rate
//! w_i = 1 / t_i                   the weight of a masked token's nll, as published
//! w_i = r_i (1 - t)^(r_i - 1) / t_i   the exact weight in continuous time, which the paper drops
//! ```
//!
//! `r_i` comes from `noising::entropy`. If all entropies are equal, every `r_i` is 1 and WeFT is SFT; a token with `r_i
//! = 0` is never masked.
//!
//! # Source
//! WeFT, arXiv 2509.20863 (later versions: GIFT). The exact weight is `(d t_i / d t) / t_i`, by the ELBO of masked
//! diffusion in continuous time (MDLM, arXiv 2406.07524) with `1 - t_i` as the token's own schedule.

use serde::{Deserialize, Serialize};

/// The factor of a masked token's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// `1 / t_i`, as published.
    #[default]
    Inverse,
    /// `r_i (1 - t)^(r_i - 1) / t_i`, the exact continuous-time weight.
    Elbo,
}

/// `t_i = 1 - (1 - t)^r_i`; at `t = 1` every token with `r_i > 0` is masked.
pub fn rate(t: f64, r: f64) -> f64 {
    // ln_1p(-1) is -infinity, and 0 times that is NaN.
    if r == 0.0 { 0.0 } else { -f64::exp_m1(r * f64::ln_1p(-t)) }
}

/// The weight of a token that was masked at rate `p_mask = t_i`.
pub fn weight(weighting: Weighting, t: f64, r: f64, p_mask: f64) -> f64 {
    match weighting {
        Weighting::Inverse => 1.0 / p_mask,
        // At r = 1 the power is 1 for every t, including 0^0 at t = 1.
        Weighting::Elbo => r * (1.0 - t).powf(r - 1.0) / p_mask,
    }
}

/// The weight of a token that was masked at rate `p_mask = 1 - t_i` as part of a mask's complement, whose time is `t`. The
/// token's own schedule is then `t^r`, so the exact weight is `r / t`.
pub(crate) fn complement_weight(weighting: Weighting, t: f64, r: f64, p_mask: f64) -> f64 {
    match weighting {
        Weighting::Inverse => 1.0 / p_mask,
        Weighting::Elbo => r / t,
    }
}
