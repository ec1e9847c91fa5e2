//! A task's score over its problems: the accuracy, and what else the task is measured by, each with its standard error.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::any_task::AnyTask;
use super::generations::Generation;
use super::task_file::Kind;
use super::{Accuracy, Score, Task, accuracy, text_answer};

/// The two-sided quantile of the normal distribution for an interval of 95 %.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// A number beside the accuracy, in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Its name: `acc_norm`, `macro_f1` or `f1`.
    #[serde(skip)]
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// Its standard error over the problems.
    pub standard_error: f64,
}

/// A task's name, how its answers are scored, and the number of its problems.
pub(crate) type Posed<'a> = (&'a str, Option<Kind>, usize);

/// A task's score.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskScore {
    /// The task's name.
    pub task: String,
    /// How its answers are scored; `None` for d1's tasks.
    pub kind: Option<Kind>,
    /// The number of problems.
    pub problems: usize,
    /// The accuracy; for programs it is pass@1 of one answer each.
    pub accuracy: Accuracy,
    /// What else the task is measured by.
    pub others: Vec<Metric>,
    /// The number of choices that another seed of the draws may change: those that lead by at most two Monte Carlo
    /// standard errors. `None` if answers are generated.
    pub unsettled: Option<usize>,
}

impl TaskScore {
    /// The score of these generations.
    pub fn of(task: &AnyTask, generations: &[Generation]) -> Self {
        let scores: Vec<Score> = generations.iter().map(|g| g.score.clone()).collect();
        let chosen = || generations.iter().filter_map(|g| Some((g.chosen.as_ref()?, &g.ground_truth)));
        let others = match task.kind() {
            Some(Kind::Choice) => {
                let is_right = |(chosen, truth): (&super::choice::Chosen, &Value)| {
                    f64::from(u8::from(truth.as_u64() == Some(chosen.best_per_byte() as u64)))
                };
                let per_byte: Vec<f64> = chosen().map(is_right).collect();
                let has_labels = !matches!(task, AnyTask::Known(Task::Hellaswag | Task::Arc));
                let labels = has_labels
                    .then(|| macro_f1(&chosen().map(|(c, t)| (&c.choices[..], c.best(), t)).collect::<Vec<_>>()))
                    .flatten();
                [Some(mean("acc_norm", &per_byte)), labels].into_iter().flatten().collect()
            }
            Some(Kind::Exact) => {
                let f1 = |g: &Generation| text_answer::best_f1(text_answer::short(&g.generation), &g.ground_truth);
                vec![mean("f1", &generations.iter().map(f1).collect::<Vec<_>>())]
            }
            _ => vec![],
        };
        Self {
            task: task.name().to_owned(),
            kind: task.kind(),
            problems: generations.len(),
            accuracy: accuracy(&scores),
            others,
            unsettled: task.is_choice().then(|| chosen().filter(|(chosen, _)| !chosen.is_settled()).count()),
        }
    }

    /// The score of a task with so many problems in a line that holds [`TaskScore::to_json`]; `None` if the line is of another
    /// task or number of problems.
    fn of_line(line: &Value, (task, kind, problems): Posed) -> Option<Self> {
        let count = |key: &str| line[key].as_u64().map(|count| count as usize);
        if line["task"].as_str() != Some(task) || count("problems") != Some(problems) {
            return None;
        }
        let [accuracy, standard_error] = ["accuracy", "standard_error"].map(|key| line[key].as_f64());
        let [correct, total] = ["correct", "total"].map(count);
        let accuracy =
            Accuracy { accuracy: accuracy?, standard_error: standard_error?, correct: correct?, total: total? };
        let metric = |name: &'static str| {
            let [value, standard_error] = ["value", "standard_error"].map(|key| line[name][key].as_f64());
            Some(Metric { name, value: value?, standard_error: standard_error? })
        };
        let others = ["acc_norm", "macro_f1", "f1"].into_iter().filter_map(metric).collect();
        Some(Self { task: task.to_owned(), kind, problems, accuracy, others, unsettled: count("unsettled") })
    }

    /// The scores of these tasks in the lines of a log; `None` if one of the tasks has none there.
    pub(crate) fn of_lines<'a>(lines: &[Value], tasks: impl Iterator<Item = Posed<'a>>) -> Option<Vec<Self>> {
        tasks.map(|posed| lines.iter().find_map(|line| Self::of_line(line, posed))).collect()
    }

    /// What the accuracy is called.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Some(Kind::Choice) => "acc",
            Some(Kind::Exact) => "exact match",
            Some(Kind::Code) => "pass@1",
            _ => "accuracy",
        }
    }

    /// The interval of 95 % of an accuracy over problems of one point each; `None` for others.
    pub fn interval(&self) -> Option<[f64; 2]> {
        (self.accuracy.total == self.problems).then(|| wilson(self.accuracy.correct, self.problems))
    }

    /// The score as one JSON object.
    pub fn to_json(&self) -> Value {
        let Accuracy { accuracy, standard_error, correct, total } = self.accuracy;
        let mut object = Map::from_iter([
            ("task".to_owned(), json!(self.task)),
            ("problems".to_owned(), json!(self.problems)),
            ("accuracy".to_owned(), json!(accuracy)),
            ("standard_error".to_owned(), json!(standard_error)),
            ("correct".to_owned(), json!(correct)),
            ("total".to_owned(), json!(total)),
        ]);
        if let Some(interval) = self.interval() {
            object.insert("interval".to_owned(), json!(interval));
        }
        object.extend(self.others.iter().map(|metric| (metric.name.to_owned(), json!(metric))));
        object.extend(self.unsettled.map(|count| ("unsettled".to_owned(), json!(count))));
        Value::Object(object)
    }
}

