//! Learning rates over the steps of a run: a linear warm-up, then constant, linear to 0, or a half cosine to 0.

use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// It stays constant.
    Constant,
    /// It falls linearly to 0.
    #[default]
    Linear,
    /// It falls to 0 along half a cosine.
    Cosine,
}

impl LrSchedule {
    /// The factor on the highest learning rate at `step`, counted from 0, of `num_steps` in all.
    ///
    /// # Source
    /// The schedules of transformers, `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`. Unlike
    /// theirs, the first step of a warm-up isn't wasted on a rate of 0: its factor is `1 / warmup_steps`.
    pub fn factor(self, step: u64, warmup_steps: u64, num_steps: u64) -> f64 {
        if step < warmup_steps {
            return (step + 1) as f64 / warmup_steps as f64;
        }
        let progress = (step - warmup_steps) as f64 / num_steps.saturating_sub(warmup_steps).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - progress,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LrSchedule;

    #[test]
    fn the_factor_rises_then_falls() {
        for schedule in [LrSchedule::Constant, LrSchedule::Linear, LrSchedule::Cosine] {
            assert_eq!(schedule.factor(0, 4, 12), 0.25);
            assert_eq!(schedule.factor(4, 4, 12), 1.0);
        }
        assert_eq!(LrSchedule::Constant.factor(11, 4, 12), 1.0);
        assert_eq!(LrSchedule::Linear.factor(8, 4, 12), 0.5);
        assert!((LrSchedule::Cosine.factor(8, 4, 12) - 0.5).abs() < 1e-12);
        assert!(LrSchedule::Cosine.factor(12, 4, 12).abs() < 1e-12);
    }
}
