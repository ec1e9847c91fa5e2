//! What a run tells while it goes: metrics.jsonl, a line per step and per evaluation, and the progress on the terminal.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::StepReport;
use crate::error::{Error, Result};
use crate::files::{read_text, write_whole};

/// Seconds between lines of progress where there is no terminal.
const LINE_SECS: u64 = 15;

/// Where a run shows its progress.
pub struct Progress {
    /// A bar of the run's steps.
    pub bar: ProgressBar,
    /// Whether the run prints lines: evaluations, and the progress where there is no terminal.
    pub tells: bool,
}

/// The run's log.
pub struct Metrics {
    path: PathBuf,
    file: File,
    progress: Progress,
    last_line: Instant,
    tokens: usize,
    /// Evaluations left out.
    train_secs: f64,
}

impl Metrics {
    /// Opens metrics.jsonl of a run that has done `step` steps; lines of later steps, which a crash left, are dropped.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn open(output: &Path, step: u64, progress: Progress) -> Result<Self> {
        let path = output.join("metrics.jsonl");
        let kept: String = match path.exists() && step > 0 {
            true => read_text(&path)?.split_inclusive('\n').filter(|line| step_of(line) <= Some(step)).collect(),
            false => String::new(),
        };
        write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| Error::Write { path: path.clone(), source })?;
        let style = "{bar:24} step {pos}/{len}  {msg}  {eta} left";
        let bar = &progress.bar;
        bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
        bar.set_position(step);
        bar.reset_eta();
        Ok(Self { path, file, progress, last_line: Instant::now(), tokens: 0, train_secs: 0.0 })
    }

    /// Tells of a step that took `step_secs` seconds.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn step(&mut self, report: &StepReport, step_secs: f64) -> Result<()> {
        self.tokens += report.tokens;
        self.train_secs += step_secs;
        let tokens_per_second = self.tokens as f64 / self.train_secs;
        self.write(json!({
            "step": report.step,
            "epoch": report.epoch,
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            "tokens": report.tokens,
            "masked_share": report.masked_share,
            "mean_entropy": report.mean_entropy,
            "uncertainty_spread": report.uncertainty_spread,
            "entropy_drift": report.entropy_drift,
            "tokens_per_second": tokens_per_second,
            "step_seconds": step_secs,
        }))?;
        let message =
            format!("loss {:.4}  gradient {:.3}  {tokens_per_second:.0} tokens/s", report.loss, report.grad_norm);
        let Progress { bar, tells } = &self.progress;
        bar.set_message(message.clone());
        bar.set_position(report.step);
        if *tells && bar.is_hidden() && self.last_line.elapsed() > Duration::from_secs(LINE_SECS) {
            self.last_line = Instant::now();
            let eta = bar.eta().as_secs();
            let num_steps = bar.length().unwrap_or(0);
            eprintln!("step {}/{num_steps}  {message}  {}m{:02}s left", report.step, eta / 60, eta % 60);
        }
        Ok(())
    }

    /// Tells of the loss on held-out rows, in nats per answer token.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn held_out(&mut self, step: u64, nll_bound: f64) -> Result<()> {
        self.write(json!({ "step": step, "held_out_nll_bound": nll_bound }))?;
        self.line(&format!("step {step}: held-out loss {nll_bound:.4} nats per answer token"));
        Ok(())
    }

    /// Prints a line above the progress.
    pub fn line(&self, line: &str) {
        match &self.progress {
            Progress { tells: false, .. } => {}
            Progress { bar, .. } if bar.is_hidden() => eprintln!("{line}"),
            Progress { bar, .. } => bar.println(line),
        }
    }

    /// Takes the progress off the terminal.
    pub fn finish(&self) {
        self.progress.bar.finish_and_clear();
    }

    fn write(&mut self, line: Value) -> Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

fn step_of(line: &str) -> Option<u64> {
    // A line that a crash cut is no JSON; it counts as later than every step.
    Some(serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64()).unwrap_or(u64::MAX))
}
