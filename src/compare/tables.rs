//! A comparison as tables of text, for the terminal and for the page.

use std::path::Path;

use serde_json::Value;

use super::{Compared, Comparison, Differs};
use crate::counted::verb;
use crate::report::table::Table;
use crate::reproduce::statistics::{Interval, few};

/// The mark in place of a number that doesn't exist.
const NONE: &str = "-";

impl Comparison {
    /// All tables that have content.
    pub fn tables(&self) -> Vec<Table> {
        let tables = [self.settings_table(), self.held_out_table(), self.scores_table(), self.runs_table()];
        tables.into_iter().flatten().collect()
    }

    /// Remarks on the comparison as a whole: folders that are left out, runs that can't be compared, runs of `weft reproduce`,
    /// and scores that rest on few rows.
    pub fn remarks(&self) -> Vec<String> {
        let different = [Differs::NoRows, Differs::Tokenizer, Differs::Rows].into_iter().filter_map(|reason| {
            let names = self.named(|run| run.differs == Some(reason));
            let told = reason.told(names.len(), self.first());
            (!names.is_empty()).then(|| format!("{} can't be compared with {}: {told}", all_of(&names), self.first()))
        });
        let fewest = |of: fn(&Compared) -> Option<Interval>| self.runs.iter().filter_map(of).map(|of| of.count).min();
        let rows = fewest(|run| run.held_out)
            .and_then(|count| few("the held-out losses", (count, "held-out row"), "more of them (data.held_out)"));
        let problems = fewest(|run| run.accuracy)
            .and_then(|count| few("the accuracies", (count, "problem"), "more of them (eval.limit, held-out rows)"));
        self.left_out.iter().cloned().chain(different).chain(self.of_studies()).chain(rows).chain(problems).collect()
    }

    /// The names of some runs.
    fn named(&self, is_meant: impl Fn(&Compared) -> bool) -> Vec<&str> {
        self.runs.iter().filter(|run| is_meant(run)).map(|run| run.run.name.as_str()).collect()
    }

    /// A remark on the runs of each comparison of `weft reproduce`.
    fn of_studies(&self) -> Vec<String> {
        let mut studies: Vec<&Path> = self.runs.iter().filter_map(|run| run.run.study.as_deref()).collect();
        studies.sort();
        studies.dedup();
        let told = |study: &Path| {
            let names = self.named(|run| run.run.study.as_deref() == Some(study));
            let [is, run] = [["is", "are"], ["a run", "runs"]].map(|words| verb(names.len(), words));
            format!(
                "{} {is} {run} of weft reproduce, which keeps no losses of single rows, so there are no intervals; {} compares \
                 the arms over seeds",
                all_of(&names),
                study.join("report.md").display()
            )
        };
        studies.into_iter().map(told).collect()
    }

