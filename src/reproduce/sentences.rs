//! The findings of a comparison in plain sentences, and its main table as text for a terminal. `markdown` has the whole
//! report.

use super::arms::Arm;
use super::findings::{Difference, Findings, Metric, SettingFindings};
use super::markdown::main_table;
use super::statistics::Interval;

/// The main table, for a terminal, and a sentence on each difference at the end.
pub fn summary(findings: &Findings) -> Vec<String> {
    let metric = findings.metrics()[0];
    let (header, rows) = main_table(findings, metric);
    let title = format!("{} at the end: mean [95 % interval] over {}", metric.name(), seeds(findings.seeds.len()));
    let mut lines = vec![title];
    lines.extend(columns(&[vec![header], rows].concat()));
    for setting in &findings.settings {
        let setting_name = if findings.settings.len() > 1 { format!("{}: ", setting.name) } else { String::new() };
        let sentences = of_setting(setting, setting.metrics()[0]);
        // The report has both scores of rows that have a task.
        let is_first = |i: &usize| *i == 0 || setting.forgetting[i - 1].domain != setting.forgetting[*i].domain;
        let firsts = (0..setting.forgetting.len()).filter(is_first);
        let elsewhere = firsts.flat_map(|i| setting.forgetting[i].sentences());
        lines.extend(sentences.into_iter().chain(elsewhere).map(|sentence| format!("{setting_name}{sentence}")));
    }
    lines
}

/// A sentence on each difference of a score at the end of the runs.
pub fn of_setting(setting: &SettingFindings, metric: Metric) -> Vec<String> {
    let sentences: Vec<String> = setting.differences_at_end(metric).map(of_difference).collect();
    match sentences.is_empty() {
        true => vec!["no two arms have finished runs of the same seed, so there is no difference to report".to_owned()],
        false => sentences,
    }
}

/// A sentence such as `WeFT - SFT: +1.2 [-0.3, 2.7] percentage points over 10 seeds; not told apart`.
pub(super) fn of_difference(difference: &Difference) -> String {
    let Difference { arm, reference, metric, paired, .. } = difference;
    let Interval { mean, low, high, count, .. } = paired.difference;
    let (decimals, unit) = (metric.decimals(), metric.unit_of_difference());
    let is_arms = (mean > 0.0) == (*metric == Metric::Accuracy);
    let verdict = match count {
        1 => "one seed has no interval (reproduce.seeds)".to_owned(),
        _ if low == 0.0 && high == 0.0 => "equal in every seed".to_owned(),
        _ if low <= 0.0 && high >= 0.0 => "not told apart".to_owned(),
        _ => format!("{} is better", name(if is_arms { arm } else { reference })),
    };
    let [mean, low, high] = [mean, low, high].map(|value| without_sign_of_zero(value, decimals));
    let interval = if count > 1 { format!(" [{low:.decimals$}, {high:.decimals$}]") } else { String::new() };
    format!("{}: {mean:+.decimals$}{interval} {unit} over {}; {verdict}", pair(arm, reference), seeds(count))
}

/// A value that would be printed as -0.0 as 0.0.
fn without_sign_of_zero(value: f64, decimals: usize) -> f64 {
    if value.abs() < 0.5 * 10f64.powi(-(decimals as i32)) { 0.0 } else { value }
}

fn seeds(count: usize) -> String {
    if count == 1 { "1 seed".to_owned() } else { format!("{count} seeds") }
}

/// The two arms of a difference.
fn pair(arm: &str, reference: &str) -> String {
    match (arm, reference) {
        ("weft-answer", "sft-answer") => "WeFT - SFT, both divided by answer tokens".to_owned(),
        ("sft-masked", "sft-answer") => "SFT divided by masked tokens - SFT divided by answer tokens".to_owned(),
        ("weft-masked", "weft-answer") => "WeFT divided by masked tokens - WeFT divided by answer tokens".to_owned(),
        _ => format!("{} - {}", name(arm), name(reference)),
    }
}

/// An arm's name in a sentence.
fn name(arm: &str) -> &str {
    Arm::named(arm).map_or(arm, |arm| arm.said)
}

/// Rows of text in columns of equal width.
fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(i, cell)| format!("{cell:w$}", w = width(i).unwrap_or(0)));
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::statistics::paired;

    #[test]
    fn a_difference_is_a_sentence_with_its_verdict() {
        let told = |metric, arm, reference, values: &[f64]| {
            let paired = paired(values).expect("there are pairs");
            of_difference(&Difference { arm, reference, metric, step: 6, paired })
        };
        assert_eq!(
            told(Metric::NllBound, "weft-masked", "sft-masked", &[0.25, -0.25, 0.0]),
            "WeFT - SFT: +0.0000 [-0.6210, 0.6210] nats per answer token over 3 seeds; not told apart"
        );
        let lower = [-0.25, -0.26, -0.24];
        assert!(told(Metric::NllBound, "weft-masked", "sft-masked", &lower).ends_with("; WeFT is better"));
        assert!(told(Metric::Accuracy, "weft-masked", "sft-masked", &lower).ends_with("; SFT is better"));
        assert!(told(Metric::Accuracy, "weft-answer", "sft-answer", &[2.0]).ends_with(
            "answer tokens: +2.0 percentage points over 1 seed; one seed has no interval (reproduce.seeds)"
        ));
        assert!(told(Metric::Accuracy, "weft-cbrt", "sft-masked", &[0.0, 0.0]).ends_with("; equal in every seed"));
    }
}
