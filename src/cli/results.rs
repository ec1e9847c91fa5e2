//! The results of a run of `weft train`, for a person, for the run's report and for a program.

use std::path::Path;

use serde_json::{Map, Value, json};
use weft::counted::counted;
use weft::eval::task_score::TaskScore;
use weft::experiment::Experiment;
use weft::machine;
use weft::train::entropy_reuse::Drift;
use weft::train::guard::Skipped;
use weft::train::run::Summary;

/// The relative change of the held-out loss below which it counts as unchanged.
const HARDLY: f64 = 0.01;

/// The score of each scored model on a task, by its name.
pub type Scores = [(&'static str, TaskScore); 2];

/// A finished run.
pub struct Results<'a> {
    /// Optimizer steps, including those before the run was resumed.
    pub steps: u64,
    pub summary: &'a Summary,
    pub experiment: &'a Experiment,
    /// The scores on each task.
    pub scores: Vec<Scores>,
    /// The peak resident size, and the planned one.
    pub memory_bytes: [u64; 2],
    /// The path of each output by name: the last adapter or checkpoint, and the report.
    pub files: [(&'static str, String); 2],
    /// The command that asks the trained model.
    pub question: String,
    /// The folder of the adapter or checkpoint of the lowest held-out loss, if it is saved.
    pub best: Option<String>,
    /// The counts of the rows, as one JSON object.
    pub rows: Value,
}

impl Results<'_> {
    /// Prints the results for a person.
    pub fn print(&self) {
        let Summary { first_step, train_secs, .. } = self.summary;
        let resumed = if *first_step > 0 { format!(", resumed at step {first_step}") } else { String::new() };
        let skipped = self.skipped().map(|skipped| format!("; {skipped}")).unwrap_or_default();
        sentence!(2, "trained {} in {train_secs:.0} s{resumed}{skipped}", counted(self.steps, "step"));
        if let Some(Drift { rank_correlation, mean_change }) = self.summary.entropy_drift {
            sentence!(
                2,
                "reused entropies at the end: rank correlation {rank_correlation:.3} with fresh ones, {mean_change:.3} nats apart"
            );
        }
        if let Some([before, after]) = self.summary.held_out {
            sentence!(2, "held-out loss {before:.4} -> {after:.4} nats per answer token");
        }
        if self.summary.ended_early {
            let by_task = self.summary.best.is_some_and(|best| best.accuracy.is_some());
            let what = if by_task { "the first task's accuracy rose" } else { "the held-out loss fell" };
            sentence!(2, "the run ended early: {what} no further (train.patience)");
        }
        if let (Some(best), Some(path)) = (self.summary.best, &self.best) {
            let (what, number) = best.told();
            sentence!(2, "{what} {number} at step {}, saved in {path}", best.step);
        }
        for (scores, posed) in self.scores.iter().zip(&self.experiment.tasks) {
            let noun = if posed.is_held_out { "held-out problem" } else { "problem" };
            sentence!(2, "{} on the same {}:", posed.task.name(), counted(posed.problems.len(), noun));
            let width = scores.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            scores.iter().for_each(|(name, score)| say!("  {name:width$}  {score}"));
        }
        let [peak, planned] = self.memory_bytes.map(|bytes| bytes as f64 / 1e9);
        sentence!(2, "peak memory {peak:.3} GB; {planned:.3} GB were planned");
        let [(weights, last), (report, page)] = &self.files;
        match self.better() {
            Some((step, what, path)) => {
                say!("the last {weights} (step {}) is in {last}", self.steps);
                say!("the best {weights} (step {step}, {what}) is in {path}");
            }
            None => say!("the {weights} is in {last}"),
        }
        say!("the {report} is in {page}");
        say!("try it: {}", self.question);
        match self.summary.held_out.map(|[before, after]| 1.0 - after / before) {
            Some(fall) if fall < -HARDLY => {
                sentence!(2, "the held-out loss rose: try a lower train.lr (docs/settings.md)")
            }
            Some(fall) if fall < HARDLY => {
                sentence!(2, "the held-out loss hardly moved: try more epochs or a higher train.lr (docs/settings.md)");
            }
            _ => {}
        }
    }

    /// The step of the best weights, what makes them the best, and their folder, if they are saved and aren't the last ones.
    fn better(&self) -> Option<(u64, &'static str, &str)> {
        let best = self.summary.best.filter(|best| best.step != self.steps)?;
        Some((best.step, best.told().0, self.best.as_deref()?))
    }

    /// Names and values for the report.
    pub fn rows(&self) -> Vec<(String, String)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = vec![row("steps", self.steps.to_string())];
        if let Some([before, after]) = self.summary.held_out {
            rows.push(row("held-out loss, before and after", format!("{before:.3} \u{2192} {after:.3}")));
        }
        for (name, score) in self.scores.iter().flatten() {
            rows.push((format!("{}, {name}", score.task), score.to_string()));
        }
        if let Some(best) = self.summary.best {
            let (what, number) = best.told();
            rows.push(row(what, format!("{number} at step {}", best.step)));
        }
        if let Some((step, _, path)) = self.better() {
            rows.push(row(&format!("last {}, of step {}", self.files[0].0, self.steps), folder_name(&self.files[0].1)));
            rows.push(row(&format!("best {}, of step {step}", self.files[0].0), folder_name(path)));
        }
        rows.extend(self.skipped().map(|skipped| row("skipped", skipped)));
        rows.push(row("training", format!("{:.0} s", self.summary.train_secs)));
        rows.push(row("peak memory", format!("{:.2} GB", self.memory_bytes[0] as f64 / 1e9)));
        rows
    }

    /// For the report: what was run, on which machine and on which rows.
    pub fn facts(&self) -> Vec<(String, String)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        let train = &self.experiment.train.dataset;
        let [examples, tokens, cut] = counts(self.experiment);
        let examples = match train.documents {
            0 => format!("{examples}, {cut} of them cut at {} tokens", self.experiment.recipe.data.max_seq_len.0),
            documents => format!("{} in {}", counted(documents, "text"), counted(examples, "sequence")),
        };
        let mut facts = vec![row("training examples", examples), row("tokens in them", tokens.to_string())];
        if let Some(held_out) = &self.experiment.held_out {
            facts.push(row("held-out examples", held_out.dataset.examples.len().to_string()));
        }
        facts.extend([
            row("weft", machine::build()),
            row("machine", machine::processor()),
            row("device", weft::device::name()),
        ]);
        if self.experiment.ranks.size() > 1 {
            facts.push(row("ranks", self.experiment.ranks.size().to_string()));
        }
        facts
    }

    /// The number of skipped steps as text; `None` if none was skipped.
    fn skipped(&self) -> Option<String> {
        let Skipped { non_finite, spikes } = self.summary.skipped;
        let of = counted(self.steps, "step");
        (non_finite + spikes > 0).then(|| match (non_finite, spikes) {
            (_, 0) => format!("{non_finite} of {of} skipped, not finite"),
            (0, _) => format!(
                "{} of {of} skipped, {} of the gradient",
                spikes,
                if spikes == 1 { "a spike" } else { "spikes" }
            ),
            _ => format!(
                "{} of {of} skipped: {non_finite} not finite, {} of the gradient",
                non_finite + spikes,
                counted(spikes, "spike")
            ),
        })
    }

    /// The results as one JSON object for a program; missing values are null.
    pub fn to_json(&self) -> Value {
        let [peak, planned] = self.memory_bytes;
        // The first task stands for the run where one is asked for.
        let first = self.scores.first();
        let mut object = json!({
            "steps": self.steps,
            "train_seconds": self.summary.train_secs,
            "held_out_loss": self.summary.held_out.map(|[before, after]| json!({ "before": before, "after": after })),
            "ended_early": self.summary.ended_early,
            "entropy_drift": self.summary.entropy_drift,
            "skipped_steps": self.summary.skipped,
            "task": first.map(|[(_, score), _]| &score.task),
            "problems": first.map(|[(_, score), _]| score.problems),
            "accuracy": first.map(|scores| {
                scores.iter().map(|(name, score)| ((*name).to_owned(), json!(score.accuracy))).collect::<Map<_, _>>()
            }),
            "tasks": self.scores.iter().map(|scores| {
                scores.iter().map(|(name, score)| ((*name).to_owned(), score.to_json())).collect::<Map<_, _>>()
            }).collect::<Vec<_>>(),
            "examples": counts(self.experiment)[0],
            "tokens": counts(self.experiment)[1],
            "rows_cut": counts(self.experiment)[2],
            "weft": machine::build(),
            "machine": machine::processor(),
            "device": weft::device::name(),
            "peak_memory_bytes": peak,
            "planned_memory_bytes": planned,
            "rows": self.rows,
        });
        let fields = object.as_object_mut().expect("it is an object");
        if let (Some(best), Some(path)) = (self.summary.best, &self.best) {
            let mut best = json!(best);
            best["path"] = path.as_str().into();
            fields.insert("best".to_owned(), best);
        }
        fields.extend(self.files.iter().map(|(name, path)| ((*name).to_owned(), json!(path))));
        object
    }
}

/// The name of a folder in the run folder.
fn folder_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The examples that are trained on, the tokens in them, and how many of their answers were cut.
fn counts(experiment: &Experiment) -> [usize; 3] {
    let train = &experiment.train.dataset;
    let tokens = train.examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
    [train.examples.len(), tokens, train.truncated]
}
