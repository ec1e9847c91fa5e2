//! Progress of long work on standard error; nothing is shown in a pipe or under `--quiet`.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line without steps is redrawn.
const TICK: Duration = Duration::from_millis(120);

/// A progress bar for work of unknown length.
pub fn bar(quiet: bool) -> ProgressBar {
    if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() }
}

/// A line that says what is being done and for how long; it disappears when dropped.
pub struct Doing(ProgressBar);

/// Changes what the line says.
pub fn doing(quiet: bool, what: &'static str) -> Doing {
    let line = bar(quiet).with_message(what);
    line.set_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("the template is valid"));
    if !quiet {
        line.enable_steady_tick(TICK);
    }
    Doing(line)
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Counts the answer's tokens that are no longer masked, after each step of the sampler.
pub fn count_unmasked(steps: &Receiver<Vec<Vec<u32>>>, (prompt_len, mask_token_id): (usize, u32), bar: &ProgressBar) {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} tokens  {eta} left").expect("the template is valid");
    bar.set_style(style);
    for canvases in steps {
        let answer = &canvases[0][prompt_len..];
        bar.set_length(answer.len() as u64);
        bar.set_position(answer.iter().filter(|id| **id != mask_token_id).count() as u64);
    }
    bar.finish_and_clear();
}
