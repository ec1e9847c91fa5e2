//! The report of a comparison: each arm's scores (the paper's Table 1), ablations (its Table 3), gradient
//! norms (its Table 4) and times. It adds what the paper doesn't report: the differences seed by seed, also during
//! training, and what they are due to.

use std::fmt::Write;
use std::path::Path;

use super::arms::{Arm, Group, pairs};
use super::charts;
use super::findings::{ArmFindings, Difference, Factors, Findings, Metric, SettingFindings};
use super::run::{OverSteps, Point};
use super::statistics::{Interval, Paired};
use super::{forgetting, rows, sentences};
use crate::counted::counted;

/// What the symbols of the tables mean.
const LEGEND: &str = "`82.3 [80.1, 84.5]` is a mean over seeds with its 95 % confidence interval: for an accuracy Wilson's with \
                      Student's quantile, for a loss Student's t of the logarithm, so that neither has ends that can't be. A \
                      difference such as `+1.2 [-0.3, 2.7], p 0.110/0.130, 7:3` is the mean of the differences seed by \
                      seed, with Student's t interval, the p value of the paired t test, that of the exact sign-flip test, and \
                      the numbers of seeds in which the first arm's value is higher and lower. A difference is \
                      claimed only if its interval excludes 0; neither the intervals nor the p values are corrected for the number \
                      of comparisons. `-` stands where no finished run gives a value. The held-out loss is SFT's bound \
                      whatever the objective, so that all arms can be compared by it; lower is better.";

/// The report as Markdown.
pub fn page(findings: &Findings, recipe: &Path) -> String {
    let mut page = String::from("# SFT and WeFT compared\n\n");
    let seeds = match &findings.seeds[..] {
        [first, .., last] => format!("seeds {first} to {last}"),
        one => format!("seed {}", one.first().unwrap_or(&0)),
    };
    let _ = writeln!(
        page,
        "Made by `weft reproduce {}` (weft {}), {seeds}. A seed's runs share base, rows, their order and every \
         draw, so that their differences are paired.\n",
        recipe.display(),
        findings.weft
    );
    gaps(&mut page, findings);
    in_short(&mut page, findings);
    rows::section(&mut page, findings);
    legend(&mut page, findings);
    for metric in findings.metrics() {
        let _ = writeln!(page, "## {} at the end\n", capitalized(metric.name()));
        let (header, rows) = main_table(findings, metric);
        table(&mut page, header, rows);
        if let Some(note) = base_note(findings) {
            let _ = writeln!(page, "{note}\n");
        }
    }
    forgetting::section(&mut page, findings);
    for setting in &findings.settings {
        of_setting(&mut page, setting);
    }
    against_sft(&mut page, findings, (Group::Method, "LIFT and training in blocks"));
    against_sft(&mut page, findings, (Group::Ablation, "Ablations"));
    gradients(&mut page, findings);
    times(&mut page, findings);
    page
}

/// A name at the beginning of a line. Names are ASCII.
pub(super) fn capitalized(name: &str) -> String {
    format!("{}{}", name[..1].to_uppercase(), &name[1..])
}

/// The names of the settings at the top of a table's columns; what the cells are, where there is only the recipe as it is.
fn columns<'a>(settings: impl Iterator<Item = &'a SettingFindings>, what: &str) -> Vec<String> {
    settings.map(|setting| setting.label().unwrap_or(what).to_owned()).collect()
}

/// The differences at the end, one sentence each.
fn in_short(page: &mut String, findings: &Findings) {
    page.push_str("## In short\n\n");
    for setting in &findings.settings {
        for metric in setting.metrics() {
            let last = setting.steps.last().map(|step| format!(" at step {step}")).unwrap_or_default();
            let what = match setting.label() {
                Some(name) => format!("Setting {name}, {}", metric.name()),
                None => capitalized(metric.name()),
            };
            let _ = writeln!(page, "{what}{last}:\n");
            for sentence in sentences::of_setting(setting, metric) {
                let _ = writeln!(page, "- {sentence}");
            }
            page.push('\n');
        }
    }
}

/// What the symbols of the tables mean, and what each arm sets.
fn legend(page: &mut String, findings: &Findings) {
    let _ = writeln!(page, "## How to read the tables\n\n{LEGEND}\n");
    for arm in findings.arms.iter().filter_map(|name| Arm::named(name)) {
        let _ = writeln!(page, "- `{}` sets `{}`", arm.name, arm.sets(findings.block_length).join(" "));
    }
    page.push('\n');
}

