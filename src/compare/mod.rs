//! Compares runs: the settings in which their recipes differ, their held-out losses and scores with intervals, and which
//! runs can't be compared. Everything is read from the files in the run folders; `page` draws it.

mod folders;
pub mod page;
mod run;
pub mod tables;

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::eval::task_score::{Z, wilson, wilson_of};
use crate::reproduce::statistics::{Interval, Range, interval};
use folders::Found;
pub use run::{Differs, Run};

/// Several runs; the others are compared with the first one.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The runs, in the order in which they were given.
    pub runs: Vec<Compared>,
    /// The settings that differ.
    pub settings: Vec<Setting>,
    /// A sentence on each given folder, or folder in a given one, that holds no run.
    pub left_out: Vec<String>,
}

/// A setting that differs between runs.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Its table and key.
    pub key: String,
    /// Its value in each run; null in a run without it.
    pub values: Vec<Value>,
}

/// A run, and how it differs from the first one.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// Why its held-out loss and its scores can't be compared with the first run's, as a sentence; `None` if they can.
    pub not_comparable: Option<String>,
    /// The same reason.
    #[serde(skip)]
    pub differs: Option<Differs>,
    /// The last held-out loss with its interval over the rows, in nats per answer token.
    pub held_out: Option<Interval>,
    /// Its held-out loss minus the first run's on the same rows and masks, with the interval of the paired differences.
    pub held_out_difference: Option<Interval>,
    /// The trained model's accuracy with its interval over the problems.
    pub accuracy: Option<Interval>,
    /// Its accuracy minus the first run's on the same problems, with the interval of the paired differences.
    pub accuracy_difference: Option<Interval>,
}

impl Comparison {
    /// Reads and compares the runs in some folders. A folder of runs stands for all runs in it, in the order of their names.
    ///
    /// # Errors
    /// A path that doesn't exist, the same folder twice, fewer than two runs, or a damaged file in one.
    pub fn of(folders: &[PathBuf]) -> Result<Self> {
        let Found { runs: folders, left_out } = Found::among(folders)?;
        let names = names(&folders);
        let runs: Vec<Run> =
            folders.iter().zip(names).map(|(folder, name)| Run::read(folder, name)).collect::<Result<_>>()?;
        let settings = differing(&runs);
        let first = runs[0].clone();
        let runs = runs.into_iter().enumerate().map(|(i, run)| Compared::of(run, (i > 0).then_some(&first))).collect();
        Ok(Self { runs, settings, left_out })
    }

    /// The name of the run with which the others are compared.
    pub fn first(&self) -> &str {
        &self.runs[0].run.name
    }
}

impl Compared {
    fn of(run: Run, first: Option<&Run>) -> Self {
        let differs = first.and_then(|first| run.differs_from(first));
        let beside = first.filter(|_| differs.is_none());
        let of_rows = |run: &Run| run.rows.as_ref().and_then(|rows| Some((rows.values()?, rows.answer_tokens.clone())));
        let own = of_rows(&run);
        let held_out_difference = beside.and_then(|first| difference(own.as_ref()?, &of_rows(first)?));
        let accuracy_difference = beside.and_then(|first| difference(run.problems.as_ref()?, first.problems.as_ref()?));
        Self {
            not_comparable: differs.zip(first).map(|(differs, first)| differs.told(1, &first.name)),
            differs,
            held_out: own.and_then(|(nll, tokens)| Some(ratio(&nll, &tokens)?.within(Range::Positive))),
            held_out_difference,
            accuracy: run.problems.as_ref().and_then(|(correct, total)| accuracy(correct, total)),
            accuracy_difference: accuracy_difference.map(|of| of.within(Range::Within(1.0))),
            run,
        }
    }
}

/// The difference of two ratios over the same items; `None` if the items aren't the same.
fn difference((own, sizes): &(Vec<f64>, Vec<usize>), (first, of_first): &(Vec<f64>, Vec<usize>)) -> Option<Interval> {
    let differences: Vec<f64> = own.iter().zip(first).map(|(own, first)| own - first).collect();
    if sizes == of_first { ratio(&differences, sizes) } else { None }
}

/// The sum of `parts` divided by the sum of `sizes`, with Student's interval over the items, of which each has a part and
/// a size: a held-out row with its nats and tokens, or a problem with the points scored and the points possible.
///
/// # Source
/// The linearized variance of a ratio, Cochran, Sampling Techniques (1977), chapter 6.
pub fn ratio(parts: &[f64], sizes: &[usize]) -> Option<Interval> {
    let size = sizes.iter().sum::<usize>() as f64;
    if size == 0.0 {
        return None;
    }
    let (mean_size, ratio) = (size / sizes.len() as f64, parts.iter().sum::<f64>() / size);
    let linear = |(part, size): (&f64, &usize)| ratio + (part - ratio * *size as f64) / mean_size;
    interval(&parts.iter().zip(sizes).map(linear).collect::<Vec<_>>())
}

