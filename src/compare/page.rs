//! The page of a comparison: its tables, the differences with their intervals, and charts with the curves of all runs.

use std::fmt::Write;

use super::{Compared, Comparison};
use crate::report::chart::{self, Curve, Titles, escape};
use crate::report::curves::thin;
use crate::report::page::page;
use crate::reproduce::statistics::Interval;

/// The charts with a curve of each run: title, unit, and the key in the log.
const CURVES: [(&str, &str, &str); 6] = [
    ("Held-out loss", "nats per answer token", "held_out_nll_bound"),
    ("nll of the masked tokens, unweighted", "nats per masked token", "nll"),
    ("Loss as trained, weighted", "nats", "loss"),
    ("Gradient norm before clipping", "norm", "grad_norm"),
    ("Learning rate", "rate", "lr"),
    ("Speed of the steps", "tokens per second", "tokens_per_second"),
];

/// The page as HTML.
pub fn comparison_page(comparison: &Comparison) -> String {
    let title = format!("{} runs compared", comparison.runs.len());
    let mut body = format!("<h1>{}</h1>\n", escape(&title));
    for remark in comparison.remarks() {
        let _ = writeln!(body, "<p class=\"warning\">{}</p>", escape(&remark));
    }
    comparison.tables().iter().for_each(|table| body.push_str(&table.as_html()));
    body.push_str(
        "<h2>Charts</h2>\n<p class=\"note\">With more than 100 steps, each point is the mean of several steps. A step in \
         which nothing was masked has no loss: its curve has a gap there.</p>\n",
    );
    body.push_str("<div class=\"charts wide\">\n");
    differences(comparison).iter().chain(&curves(comparison)).for_each(|svg| body.push_str(svg));
    body.push_str("</div>\n");
    page(&title, &body)
}

/// The differences from the first run, where there are any.
fn differences(comparison: &Comparison) -> Vec<String> {
    let chart = |title: &str, x: &str, of: fn(&Compared) -> Option<Interval>, unit: f64| {
        let rows = comparison.runs.iter().filter_map(|run| Some((run.run.name.clone(), of(run)?)));
        let row = |(name, Interval { mean, low, high, .. })| (name, [mean, low, high].map(|value| unit * value));
        let rows: Vec<(String, [f64; 3])> = rows.map(row).collect();
        let title = format!("{title} against {}, with 95 % intervals", comparison.first());
        (!rows.is_empty()).then(|| chart::intervals(Titles { title: &title, x, y: "" }, &rows))
    };
    let held_out = chart("Held-out loss", "nats per answer token", |run| run.held_out_difference, 1.0);
    let accuracy = chart("Accuracy", "percentage points", |run| run.accuracy_difference, 100.0);
    [held_out, accuracy].into_iter().flatten().collect()
}

/// The charts with a curve of each run.
fn curves(comparison: &Comparison) -> Vec<String> {
    let drawn = |(title, y, key): (&str, &str, &str)| {
        let curve = |run: &Compared| {
            // The ranges of several curves would hide each other.
            let points = thin(&run.run.log.of(key)).into_iter().map(|[x, y, ..]| [x, y, y, y]).collect();
            Curve { name: run.run.name.clone(), points }
        };
        let curves: Vec<Curve> = comparison.runs.iter().map(curve).collect();
        let is_any = curves.iter().any(|curve| !curve.points.is_empty());
        is_any.then(|| chart::curves(Titles { title, x: "step", y }, &curves))
    };
    CURVES.into_iter().filter_map(drawn).collect()
}
