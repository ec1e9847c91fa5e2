//! The charts of a comparison's report: scores by step, and the differences at the end.

use super::arms::{Arm, Group};
use super::findings::{ArmFindings, Difference, Findings, Metric, SettingFindings};
use super::markdown::{capitalized, of_metric};
use super::statistics::Interval;
use crate::report::chart::{self, Curve, Titles};

/// The largest number of curves in a chart. If there are more arms, one chart shows SFT and WeFT, others show LIFT and the arms
/// in blocks, and none shows the ablations.
const MOST_CURVES: usize = 4;

/// The charts, as file names and contents.
pub fn files(findings: &Findings) -> Vec<(String, String)> {
    let of = |setting: &SettingFindings| {
        let named = |(chart, svg): (String, String)| (file_name(&chart, &setting.name), svg);
        of_setting(setting).into_iter().map(named).collect::<Vec<_>>()
    };
    findings.settings.iter().flat_map(of).collect()
}

/// The name of a chart's file.
pub fn file_name(chart: &str, setting: &str) -> String {
    format!("{chart}-{setting}.svg")
}

/// The arms in each chart of scores by step.
fn divided(arms: &[ArmFindings]) -> Vec<Vec<&ArmFindings>> {
    if arms.len() <= MOST_CURVES {
        return vec![arms.iter().collect()];
    }
    let of_group = |group: Group| -> Vec<&ArmFindings> {
        arms.iter().filter(|arm| Arm::named(&arm.name).is_some_and(|arm| arm.group == group)).collect()
    };
    let methods = of_group(Group::Method);
    let of_methods = methods.chunks(MOST_CURVES).map(<[_]>::to_vec);
    [of_group(Group::Main)].into_iter().filter(|arms| !arms.is_empty()).chain(of_methods).collect()
}

/// The charts of a setting by name. A chart of a single point or row isn't drawn.
pub fn of_setting(setting: &SettingFindings) -> Vec<(String, String)> {
    let mut charts = vec![];
    for metric in setting.metrics() {
        let (name, y) = match metric {
            Metric::Accuracy => ("accuracy", "accuracy, %"),
            Metric::NllBound => ("loss", "nats per answer token"),
        };
        let what = metric.quantity();
        for (i, arms) in divided(&setting.arms).iter().enumerate() {
            let curves: Vec<Curve> = arms.iter().map(|arm| curve(setting, arm, metric)).collect();
            let title = titled(setting, &format!("{what} by step, with 95 % intervals over seeds"));
            let titles = Titles { title: &title, x: "step", y };
            if curves.iter().any(|curve| curve.points.len() > 1) {
                let name = if i == 0 { name.to_owned() } else { format!("{name}-{}", i + 1) };
                charts.push((name, chart::curves(titles, &curves)));
            }
        }
    }
    let metric = setting.metrics()[0];
    let row = |d: &Difference| {
        let Interval { mean, low, high, .. } = d.paired.difference;
        (format!("{} - {}", d.arm, d.reference), [mean, low, high])
    };
    let rows: Vec<(String, [f64; 3])> = setting.differences_at_end(metric).map(row).collect();
    let what = metric.quantity();
    let last = setting.steps.last().copied().unwrap_or(0);
    let title = titled(setting, &format!("differences of {what} at step {last}, with 95 % intervals"));
    let titles = Titles { title: &title, x: metric.unit_of_difference(), y: "" };
    if rows.len() > 1 {
        charts.push(("differences".to_owned(), chart::intervals(titles, &rows)));
    }
    charts
}

/// A title that names the setting, unless it is the recipe as it is.
fn titled(setting: &SettingFindings, what: &str) -> String {
    setting.label().map_or_else(|| capitalized(what), |name| format!("{name}: {what}"))
}

fn curve(setting: &SettingFindings, arm: &ArmFindings, metric: Metric) -> Curve {
    let intervals = of_metric(arm, metric);
    let point = |(step, i): (&u64, &Option<Interval>)| i.map(|i| [*step as f64, i.mean, i.low, i.high]);
    Curve { name: arm.name.clone(), points: setting.steps.iter().zip(intervals).filter_map(point).collect() }
}
