//! The page of a training run, report.html: its results, its curves, answers before and after training, and its recipe.
//! It is made from the files in the run folder.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::chart::{self, Curve, Titles, escape};
use super::curves::{Log, thin};
use super::date::utc;
use super::page::{page, tile, turns};
use super::table::Table;
use crate::data::Message;
use crate::error::{Error, Result};
use crate::files::{RECIPE, read_text, write_whole};

/// The name of the page in a run folder.
pub const REPORT: &str = "report.html";

/// An answer before and after training.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What the model was given, turn by turn.
    pub prompt: Vec<Message>,
    /// The answer in the row.
    pub expected: String,
    /// The base's answer.
    pub before: String,
    /// The trained model's answer.
    pub after: String,
}

/// Names and values, in the order in which they are shown.
pub type Facts = [(String, String)];

/// What the page of a run shows besides the files in its folder.
pub struct Contents<'a> {
    /// The names and values at the top of the page.
    pub results: &'a Facts,
    /// What was run, and on which machine.
    pub facts: &'a Facts,
    /// The counts of the rows, with one source per row.
    pub rows: &'a Table,
    /// Notes on the sources' rows: why rows were skipped, and which answers were cut.
    pub remarks: &'a [String],
    /// The answers before and after training.
    pub samples: &'a [Sample],
    /// How the answers were sampled, as a sentence.
    pub sampler: &'a str,
}

