//! A run's log as curves: the numbers of metrics.jsonl over the steps, few enough for a page.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::files::read_text;
use crate::train::metrics::METRICS;

/// The largest number of points in a curve; longer curves are averaged in groups of steps.
const MOST_POINTS: usize = 100;
/// The share of the answer tokens that a step masked.
const SHARE: &str = "masked_share";
/// The quantities that are computed from masked tokens only.
const OF_MASKED: [&str; 3] = ["loss", "nll", "grad_norm"];

/// The lines of a run's metrics.jsonl.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    lines: Vec<Value>,
}

impl Log {
    /// Reads the log in a run folder.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn read(output: &Path) -> Result<Self> {
        let text = read_text(&output.join(METRICS))?;
        Ok(Self { lines: text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect() })
    }

    /// Adds held-out losses after some steps, which `weft reproduce` keeps apart from the log.
    pub fn add_losses(&mut self, losses: impl Iterator<Item = (u64, f64)>) {
        let lines = losses.map(|(step, loss)| json!({ "step": step, "held_out_nll_bound": loss }));
        self.lines.extend(lines.collect::<Vec<_>>());
        // Those of a step come after its own line.
        self.lines.sort_by_key(|line| line["step"].as_u64());
    }

    /// The steps and values of a quantity. A step in which nothing was masked has no loss; its value is NaN, which a chart
    /// shows as a gap.
    pub fn of(&self, key: &str) -> Vec<[f64; 2]> {
        let value = |line: &Value| match OF_MASKED.contains(&key) && line[SHARE] == 0.0 {
            true => Some(f64::NAN),
            false => line[key].as_f64(),
        };
        self.lines.iter().filter_map(|line| Some([line["step"].as_f64()?, value(line)?])).collect()
    }

    /// The number of steps in which nothing was masked.
    pub fn num_unmasked(&self) -> usize {
        self.lines.iter().filter(|line| line[SHARE] == 0.0).count()
    }

    /// The steps and values of one of the entropies' quantiles.
    pub(crate) fn quantile(&self, index: usize) -> Vec<[f64; 2]> {
        let value = |l: &Value| Some([l["step"].as_f64()?, l["entropy_quantiles"][index].as_f64()?]);
        self.lines.iter().filter_map(value).collect()
    }

    /// The tasks on which the run was scored, in order, each with its steps and accuracies, and those by a standard error
    /// below and above.
    pub fn scores(&self) -> Vec<(String, Vec<[f64; 4]>)> {
        let mut scores: Vec<(String, Vec<[f64; 4]>)> = vec![];
        for line in &self.lines {
            let number = |key: &str| line[key].as_f64();
            let Some(task) = line["task"].as_str() else { continue };
            let Some([step, accuracy]) = number("step").zip(number("accuracy")).map(<[f64; 2]>::from) else { continue };
            let error = number("standard_error").unwrap_or(0.0);
            let point = [step, accuracy, (accuracy - error).max(0.0), (accuracy + error).min(1.0)];
            match scores.iter_mut().find(|(of, _)| of == task) {
                Some((_, points)) => points.push(point),
                None => scores.push((task.to_owned(), vec![point])),
            }
        }
        scores
    }

    /// When the first and the last line were written, in seconds since 1970.
    pub fn when(&self) -> Option<[f64; 2]> {
        let mut seconds = self.lines.iter().filter_map(|line| line["unix_seconds"].as_f64());
        let first = seconds.next()?;
        Some([first, seconds.next_back().unwrap_or(first)])
    }
}

/// Averages groups of neighbouring points, with their ranges, so that no curve has too many points for a page. A group
/// is placed at the middle of its steps; the first and the last group are placed at the curve's ends. Values that aren't
/// numbers are left out of the averages; a group of only such values is one.
pub(crate) fn thin(points: &[[f64; 2]]) -> Vec<[f64; 4]> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    let together = |group: &[[f64; 2]]| {
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            sum / count
        };
        let values = || group.iter().map(|p| p[1]).filter(|value| !value.is_nan());
        let range = |f: fn(f64, f64) -> f64| values().reduce(f).unwrap_or(f64::NAN);
        [mean(&mut group.iter().map(|p| p[0])), mean(&mut values()), range(f64::min), range(f64::max)]
    };
    let mut thinned: Vec<[f64; 4]> = points.chunks(group).map(together).collect();
    let ends = points.first().zip(points.last());
    if let (Some((first, last)), [begin, .., end]) = (ends, thinned.as_mut_slice()) {
        (begin[0], end[0]) = (first[0], last[0]);
    }
    thinned
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thinning_keeps_means_and_ranges() {
        let points: Vec<[f64; 2]> = (0..250).map(|i| [f64::from(i), f64::from(i % 3)]).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 84, "three steps a point");
        assert_eq!(thinned[..2], [[0.0, 1.0, 0.0, 2.0], [4.0, 1.0, 0.0, 2.0]]);
        assert_eq!(thinned[83][0], 249.0, "the curve has the ends of its steps");
        assert_eq!(thin(&points[..2]), [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]);
        assert!(thin(&[]).is_empty());
    }

    #[test]
    fn a_step_in_which_nothing_was_masked_has_no_loss() {
        let line = |step: u32, loss: f64, share: f64| json!({ "step": step, "loss": loss, "masked_share": share });
        let lines = vec![line(1, 3.0, 0.5), json!({ "step": 1, "held_out_nll_bound": 2.0 }), line(2, 0.0, 0.0)];
        let log = Log { lines };
        let [[first, loss], [second, none]] = log.of("loss")[..] else { panic!("two steps have a loss") };
        assert!(first == 1.0 && loss == 3.0 && second == 2.0 && none.is_nan());
        assert_eq!((log.num_unmasked(), log.of("masked_share")), (1, vec![[1.0, 0.5], [2.0, 0.0]]));
        // In a group of steps the others count; a group without others is a gap.
        let mut points: Vec<[f64; 2]> = (0..200).map(|i| [f64::from(i), 2.0]).collect();
        [0, 10, 11].into_iter().for_each(|i| points[i][1] = f64::NAN);
        let thinned = thin(&points);
        assert_eq!(thinned[0], [0.0, 2.0, 2.0, 2.0]);
        assert!(thinned[5][0] == 10.5 && thinned[5][1..].iter().all(|value| value.is_nan()));
    }
}