    /// The settings that differ. The runs are the columns, or the rows if there are more runs than settings.
    fn settings_table(&self) -> Option<Table> {
        let word = |value: &Value| match value {
            Value::Null => NONE.to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let names = [String::new()].into_iter().chain(self.runs.iter().map(|run| run.run.name.clone())).collect();
        let settings =
            self.settings.iter().map(|s| [s.key.clone()].into_iter().chain(s.values.iter().map(word)).collect());
        let rows: Vec<Vec<String>> = [names].into_iter().chain(settings).collect();
        let is_long = self.runs.len() > self.settings.len();
        let rows = if is_long {
            (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].clone()).collect()).collect()
        } else {
            rows
        };
        let title = if self.settings.is_empty() { "the recipes are the same" } else { "settings that differ" };
        let rows = if self.settings.is_empty() { vec![] } else { rows };
        Some(Table { title: title.to_owned(), rows, note: String::new() })
    }

    fn held_out_table(&self) -> Option<Table> {
        self.runs.iter().any(|run| run.run.held_out_loss.is_some()).then(|| {
            let head = ["", "before", "after", "95 % interval", "lowest", "at step", &format!("against {}", self.first())];
            let row = |run: &Compared| {
                let [before, after] = run.run.held_out_loss.map_or([None; 2], |losses| losses.map(Some));
                vec![
                    run.run.name.clone(),
                    number(before, 4),
                    number(after, 4),
                    run.held_out.map_or(NONE.to_owned(), |interval| ends(interval, 1.0)),
                    number(run.run.lowest.map(|(_, loss)| loss), 4),
                    run.run.lowest.map_or(NONE.to_owned(), |(step, _)| step.to_string()),
                    against(run.held_out_difference, 1.0),
                ]
            };
            let note = match self.runs.iter().all(|run| run.held_out.is_none()) {
                true => "no run has the losses of its rows, so there are no intervals",
                false => {
                    "intervals are over the held-out rows, of the logarithm for losses and paired for differences; intervals \
                     over seeds would be wider"
                }
            };
            table("held-out loss, nats per answer token", &head, self.runs.iter().map(row), note)
        })
    }

    fn scores_table(&self) -> Option<Table> {
        let task = self.runs.iter().find_map(|run| run.run.task.as_deref())?;
        let head = ["", "base", "trained", "95 % interval", &format!("against {}", self.first())];
        let row = |run: &Compared| {
            let [base, trained] = run.run.scores.map_or([None; 2], |scores| scores.map(|score| Some(100.0 * score)));
            vec![
                run.run.name.clone(),
                number(base, 1),
                number(trained, 1),
                run.accuracy.map_or(NONE.to_owned(), |interval| ends(interval, 100.0)),
                against(run.accuracy_difference, 100.0),
            ]
        };
        let note = "intervals are over the problems, Wilson's for accuracies and paired for differences";
        Some(table(&format!("{task}, accuracy in percent"), &head, self.runs.iter().map(row), note))
    }

    fn runs_table(&self) -> Option<Table> {
        let head = ["", "steps", "seconds", "tokens/s", "device", "weft"];
        let row = |run: &Compared| {
            let run = &run.run;
            let word = |text: &Option<String>| text.clone().unwrap_or(NONE.to_owned());
            let steps = match (&run.diverged, run.is_finished) {
                (Some(_), _) => format!("{}, diverged", run.steps),
                (None, true) => run.steps.to_string(),
                (None, false) => format!("{}, not finished", run.steps),
            };
            let seconds = format!("{:.0}", run.train_seconds);
            vec![run.name.clone(), steps, seconds, number(run.tokens_per_second, 0), word(&run.device), word(&run.weft)]
        };
        Some(table("the runs", &head, self.runs.iter().map(row), ""))
    }
}

fn table(title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>, note: &str) -> Table {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    Table { title: title.to_owned(), rows: [head].into_iter().chain(rows).collect(), note: note.to_owned() }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.decimals$}"))
}

/// The names of several runs in a sentence.
fn all_of(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// The ends of an interval; a mark if the items are all alike or there is only one, because they say nothing about others.
fn ends(Interval { low, high, .. }: Interval, unit: f64) -> String {
    if low == high {
        return NONE.to_owned();
    }
    match unit == 1.0 {
        true => format!("[{low:.4}, {high:.4}]"),
        false => format!("[{:.1}, {:.1}]", unit * low, unit * high),
    }
}

/// A difference with its interval, marked if the interval contains 0.
fn against(difference: Option<Interval>, unit: f64) -> String {
    let Some(interval) = difference else { return NONE.to_owned() };
    let mean = if unit == 1.0 { format!("{:+.4}", interval.mean) } else { format!("{:+.1}", unit * interval.mean) };
    if interval.low == interval.high {
        return mean;
    }
    let told = if interval.low <= 0.0 && interval.high >= 0.0 { ", not told apart" } else { "" };
    format!("{mean} {}{told}", ends(interval, unit))
}
