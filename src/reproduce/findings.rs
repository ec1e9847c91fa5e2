//! The numerical findings of a comparison: means over seeds with intervals, paired differences, and how much of the
//! variation is due to the method, the divisor and the seed. `markdown` presents them.

use serde::Serialize;

use super::Outcomes;
use super::arms::pairs;
use super::forgetting::Forgetting;
use super::markdown::value_of;
use super::rows::{SettingRows, is_split_by_seed};
use super::run::{Outcome, OverSteps, Point};
use super::statistics::{Interval, Paired, Range, Variation, interval, paired, variation};
use super::study::{PlannedRun, Study};

/// What an arm is scored by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The accuracy in percent.
    Accuracy,
    /// The held-out loss, in nats per answer token.
    NllBound,
}

impl Metric {
    /// The name, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy in percent",
            Self::NllBound => "held-out loss in nats per answer token",
        }
    }

    /// The name without a unit.
    pub fn quantity(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::NllBound => "held-out loss",
        }
    }

    /// The unit of a difference.
    pub(crate) fn unit_of_difference(self) -> &'static str {
        match self {
            Self::Accuracy => "percentage points",
            Self::NllBound => "nats per answer token",
        }
    }

    /// The values that a mean can have.
    fn range(self) -> Range {
        match self {
            Self::Accuracy => Range::UpTo(100.0),
            Self::NllBound => Range::Positive,
        }
    }

    /// A paired difference of scores, or their interaction, which can be twice as large, with an interval of possible values.
    pub(super) fn of_pairs(self, paired: Paired, times: f64) -> Paired {
        match self {
            Self::Accuracy => paired.within(Range::Within(100.0 * times)),
            Self::NllBound => paired,
        }
    }

    /// The number of decimals that are shown.
    pub fn decimals(self) -> usize {
        match self {
            Self::Accuracy => 1,
            Self::NllBound => 4,
        }
    }
}

/// All findings of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// The version of the program.
    pub weft: &'static str,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The names of the arms.
    pub arms: Vec<String>,
    /// The tokens per block of the arms in blocks.
    pub block_length: usize,
    /// The findings under each setting.
    pub settings: Vec<SettingFindings>,
    /// Each arm's accuracy in percent at the end, averaged over the settings; `None` if one of them has no task.
    pub average: Vec<Option<Interval>>,
}

/// The findings under one setting.
#[derive(Clone, Debug, Serialize)]
pub struct SettingFindings {
    /// The name of the setting.
    pub name: String,
    /// What the setting changes in the recipe.
    pub set: Vec<String>,
    /// Whether it is the recipe as it is, in a comparison without settings.
    #[serde(skip)]
    pub is_only: bool,
    /// Its rows; `None` if an earlier version scored the base.
    pub rows: Option<SettingRows>,
    /// The steps at which the arms were scored.
    pub steps: Vec<u64>,
    /// The scores of the base on the rows of the first seed.
    pub base: Point,
    /// The scores of the base on the rows of each seed, if each seed holds out rows of its own. Seeds on whose rows it wasn't scored
    /// are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub base_by_seed: Vec<Point>,
    /// The findings of each arm.
    pub arms: Vec<ArmFindings>,
    /// The paired differences between arms.
    pub differences: Vec<Difference>,
    /// The effects of method and divisor on SFT and WeFT, if all four arms were run.
    pub factors: Vec<Factors>,
    /// How the runs change the base's scores on rows of other kinds.
    pub forgetting: Vec<Forgetting>,
    /// The median time of a step in seconds, for each arm.
    pub step_seconds: Option<Vec<f64>>,
    /// The number of threads that computed the timed steps.
    pub timed_threads: Option<usize>,
}

/// The findings of an arm.
#[derive(Clone, Debug, Serialize)]
pub struct ArmFindings {
    /// The name of the arm.
    pub name: String,
    /// The outcome of each seed, in the order of the seeds; `None` if the run isn't finished.
    pub outcomes: Vec<Option<Outcome>>,
    /// The number of runs that stopped at a non-finite loss.
    pub diverged: usize,
    /// The accuracy in percent at each of the steps.
    pub accuracy: Vec<Option<Interval>>,
    /// The held-out loss at each of the steps.
    pub nll_bound: Vec<Option<Interval>>,
    /// The gradient norm: the averages over runs of their means and standard deviations, and the maximum over all runs.
    pub grad_norm: Option<OverSteps>,
    /// The mean entropy, aggregated like `grad_norm`.
    pub mean_entropy: Option<OverSteps>,
    /// The spread of the relative uncertainties, aggregated like `grad_norm`.
    pub uncertainty_spread: Option<OverSteps>,
}

/// A paired difference of two arms at a step.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The arm.
    pub arm: &'static str,
    /// The arm that it is compared to.
    pub reference: &'static str,
    /// The score that is compared.
    pub metric: Metric,
    /// The step at which they are compared.
    pub step: u64,
    /// The difference.
    pub paired: Paired,
}