impl fmt::Display for TaskScore {
    /// Such as `acc 25.0 % +- 4.3 (25 of 100); acc_norm 27.0 % +- 4.4`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.kind.is_some() {
            write!(f, "{} ", self.name())?;
        }
        write!(f, "{}", self.accuracy)?;
        if let Some([low, high]) = self.interval() {
            write!(f, ", 95 % interval {:.1} to {:.1}", 100.0 * low, 100.0 * high)?;
        }
        for Metric { name, value, standard_error } in &self.others {
            write!(f, "; {name} {:.1} % +- {:.1}", 100.0 * value, 100.0 * standard_error)?;
        }
        Ok(())
    }
}

/// Wilson's interval of 95 % for a share.
///
/// # Source
/// Wilson, Probable inference (1927); it doesn't shrink to nothing where none or all are correct.
pub fn wilson(correct: usize, total: usize) -> [f64; 2] {
    let n = total.max(1) as f64;
    wilson_of(correct as f64 / n, n, Z)
}

/// Wilson's interval for a share `p` of `n` independent draws, which needn't be a whole number, at the quantile `z`.
pub(crate) fn wilson_of(p: f64, n: f64, z: f64) -> [f64; 2] {
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

fn mean(name: &'static str, values: &[f64]) -> Metric {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
    Metric { name, value, standard_error: if n > 1.0 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 } }
}

/// The mean over labels of each label's F1, with its jackknife standard error; `None` unless all problems have the same
/// choices. A label that is neither right nor chosen anywhere doesn't count.
fn macro_f1(chosen: &[(&[String], usize, &Value)]) -> Option<Metric> {
    let labels = chosen.first()?.0;
    let pairs = chosen.iter().map(|(choices, own, truth)| {
        (*choices == labels).then_some(())?;
        Some((*own, truth.as_u64()? as usize))
    });
    let pairs: Vec<(usize, usize)> = pairs.collect::<Option<_>>()?;
    // Of each label: how often it was chosen rightly, chosen, and right.
    let mut counts = vec![[0.0; 3]; labels.len()];
    let count = |counts: &mut Vec<[f64; 3]>, (own, truth): (usize, usize), by: f64| {
        counts[own][0] += if own == truth { by } else { 0.0 };
        counts[own][1] += by;
        counts[truth][2] += by;
    };
    pairs.iter().for_each(|pair| count(&mut counts, *pair, 1.0));
    let value = mean_f1(&counts);
    let without = |pair: &(usize, usize)| {
        count(&mut counts, *pair, -1.0);
        let value = mean_f1(&counts);
        count(&mut counts, *pair, 1.0);
        value
    };
    let left_out: Vec<f64> = pairs.iter().map(without).collect();
    let n = left_out.len() as f64;
    let centre = left_out.iter().sum::<f64>() / n;
    let squares: f64 = left_out.iter().map(|x| (x - centre).powi(2)).sum();
    Some(Metric { name: "macro_f1", value, standard_error: ((n - 1.0) / n * squares).sqrt() })
}

fn mean_f1(counts: &[[f64; 3]]) -> f64 {
    let seen = counts.iter().filter(|[_, chosen, right]| chosen + right > 0.0);
    let f1: Vec<f64> = seen.map(|[both, chosen, right]| 2.0 * both / (chosen + right)).collect();
    f1.iter().sum::<f64>() / f1.len().max(1) as f64
}
