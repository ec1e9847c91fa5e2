//! What a run reports while it trains: metrics.jsonl, with a line per step and per evaluation; the same numbers for
//! TensorBoard; and the progress on the terminal.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, remove_dir, remove_file};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::best::{Best, BestBy, Record};
use super::pace::Pace;
use super::step::StepReport;
use super::tags;
use super::tensorboard::EventFile;
use crate::error::{Error, Result};
use crate::eval::task_score::TaskScore;
use crate::files::{read_if_there, read_text, write_whole};
use crate::progress::{Progress, Unit, tell};

/// Seconds between lines of progress if there is no terminal.
const LINE_SECS: u64 = 15;

/// What the earlier parts of a resumed run did, according to its log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Earlier {
    /// Seconds of training in the earlier parts.
    pub train_secs: f64,
    /// The first and the last held-out loss of the earlier parts.
    pub held_out: Option<[f64; 2]>,
    /// The best evaluation of the earlier parts.
    pub record: Record,
}

/// The name of the log in a run folder.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// The event file for TensorBoard, whose `--logdir` is the run folder or one above it. It lies in the run folder
/// itself, because TensorBoard names a run after the folder of its events.
pub const EVENTS: &str = "events.out.tfevents.weft";
/// The folder in which earlier versions wrote the event file.
const FORMER_FOLDER: &str = "tensorboard";

/// The run's log.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    events: EventFile,
    progress: Progress,
    num_steps: u64,
    last_line: Instant,
    pace: Pace,
    /// The steps and tasks whose scores an earlier part of the run wrote.
    scored: HashSet<(u64, String)>,
}

impl Metrics {
    /// Opens metrics.jsonl of a run that has done `step` of `num_steps` steps. Lines of later steps, which a crash left
    /// behind, are dropped; the remaining lines are summarized in `Earlier`. The run is evaluated every `eval_every` steps
    /// and at its end; `None` stands for a run without held-out rows.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn open(
        output: &Path,
        ([step, num_steps], eval_every, best_by): ([u64; 2], Option<u64>, BestBy),
        progress: Progress,
    ) -> Result<(Self, Earlier)> {
        let path = output.join(METRICS);
        let kept: String = match path.exists() && step > 0 {
            true => read_text(&path)?.lines().filter(|l| step_of(l) <= Some(step)).map(|l| format!("{l}\n")).collect(),
            false => String::new(),
        };
        write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| Error::Write { path: path.clone(), source })?;
        let kept: Vec<Value> = kept.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let events = repeat_events(output, &kept)?;
        progress.begin(Unit::Steps, Some(num_steps));
        progress.set_position(step);
        let pace = Pace::new(num_steps, eval_every);
        let scored = kept.iter().filter_map(|line| Some((line["step"].as_u64()?, line["task"].as_str()?.to_owned())));
        let scored = scored.collect();
        let metrics = Self { path, file, events, progress, num_steps, last_line: Instant::now(), pace, scored };
        Ok((metrics, Earlier::of(&kept, best_by)))
    }

    /// Reports a step that took `step_secs` seconds.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn step(&mut self, report: &StepReport, step_secs: f64) -> Result<()> {
        self.pace.step(report.tokens, step_secs);
        let is_parallel = report.traffic.sent_bytes > 0;
        self.write(json!({
            "step": report.step,
            "epoch": report.epoch,
            "loss": report.loss,
            "nll": report.nll,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            "tokens": report.tokens,
            "masked_share": report.masked_share,
            "mean_entropy": report.entropy.map(|e| e.mean),
            "entropy_quantiles": report.entropy.map(|e| e.quantiles),
            "uncertainty_spread": report.entropy.map(|e| e.uncertainty_spread),
            "entropy_drift": report.entropy_drift,
            "skipped": report.skipped,
            "skipped_steps": report.skipped_steps,
            "tokens_per_second": report.tokens as f64 / step_secs,
            "step_seconds": step_secs,
            "sent_bytes": is_parallel.then_some(report.traffic.sent_bytes),
            "communication_seconds": is_parallel.then_some(report.traffic.seconds),
        }))?;
        if let Some(skip) = &report.skipped {
            self.line(&format!("skipped {}", skip.why));
        }
        let nll = report.nll.map(|nll| format!("nll {nll:.3}  ")).unwrap_or_default();
        let message = format!(
            "loss {:.4}  {nll}{} left  {:.0} tokens/s  gradient {:.3}",
            report.loss,
            self.pace.left(report.step),
            self.pace.tokens_per_second(),
            report.grad_norm
        );
        self.progress.set_message(&message);
        self.progress.set_position(report.step);
        if self.progress.needs_lines() && self.last_line.elapsed() > Duration::from_secs(LINE_SECS) {
            self.last_line = Instant::now();
            tell(&format!("step {}/{}  {message}", report.step, self.num_steps));
        }
        Ok(())
    }

    /// Reports the loss on held-out rows, in nats per answer token, and the seconds that the evaluation took.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn held_out(&mut self, step: u64, nll_bound: f64, seconds: f64) -> Result<()> {
        self.pace.evaluated(seconds);
        self.write(json!({ "step": step, "held_out_nll_bound": nll_bound }))?;
        self.line(&format!("step {step}: held-out loss {nll_bound:.4} nats per answer token"));
        Ok(())
    }

    /// Counts the scoring of tasks in the time that is left, as [`Pace::scored`] does.
    pub fn expects_scores(&mut self, every: u64, seconds: f64) {
        self.pace.scored(every, seconds);
    }

    /// Reports a score on a task. The log has the score of a step once, also if another setting of the evaluation made a resumed
    /// run compute it again.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn scored(&mut self, step: u64, epoch: f64, score: &TaskScore) -> Result<()> {
        if !self.scored.insert((step, score.task.clone())) {
            return Ok(());
        }
        let mut line = json!({ "step": step, "epoch": epoch });
        let fields = line.as_object_mut().expect("it is an object");
        fields.extend(score.to_json().as_object().expect("a score is an object").clone());
        self.write(line)?;
        self.line(&format!("step {step}: {} {score}", score.task));
        Ok(())
    }

    /// Flushes the log to disk, as the checkpoint that belongs to it will be.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| Error::Write { path: self.path.clone(), source })?;
        self.events.sync().map_err(|source| Error::Write { path: self.path.with_file_name(EVENTS), source })
    }

    /// Prints a line above the progress bar.
    pub fn line(&self, line: &str) {
        self.progress.tell(line);
    }

    /// Removes the progress bar from the terminal.
    pub fn finish(&self) {
        self.progress.finish();
    }

    fn write(&mut self, mut line: Value) -> Result<()> {
        line["unix_seconds"] = Value::from(unix_seconds());
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|source| Error::Write { path: self.path.clone(), source })?;
        let told = tags::tell(&mut self.events, &line);
        told.map_err(|source| Error::Write { path: self.path.with_file_name(EVENTS), source })
    }
}

