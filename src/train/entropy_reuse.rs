//! Token entropies kept from epoch to epoch (`objective.entropy_every`), and how far they drift in the meantime.

use std::collections::BTreeMap;

use serde::Serialize;

/// The entropies that are reused; empty if they are computed in every epoch.
#[derive(Debug)]
pub(crate) struct EntropyReuse {
    every: u64,
    /// The entropies of each example.
    pub(super) kept: BTreeMap<usize, KeptEntropy>,
}

/// One answer's token entropies in nats, and the epoch in which they were computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeptEntropy {
    pub(super) epoch: u64,
    pub(super) token_entropy: Vec<f32>,
}

/// How far reused entropies are from fresh ones, as means over answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Spearman's rank correlation over an answer's tokens: 1 where the order is the same.
    pub rank_correlation: f64,
    /// The mean of `|H_reused - H_fresh|`, in nats.
    pub mean_change: f64,
}

impl EntropyReuse {
    /// Reuses each example's entropies until they are `every` epochs old.
    pub fn new(every: u64) -> Self {
        Self { every, kept: BTreeMap::new() }
    }

    /// The kept entropies of an example, unless they have to be computed anew.
    pub(crate) fn reusable(&self, example: usize, epoch: u64) -> Option<&[f32]> {
        let kept = self.kept.get(&example).filter(|kept| epoch - kept.epoch < self.every)?;
        Some(&kept.token_entropy)
    }

    /// Keeps fresh entropies unless some aren't finite; returns their drift from those that they replace.
    pub fn keep(&mut self, example: usize, epoch: u64, fresh: &[f32]) -> Option<Drift> {
        if self.every <= 1 || fresh.iter().any(|h| !h.is_finite()) {
            return None;
        }
        let kept = KeptEntropy { epoch, token_entropy: fresh.to_vec() };
        let replaced = self.kept.insert(example, kept)?;
        // The row occurs twice in a step: nothing was reused.
        if replaced.epoch == epoch {
            return None;
        }
        Some(Drift::between(&replaced.token_entropy, fresh))
    }
}

impl Drift {
    /// The drift of one answer's entropies.
    pub fn between(reused: &[f32], fresh: &[f32]) -> Self {
        let change: f64 = reused.iter().zip(fresh).map(|(a, b)| f64::from((a - b).abs())).sum();
        let mean_change = change / fresh.len().max(1) as f64;
        Self { rank_correlation: rank_correlation(reused, fresh), mean_change }
    }

    /// The mean over answers; `None` if there are none.
    pub fn mean(drifts: &[Self]) -> Option<Self> {
        let mean = |of: fn(&Self) -> f64| drifts.iter().map(of).sum::<f64>() / drifts.len() as f64;
        let of_some = || Self { rank_correlation: mean(|d| d.rank_correlation), mean_change: mean(|d| d.mean_change) };
        (!drifts.is_empty()).then(of_some)
    }
}

/// Spearman's rank correlation, where equal numbers share the mean of their ranks; 1 if either row has only one rank.
fn rank_correlation(a: &[f32], b: &[f32]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    // The ranks are 1 to n, so their mean doesn't depend on ties.
    let mean = (a.len() + 1) as f64 / 2.0;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if scale > 0.0 { dot(&a, &b) / scale } else { 1.0 }
}

fn ranks(numbers: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|i, j| numbers[*i].total_cmp(&numbers[*j]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut done = 0;
    for equal in order.chunk_by(|i, j| numbers[*i] == numbers[*j]) {
        let rank = done as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|i| ranks[*i] = rank);
        done += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_spearmans() {
        // scipy.stats.spearmanr([1, 2, 2, 4, 5], [5, 6, 7, 8, 7]) = 0.7631578947368421, by hand from shared ranks.
        let got = rank_correlation(&[1.0, 2.0, 2.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]);
        assert!((got - 0.763_157_894_736_842_1).abs() < 1e-12, "{got}");
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]), -1.0);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), 1.0);
    }

    #[test]
    fn entropies_are_reused_until_they_are_old() {
        let mut reuse = EntropyReuse::new(3);
        assert_eq!(reuse.reusable(7, 0), None);
        assert_eq!(reuse.keep(7, 0, &[1.0, 2.0]), None);
        assert_eq!(reuse.reusable(7, 2), Some(&[1.0, 2.0][..]));
        assert_eq!(reuse.reusable(7, 3), None);
        let drift = reuse.keep(7, 3, &[1.5, 1.0]).expect("two sets");
        assert_eq!((drift.rank_correlation, drift.mean_change), (-1.0, 0.75));
        assert_eq!(reuse.reusable(7, 5), Some(&[1.5, 1.0][..]));
        // A step that went wrong keeps no entropies.
        assert_eq!(reuse.keep(7, 6, &[f32::NAN, 1.0]), None);
        assert_eq!((reuse.reusable(7, 5), reuse.reusable(7, 6)), (Some(&[1.5, 1.0][..]), None));
        assert_eq!(EntropyReuse::new(1).keep(0, 0, &[1.0]), None);
    }
}
