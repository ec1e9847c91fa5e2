//! LIFT: of a mask larger than SFT's, only the tokens that are the easiest to predict stay masked, or only the hardest, or
//! random ones; which of the three is decided by time, or by a draw.
//!
//! ```text
//! rho = low + (1 - t - low) v     the margin, v ~ U(0, 1); low = 0.1 where 1 - t > 0.1, otherwise 0
//! token i is a candidate where u_i < t + rho
//! l_i = ln p(x_i)                 of each candidate, with all candidates masked (one pass without gradient)
//! k = round(n t / (t + rho))      of the n candidates stay masked (halves to even); the others are filled in
//!   most likely                   those with the largest l_i  ("topk" in the authors' code)
//!   least likely                  those with the smallest l_i ("bottomk")
//!   random                        those with the largest s_i, s_i ~ U(0, 1) ("vanilla")
//! w_i = 1 / t                     the weight of a masked token's nll, as in SFT
//!
//! policy random                   each of the three with probability 1/3
//! policy time                     the one with the largest weight: t for the most likely, 1 - t for the least likely,
//!                                 3 t (1 - t) for random ones
//! ```
//!
//! With the policy `time`, easy tokens are trained where much is masked (t above 2/3), hard ones where little is (t below
//! 1/3), and random ones in between. The expected number of masked tokens is SFT's, `t` times the answer's length.
//!
//! # Source
//! LIFT, arXiv 2605.22939; divelab/LIFT, SFT/sft_trainer.py, which draws `rho` before it cuts t at 1e-3 (here after it, so
//! that `t + rho` is at most 1) and lets at least one random candidate stay masked.

use serde::{Deserialize, Serialize};

/// The least margin, where there is room for it.
pub(crate) const LEAST_MARGIN: f64 = 0.1;

/// How the candidates that stay masked are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LiftPolicy {
    /// Each choice is equally likely.
    #[default]
    Random,
    /// The choice with the largest weight at the example's time.
    Time,
}

/// Which candidates stay masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Random ones; no pass is needed.
    Random,
    /// The most likely ones.
    MostLikely,
    /// The least likely ones.
    LeastLikely,
}

/// The draws of one answer.
#[derive(Clone, Copy, Debug)]
pub struct LiftDraws<'a> {
    /// Diffusion time in `(0, 1]`.
    pub t: f64,
    /// The draw of the margin in `[0, 1)`.
    pub v: f64,
    /// The draw of the choice in `[0, 1)`, which only the policy `random` reads.
    pub choice: f64,
    /// A draw in `[0, 1)` for each token: whether it is a candidate.
    pub u: &'a [f32],
    /// A draw in `[0, 1)` for each token: its rank among random candidates.
    pub s: &'a [f32],
}

impl LiftDraws<'_> {
    /// The margin.
    pub fn rho(&self) -> f64 {
        let room = 1.0 - self.t;
        let low = if room > LEAST_MARGIN { LEAST_MARGIN } else { 0.0 };
        low + (room - low) * self.v
    }

    /// Which tokens are candidates.
    pub fn candidates(&self) -> Vec<bool> {
        let rate = (self.t + self.rho()) as f32;
        self.u.iter().map(|u| *u < rate).collect()
    }

    /// Which candidates stay masked.
    pub fn chosen(&self, policy: LiftPolicy) -> Choice {
        let t = self.t;
        let weights = [(Choice::Random, 3.0 * t * (1.0 - t)), (Choice::MostLikely, t), (Choice::LeastLikely, 1.0 - t)];
        match policy {
            LiftPolicy::Random => weights[((self.choice * 3.0) as usize).min(2)].0,
            LiftPolicy::Time => {
                let first = weights[0];
                weights.into_iter().fold(first, |best, next| if next.1 > best.1 { next } else { best }).0
            }
        }
    }

    /// The number of candidates that stay masked.
    pub fn num_kept(&self, candidates: usize) -> usize {
        let share = (self.t / (self.t + self.rho())).clamp(1e-3, 1.0);
        (candidates as f64 * share).round_ties_even() as usize
    }

    /// Which tokens stay masked, given the log-probability of each answer's token; those of other tokens than candidates
    /// aren't read, nor any if the choice is random. Of equal ones, the earlier stay masked.
    pub fn kept(&self, policy: LiftPolicy, log_probability: &[f32]) -> Vec<bool> {
        let is_candidate = self.candidates();
        let mut order: Vec<usize> = (0..is_candidate.len()).filter(|i| is_candidate[*i]).collect();
        match self.chosen(policy) {
            Choice::Random => order.sort_by(|a, b| self.s[*b].total_cmp(&self.s[*a])),
            Choice::MostLikely => order.sort_by(|a, b| log_probability[*b].total_cmp(&log_probability[*a])),
            Choice::LeastLikely => order.sort_by(|a, b| log_probability[*a].total_cmp(&log_probability[*b])),
        }
        let mut kept = vec![false; is_candidate.len()];
        order.iter().take(self.num_kept(order.len())).for_each(|i| kept[*i] = true);
        kept
    }
}

/// `t`, the rate at which tokens stay masked on average.
pub use super::sft::rate;

/// `1 / t`.
pub use super::sft::weight;
