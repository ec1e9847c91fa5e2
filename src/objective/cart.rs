//! CART: a masked token's weight grows with the clean tokens close to it (context-adaptive reweighting).
//!
//! ```text
//! t_i = t                                                  the rate: SFT's
//! w_n = sum over clean j of p (1 - p)^(|n - j| - 1) / 2    the weight of a masked token n's nll
//! ```
//!
//! The weight replaces `1 / t`. Every unmasked position of the sequence is clean context, including the prompt (and
//! unmasked padding, if answers are padded). The geometric distribution of a distance sums to 1 and each side gets half
//! of it, so `w_n` lies in `[0, 1]`; for `p < 1` it is 0 only if no token is clean.
//!
//! # Source
//! Dream, arXiv 2508.15487; DreamLM/Dream, src/trainer/fsdp_sft_trainer.py (`time_reweighting: cart`; `cart_p: 0.1` in
//! src/trainer/config/sft_trainer.yaml), which divides by the masked tokens. dLLM's `cart_weight` (ZHZisZZ/dllm,
//! dllm/pipelines/dream/trainer.py, p = 0.3) counts each distance one short: there neighbours weigh nothing, and tokens
//! at distance 2 weigh what neighbours weigh here.

/// `p` in Dream's shipped configuration.
pub(crate) const GEO_P: f64 = 0.1;

/// `t_i = t`, the same for every token.
pub use super::sft::rate;

/// `w_n` of each token of an answer that follows a prompt of `prompt_len` tokens; 0 if the token isn't masked.
///
/// Two sweeps replace the sum over pairs: the left context of token n, `s_n = sum over clean j < n of (1 - p)^(n - j -
/// 1)`, is `(1 - p) s_(n-1)`, plus 1 if token n - 1 is clean; the right context is computed likewise.
pub fn weights(prompt_len: usize, masked: &[bool], geo_p: f64) -> Vec<f64> {
    let pass = |side: f64, is_clean: bool| (1.0 - geo_p) * side + if is_clean { 1.0 } else { 0.0 };
    let mut weights = vec![0.0; masked.len()];
    let mut left = (0..prompt_len).fold(0.0, |side, _| pass(side, true));
    for (weight, masked) in weights.iter_mut().zip(masked) {
        *weight += left;
        left = pass(left, !masked);
    }
    let mut right = 0.0;
    for (weight, masked) in weights.iter_mut().zip(masked).rev() {
        *weight = if *masked { geo_p * (*weight + right) / 2.0 } else { 0.0 };
        right = pass(right, !masked);
    }
    weights
}