/// How the variation of SFT and WeFT under two divisors splits into method, divisor and seed, at a step.
#[derive(Clone, Debug, Serialize)]
pub struct Factors {
    /// The score that is analysed.
    pub metric: Metric,
    /// The step at which it is analysed.
    pub step: u64,
    /// WeFT minus SFT, averaged over the divisors.
    pub method: Paired,
    /// Division by masked tokens minus division by answer tokens, averaged over the methods.
    pub normalizer: Paired,
    /// WeFT minus SFT when dividing by masked tokens, minus the same difference when dividing by answer tokens.
    pub interaction: Paired,
    /// The variation between seeds and within them.
    pub variation: Option<Variation>,
}

impl Findings {
    /// The findings from the finished runs of a study.
    pub fn of(study: &Study, outcomes: &Outcomes) -> Self {
        let mut seeds: Vec<u64> = study.runs.iter().map(|run| run.seed).collect();
        seeds.dedup();
        let settings: Vec<SettingFindings> =
            (0..study.table.settings.len()).map(|setting| SettingFindings::of(study, outcomes, setting)).collect();
        let average = |arm: usize| {
            let last = |s: &SettingFindings, seed| s.value(arm, seed, s.steps.len().checked_sub(1)?, Metric::Accuracy);
            let of_seed = |seed: usize| -> Option<f64> {
                let all: Option<Vec<f64>> = settings.iter().map(|s| last(s, seed)).collect();
                all.map(|all| all.iter().sum::<f64>() / all.len() as f64)
            };
            let over_seeds = interval(&(0..seeds.len()).filter_map(of_seed).collect::<Vec<f64>>())?;
            Some(over_seeds.within(Metric::Accuracy.range()))
        };
        let average = (0..study.table.arms.len()).map(average).collect();
        let (arms, block_length) = (study.table.arms.clone(), study.table.block_length);
        Self { weft: env!("CARGO_PKG_VERSION"), seeds, arms, block_length, settings, average }
    }
}

impl Findings {
    /// The metrics that score the settings, the most telling first: the accuracy if any of them has a task, and the held-out
    /// loss.
    pub fn metrics(&self) -> Vec<Metric> {
        let is_scored = |setting: &SettingFindings| setting.base.accuracy.is_some();
        let accuracy = self.settings.iter().any(is_scored).then_some(Metric::Accuracy);
        accuracy.into_iter().chain([Metric::NllBound]).collect()
    }
}

impl SettingFindings {
    fn of(study: &Study, outcomes: &Outcomes, setting: usize) -> Self {
        let own = || study.runs.iter().zip(&outcomes.runs).filter(move |(run, _)| run.setting == setting);
        let arms: Vec<ArmFindings> = (0..study.table.arms.len())
            .map(|arm| {
                let of_arm = own().filter(|(run, _): &(&PlannedRun, _)| run.arm == arm);
                ArmFindings::of(&study.table.arms[arm], of_arm.map(|(_, outcome)| outcome.clone()).collect())
            })
            .collect();
        let whole = arms.iter().flat_map(|arm| arm.outcomes.iter().flatten()).max_by_key(|o| o.points.len());
        let steps = whole.map_or(vec![], |o| o.points.iter().map(|p| p.step).collect());
        let times = outcomes.times[setting].as_ref();
        let mut findings = Self {
            name: study.table.settings[setting].name.clone(),
            set: study.table.settings[setting].set.clone(),
            is_only: study.table.settings[setting].is_only,
            rows: outcomes.bases[setting].rows.clone(),
            steps,
            base: outcomes.bases[setting].points[0],
            base_by_seed: match is_split_by_seed(&study.bases[setting].recipe) {
                true => [&outcomes.bases[setting].points[..1], &outcomes.bases_of_others[setting]].concat(),
                false => vec![],
            },
            arms,
            differences: vec![],
            factors: vec![],
            forgetting: vec![],
            step_seconds: times.map(|t| t.step_seconds.clone()),
            timed_threads: times.map(|t| t.threads),
        };
        for metric in findings.metrics() {
            for at in 0..findings.steps.len() {
                let of_arm = |arm| Some(interval(&findings.values(arm, at, metric))?.within(metric.range()));
                let intervals: Vec<Option<Interval>> = (0..findings.arms.len()).map(of_arm).collect();
                for (arm, interval) in findings.arms.iter_mut().zip(intervals) {
                    match metric {
                        Metric::Accuracy => arm.accuracy.push(interval),
                        Metric::NllBound => arm.nll_bound.push(interval),
                    }
                }
                findings.differences.extend(findings.differences_at(at, metric));
                findings.factors.extend(findings.factors_at(at, metric));
            }
        }
        findings.forgetting = Forgetting::of(&study.table.also_score, &outcomes.bases[setting], &findings);
        findings
    }

    /// Its name for readers; `None` if it is the recipe as it is.
    pub(super) fn label(&self) -> Option<&str> {
        (!self.is_only).then_some(&*self.name)
    }