pub(super) fn of_metric(arm: &ArmFindings, metric: Metric) -> &[Option<Interval>] {
    match metric {
        Metric::Accuracy => &arm.accuracy,
        Metric::NllBound => &arm.nll_bound,
    }
}

/// Reports runs that are missing or diverged, if there are any.
fn gaps(page: &mut String, findings: &Findings) {
    for setting in &findings.settings {
        for arm in &setting.arms {
            let missing = arm.outcomes.iter().filter(|o| o.is_none()).count();
            if missing + arm.diverged > 0 {
                let _ = writeln!(
                    page,
                    "{}{}: {missing} of {} not done, {} diverged; pairs with these are left out.\n",
                    setting.label().map(|name| format!("{name} ")).unwrap_or_default(),
                    arm.name,
                    counted(arm.outcomes.len(), "run"),
                    arm.diverged
                );
            }
        }
    }
}

/// The scores of base and arms at the end under each setting, as the cells of a table's header and rows.
pub(super) fn main_table(findings: &Findings, metric: Metric) -> (Vec<String>, Vec<Vec<String>>) {
    // An average of losses over settings says nothing, because their rows differ.
    let has_average = metric == Metric::Accuracy && findings.settings.len() > 1;
    let with_name = |name: &str, cells: Vec<String>, average: Option<String>| {
        [name.to_owned()].into_iter().chain(cells).chain(average.filter(|_| has_average)).collect::<Vec<String>>()
    };
    let names = columns(findings.settings.iter(), metric.quantity());
    let header = with_name("", names, Some("average".to_owned()));
    let decimals = metric.decimals();
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"));
    let bases: Vec<Option<Interval>> = findings.settings.iter().map(|s| s.base_score(metric)).collect();
    let sum: Option<f64> = bases.iter().map(|base| base.map(|base| base.mean)).sum();
    let average = shown(sum.map(|sum| sum / bases.len() as f64));
    let cells = bases.iter().map(|base| cell(base.as_ref(), decimals)).collect();
    let mut rows = vec![with_name("base", cells, Some(average))];
    for (i, name) in findings.arms.iter().enumerate() {
        let cells = findings.settings.iter().map(|s| last(of_metric(&s.arms[i], metric), decimals)).collect();
        rows.push(with_name(name, cells, Some(cell(findings.average[i].as_ref(), 1))));
    }
    (header, rows)
}

/// A note on the base's row where each seed holds out rows of its own but the base isn't scored on those of all seeds.
pub(super) fn base_note(findings: &Findings) -> Option<String> {
    let fewest = findings.settings.iter().map(|setting| setting.base_by_seed.len()).filter(|count| *count > 0).min()?;
    let all = findings.seeds.len();
    (fewest < all).then(|| {
        format!(
            "The base is scored on the rows of {fewest} of {} only, the arms on those of all; weft reproduce without --report-only \
             scores it on the others.",
            counted(all, "seed")
        )
    })
}

/// The value of a score; `None` without a task.
pub(super) fn value_of(point: &Point, metric: Metric) -> Option<f64> {
    match metric {
        Metric::Accuracy => point.accuracy.map(|accuracy| 100.0 * accuracy.accuracy),
        Metric::NllBound => Some(point.nll_bound),
    }
}

fn of_setting(page: &mut String, setting: &SettingFindings) {
    let changes = match setting.set.is_empty() {
        true => "The recipe as it is.".to_owned(),
        false => format!("The recipe with `{}`.", setting.set.join(" ")),
    };
    let _ = match setting.label() {
        Some(name) => writeln!(page, "## Setting {name}\n\n{changes}\n"),
        None => writeln!(page, "## During training\n"),
    };
    for metric in setting.metrics() {
        let decimals = metric.decimals();
        let name =
            if metric == Metric::Accuracy { "Accuracy in percent" } else { "Held-out loss, nats per answer token" };
        let base = cell(setting.base_score(metric).as_ref(), decimals);
        let _ = writeln!(page, "{name}, during training (base: {base}):\n");
        let row = |arm: &ArmFindings| {
            let cells = of_metric(arm, metric).iter().map(|i| cell(i.as_ref(), decimals));
            [arm.name.clone()].into_iter().chain(cells).collect()
        };
        table(page, by_step("arm", setting), setting.arms.iter().map(row).collect());
        let of_pair = |(arm, reference): (&str, &str)| {
            let is_own = |d: &&Difference| d.metric == metric && d.arm == arm && d.reference == reference;
            let cells: Vec<String> =
                setting.differences.iter().filter(is_own).map(|d| difference_cell(&d.paired, decimals)).collect();
            let name = format!("{arm} - {reference}");
            (!cells.is_empty()).then(|| [name].into_iter().chain(cells).collect())
        };
        let rows: Vec<Vec<String>> = pairs().filter_map(of_pair).collect();
        if !rows.is_empty() {
            page.push_str("Paired differences:\n\n");
            table(page, by_step("arm - reference", setting), rows);
        }
        factors(page, setting, metric, decimals);
    }
    let charts = charts::of_setting(setting);
    if !charts.is_empty() {
        let image = |(name, _): &(String, String)| format!("![{name}]({})", charts::file_name(name, &setting.name));
        let _ = writeln!(page, "{}\n", charts.iter().map(image).collect::<Vec<_>>().join(" "));
    }
}

