//! What training on one task changes on others: for each arm, how its scores on rows of other kinds (`reproduce.also_score`)
//! differ from the base's, seed by seed, and the paired differences between arms. `domains` computes the scores.

use std::fmt::Write;

use serde::Serialize;

use super::arms::pairs;
use super::domains::{Domain, DomainScore};
use super::findings::{Difference, Findings, Metric, SettingFindings};
use super::markdown::{capitalized, difference_cell, table};
use super::run::Outcome;
use super::sentences::of_difference;
use super::statistics::{Paired, paired};

/// The pairs of WeFT and SFT that differ only in the method; the report has a sentence on each.
const METHOD_PAIRS: [(&str, &str); 4] = [
    ("weft-masked", "sft-masked"),
    ("weft-answer", "sft-answer"),
    ("weft-blockwise", "sft-blockwise"),
    ("weft-bd3lm", "sft-bd3lm"),
];

/// The changes of a score on rows of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Forgetting {
    /// The name of the rows.
    pub domain: String,
    /// The score.
    pub metric: Metric,
    /// The base's score.
    pub base: f64,
    /// How each arm changes it, at the end of its runs.
    pub arms: Vec<Change>,
    /// The paired differences between arms.
    pub differences: Vec<Difference>,
}

/// How an arm changes a score of the base.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The name of the arm.
    pub arm: String,
    /// The score of each seed's run; `None` if the run isn't finished or diverged.
    pub scores: Vec<Option<f64>>,
    /// The change, tested against no change; `None` without finished runs.
    pub change: Option<Paired>,
}

impl Forgetting {
    /// The changes under a setting, for each domain and each score that it has.
    pub(super) fn of(domains: &[Domain], base: &Outcome, setting: &SettingFindings) -> Vec<Self> {
        let metrics = |domain: &Domain| {
            let accuracy = domain.task.as_ref().map(|_| Metric::Accuracy);
            accuracy
                .into_iter()
                .chain([Metric::NllBound])
                .map(|metric| (domain.name.clone(), metric))
                .collect::<Vec<_>>()
        };
        let one = |(domain, metric): (String, Metric)| {
            let base = score(base, &domain, metric)?;
            let change = |arm: &super::findings::ArmFindings| {
                let of_seed = |outcome: &Option<Outcome>| score(outcome.as_ref()?, &domain, metric);
                let scores: Vec<Option<f64>> = arm.outcomes.iter().map(of_seed).collect();
                let changes: Vec<f64> = scores.iter().flatten().map(|score| score - base).collect();
                let change = paired(&changes).map(|paired| metric.of_pairs(paired, 1.0));
                Change { arm: arm.name.clone(), scores, change }
            };
            let arms: Vec<Change> = setting.arms.iter().map(change).collect();
            let step = setting.steps.last().copied().unwrap_or(0);
            let difference = |(arm, reference): (&'static str, &'static str)| {
                let scores = |name: &str| arms.iter().find(|of| of.arm == name).map(|of| &of.scores);
                let seeds = scores(arm)?.iter().zip(scores(reference)?);
                let of_seeds: Vec<f64> = seeds.filter_map(|(a, b)| Some((*a)? - (*b)?)).collect();
                Some(Difference { arm, reference, metric, step, paired: metric.of_pairs(paired(&of_seeds)?, 1.0) })
            };
            let differences = pairs().filter_map(difference).collect();
            Some(Self { domain, metric, base, arms, differences })
        };
        domains.iter().flat_map(metrics).filter_map(one).collect()
    }

    /// A sentence on each pair of WeFT and SFT.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        let is_told = |d: &&Difference| METHOD_PAIRS.contains(&(d.arm, d.reference));
        self.differences.iter().filter(is_told).map(|d| format!("on {}: {}", self.domain, of_difference(d)))
    }
}

/// An outcome's score on rows of one kind.
fn score(outcome: &Outcome, domain: &str, metric: Metric) -> Option<f64> {
    let DomainScore { accuracy, nll_bound, .. } = outcome.also.iter().find(|of| of.name == domain)?;
    match metric {
        Metric::Accuracy => accuracy.map(|accuracy| 100.0 * accuracy.accuracy),
        Metric::NllBound => Some(*nll_bound),
    }
}

/// The section of a report; nothing if no rows of other kinds are scored.
pub(super) fn section(page: &mut String, findings: &Findings) {
    if findings.settings.iter().all(|setting| setting.forgetting.is_empty()) {
        return;
    }
    page.push_str(
        "## Forgetting\n\nWhat a run changes on rows of other kinds: its score at the end minus the base's, which is the same \
         for every seed, with the interval and the tests of a difference from 0. The rows below compare two arms, seed by seed. \
         A positive change of the held-out loss, and a negative one of the accuracy, is forgetting. An arm in blocks answers in \
         blocks here too; the base answers by the recipe's own sampler.\n\n",
    );
    for setting in &findings.settings {
        for metric in [Metric::Accuracy, Metric::NllBound] {
            let all: Vec<&Forgetting> = setting.forgetting.iter().filter(|of| of.metric == metric).collect();
            if !all.is_empty() {
                let what = format!("change of the {}, in {}", metric.quantity(), metric.unit_of_difference());
                let _ = match setting.label() {
                    Some(name) => writeln!(page, "Trained under {name}: {what}:\n"),
                    None => writeln!(page, "{}:\n", capitalized(&what)),
                };
                changes(page, findings, &all);
            }
        }
        let sentences: Vec<String> = setting.forgetting.iter().flat_map(Forgetting::sentences).collect();
        sentences.iter().for_each(|sentence| {
            let under = setting.label().map(|name| format!("{name}: ")).unwrap_or_default();
            let _ = writeln!(page, "- {under}{sentence}");
        });
        if !sentences.is_empty() {
            page.push('\n');
        }
    }
}

/// The table of one score under a setting: a column for each kind of rows.
fn changes(page: &mut String, findings: &Findings, all: &[&Forgetting]) {
    let decimals = all[0].metric.decimals();
    let header = ["".to_owned()].into_iter().chain(all.iter().map(|of| of.domain.clone())).collect();
    let base = ["base".to_owned()].into_iter().chain(all.iter().map(|of| format!("{:.decimals$}", of.base))).collect();
    let cell = |paired: Option<&Paired>| paired.map_or("-".to_owned(), |paired| difference_cell(paired, decimals));
    let of_arm = |(i, arm): (usize, &String)| {
        let cells = all.iter().map(|of| cell(of.arms[i].change.as_ref()));
        [format!("{arm} - base")].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let of_pair = |(arm, reference): (&str, &str)| {
        let found = |of: &&Forgetting| {
            let own = of.differences.iter().find(|d| d.arm == arm && d.reference == reference);
            own.map(|d| difference_cell(&d.paired, decimals))
        };
        let cells: Vec<Option<String>> = all.iter().map(found).collect();
        let row = [format!("{arm} - {reference}")].into_iter();
        let has_any = cells.iter().any(Option::is_some);
        has_any.then(|| row.chain(cells.into_iter().map(|cell| cell.unwrap_or("-".to_owned()))).collect::<Vec<_>>())
    };
    let arms = findings.arms.iter().enumerate().map(of_arm);
    let rows = [base].into_iter().chain(arms).chain(pairs().filter_map(of_pair)).collect();
    table(page, header, rows);
}
