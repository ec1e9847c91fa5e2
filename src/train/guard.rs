//! Which steps are taken. A step whose numbers aren't finite never is; a step whose gradient is far larger than those
//! before it is skipped if the recipe asks for that. A skipped step leaves the model and the optimizer unchanged.
//! Everything is a function of the steps so far and is stored in each checkpoint. Finding out where numbers went wrong
//! is `diagnosis`'s task.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::settings::TrainTable;

/// How many gradient norms a spike is measured against.
pub(crate) const WINDOW: usize = 64;
/// The fewest of these norms: before that, no step counts as a spike.
pub const LEAST: usize = 16;
/// The number of skipped steps in a row after which the run stops anyway.
pub const MOST_IN_A_ROW: u64 = 8;

/// What happens to a run whose loss or gradient isn't finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// The run ends.
    #[default]
    Stop,
    /// The step is skipped and counted.
    Skip,
}

/// Why a step is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The step's loss, gradient or entropies aren't finite.
    NonFinite,
    /// The step's gradient is a spike.
    Spike,
}

/// A step that was skipped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skip {
    /// Why the step was skipped.
    pub reason: Reason,
    /// The reason in words, with the values.
    pub why: String,
    /// The step's examples, counted from 0 over all rows.
    pub examples: Vec<usize>,
}

/// The number of skipped steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Steps whose numbers weren't finite.
    pub non_finite: u64,
    /// Steps whose gradient was a spike.
    pub spikes: u64,
}

impl Skipped {
    /// All skipped steps.
    pub fn total(self) -> u64 {
        self.non_finite + self.spikes
    }
}

/// What is remembered of a run's steps so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// The steps that were skipped.
    pub skipped: Skipped,
    /// How many of the latest steps were skipped in a row.
    pub in_a_row: u64,
    /// The gradient norms of the latest finite steps, including spikes; empty if spikes aren't looked for.
    norms: VecDeque<f64>,
}

impl Guard {
    /// The norm above which a gradient is a spike, and the median from which it is computed; `None` if there are too
    /// few steps to tell, if most of them had no gradient, or if `spike_factor` is 0.
    ///
    /// The median is over all recent norms, including spikes: a single spike doesn't move it, and norms that grow for
    /// good become normal after half a window. Means and deviations would be moved by the spikes that they are meant to
    /// find.
    pub fn limit(&self, spike_factor: f64) -> Option<(f64, f64)> {
        if spike_factor == 0.0 || self.norms.len() < LEAST {
            return None;
        }
        let mut sorted: Vec<f64> = self.norms.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] };
        // If nothing was masked there is no gradient, and nothing to measure against.
        (median > 0.0).then_some((spike_factor * median, median))
    }

    /// Whether a step has to be skipped, and why.
    pub(crate) fn judge(&self, is_finite: bool, grad_norm: f64, settings: &TrainTable) -> Option<Reason> {
        match self.limit(settings.spike_factor) {
            _ if !is_finite => Some(Reason::NonFinite),
            Some((limit, _)) if grad_norm > limit => Some(Reason::Spike),
            _ => None,
        }
    }

    /// Remembers a step: its norm, and why it was skipped, if it was.
    pub(crate) fn remember(&mut self, grad_norm: f64, settings: &TrainTable, skipped: Option<Reason>) {
        if settings.spike_factor > 0.0 && skipped != Some(Reason::NonFinite) {
            self.norms.push_back(grad_norm);
            while self.norms.len() > WINDOW {
                self.norms.pop_front();
            }
        }
        self.in_a_row = if skipped.is_some() { self.in_a_row + 1 } else { 0 };
        match skipped {
            Some(Reason::NonFinite) => self.skipped.non_finite += 1,
            Some(Reason::Spike) => self.skipped.spikes += 1,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(spike_factor: f64) -> TrainTable {
        TrainTable { spike_factor, ..TrainTable::default() }
    }

    #[test]
    fn a_spike_is_measured_by_the_median_of_enough_steps() {
        let (settings, mut guard) = (settings(3.0), Guard::default());
        for step in 0..LEAST {
            assert_eq!(guard.judge(true, 1e9, &settings), None, "step {step}: too few to tell");
            guard.remember(1.0 + (step % 2) as f64, &settings, None);
        }
        assert_eq!(guard.limit(3.0), Some((4.5, 1.5)));
        assert_eq!(guard.judge(true, 4.5, &settings), None);
        assert_eq!(guard.judge(true, 4.6, &settings), Some(Reason::Spike));
        assert_eq!(guard.judge(false, 1.0, &settings), Some(Reason::NonFinite));
        guard.remember(100.0, &settings, Some(Reason::Spike));
        assert_eq!(guard.limit(3.0), Some((6.0, 2.0)), "a spike counts as one norm among others");
        // Norms that grow for good become normal after half a window.
        (0..WINDOW / 2 + 1).for_each(|_| guard.remember(100.0, &settings, None));
        assert_eq!(guard.limit(3.0), Some((300.0, 100.0)));
        (0..WINDOW).for_each(|_| guard.remember(100.0, &settings, None));
        assert_eq!((guard.limit(3.0), guard.norms.len()), (Some((300.0, 100.0)), WINDOW));
        assert_eq!(guard.skipped, Skipped { non_finite: 0, spikes: 1 });
    }

    #[test]
    fn without_a_factor_nothing_is_a_spike_and_nothing_kept() {
        let (settings, mut guard) = (settings(0.0), Guard::default());
        (0..100).for_each(|_| guard.remember(1.0, &settings, None));
        assert_eq!((guard.judge(true, 1e9, &settings), guard.norms.len()), (None, 0));
    }

    #[test]
    fn numbers_that_are_not_finite_move_no_median() {
        let (settings, mut guard) = (settings(2.0), Guard::default());
        (0..LEAST).for_each(|_| guard.remember(1.0, &settings, None));
        (0..3).for_each(|_| guard.remember(f64::NAN, &settings, Some(Reason::NonFinite)));
        assert_eq!((guard.limit(2.0), guard.in_a_row, guard.skipped.total()), (Some((2.0, 1.0)), 3, 3));
        guard.remember(1.0, &settings, None);
        assert_eq!((guard.in_a_row, guard.skipped.non_finite), (0, 3));
    }
}
