//! Statistics of repeated runs: means with confidence intervals, and paired differences with two tests. A pair consists
//! of runs with the same seed, which share base, rows, order and every draw.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::counted::counted;
use crate::eval::task_score::wilson_of;

/// The confidence level of every interval.
pub(crate) const CONFIDENCE: f64 = 0.95;
/// The largest number of pairs for which all sign patterns are enumerated.
const EXACT_PAIRS: usize = 20;

/// The number of rows or problems below which scores are said to rest on few.
const FEW: usize = 30;

/// A mean over seeds, rows or problems with its interval; with a single one the interval is just the mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The lower end of the 95 % confidence interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
    /// The standard deviation between seeds, rows or problems.
    pub deviation: f64,
    /// The number of seeds, rows or problems.
    pub count: usize,
}

/// The values that a mean can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Those above 0: a loss.
    Positive,
    /// Those from 0 to a number: an accuracy, whose largest value is 1 or 100.
    UpTo(f64),
    /// Those at most so far from 0: a difference of accuracies.
    Within(f64),
}

impl Interval {
    /// This Student's t interval, changed to one that keeps to the values that the mean can have: for [`Range::Positive`] it is
    /// Student's interval of the logarithm, for [`Range::UpTo`] Wilson's with Student's quantile and the number of draws whose
    /// standard error is the mean's. [`Range::Within`] cuts the interval off, which leaves its coverage and whether it contains
    /// 0 as they are.
    ///
    /// # Source
    /// The delta method for the logarithm; Dean and Pagano, Evaluating confidence interval methods for binomial proportions in
    /// clustered surveys (2015), for Wilson's interval with an effective number of draws.
    pub fn within(self, range: Range) -> Self {
        let Self { mean, low, high, count, .. } = self;
        let half = (high - low) / 2.0;
        if half == 0.0 {
            return self;
        }
        let [low, high] = match range {
            Range::Positive => [mean * (-half / mean).exp(), mean * (half / mean).exp()],
            Range::UpTo(whole) => {
                let (p, t) = (mean / whole, quantile(count));
                let error = half / t / whole;
                wilson_of(p, p * (1.0 - p) / (error * error), t).map(|end| whole * end)
            }
            Range::Within(most) => [low.max(-most), high.min(most)],
        };
        Self { low, high, ..self }
    }
}

/// A sentence that warns of scores that rest on fewer than 30 rows or problems; `None` if they rest on more. `more` says what
/// to use instead.
pub(crate) fn few(scores: &str, (count, noun): (usize, &str), more: &str) -> Option<String> {
    let rest = || {
        format!("{scores} rest on {}; fewer than {FEW} say little about others, so use {more}", counted(count, noun))
    };
    (count < FEW).then(rest)
}

/// A paired difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The mean of the differences and its interval.
    pub difference: Interval,
    /// The two-sided p value of the paired t test; absent if the differences don't vary.
    pub t_test: Option<f64>,
    /// The two-sided p value of the sign-flip test of the mean, exact up to 20 pairs; absent beyond.
    pub sign_flip_test: Option<f64>,
    /// The number of pairs in which the difference is above 0.
    pub above: usize,
    /// The number of pairs in which the difference is below 0.
    pub below: usize,
}

impl Paired {
    /// The difference with its interval cut off where no difference can be; the tests stay as they are.
    pub fn within(self, range: Range) -> Self {
        Self { difference: self.difference.within(range), ..self }
    }
}

/// The mean of some values and its Student's t interval; `None` if there are no values.
pub fn interval(values: &[f64]) -> Option<Interval> {
    let count = values.len();
    if count == 0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let deviation = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
    let half = match count {
        1 => 0.0,
        _ => quantile(count) * deviation / (count as f64).sqrt(),
    };
    Some(Interval { mean, low: mean - half, high: mean + half, deviation, count })
}

/// Tests the differences of pairs against zero; `None` if there are no pairs.
///
/// # Source
/// Student's paired t; Fisher, The Design of Experiments (1935), section 21, for the sign flips.
pub fn paired(differences: &[f64]) -> Option<Paired> {
    let difference = interval(differences)?;
    let count = differences.len();
    let error = difference.deviation / (count as f64).sqrt();
    let t_test = (count > 1 && error > 0.0).then(|| 2.0 * students_t(count).sf((difference.mean / error).abs()));
    let sign_flip_test = (1..=EXACT_PAIRS).contains(&count).then(|| sign_flips(differences));
    let above = differences.iter().filter(|d| **d > 0.0).count();
    let below = differences.iter().filter(|d| **d < 0.0).count();
    Some(Paired { difference, t_test, sign_flip_test, above, below })
}

/// Student's quantile of an interval over so many values.
fn quantile(count: usize) -> f64 {
    students_t(count).inverse_cdf(0.5 + CONFIDENCE / 2.0)
}

fn students_t(count: usize) -> StudentsT {
    StudentsT::new(0.0, 1.0, (count - 1) as f64).expect("there is a degree of freedom")
}

/// The share of sign patterns whose sum lies at least as far from 0 as the observed one.
fn sign_flips(differences: &[f64]) -> f64 {
    let seen = differences.iter().sum::<f64>().abs();
    // The sum of the same numbers in another order may differ in its last bits.
    let least = seen - 1e-9 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let patterns = 1u64 << differences.len();
    let signed = |(i, d): (usize, &f64), pattern: u64| if pattern >> i & 1 == 1 { -d } else { *d };
    let sum = |pattern: u64| differences.iter().enumerate().map(|pair| signed(pair, pattern)).sum::<f64>();
    let as_far = (0..patterns).filter(|pattern| sum(*pattern).abs() >= least).count();
    as_far as f64 / patterns as f64
}