/// A table header with one column for each of the steps.
fn by_step(first: &str, setting: &SettingFindings) -> Vec<String> {
    [first.to_owned()].into_iter().chain(setting.steps.iter().map(|step| format!("step {step}"))).collect()
}

fn factors(page: &mut String, setting: &SettingFindings, metric: Metric, decimals: usize) {
    let deviation = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.decimals$}"));
    let row = |f: &Factors| {
        let differences = [&f.method, &f.normalizer, &f.interaction].map(|p| difference_cell(p, decimals));
        let deviations = [f.variation.map(|v| v.between_seeds), f.variation.map(|v| v.within_seeds)].map(deviation);
        [f.step.to_string()].into_iter().chain(differences).chain(deviations).collect()
    };
    let rows: Vec<Vec<String>> = setting.factors.iter().filter(|f| f.metric == metric).map(row).collect();
    if !rows.is_empty() {
        page.push_str(
            "What the differences are due to, among SFT and WeFT under both divisors. The interaction is the method's \
             difference under the divisor masked, minus that under answer. The last two columns are standard deviations: of \
             one arm between seeds, and of the residual once the effects of arm and seed are removed.\n\n",
        );
        let columns =
            ["step", "method: WeFT - SFT", "divisor: masked - answer", "interaction", "between seeds", "residual"];
        table(page, columns.map(str::to_owned).to_vec(), rows);
    }
}

/// The arms of a group against SFT, beside SFT and WeFT under the same divisor.
fn against_sft(page: &mut String, findings: &Findings, (group, title): (Group, &str)) {
    let is_of_group = |name: &str| Arm::named(name).is_some_and(|arm| arm.group == group);
    if !findings.arms.iter().any(|name| is_of_group(name)) {
        return;
    }
    let metric = findings.metrics()[0];
    let decimals = metric.decimals();
    let _ = writeln!(
        page,
        "## {title} at the end\n\n{}; below it the difference to `sft-masked`.\n",
        if metric == Metric::Accuracy { "Accuracy in percent" } else { "Held-out loss in nats per answer token" }
    );
    let names = columns(findings.settings.iter(), metric.quantity());
    let header = ["".to_owned()].into_iter().chain(names).collect();
    let is_shown = |name: &str| is_of_group(name) || name.ends_with("-masked");
    let of_setting = |setting: &SettingFindings, arm: usize| {
        let is_own = |d: &&Difference| d.arm == setting.arms[arm].name && d.reference == "sft-masked";
        let difference = setting.differences_at_end(metric).find(is_own);
        let difference = difference.map_or(String::new(), |d| format!("<br>{}", difference_cell(&d.paired, decimals)));
        format!("{}{difference}", last(of_metric(&setting.arms[arm], metric), decimals))
    };
    let row = |(arm, name): (usize, &String)| {
        let cells = findings.settings.iter().map(|setting| of_setting(setting, arm));
        [name.clone()].into_iter().chain(cells).collect()
    };
    table(page, header, findings.arms.iter().enumerate().filter(|(_, name)| is_shown(name)).map(row).collect());
}

