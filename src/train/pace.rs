//! How fast a run advances: tokens per second over its recent steps, and the time that is left, evaluations and scorings included.

use std::collections::VecDeque;
use std::fmt;

/// The number of recent steps over which the speed is measured: enough to even out sequences of different lengths.
const RECENT: usize = 50;

/// The pace of a run.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    num_steps: u64,
    /// The number of steps between evaluations, the last one at the end; `None` if the run is never evaluated.
    eval_every: Option<u64>,
    /// The tokens and seconds of the recent steps.
    recent: VecDeque<(usize, f64)>,
    /// The seconds of the last evaluation.
    eval_secs: f64,
    /// The number of steps between scorings of tasks, and the seconds of the last scoring; `None` if the tasks haven't been
    /// scored or there are none.
    scoring: Option<(u64, f64)>,
}

impl Pace {
    /// The pace of a run with this many steps, before its first step.
    pub(super) fn new(num_steps: u64, eval_every: Option<u64>) -> Self {
        Self { num_steps, eval_every, recent: VecDeque::new(), eval_secs: 0.0, scoring: None }
    }

    /// Records a step's tokens and seconds.
    pub(super) fn step(&mut self, tokens: usize, seconds: f64) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((tokens, seconds));
    }

    /// Records the seconds of an evaluation.
    pub(super) fn evaluated(&mut self, seconds: f64) {
        self.eval_secs = seconds;
    }

    /// Records the seconds of a scoring of tasks, which follows every `every` steps and the last one; 0 is the last one alone.
    pub(super) fn scored(&mut self, every: u64, seconds: f64) {
        self.scoring = Some((every, seconds));
    }

    /// Tokens per second of the recent steps, without evaluations.
    pub(super) fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.recent.iter().map(|(tokens, _)| tokens).sum();
        tokens as f64 / self.seconds().max(f64::MIN_POSITIVE)
    }

    /// The time from the end of a step to the end of the run: the steps that are left at the recent pace, and the
    /// evaluations and the scorings of tasks that are left, each of which takes as long as the last one.
    pub(super) fn left(&self, step: u64) -> Left {
        let steps = self.num_steps.saturating_sub(step) as f64;
        let mean = self.seconds() / self.recent.len().max(1) as f64;
        let evaluations = self.eval_every.map_or(0.0, |every| self.due_from(step, every) as f64 * self.eval_secs);
        let scorings = self.scoring.map_or(0.0, |(every, seconds)| self.due_from(step, every) as f64 * seconds);
        Left((steps * mean + evaluations + scorings).round() as u64)
    }

    /// How often something that is due every `every` steps and at the end follows a step, the one right after it included.
    fn due_from(&self, step: u64, every: u64) -> u64 {
        let end = self.num_steps;
        if step > end {
            return 0;
        }
        match every {
            0 => 1,
            _ => end / every - (step.max(1) - 1) / every + u64::from(!end.is_multiple_of(every)),
        }
    }

    fn seconds(&self) -> f64 {
        self.recent.iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Seconds that are left, shown as hours, minutes and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Left(u64);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, _) => write!(f, "{minutes}m{seconds:02}s"),
            _ => write!(f, "{hours}h{minutes:02}m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_steps_and_evaluations() {
        let mut pace = Pace::new(100, Some(30));
        pace.evaluated(10.0);
        for step in 1..=60 {
            pace.step(50, if step <= 10 { 5.0 } else { 0.5 });
        }
        assert_eq!(pace.tokens_per_second(), 100.0, "the first steps are forgotten");
        // 40 steps; evaluations after steps 60, 90 and 100.
        assert_eq!(pace.left(60), Left(20 + 30));
        assert_eq!(pace.left(61), Left(20 + 20), "an evaluation that is done doesn't count");
        assert_eq!(pace.left(100), Left(10));
        assert_eq!(Pace::new(100, None).left(50), Left(0));
        let mut at_end = Pace::new(100, Some(0));
        at_end.evaluated(4.0);
        assert_eq!(at_end.left(1), Left(4), "a run is evaluated at its end");
        at_end.scored(0, 30.0);
        assert_eq!(at_end.left(1), Left(4 + 30), "tasks are scored at the end");
        at_end.scored(40, 30.0);
        assert_eq!(at_end.left(80), Left(4 + 2 * 30), "and after each epoch");
        assert_eq!([59, 61, 3660].map(|s| Left(s).to_string()), ["59s", "1m01s", "1h01m"]);
    }

    #[test]
    fn an_evaluation_does_not_move_the_end() {
        let mut pace = Pace::new(40, Some(10));
        pace.evaluated(20.0);
        let mut now = 20.0;
        let mut ends = vec![];
        for step in 1..=40u64 {
            now += 2.0;
            pace.step(10, 2.0);
            ends.push(now + pace.left(step).0 as f64);
            if step.is_multiple_of(10) {
                now += 20.0;
                pace.evaluated(20.0);
            }
        }
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    }
}
