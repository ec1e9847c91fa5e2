//! The page of a training run, report.html: its results, its curves, answers before and after training, and its recipe.
//! It is made from the files in the run's folder.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::chart::{self, Curve, Titles, escape};
use super::page::{page, tile};
use crate::error::{Error, Result};
use crate::files::{read_text, write_whole};
use crate::train::metrics::METRICS;
use crate::train::run::RECIPE;

/// The name of the page in a run's folder.
pub const REPORT: &str = "report.html";

/// The largest number of points in a curve; longer curves are averaged in groups of steps.
const MOST_POINTS: usize = 100;

/// An answer before and after training.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What the model was given.
    pub prompt: String,
    /// The answer in the row.
    pub expected: String,
    /// The base's answer.
    pub before: String,
    /// The trained model's answer.
    pub after: String,
}

/// Writes the page of a run's folder. `results` are names and values for the top of the page.
///
/// # Errors
/// A file of the run that can't be read; a page that can't be written.
pub fn write(output: &Path, results: &[(String, String)], samples: &[Sample]) -> Result<()> {
    let lines: Vec<Value> =
        read_text(&output.join(METRICS))?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let path = output.join(RECIPE);
    let saved: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    let recipe = &saved["recipe"];
    let name = |key: &Value| key.as_str().unwrap_or("-").to_owned();
    let title = format!("{} on {}", name(&recipe["objective"]["kind"]), name(&recipe["model"]["path"]));
    let mut body = format!("<h1>{}</h1>\n", escape(&title));
    let _ = writeln!(
        body,
        "<p class=\"note\">{} - weft {}</p>",
        escape(&output.display().to_string()),
        escape(&name(&saved["weft"]))
    );
    body.push_str("<div class=\"tiles\">\n");
    results.iter().for_each(|(name, value)| body.push_str(&tile(value, name)));
    body.push_str(
        "</div>\n<h2>Curves</h2>\n<p class=\"note\">With more than 100 steps, each point is the mean of several steps and its band \
                   their range; hover over a point for its numbers.</p>\n<div class=\"charts\">\n",
    );
    charts(&lines).iter().for_each(|svg| body.push_str(svg));
    body.push_str("</div>\n");
    if !samples.is_empty() {
        body.push_str("<h2>Answers</h2>\n");
        samples.iter().for_each(|sample| body.push_str(&answers(sample)));
    }
    let _ = writeln!(body, "<h2>Recipe</h2>\n<pre>{}</pre>", escape(&as_toml(recipe)));
    write_whole(&output.join(REPORT), page(&title, &body).as_bytes())
}

fn charts(lines: &[Value]) -> Vec<String> {
    let of = |key: &str| -> Vec<[f64; 2]> {
        lines.iter().filter_map(|l| Some([l["step"].as_f64()?, l[key].as_f64()?])).collect()
    };
    let one = |title: &str, y: &str, curves: Vec<Curve>| {
        let curves: Vec<Curve> = curves.into_iter().filter(|c| !c.points.is_empty()).collect();
        (!curves.is_empty()).then(|| chart::curves(Titles { title, x: "step", y }, &curves))
    };
    let curve = |name: &str, key: &str| Curve { name: name.to_owned(), points: thin(&of(key)) };
    let exact = |name: &str, key: &str| {
        let points = of(key).into_iter().map(|[x, y]| [x, y, y, y]).collect();
        Curve { name: name.to_owned(), points }
    };
    let of_any = |name: &str, key: &str| {
        let is_any = of(key).iter().any(|[_, y]| *y > 0.0);
        Curve { name: name.to_owned(), points: if is_any { thin(&of(key)) } else { vec![] } }
    };
    let quantile = |index: usize| -> Vec<[f64; 2]> {
        let value = |l: &Value| Some([l["step"].as_f64()?, l["entropy_quantiles"][index].as_f64()?]);
        lines.iter().filter_map(value).collect()
    };
    // The median with a band between two other quantiles.
    let band = |name: &str, low: usize, high: usize| {
        let [middle, low, high] = [2, low, high].map(|i| thin(&quantile(i)));
        let points = middle.iter().zip(&low).zip(&high).map(|((m, l), h)| [m[0], m[1], l[1], h[1]]).collect();
        Curve { name: name.to_owned(), points }
    };
    [
        one("Loss, weighted by the objective", "nats per token", vec![curve("loss", "loss")]),
        one("Held-out loss", "nats per answer token", vec![exact("held out", "held_out_nll_bound")]),
        one("Gradient norm before clipping", "norm", vec![curve("gradient norm", "grad_norm")]),
        one("Learning rate", "rate", vec![curve("learning rate", "lr")]),
        one("Masked share of the answer tokens", "share", vec![curve("masked share", "masked_share")]),
        one(
            "Entropy of the answer tokens",
            "nats",
            vec![band("median, 5 to 95 %", 0, 4), band("median, 25 to 75 %", 1, 3), curve("mean", "mean_entropy")],
        ),
        one(
            "Spread of the relative uncertainties r (0: every token is masked at SFT's one rate)",
            "standard deviation of r",
            vec![curve("standard deviation of r", "uncertainty_spread")],
        ),
        // There is no such curve if no step was skipped.
        one("Skipped steps", "steps so far", vec![of_any("skipped steps", "skipped_steps")]),
        one("Speed", "tokens per second", vec![curve("tokens per second", "tokens_per_second")]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Averages groups of neighbouring points, with their ranges, so that no curve has too many points for a page.
fn thin(points: &[[f64; 2]]) -> Vec<[f64; 4]> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    let together = |group: &[[f64; 2]]| {
        let mean = |k: usize| group.iter().map(|p| p[k]).sum::<f64>() / group.len() as f64;
        let range = |f: fn(f64, f64) -> f64| group.iter().map(|p| p[1]).reduce(f).expect("a group has a point");
        [mean(0), mean(1), range(f64::min), range(f64::max)]
    };
    points.chunks(group).map(together).collect()
}

fn answers(sample: &Sample) -> String {
    let parts = [
        ("prompt", &sample.prompt),
        ("the row's answer", &sample.expected),
        ("before", &sample.before),
        ("after", &sample.after),
    ];
    let shown = |text: &str| if text.is_empty() { "<i>nothing</i>".to_owned() } else { escape(text) };
    let part = |(name, text): &(&str, &String)| format!("<div><h3>{name}</h3><pre>{}</pre></div>\n", shown(text));
    format!("<div class=\"sample\">\n{}</div>\n", parts.iter().map(part).collect::<String>())
}

/// A resolved recipe in the form in which a user would write it.
fn as_toml(recipe: &Value) -> String {
    fn without_nulls(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
            }
            Value::Array(items) => items.iter().map(without_nulls).collect(),
            other => other.clone(),
        }
    }
    // Besides its tables, a resolved recipe has the keys of its rows.
    let tables = recipe.as_object().into_iter().flatten().filter(|(_, table)| table.is_object());
    let tables = tables.map(|(name, table)| (name.clone(), without_nulls(table)));
    let tables: Value = tables.filter(|(_, table)| *table != Value::Object(Map::new())).collect();
    toml::to_string(&tables).expect("a recipe is a table of tables")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_means_and_ranges() {
        let points: Vec<[f64; 2]> = (0..250).map(|i| [f64::from(i), f64::from(i % 3)]).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 84, "three steps a point");
        assert_eq!(thinned[0], [1.0, 1.0, 0.0, 2.0]);
        assert_eq!(thin(&points[..2]), [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]);
        assert!(thin(&[]).is_empty());
    }
}