fn gradients(page: &mut String, findings: &Findings) {
    page.push_str(
        "## Gradient norms and the spread of the rates\n\nThe norm of the gradient before clipping: its mean, standard \
         deviation and largest value over steps and seeds. The entropy is in nats per answer token. The deviation of r is \
         the standard deviation, over answer tokens, of the relative uncertainty r that sets a token's masking rate; with \
         0 every token would have SFT's rate. Both are means over steps and seeds, and only objectives that use entropies \
         have them.\n\n",
    );
    let header = ["arm", "mean", "deviation", "largest", "entropy", "deviation of r"].map(str::to_owned);
    let is_named = findings.settings.iter().any(|setting| setting.label().is_some());
    let of_setting = |name: &str| is_named.then(|| name.to_owned());
    let mean = |over: Option<OverSteps>| over.map_or("-".to_owned(), |o| format!("{:.3}", o.mean));
    let row = |(setting, arm): (&SettingFindings, &ArmFindings)| {
        let OverSteps { mean: norm, deviation, max } = arm.grad_norm?;
        let norms = [format!("{norm:.3}"), format!("{deviation:.3}"), format!("{max:.2}")];
        let spread = [mean(arm.mean_entropy), mean(arm.uncertainty_spread)];
        let cells = [arm.name.clone()].into_iter().chain(norms).chain(spread);
        Some(of_setting(&setting.name).into_iter().chain(cells).collect())
    };
    let arms = findings.settings.iter().flat_map(|s| s.arms.iter().map(move |arm| (s, arm)));
    table(page, of_setting("setting").into_iter().chain(header).collect(), arms.filter_map(row).collect());
}

fn times(page: &mut String, findings: &Findings) {
    let timed: Vec<(&SettingFindings, &[f64])> =
        findings.settings.iter().filter_map(|s| Some((s, s.step_seconds.as_deref()?))).collect();
    let Some(threads) = timed.first().and_then(|(s, _)| s.timed_threads) else { return };
    let _ = writeln!(
        page,
        "## Times\n\nThe median time of a step in milliseconds, on {}; the arms alternate. In brackets is its \
         ratio to `sft-masked`'s.\n",
        counted(threads, "thread")
    );
    let names = columns(timed.iter().map(|(setting, _)| *setting), "milliseconds");
    let header = ["".to_owned()].into_iter().chain(names).collect();
    let row = |(arm, name): (usize, &String)| {
        let of_setting = |(setting, seconds): &(&SettingFindings, &[f64])| {
            let ratio = setting.arm("sft-masked").map(|sft| format!(" ({:.2})", seconds[arm] / seconds[sft]));
            format!("{:.1}{}", 1e3 * seconds[arm], ratio.unwrap_or_default())
        };
        [name.clone()].into_iter().chain(timed.iter().map(of_setting)).collect()
    };
    table(page, header, findings.arms.iter().enumerate().map(row).collect());
}

/// A table followed by an empty line.
pub(super) fn table(page: &mut String, header: Vec<String>, rows: Vec<Vec<String>>) {
    let rule = vec!["---".to_owned(); header.len()];
    for row in [header, rule].into_iter().chain(rows) {
        let _ = writeln!(page, "| {} |", row.join(" | "));
    }
    page.push('\n');
}

fn last(intervals: &[Option<Interval>], decimals: usize) -> String {
    cell(intervals.last().and_then(Option::as_ref), decimals)
}

/// An interval as text: `82.3 [80.1, 84.5]`. One seed has none: `82.3`.
fn cell(interval: Option<&Interval>, decimals: usize) -> String {
    let shown = |i: &Interval| match i.count {
        1 => format!("{:.decimals$}", i.mean),
        _ => format!("{:.decimals$} [{:.decimals$}, {:.decimals$}]", i.mean, i.low, i.high),
    };
    interval.map_or("-".to_owned(), shown)
}

/// A paired difference as text: `+1.2 [-0.3, 2.7], p 0.11/0.13, 7:3`. One seed has neither an interval nor a test: `+1.2`.
pub(super) fn difference_cell(paired: &Paired, decimals: usize) -> String {
    let Interval { mean, low, high, count, .. } = paired.difference;
    if count == 1 {
        return format!("{mean:+.decimals$}");
    }
    let p = |p: Option<f64>| match p {
        None => "-".to_owned(),
        Some(p) if p < 0.001 => "<0.001".to_owned(),
        Some(p) => format!("{p:.3}"),
    };
    format!(
        "{mean:+.decimals$} [{low:.decimals$}, {high:.decimals$}], p {}/{}, {}:{}",
        p(paired.t_test),
        p(paired.sign_flip_test),
        paired.above,
        paired.below
    )
}