/// How the values of several arms vary over the same seeds: between seeds, for all arms alike, and within a seed from
/// arm to arm, beyond the difference of the arms' means.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variation {
    /// The standard deviation of one arm's values between seeds, pooled over the arms: the noise of an unpaired
    /// comparison.
    pub between_seeds: f64,
    /// The standard deviation of the values once the effects of arm and seed are removed: the noise of a paired
    /// comparison.
    pub within_seeds: f64,
}

/// The variation of `values[arm][seed]`; `None` if there are fewer than two arms or seeds.
///
/// # Source
/// The two-way layout with one value per cell, Scheffe, The Analysis of Variance (1959), chapter 4.
pub(crate) fn variation(values: &[Vec<f64>]) -> Option<Variation> {
    let (arms, seeds) = (values.len(), values.first()?.len());
    if arms < 2 || seeds < 2 {
        return None;
    }
    let mean = |v: &mut dyn Iterator<Item = f64>, n: usize| v.sum::<f64>() / n as f64;
    let of_arm: Vec<f64> = values.iter().map(|v| mean(&mut v.iter().copied(), seeds)).collect();
    let of_seed: Vec<f64> = (0..seeds).map(|s| mean(&mut values.iter().map(|v| v[s]), arms)).collect();
    let whole = mean(&mut of_arm.iter().copied(), arms);
    let cells = || (0..arms).flat_map(|a| (0..seeds).map(move |s| (a, s)));
    let pooled: f64 = cells().map(|(a, s)| (values[a][s] - of_arm[a]).powi(2)).sum();
    let left: f64 = cells().map(|(a, s)| (values[a][s] - of_arm[a] - of_seed[s] + whole).powi(2)).sum();
    Some(Variation {
        between_seeds: (pooled / (arms * (seeds - 1)) as f64).sqrt(),
        within_seeds: (left / ((arms - 1) * (seeds - 1)) as f64).sqrt(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Student's sleep data (1908): ten pairs, t = 4.0621, p = 0.00283.
    const SLEEP: [f64; 10] = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];

    #[test]
    fn students_own_example() {
        let paired = paired(&SLEEP).expect("there are pairs");
        let Interval { mean, low, high, deviation, count } = paired.difference;
        assert!((mean - 1.58).abs() < 1e-12 && (deviation - 1.229_995).abs() < 1e-6 && count == 10);
        assert!((low - 0.700_114).abs() < 1e-5 && (high - 2.459_886).abs() < 1e-5, "{low} {high}");
        assert!((paired.t_test.expect("they vary") - 0.002_833).abs() < 1e-6);
        // Of the 1,024 patterns, those in which all signs are equal count, twice because one pair has no difference.
        assert_eq!(paired.sign_flip_test, Some(4.0 / 1024.0));
        assert_eq!((paired.above, paired.below), (9, 0));
    }

    #[test]
    fn intervals_keep_to_the_values_that_can_be() {
        let of = |values: &[f64]| interval(values).expect("there are values");
        // Student's intervals of these leave the range.
        let losses = of(&[0.1, 0.2, 2.0]);
        let positive = losses.within(Range::Positive);
        assert!(losses.low < 0.0 && 0.0 < positive.low && positive.low < losses.mean && losses.mean < positive.high);
        let half = (positive.high / losses.mean).ln();
        assert!((half - (losses.high - losses.mean) / losses.mean).abs() < 1e-12, "it is symmetric in the logarithm");
        let shares = of(&[90.0, 100.0, 99.0]);
        let up_to = shares.within(Range::UpTo(100.0));
        assert!(shares.high > 100.0 && up_to.high < 100.0 && up_to.low < shares.mean && shares.mean < up_to.high);
        let differences = of(&[-50.0, 60.0]).within(Range::Within(100.0));
        assert_eq!((differences.low, differences.high), (-100.0, 100.0));
        // Where the range is far away, all are Student's, and what doesn't vary stays as it is.
        let narrow = of(&[49.99, 50.0, 50.01]);
        for range in [Range::Positive, Range::UpTo(100.0), Range::Within(100.0)] {
            let Interval { low, high, .. } = narrow.within(range);
            assert!((low - narrow.low).abs() < 1e-4 && (high - narrow.high).abs() < 1e-4, "{range:?}: {low} {high}");
            assert_eq!(of(&[50.0, 50.0]).within(range), of(&[50.0, 50.0]));
        }
    }

    #[test]
    fn few_rows_are_warned_of() {
        let told = few("the losses", (1, "row"), "more").expect("one is few");
        assert_eq!(told, "the losses rest on 1 row; fewer than 30 say little about others, so use more");
        assert_eq!(few("the losses", (30, "row"), "more"), None);
    }

    #[test]
    fn what_does_not_vary_has_no_t_test() {
        let same = paired(&[2.0, 2.0, 2.0]).expect("there are pairs");
        assert_eq!((same.t_test, same.sign_flip_test), (None, Some(0.25)));
        assert_eq!(paired(&[1.0]).expect("there is a pair").difference.low, 1.0);
        assert_eq!(paired(&[]), None);
        assert_eq!(paired(&[1.0; 21]).expect("there are pairs").sign_flip_test, None);
    }

    #[test]
    fn a_shift_of_seeds_leaves_pairs_alone() {
        let arms = [vec![1.0, 5.0, 9.0], vec![2.0, 6.0, 10.0]];
        let Variation { between_seeds, within_seeds } = variation(&arms).expect("there are arms and seeds");
        assert!((between_seeds - 4.0).abs() < 1e-12 && within_seeds.abs() < 1e-12);
        assert_eq!(variation(&arms[..1]), None);
    }
}
