//! Progress of long work on standard error; nothing is shown in a pipe or under `--quiet`.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use weft::progress::{Bar, Progress, Terminal, Unit};

/// How often a line without steps is redrawn.
const TICK: Duration = Duration::from_millis(120);

/// Draws the library's progress on standard error.
pub fn install() {
    weft::progress::install(Stderr);
}

/// Standard error; bars are drawn on it if it is a terminal.
struct Stderr;

impl Terminal for Stderr {
    fn bar(&self) -> Option<Box<dyn Bar>> {
        let bar = ProgressBar::no_length();
        (!bar.is_hidden()).then(|| Box::new(Drawn(bar)) as Box<dyn Bar>)
    }

    fn tell(&self, line: &str) {
        use std::io::Write;
        // If writing fails, for example on a full disk, only the line is lost, whereas `eprintln` would end the program.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A bar of the library.
struct Drawn(ProgressBar);

impl Bar for Drawn {
    fn begin(&self, unit: Unit, len: Option<u64>) {
        let template = match unit {
            // A narrow window cuts the end of the message.
            Unit::Steps => Some("{bar:16} step {pos}/{len}  {wide_msg}"),
            Unit::Problems => Some("{bar:24} {pos}/{len} problems  {eta} left"),
            Unit::Answers => Some("{bar:24} {pos}/{len} answers  {eta} left"),
            Unit::Bytes => Some("{bar:24} {bytes}/{total_bytes}  {msg}  {binary_bytes_per_sec}  {eta} left"),
            Unit::Rows => None,
        };
        if let Some(template) = template {
            self.0.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        }
        len.into_iter().for_each(|len| self.0.set_length(len));
    }

    fn set_position(&self, position: u64) {
        self.0.set_position(position);
    }

    fn set_message(&self, message: &str) {
        self.0.set_message(message.to_owned());
    }

    fn restart_clock(&self) {
        self.0.reset_eta();
    }

    fn tell(&self, line: &str) {
        self.0.println(line);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// The progress of work in the library.
pub fn bar(quiet: bool) -> Progress {
    if quiet { Progress::hidden() } else { Progress::shown() }
}

/// Whether progress is told in lines, because no bar can be drawn.
pub fn needs_lines(quiet: bool) -> bool {
    !quiet && drawn(false).is_hidden()
}

/// The command's own progress bar.
pub fn drawn(quiet: bool) -> ProgressBar {
    if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() }
}

/// A line that says what is being done and for how long; it disappears when dropped.
pub struct Doing(ProgressBar);

/// Changes what the line says.
pub fn doing(quiet: bool, what: &'static str) -> Doing {
    let line = drawn(quiet).with_message(what);
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
