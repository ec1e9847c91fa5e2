//! The names under which TensorBoard shows a run's numbers. A name begins with its section. TensorBoard sorts sections by
//! name, so `curves`, which shows how training goes, comes first.

use std::io::Result;

use serde_json::Value;

use super::tensorboard::EventFile;

/// The numbers of the first section; numbers that have no other section are in `run`.
const CURVES: [&str; 6] = ["loss", "nll", "held_out_nll_bound", "grad_norm", "lr", "masked_share"];
/// The names of the quantiles in [`super::step::QUANTILES`].
const QUANTILES: [&str; 5] = ["p05", "p25", "median", "p75", "p95"];

/// Writes the numbers of a line of metrics.jsonl as scalars.
pub(super) fn tell(events: &mut EventFile, line: &Value) -> Result<()> {
    let [seconds, step] = ["unix_seconds", "step"].map(|key| line[key].as_f64().unwrap_or_default());
    events.scalars(seconds, step as u64, &scalars(line))
}

/// The names and numbers of a line.
fn scalars(line: &Value) -> Vec<(String, f64)> {
    if let Some(task) = line["task"].as_str() {
        return scores(task, line);
    }
    let mut scalars = vec![];
    for (key, value) in line.as_object().into_iter().flatten() {
        match value {
            Value::Array(list) => {
                let named = QUANTILES.iter().zip(list);
                scalars.extend(named.filter_map(|(name, v)| Some((format!("entropy/{name}"), v.as_f64()?))));
            }
            Value::Object(table) => {
                let numbers = table.iter().filter_map(|(name, v)| Some((format!("{key}_{name}"), v.as_f64()?)));
                scalars.extend(numbers.map(|(name, v)| (tag(&name), v)));
            }
            _ if key == "step" || key == "unix_seconds" => {}
            _ => scalars.extend(value.as_f64().map(|number| (tag(key), number))),
        }
    }
    scalars
}

/// The names and numbers of a task's score.
fn scores(task: &str, line: &Value) -> Vec<(String, f64)> {
    let score = |(key, value): (&String, &Value)| {
        let number = if key == "accuracy" { value.as_f64() } else { value["value"].as_f64() };
        Some((format!("scores/{task}_{key}"), number?))
    };
    line.as_object().into_iter().flatten().filter_map(score).collect()
}

/// The name of a number with its section.
fn tag(key: &str) -> String {
    match key {
        "mean_entropy" => "entropy/mean".to_owned(),
        "uncertainty_spread" => "entropy/uncertainty_spread".to_owned(),
        _ if CURVES.contains(&key) => format!("curves/{key}"),
        _ => match key.strip_prefix("entropy_") {
            Some(rest) => format!("entropy/{rest}"),
            None => format!("run/{key}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_has_a_section() {
        let line = json!({
            "step": 3, "unix_seconds": 1.5, "loss": 2.0, "nll": 1.0, "mean_entropy": 0.5, "lr": null,
            "entropy_quantiles": [0.1, 0.2, 0.3, 0.4, 0.5], "entropy_drift": { "rank_correlation": 0.9 },
            "skipped": null, "tokens_per_second": 7.0
        });
        let mut scalars = scalars(&line);
        scalars.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("curves/loss", 2.0),
            ("curves/nll", 1.0),
            ("entropy/drift_rank_correlation", 0.9),
            ("entropy/mean", 0.5),
            ("entropy/median", 0.3),
            ("entropy/p05", 0.1),
            ("entropy/p25", 0.2),
            ("entropy/p75", 0.4),
            ("entropy/p95", 0.5),
            ("run/tokens_per_second", 7.0),
        ];
        assert_eq!(scalars, expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
