//! The findings of a comparison in plain sentences, and its main table, for a terminal. `markdown` has the whole
//! report.

use super::arms::Arm;
use super::findings::{Difference, Findings, Metric, SettingFindings};
use super::markdown::{base_note, main_table};
use super::statistics::Interval;
use crate::counted::counted;
use crate::report::table::Table;

/// The main table, and a sentence on each difference at the end.
pub fn summary(findings: &Findings) -> (Table, Vec<String>) {
    let metric = findings.metrics()[0];
    let (header, rows) = main_table(findings, metric);
    let seeds = counted(findings.seeds.len(), "seed");
    let title = format!("{} at the end: mean [95 % interval] over {seeds}", metric.name());
    let table = Table { title, rows: [vec![header], rows].concat(), note: base_note(findings).unwrap_or_default() };
    let of_all = |setting: &SettingFindings| -> Vec<String> {
        let name = if findings.settings.len() > 1 { format!("{}: ", setting.name) } else { String::new() };
        // The report has both scores of rows that have a task.
        let is_first = |i: &usize| *i == 0 || setting.forgetting[i - 1].domain != setting.forgetting[*i].domain;
        let firsts = (0..setting.forgetting.len()).filter(is_first);
        let elsewhere = firsts.flat_map(|i| setting.forgetting[i].sentences());
        let sentences = of_setting(setting, setting.metrics()[0]);
        sentences.into_iter().chain(elsewhere).map(|sentence| format!("{name}{sentence}")).collect()
    };
    (table, findings.settings.iter().flat_map(of_all).collect())
}

/// A sentence on each difference of a score at the end of the runs.
pub(crate) fn of_setting(setting: &SettingFindings, metric: Metric) -> Vec<String> {
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
    format!("{}: {mean:+.decimals$}{interval} {unit} over {}; {verdict}", pair(arm, reference), counted(count, "seed"))
}

/// A value that would be printed as -0.0 as 0.0.
fn without_sign_of_zero(value: f64, decimals: usize) -> f64 {
    if value.abs() < 0.5 * 10f64.powi(-(decimals as i32)) { 0.0 } else { value }
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
