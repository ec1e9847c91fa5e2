//! The progress of long work, and lines such as warnings. The [`Terminal`] that a program installs decides how they look; the
//! command `weft` draws bars. If none is installed, no bars are drawn, and lines go to standard error.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Optimizer steps.
    Steps,
    /// A task's problems.
    Problems,
    /// Answers that are given in a file.
    Answers,
    /// A file's rows, whose number isn't known in advance.
    Rows,
    /// Bytes of files.
    Bytes,
}

/// A bar that is being drawn.
pub trait Bar: Send + Sync {
    /// Sets what the bar counts, and the total number if it is known.
    fn begin(&self, unit: Unit, len: Option<u64>);
    /// Sets how much is done.
    fn set_position(&self, position: u64);
    /// Sets the text beside the bar.
    fn set_message(&self, message: &str);
    /// Excludes what is done so far from the speed and from the estimate of the remaining time.
    fn restart_clock(&self);
    /// Prints a line above the bar.
    fn tell(&self, line: &str);
    /// Removes the bar.
    fn finish(&self);
}

/// Where a program shows progress and lines.
pub trait Terminal: Send + Sync {
    /// A new bar; `None` where bars can't be drawn, as in a pipe.
    fn bar(&self) -> Option<Box<dyn Bar>>;
    /// Prints a line.
    fn tell(&self, line: &str);
}

static TERMINAL: OnceLock<Box<dyn Terminal>> = OnceLock::new();

/// Shows all progress and all lines of this process on this terminal; a later call has no effect.
pub fn install(terminal: impl Terminal + 'static) {
    let _ = TERMINAL.set(Box::new(terminal));
}

/// Prints a line on the installed terminal, or on standard error if there is none. If writing fails, for example on a full
/// disk, only the line is lost, whereas `eprintln` would end the program.
pub fn tell(line: &str) {
    use std::io::Write;
    match TERMINAL.get() {
        Some(terminal) => terminal.tell(line),
        None => drop(writeln!(std::io::stderr(), "{line}")),
    }
}

/// The progress of one piece of work. The default shows nothing.
#[derive(Default)]
pub struct Progress {
    bar: Option<Box<dyn Bar>>,
    tells: bool,
    position: AtomicU64,
}

impl Progress {
    /// Progress that isn't shown.
    pub fn hidden() -> Self {
        Self::default()
    }

    /// Progress on the installed terminal, or as lines if it draws no bars.
    pub fn shown() -> Self {
        let bar = TERMINAL.get().and_then(|terminal| terminal.bar());
        Self { bar, tells: true, position: AtomicU64::new(0) }
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.tells
    }

    /// Whether the work should print lines about its progress, because there is no bar.
    pub(crate) fn needs_lines(&self) -> bool {
        self.tells && self.bar.is_none()
    }

    pub(crate) fn begin(&self, unit: Unit, len: Option<u64>) {
        self.bar.iter().for_each(|bar| bar.begin(unit, len));
    }

    #[cfg(feature = "hub")]
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub(crate) fn set_position(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
        self.bar.iter().for_each(|bar| bar.set_position(position));
    }

    pub(crate) fn add(&self, more: u64) {
        let position = self.position.fetch_add(more, Ordering::Relaxed) + more;
        self.bar.iter().for_each(|bar| bar.set_position(position));
    }

    pub(crate) fn set_message(&self, message: &str) {
        self.bar.iter().for_each(|bar| bar.set_message(message));
    }

    #[cfg(feature = "hub")]
    pub(crate) fn restart_clock(&self) {
        self.bar.iter().for_each(|bar| bar.restart_clock());
    }

    /// Prints a line above the bar, unless the progress is hidden.
    pub(crate) fn tell(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.tell(line),
            None if self.tells => tell(line),
            None => {}
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.iter().for_each(|bar| bar.finish());
    }
}

/// Formats a number of bytes in the largest binary unit that it reaches: `1.50 MiB`.
pub(crate) fn as_bytes(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes as f64, "");
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        if number >= 1024.0 {
            (number, unit) = (number / 1024.0, next);
        }
    }
    if unit.is_empty() { format!("{bytes} B") } else { format!("{number:.2} {unit}B") }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A bar that records the calls of its methods.
    struct Written(Arc<Mutex<Vec<String>>>);

    impl Written {
        fn write(&self, what: String) {
            self.0.lock().expect("no test panicked").push(what);
        }
    }

    impl Bar for Written {
        fn begin(&self, unit: Unit, len: Option<u64>) {
            self.write(format!("{unit:?} {len:?}"));
        }

        fn set_position(&self, position: u64) {
            self.write(format!("at {position}"));
        }

        fn set_message(&self, message: &str) {
            self.write(message.to_owned());
        }

        fn restart_clock(&self) {
            self.write("clock".to_owned());
        }

        fn tell(&self, line: &str) {
            self.write(format!("line {line}"));
        }

        fn finish(&self) {
            self.write("finished".to_owned());
        }
    }

    #[test]
    fn a_bar_gets_positions_and_lines_and_hidden_progress_gets_neither() {
        let written = Arc::new(Mutex::new(vec![]));
        let bar: Option<Box<dyn Bar>> = Some(Box::new(Written(written.clone())));
        for progress in [Progress::hidden(), Progress { bar, tells: true, ..Progress::default() }] {
            progress.begin(Unit::Answers, Some(3));
            progress.set_position(1);
            progress.add(2);
            progress.set_message("two");
            progress.tell("three");
            progress.finish();
            assert!(!progress.needs_lines());
        }
        let written = written.lock().expect("no test panicked");
        assert_eq!(*written, ["Answers Some(3)", "at 1", "at 3", "two", "line three", "finished"]);
    }

    #[test]
    fn bytes_are_told_in_the_largest_unit_that_they_reach() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (1 << 20, "1.00 MiB")];
        for (bytes, told) in cases.into_iter().chain([(15_000_000_000, "13.97 GiB"), (3 << 40, "3.00 TiB")]) {
            assert_eq!(as_bytes(bytes), told);
        }
    }
}