impl Earlier {
    fn of(lines: &[Value], best_by: BestBy) -> Self {
        let numbers = |key: &str| -> Vec<f64> { lines.iter().filter_map(|line| line[key].as_f64()).collect() };
        let losses = numbers("held_out_nll_bound");
        let held_out = losses.first().zip(losses.last()).map(|(first, last)| [*first, *last]);
        let mut record = Record::default();
        let first_task = lines.iter().find_map(|line| line["task"].as_str());
        for (line, step) in lines.iter().filter_map(|line| Some((line, line["step"].as_u64()?))) {
            match (best_by, line.get("held_out_nll_bound")) {
                // JSON has no NaN, which is written as null.
                (BestBy::HeldOutLoss, Some(loss)) => {
                    record.add(Best::of_loss(step, loss.as_f64().unwrap_or(f64::NAN)));
                }
                (BestBy::Task, None) if first_task.is_some() && line["task"].as_str() == first_task => {
                    record.add(Best::of_accuracy(step, line["accuracy"].as_f64().unwrap_or(f64::NAN)));
                }
                _ => {}
            }
        }
        Self { train_secs: numbers("step_seconds").iter().sum(), held_out, record }
    }
}

/// The lines of a run's log with the scores of a step, for a run that resumes; none without a log.
///
/// # Errors
/// A log that can't be read.
pub(crate) fn scores_in(output: &Path, step: u64) -> Result<Vec<Value>> {
    let text = read_if_there(&output.join(METRICS))?.unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["step"].as_u64() == Some(step) && line["task"].is_string()).collect())
}

/// Rewrites the event file of a run from the remaining lines of its log. The file of an earlier version, which would
/// show the run twice, is removed.
fn repeat_events(output: &Path, lines: &[Value]) -> Result<EventFile> {
    let path = output.join(EVENTS);
    let began = lines.first().and_then(|line| line["unix_seconds"].as_f64());
    let whole = || {
        let mut events = EventFile::create(&path, began.unwrap_or_else(unix_seconds))?;
        lines.iter().try_for_each(|line| tags::tell(&mut events, line))?;
        Ok(events)
    };
    let events = whole().map_err(|source| Error::Write { path: path.clone(), source })?;
    let former = output.join(FORMER_FOLDER);
    // A run of this version has neither, and a folder with other files stays.
    let _ = remove_file(former.join(EVENTS));
    let _ = remove_dir(former);
    Ok(events)
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn step_of(line: &str) -> Option<u64> {
    // A line that a crash cut short isn't JSON; it counts as later than every step.
    Some(serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64()).unwrap_or(u64::MAX))
}