    /// The metrics that score the setting, the most telling first: the accuracy if it has a task, and the held-out loss.
    pub fn metrics(&self) -> Vec<Metric> {
        let accuracy = self.base.accuracy.map(|_| Metric::Accuracy);
        accuracy.into_iter().chain([Metric::NllBound]).collect()
    }

    /// The base's score: its mean over the rows of each seed, or its score on the rows that all seeds share. `None` without a
    /// task.
    pub(crate) fn base_score(&self, metric: Metric) -> Option<Interval> {
        let points = if self.base_by_seed.is_empty() { std::slice::from_ref(&self.base) } else { &self.base_by_seed };
        let values: Option<Vec<f64>> = points.iter().map(|point| value_of(point, metric)).collect();
        Some(interval(&values?)?.within(metric.range()))
    }

    /// The differences of a score at the end of the runs.
    pub(crate) fn differences_at_end(&self, metric: Metric) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(move |d| d.metric == metric && Some(&d.step) == self.steps.last())
    }

    /// The index of the arm with this name.
    pub fn arm(&self, name: &str) -> Option<usize> {
        self.arms.iter().position(|arm| arm.name == name)
    }

    /// The score of an arm's run at one of the steps; `None` if the run isn't finished or diverged earlier.
    fn value(&self, arm: usize, seed: usize, at: usize, metric: Metric) -> Option<f64> {
        let point = self.arms[arm].outcomes.get(seed)?.as_ref()?.points.get(at)?;
        value_of(point, metric)
    }

    pub(super) fn num_seeds(&self) -> usize {
        self.arms.iter().map(|arm| arm.outcomes.len()).max().unwrap_or(0)
    }

    fn values(&self, arm: usize, at: usize, metric: Metric) -> Vec<f64> {
        (0..self.num_seeds()).filter_map(|seed| self.value(arm, seed, at, metric)).collect()
    }

    fn differences_at(&self, at: usize, metric: Metric) -> Vec<Difference> {
        let difference = |(arm, reference): (&'static str, &'static str)| {
            let (a, b) = (self.arm(arm)?, self.arm(reference)?);
            let of_seed = |seed| Some(self.value(a, seed, at, metric)? - self.value(b, seed, at, metric)?);
            let paired = paired(&(0..self.num_seeds()).filter_map(of_seed).collect::<Vec<f64>>())?;
            let paired = metric.of_pairs(paired, 1.0);
            Some(Difference { arm, reference, metric, step: self.steps[at], paired })
        };
        pairs().filter_map(difference).collect()
    }

    fn factors_at(&self, at: usize, metric: Metric) -> Option<Factors> {
        let names = ["sft-masked", "sft-answer", "weft-masked", "weft-answer"];
        let places: Vec<usize> = names.iter().map(|name| self.arm(name)).collect::<Option<_>>()?;
        // The seeds for which all four arms are finished.
        let of_seed = |seed| places.iter().map(|arm| self.value(*arm, seed, at, metric)).collect::<Option<Vec<f64>>>();
        let cells: Vec<Vec<f64>> = (0..self.num_seeds()).filter_map(of_seed).collect();
        let contrast = |weights: [f64; 4]| {
            let of_seed = |values: &Vec<f64>| values.iter().zip(weights).map(|(v, w)| v * w).sum();
            let paired = paired(&cells.iter().map(of_seed).collect::<Vec<f64>>())?;
            Some(metric.of_pairs(paired, weights.iter().map(|w: &f64| w.abs()).sum::<f64>() / 2.0))
        };
        let by_arm: Vec<Vec<f64>> = (0..places.len()).map(|a| cells.iter().map(|seed| seed[a]).collect()).collect();
        Some(Factors {
            metric,
            step: self.steps[at],
            method: contrast([-0.5, -0.5, 0.5, 0.5])?,
            normalizer: contrast([0.5, -0.5, 0.5, -0.5])?,
            interaction: contrast([-1.0, 1.0, 1.0, -1.0])?,
            variation: variation(&by_arm),
        })
    }
}

impl ArmFindings {
    fn of(name: &str, outcomes: Vec<Option<Outcome>>) -> Self {
        let done: Vec<&Outcome> = outcomes.iter().flatten().collect();
        let over = |of: &dyn Fn(&Outcome) -> Option<OverSteps>| {
            let all: Vec<OverSteps> = done.iter().filter_map(|o| of(o)).collect();
            let mean = |of: &dyn Fn(&OverSteps) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            let max = all.iter().map(|o| o.max).reduce(f64::max)?;
            Some(OverSteps { mean: mean(&|o| o.mean), deviation: mean(&|o| o.deviation), max })
        };
        Self {
            name: name.to_owned(),
            diverged: done.iter().filter(|o| o.diverged.is_some()).count(),
            accuracy: vec![],
            nll_bound: vec![],
            grad_norm: over(&|o| o.grad_norm),
            mean_entropy: over(&|o| o.mean_entropy),
            uncertainty_spread: over(&|o| o.uncertainty_spread),
            outcomes,
        }
    }
}