/// Writes the page of a run folder.
///
/// # Errors
/// A file of the run that can't be read; a page that can't be written.
pub fn write(output: &Path, contents: &Contents) -> Result<()> {
    let log = Log::read(output)?;
    let path = output.join(RECIPE);
    let saved: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    let recipe = &saved["recipe"];
    let name = |key: &Value| key.as_str().unwrap_or("-").to_owned();
    let what = format!("{} on {}", name(&recipe["objective"]["kind"]), name(&recipe["model"]["path"]));
    // Runs that differ in a setting alone have folders of their own.
    let folder = output.canonicalize().ok().and_then(|whole| Some(whole.file_name()?.to_string_lossy().into_owned()));
    let title = folder.map_or_else(|| what.clone(), |folder| format!("{folder}: {what}"));
    let mut body = format!("<h1>{}</h1>\n", escape(&title));
    let when = log.when().map(|times| times.map(utc)).map(|[began, ended]| match began == ended {
        true => format!(", {began}"),
        false => format!(", {began} to {ended}"),
    });
    let when = when.unwrap_or_default();
    let _ = writeln!(body, "<p class=\"note\">{}{when}</p>", escape(&output.display().to_string()));
    body.push_str("<div class=\"tiles\">\n");
    contents.results.iter().for_each(|(name, value)| body.push_str(&tile(value, name)));
    body.push_str("</div>\n<dl>\n");
    for (name, value) in contents.facts {
        let _ = writeln!(body, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    body.push_str("</dl>\n");
    body.push_str(&contents.rows.as_html());
    if !contents.remarks.is_empty() {
        let items: String = contents.remarks.iter().map(|remark| format!("<li>{}</li>\n", escape(remark))).collect();
        let _ = writeln!(body, "<ul class=\"remarks\">\n{items}</ul>");
    }
    let _ = writeln!(body, "<h2>Curves</h2>\n<p class=\"note\">{NOTE}{}</p>\n<div class=\"charts\">", gaps(&log));
    charts(&log).iter().for_each(|svg| body.push_str(svg));
    body.push_str("</div>\n");
    if !contents.samples.is_empty() {
        let _ = writeln!(body, "<h2>Answers</h2>\n<p class=\"note\">{}</p>", escape(contents.sampler));
        contents.samples.iter().for_each(|sample| body.push_str(&answers(sample)));
    }
    let _ = writeln!(body, "<h2>Recipe</h2>\n<pre>{}</pre>", escape(&as_toml(recipe)));
    write_whole(&output.join(REPORT), page(&title, &body).as_bytes())
}

/// The note above the curves.
const NOTE: &str = "The loss as trained weights each masked token, so that single steps stand far above the others; the nll of \
                    the masked tokens is the same forward without weights. With more than 100 steps, each point is the mean \
                    of several steps and its band their range. Rest the pointer on a curve, or touch it, for its numbers.";

/// A sentence on the steps that have no loss, if there are any.
fn gaps(log: &Log) -> String {
    match log.num_unmasked() {
        0 => String::new(),
        1 => " In one step nothing was masked: it has no loss, and the curves of losses have a gap there.".to_owned(),
        count => format!(
            " In {count} steps nothing was masked: they have no loss, and the curves of losses have gaps there or are \
             means of the other steps."
        ),
    }
}

fn charts(log: &Log) -> Vec<String> {
    let of = |name: &str, key: &str| Curve { name: name.to_owned(), points: thin(&log.of(key)) };
    let exact = |name: &str, key: &str| {
        let points = log.of(key).into_iter().map(|[x, y]| [x, y, y, y]).collect();
        Curve { name: name.to_owned(), points }
    };
    let of_any = |name: &str, key: &str| {
        let is_any = log.of(key).iter().any(|[_, y]| *y > 0.0);
        Curve { name: name.to_owned(), points: if is_any { thin(&log.of(key)) } else { vec![] } }
    };
    let quantile = |index: usize| thin(&log.quantile(index));
    let band = |name: &str, low: usize, high: usize| {
        let [low, high] = [low, high].map(quantile);
        let points = low.iter().zip(&high).map(|(l, h)| [l[0], f64::midpoint(l[1], h[1]), l[1], h[1]]).collect();
        Curve { name: name.to_owned(), points }
    };
    // The range of the median over its steps would look like a band of quantiles.
    let median = quantile(2).into_iter().map(|[x, y, ..]| [x, y, y, y]).collect();
    let mean = thin(&log.of("mean_entropy")).into_iter().map(|[x, y, ..]| [x, y, y, y]).collect();
    let entropies = [("median", median), ("mean", mean)].map(|(name, points)| Curve { name: name.to_owned(), points });
    let bands = [band("5 to 95 % of the tokens", 0, 4), band("25 to 75 %", 1, 3)];
    let one = |title: &str, y: &str, curve: Curve| {
        (!curve.points.is_empty()).then(|| chart::curves(Titles { title, x: "step", y }, &[curve]))
    };
    let titles = Titles { title: "Entropy of the answer tokens", x: "step", y: "nats" };
    let of_task = |(name, points): (String, Vec<[f64; 4]>)| Curve { name, points };
    let scores: Vec<Curve> = log.scores().into_iter().map(of_task).collect();
    let of_scores = Titles { title: "Accuracy on the tasks, with its standard error", x: "step", y: "accuracy" };
    [
        one("nll of the masked tokens, unweighted", "nats per masked token", of("nll", "nll")),
        one("Loss as trained, weighted", "nats", of("loss", "loss")),
        one("Held-out loss", "nats per answer token", exact("held out", "held_out_nll_bound")),
        (!scores.is_empty()).then(|| chart::curves(of_scores, &scores)),
        one("Gradient norm before clipping", "norm", of("gradient norm", "grad_norm")),
        one("Learning rate", "rate", of("learning rate", "lr")),
        one("Masked share of the answer tokens", "share", of("masked share", "masked_share")),
        (!bands[0].points.is_empty()).then(|| chart::curves_over_bands(titles, &bands, &entropies)),
        one(
            "Spread of r (0: SFT's one rate for every token)",
            "standard deviation of r",
            of("standard deviation of r", "uncertainty_spread"),
        ),
        // There is no such curve if no step was skipped.
        one("Skipped steps", "steps so far", of_any("skipped steps", "skipped_steps")),
        one("Speed of the steps", "tokens per second", of("tokens per second", "tokens_per_second")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn answers(sample: &Sample) -> String {
    let parts = [("the row's answer", &sample.expected), ("before", &sample.before), ("after", &sample.after)];
    let shown = |text: &str| if text.is_empty() { "<i>nothing</i>".to_owned() } else { escape(text) };
    let part = |(name, text): &(&str, &String)| format!("<div><h3>{name}</h3><pre>{}</pre></div>\n", shown(text));
    format!(
        "<div class=\"sample\">\n<div><h3>prompt</h3>{}</div>\n{}</div>\n",
        turns(&sample.prompt),
        parts.iter().map(part).collect::<String>()
    )
}

/// A resolved recipe in the form in which a user would write it.
fn as_toml(recipe: &Value) -> String {
    fn without_nulls(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let is_there =
                    |(_, value): &(&String, &Value)| !value.is_null() && **value != Value::Object(Map::new());
                map.iter().filter(is_there).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
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
