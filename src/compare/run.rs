//! Reads a run for a comparison from the files in its folder.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::counted::verb;
use crate::error::{Error, Result};
use crate::eval::any_task::AnyTask;
use crate::eval::stored;
use crate::files::{RECIPE, read_if_there, read_text};
use crate::report::curves::Log;
use crate::reproduce::run::{Outcome, Point, outcome_in};
use crate::settings::recipe_file::{ROWS, TOKENIZER};
use crate::train::held_out::HeldOutRows;
use crate::train::run::RESULTS;

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The name that distinguishes it from the others.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it has ended.
    pub is_finished: bool,
    /// Why it stopped at a loss that isn't finite, if it is a run of `weft reproduce`.
    pub diverged: Option<String>,
    /// The folder of the comparison that it is a run of, if `weft reproduce` made it.
    pub study: Option<PathBuf>,
    /// The steps in its log.
    pub steps: u64,
    /// Its first and its last held-out loss, in nats per answer token.
    pub held_out_loss: Option<[f64; 2]>,
    /// The step with the lowest held-out loss, and that loss; the start doesn't count.
    pub lowest: Option<(u64, f64)>,
    /// The task on which it is scored.
    pub task: Option<String>,
    /// The base's accuracy and the trained model's.
    pub scores: Option<[f64; 2]>,
    /// Seconds of training, without evaluations.
    pub train_seconds: f64,
    /// The median speed of its steps.
    pub tokens_per_second: Option<f64>,
    /// What it was computed on; known when it is finished.
    pub device: Option<String>,
    /// The build of the program.
    pub weft: Option<String>,
    #[serde(skip)]
    pub(super) recipe: Value,
    #[serde(skip)]
    pub(super) log: Log,
    /// The held-out rows of the last evaluation.
    #[serde(skip)]
    pub(super) rows: Option<HeldOutRows>,
    /// The points scored and the points possible of each problem.
    #[serde(skip)]
    pub(super) problems: Option<(Vec<f64>, Vec<usize>)>,
}

impl Run {
    /// Reads the run in a folder.
    ///
    /// # Errors
    /// A damaged file.
    pub(super) fn read(folder: &Path, name: String) -> Result<Self> {
        let path = folder.join(RECIPE);
        let saved = json(&path, &read_text(&path)?)?;
        let results = folder.join(RESULTS);
        let results = match read_if_there(&results)? {
            Some(text) => json(&results, &text)?,
            None => Value::Null,
        };
        let of_study = OfStudy::read(folder)?;
        let mut log = Log::read(folder)?;
        if let Some(of_study) = &of_study {
            log.add_losses(of_study.points().map(|point| (point.step, point.nll_bound)));
        }
        let losses = log.of("held_out_nll_bound");
        let lowest = losses.iter().filter(|[step, _]| *step > 0.0).min_by(|a, b| a[1].total_cmp(&b[1]));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let rows = HeldOutRows::load(folder)?;
        let last = losses.last().map(|[step, _]| *step as u64);
        let mut speeds: Vec<f64> = log.of("tokens_per_second").into_iter().map(|[_, speed]| speed).collect();
        speeds.sort_by(f64::total_cmp);
        Ok(Self {
            name,
            folder: folder.to_owned(),
            is_finished: !results.is_null() || of_study.is_some(),
            diverged: of_study.as_ref().and_then(|of| of.outcome.diverged.clone()),
            study: of_study.as_ref().map(|of| of.folder.clone()),
            steps: log.of("step").last().map_or(0, |[step, _]| *step as u64),
            held_out_loss: losses.first().zip(losses.last()).map(|(first, last)| [first[1], last[1]]),
            lowest: lowest.map(|[step, loss]| (*step as u64, *loss)),
            task: text(&results["task"])
                .or_else(|| of_study.as_ref().and_then(|_| first_task(&saved["recipe"]["eval"]))),
            scores: scores(&results).or_else(|| of_study.as_ref().and_then(OfStudy::scores)),
            train_seconds: log.of("step_seconds").iter().map(|[_, seconds]| seconds).sum(),
            tokens_per_second: (!speeds.is_empty()).then(|| speeds[speeds.len() / 2]),
            device: text(&results["device"]),
            weft: text(&results["weft"]).or_else(|| text(&saved["weft"])),
            // The rows count only if they belong to the last evaluation in the log.
            rows: rows.filter(|rows| Some(rows.step) == last),
            problems: problems(folder, &results)?,
            recipe: saved["recipe"].clone(),
            log,
        })
    }

