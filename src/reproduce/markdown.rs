//! The report of a comparison, with its charts: the paper's Table 1 (accuracy), Table 3 (ablations), Table 4 (gradient
//! norms) and times. It adds what the paper doesn't report: the differences seed by seed, also during training, and
//! what they are due to.

use std::fmt::Write;
use std::path::Path;

use super::findings::{ArmFindings, Difference, Factors, Findings, Metric, PAIRS, SettingFindings};
use super::run::OverSteps;
use super::statistics::{Interval, Paired};
use crate::report::chart::{self, Curve, Titles};

/// The arms of Table 1; all others are ablations.
const MAIN: [&str; 4] = ["sft-answer", "sft-masked", "weft-answer", "weft-masked"];

/// The report as Markdown.
pub fn page(findings: &Findings, recipe: &Path) -> String {
    let mut page = String::from("# SFT and WeFT compared\n\n");
    let seeds = &findings.seeds;
    let _ = writeln!(
        page,
        "Made by `weft reproduce {}` (weft {}), seeds {} to {}. A seed's runs share base, rows, their order and every \
         draw. Intervals hold 95 % confidence over seeds (Student's t); p is that of the paired t test, then of the exact \
         sign-flip test; neither is corrected for the number of comparisons. The arms `NAME-masked`, and all others \
         but `NAME-answer`, divide the loss by the masked tokens.\n",
        recipe.display(),
        findings.weft,
        seeds.first().unwrap_or(&0),
        seeds.last().unwrap_or(&0)
    );
    gaps(&mut page, findings);
    table_1(&mut page, findings);
    for setting in &findings.settings {
        of_setting(&mut page, setting);
    }
    table_3(&mut page, findings);
    table_4(&mut page, findings);
    times(&mut page, findings);
    page
}

/// The charts, as file names and contents.
pub fn charts(findings: &Findings) -> Vec<(String, String)> {
    let mut charts = vec![];
    for setting in &findings.settings {
        for (metric, name, y) in [
            (Metric::Accuracy, "accuracy", "accuracy, %"),
            (Metric::NllBound, "loss", "held-out loss, nats per answer token"),
        ] {
            let main = setting.arms.iter().filter(|arm| MAIN.contains(&&*arm.name));
            let curves: Vec<Curve> = main.map(|arm| curve(setting, arm, metric)).collect();
            let title = format!("{}: {name} by step, with 95 % intervals over seeds", setting.name);
            let titles = Titles { title: &title, x: "step", y };
            charts.push((format!("{name}-{}.svg", setting.name), chart::curves(titles, &curves)));
        }
        let last = setting.steps.last().copied().unwrap_or(0);
        let at_end = setting.differences.iter().filter(|d| d.metric == Metric::Accuracy && d.step == last);
        let row = |d: &Difference| {
            let Interval { mean, low, high, .. } = d.paired.difference;
            (format!("{} - {}", d.arm, d.reference), [mean, low, high])
        };
        let title = format!("{}: differences of accuracy at step {last}, with 95 % intervals", setting.name);
        let titles = Titles { title: &title, x: "percentage points", y: "" };
        let rows: Vec<(String, [f64; 3])> = at_end.map(row).collect();
        charts.push((format!("differences-{}.svg", setting.name), chart::intervals(titles, &rows)));
    }
    charts
}

fn curve(setting: &SettingFindings, arm: &ArmFindings, metric: Metric) -> Curve {
    let intervals = of_metric(arm, metric);
    let point = |(step, i): (&u64, &Option<Interval>)| i.map(|i| [*step as f64, i.mean, i.low, i.high]);
    Curve { name: arm.name.clone(), points: setting.steps.iter().zip(intervals).filter_map(point).collect() }
}

fn of_metric(arm: &ArmFindings, metric: Metric) -> &[Option<Interval>] {
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
                    "{} {}: {missing} of {} runs are not done, {} diverged; pairs with these are left out.\n",
                    setting.name,
                    arm.name,
                    arm.outcomes.len(),
                    arm.diverged
                );
            }
        }
    }
}

fn table_1(page: &mut String, findings: &Findings) {
    page.push_str("## Table 1: accuracy in percent at the end\n\n");
    let names = findings.settings.iter().map(|s| s.name.clone());
    let header = ["".to_owned()].into_iter().chain(names).chain(["average".to_owned()]).collect();
    let bases: Vec<f64> = findings.settings.iter().map(|s| 100.0 * s.base.accuracy.accuracy).collect();
    let average = bases.iter().sum::<f64>() / bases.len().max(1) as f64;
    let base = bases.iter().chain([&average]).map(|b| format!("{b:.1}"));
    let mut rows = vec![["base".to_owned()].into_iter().chain(base).collect()];
    for (i, name) in findings.arms.iter().enumerate().filter(|(_, name)| MAIN.contains(&&***name)) {
        let accuracies = findings.settings.iter().map(|s| last(&s.arms[i].accuracy, 1));
        let average = cell(findings.average[i].as_ref(), 1);
        rows.push([name.clone()].into_iter().chain(accuracies).chain([average]).collect());
    }
    table(page, header, rows);
}