/// The points scored divided by the points possible, with an interval over the problems: Wilson's of the counts where every
/// problem has one point, and else [`Range::UpTo`]'s.
fn accuracy(correct: &[f64], total: &[usize]) -> Option<Interval> {
    let of = ratio(correct, total)?;
    let is_counted =
        total.iter().all(|total| *total == 1) && correct.iter().all(|correct| [0.0, 1.0].contains(correct));
    let [low, high] = match (is_counted, of.deviation == 0.0) {
        (true, _) => wilson(correct.iter().sum::<f64>() as usize, of.count),
        // Problems that are all alike leave only their number to go by.
        (false, true) => wilson_of(of.mean, of.count as f64, Z),
        (false, false) => return Some(of.within(Range::UpTo(1.0))),
    };
    Some(Interval { low, high, ..of })
}

/// The settings that differ between runs, in the order of the first recipe that has them, and the training rows if they
/// differ. The output folder is left out, because it says nothing about a run.
fn differing(runs: &[Run]) -> Vec<Setting> {
    let mut keys: Vec<(String, String)> = vec![];
    for run in runs {
        for (table, settings) in run.recipe.as_object().into_iter().flatten() {
            for key in settings.as_object().into_iter().flatten().map(|(key, _)| key) {
                let name = (table.clone(), key.clone());
                if (table.as_str(), key.as_str()) != ("train", "output") && !keys.contains(&name) {
                    keys.push(name);
                }
            }
        }
    }
    let setting = |(table, key): (String, String)| {
        let values = runs.iter().map(|run| run.recipe[&table][&key].clone()).collect();
        Setting { key: format!("{table}.{key}"), values }
    };
    let differs = |setting: &Setting| setting.values.iter().any(|value| *value != setting.values[0]);
    let rows = Setting { key: "rows trained on".to_owned(), values: runs.iter().map(Run::trained_rows).collect() };
    keys.into_iter().map(setting).chain([rows]).filter(differs).collect()
}

/// Names that distinguish the folders: as few of their last parts as that takes.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let parts = |folder: &PathBuf, count: usize| {
        let all: Vec<_> = folder.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        all[all.len().saturating_sub(count)..].join("/")
    };
    let longest = folders.iter().map(|folder| folder.components().count()).max().unwrap_or(1);
    let of = |count: usize| -> Vec<String> { folders.iter().map(|folder| parts(folder, count)).collect() };
    let is_clear = |names: &Vec<String>| names.iter().collect::<HashSet<_>>().len() == names.len();
    (1..=longest).map(of).find(is_clear).unwrap_or_else(|| folders.iter().map(|f| f.display().to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_sums() {
        let Interval { mean, low, high, .. } = ratio(&[6.0, 2.0, 4.0], &[2, 1, 3]).expect("there are items");
        assert_eq!(mean, 2.0);
        // z = 2 + (part - 2 size) / 2 = 3, 2, 1: a standard error of 1 / sqrt(3), and Student's t of 2 is 4.303.
        let half = 4.302_653 / 3f64.sqrt();
        assert!((low - (2.0 - half)).abs() < 1e-5 && (high - (2.0 + half)).abs() < 1e-5, "{low} {high}");
        let equal = ratio(&[1.0, 2.0], &[1, 2]).expect("there are items");
        assert_eq!((equal.low, equal.high), (1.0, 1.0), "each item has the same ratio");
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(difference(&(vec![1.0], vec![1]), &(vec![1.0], vec![2])), None);
    }

    #[test]
    fn accuracies_have_intervals_of_possible_values() {
        let of = |correct: &[f64], total: &[usize]| {
            let Interval { mean, low, high, .. } = accuracy(correct, total).expect("there are problems");
            [mean, low, high]
        };
        // Wilson's own intervals of 0 of 10 and of 9 of 10.
        let none = of(&[0.0; 10], &[1; 10]);
        assert!(none[0] == 0.0 && none[1] == 0.0 && (none[2] - 0.277_533).abs() < 1e-6, "{none:?}");
        let most = of(&[&[1.0; 9][..], &[0.0]].concat(), &[1; 10]);
        assert!((most[1] - 0.595_850).abs() < 1e-6 && (most[2] - 0.982_124).abs() < 1e-6, "{most:?}");
        // Problems of several points; Student's interval goes beyond 1.
        let points = of(&[4.0, 4.0, 4.0, 3.0], &[4; 4]);
        assert!(ratio(&[4.0, 4.0, 4.0, 3.0], &[4; 4]).expect("there are problems").high > 1.0);
        assert!(points[1] < points[0] && points[0] < points[2] && points[2] < 1.0, "{points:?}");
        let all = of(&[4.0; 4], &[4; 4]);
        assert!(all[0] == 1.0 && all[2] == 1.0 && (0.0..1.0).contains(&all[1]), "{all:?}");
    }

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let of = |folders: &[&str]| names(&folders.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["runs/a", "runs/b/"]), ["a", "b"]);
        assert_eq!(of(&["x/run", "y/run"]), ["x/run", "y/run"]);
        assert_eq!(of(&["/run", "run"]), ["//run", "run"]);
    }
}