    /// Why this run's held-out loss and scores can't be compared with another's; `None` if they can.
    pub(super) fn differs_from(&self, first: &Self) -> Option<Differs> {
        let tokenizer = |run: &Self| run.recipe[TOKENIZER].as_str().map(str::to_owned);
        match (self.held_out_key(), first.held_out_key()) {
            (None, Some(_)) => Some(Differs::NoRows),
            (Some(own), Some(other)) if own != other => {
                let tokenizers = tokenizer(self).zip(tokenizer(first));
                Some(if tokenizers.is_some_and(|(own, other)| own != other) {
                    Differs::Tokenizer
                } else {
                    Differs::Rows
                })
            }
            _ => None,
        }
    }

    /// The first characters of the keys of its training rows.
    pub(super) fn trained_rows(&self) -> Value {
        let held_out = usize::from(self.held_out_key().is_some());
        let rows = self.recipe[ROWS].as_array().map_or(&[][..], Vec::as_slice);
        let keys = rows[..rows.len().saturating_sub(held_out)].iter().filter_map(|row| row[1].as_str());
        keys.map(|key| key.chars().take(8).collect::<String>()).collect::<Vec<_>>().join(" ").into()
    }

    /// The key of the held-out rows' tokens: they are the last source of a run that has any.
    fn held_out_key(&self) -> Option<&Value> {
        self.held_out_loss?;
        self.recipe[ROWS].as_array()?.last().map(|row| &row[1])
    }
}

/// Why a run's held-out loss and scores can't be compared with the first run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// It has no held-out rows.
    NoRows,
    /// Its tokenizer or its chat template is another one.
    Tokenizer,
    /// Its held-out rows are other ones.
    Rows,
}

impl Differs {
    /// The reason as a sentence about so many runs.
    pub(super) fn told(self, runs: usize, first: &str) -> String {
        let [it, its] = [["it has", "they have"], ["its", "their"]].map(|words| verb(runs, words));
        match self {
            Self::NoRows => format!("{it} no held-out rows, and {first} has some"),
            Self::Tokenizer => format!(
                "{its} tokenizer or chat template differs from that of {first}, so {its} tokens aren't the same"
            ),
            Self::Rows => format!("{its} held-out rows differ from those of {first}"),
        }
    }
}

/// What `weft reproduce` left in the folder of a finished run.
struct OfStudy {
    outcome: Outcome,
    /// The base's scores, if they are there.
    base: Option<Point>,
    /// The folder of the comparison.
    folder: PathBuf,
}

impl OfStudy {
    /// Reads the outcome in a run folder, `STUDY/SETTING/ARM/seed-N`; `None` if another command made the run, or it isn't
    /// finished.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let Some(outcome) = outcome_in(folder)? else { return Ok(None) };
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let above = |levels: usize| folder.ancestors().nth(levels).filter(|path| !path.as_os_str().is_empty());
        let above = |levels: usize| above(levels).or(whole.ancestors().nth(levels)).unwrap_or(&whole).to_owned();
        let base = outcome_in(&above(2).join("base"))?.and_then(|base| base.points.first().copied());
        Ok(Some(Self { outcome, base, folder: above(3) }))
    }

    /// The scores, earliest first.
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.base.iter().chain(&self.outcome.points)
    }

    /// The accuracy of the base and of the trained model.
    fn scores(&self) -> Option<[f64; 2]> {
        let [base, last] = [self.base?.accuracy?, self.outcome.points.last()?.accuracy?];
        Some([base.accuracy, last.accuracy])
    }
}

/// The first task of a recipe's table `[eval]`.
fn first_task(eval: &Value) -> Option<String> {
    let task = eval["task"].as_str().or_else(|| eval["tasks"][0]["task"].as_str());
    task.map(str::to_owned)
}

/// The accuracy of the base and of the trained model.
fn scores(results: &Value) -> Option<[f64; 2]> {
    let accuracy = |name: &str| results["accuracy"][name]["accuracy"].as_f64();
    Some([accuracy("base")?, accuracy("adapter").or_else(|| accuracy("checkpoint"))?])
}

/// Each problem's points and possible points, scored again from the trained model's generations.
fn problems(folder: &Path, results: &Value) -> Result<Option<(Vec<f64>, Vec<usize>)>> {
    let Some(name) = results["task"].as_str() else { return Ok(None) };
    let files = ["adapter", "checkpoint"];
    let files =
        files.iter().flat_map(|side| [format!("{side}-generations.json"), format!("{side}-generations-{name}.json")]);
    let Some(path) = files.map(|file| folder.join(file)).find(|path| path.exists()) else { return Ok(None) };
    // The file of a task isn't named here, and may have changed since.
    let Ok(task) = AnyTask::parse(name) else {
        return Ok(stored::points(&path)?.map(|points| (points.clone(), vec![1; points.len()])));
    };
    let generations = stored::load(&task, &path, None)?;
    Ok(Some(generations.iter().map(|g| (g.score.correct as f64, g.score.total)).unzip()))
}

fn json(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::Format { path: path.to_owned(), reason: e.to_string() })
}