fn of_setting(page: &mut String, setting: &SettingFindings) {
    let _ = writeln!(page, "## {}\n\n`{}`\n", setting.name, setting.set.join(" "));
    for (metric, name, decimals) in
        [(Metric::Accuracy, "Accuracy in percent", 1), (Metric::NllBound, "Held-out loss, nats per answer token", 4)]
    {
        let base = match metric {
            Metric::Accuracy => 100.0 * setting.base.accuracy.accuracy,
            Metric::NllBound => setting.base.nll_bound,
        };
        let _ = writeln!(page, "{name} on the way (base: {base:.decimals$}):\n");
        let row = |arm: &ArmFindings| {
            let cells = of_metric(arm, metric).iter().map(|i| cell(i.as_ref(), decimals));
            [arm.name.clone()].into_iter().chain(cells).collect()
        };
        table(page, by_step("arm", setting), setting.arms.iter().map(row).collect());
        page.push_str("Paired differences:\n\n");
        let of_pair = |(arm, reference): (&str, &str)| {
            let is_own = |d: &&Difference| d.metric == metric && d.arm == arm && d.reference == reference;
            let cells: Vec<String> =
                setting.differences.iter().filter(is_own).map(|d| difference_cell(&d.paired, decimals)).collect();
            let name = format!("{arm} - {reference}");
            (!cells.is_empty()).then(|| [name].into_iter().chain(cells).collect())
        };
        table(page, by_step("arm - reference", setting), PAIRS.into_iter().filter_map(of_pair).collect());
        factors(page, setting, metric, decimals);
    }
    let _ = writeln!(
        page,
        "![accuracy](accuracy-{0}.svg) ![loss](loss-{0}.svg) ![differences](differences-{0}.svg)\n",
        setting.name
    );
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
            "Whose difference it is (SFT and WeFT under both divisors; deviations are between seeds for one arm, and of \
             what is left when the arm's and the seed's effects are taken out):\n\n",
        );
        let columns =
            ["step", "method: WeFT - SFT", "divisor: masked - answer", "interaction", "between seeds", "left"];
        table(page, columns.map(str::to_owned).to_vec(), rows);
    }
}

fn table_3(page: &mut String, findings: &Findings) {
    page.push_str(
        "## Table 3: ablations at the end\n\nAccuracy in percent; below it the difference to `sft-masked`.\n\n",
    );
    let header = ["".to_owned()].into_iter().chain(findings.settings.iter().map(|s| s.name.clone())).collect();
    let is_shown = |name: &str| !MAIN.contains(&name) || name.ends_with("-masked");
    let of_setting = |setting: &SettingFindings, arm: usize| {
        let is_own = |d: &&Difference| {
            let is_pair = d.arm == setting.arms[arm].name && d.reference == "sft-masked";
            is_pair && d.metric == Metric::Accuracy && Some(&d.step) == setting.steps.last()
        };
        let difference = setting.differences.iter().find(is_own);
        let difference = difference.map_or(String::new(), |d| format!("<br>{}", difference_cell(&d.paired, 1)));
        format!("{}{difference}", last(&setting.arms[arm].accuracy, 1))
    };
    let row = |(arm, name): (usize, &String)| {
        let cells = findings.settings.iter().map(|setting| of_setting(setting, arm));
        [name.clone()].into_iter().chain(cells).collect()
    };
    table(page, header, findings.arms.iter().enumerate().filter(|(_, name)| is_shown(name)).map(row).collect());
}

fn table_4(page: &mut String, findings: &Findings) {
    page.push_str(
        "## Table 4: gradient norms, and how uneven the rates are\n\nGradient norms before clipping: mean, standard \
         deviation and largest over steps and seeds. Entropy in nats per answer token and the standard deviation of \
         r over answer tokens (0 would be SFT's one rate): means over steps and seeds.\n\n",
    );
    let header = ["setting", "arm", "mean", "deviation", "largest", "entropy", "deviation of r"];
    let mean = |over: Option<OverSteps>| over.map_or("-".to_owned(), |o| format!("{:.3}", o.mean));
    let row = |(setting, arm): (&SettingFindings, &ArmFindings)| {
        let OverSteps { mean: norm, deviation, max } = arm.grad_norm?;
        let norms = [format!("{norm:.3}"), format!("{deviation:.3}"), format!("{max:.2}")];
        let spread = [mean(arm.mean_entropy), mean(arm.uncertainty_spread)];
        Some([setting.name.clone(), arm.name.clone()].into_iter().chain(norms).chain(spread).collect())
    };
    let arms = findings.settings.iter().flat_map(|s| s.arms.iter().map(move |arm| (s, arm)));
    table(page, header.map(str::to_owned).to_vec(), arms.filter_map(row).collect());
}

fn times(page: &mut String, findings: &Findings) {
    let timed: Vec<(&SettingFindings, &[f64])> =
        findings.settings.iter().filter_map(|s| Some((s, s.step_seconds.as_deref()?))).collect();
    let Some(threads) = timed.first().and_then(|(s, _)| s.timed_threads) else { return };
    let _ = writeln!(
        page,
        "## Times\n\nMilliseconds of a step, median, arms in turns, {threads} threads; in brackets its ratio to \
         `sft-masked`'s.\n"
    );
    let header = ["".to_owned()].into_iter().chain(timed.iter().map(|(s, _)| s.name.clone())).collect();
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
fn table(page: &mut String, header: Vec<String>, rows: Vec<Vec<String>>) {
    let rule = vec!["---".to_owned(); header.len()];
    for row in [header, rule].into_iter().chain(rows) {
        let _ = writeln!(page, "| {} |", row.join(" | "));
    }
    page.push('\n');
}

fn last(intervals: &[Option<Interval>], decimals: usize) -> String {
    cell(intervals.last().and_then(Option::as_ref), decimals)
}

/// An interval as text: `82.3 [80.1, 84.5]`.
fn cell(interval: Option<&Interval>, decimals: usize) -> String {
    let shown = |i: &Interval| format!("{:.decimals$} [{:.decimals$}, {:.decimals$}]", i.mean, i.low, i.high);
    interval.map_or("-".to_owned(), shown)
}

/// A paired difference as text: `+1.2 [-0.3, 2.7], p 0.11/0.13, 7:3`.
fn difference_cell(paired: &Paired, decimals: usize) -> String {
    let Interval { mean, low, high, .. } = paired.difference;
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
