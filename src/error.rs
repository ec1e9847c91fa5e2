//! All errors, each as one sentence with the value, the place and the fix.

pub(crate) mod diagnosis;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use diagnosis::Diagnosis;

/// The library's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file whose contents aren't what its name says.
    #[error("{} is damaged or in another format: {reason}; fetch or write it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A configuration that Weft doesn't support.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, its value and the fix.
        reason: String,
    },
    /// A tensor that is missing or has another shape.
    #[error("tensor {name} in {}: {reason}; is this the checkpoint that config.json describes?", folder.display())]
    Tensor {
        /// The tensor's name.
        name: String,
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A row of a data file.
    #[error("{}:{line}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and the fix.
        reason: String,
    },
    /// A row of a data file that has no lines.
    #[error("{} row {row}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1.
        row: usize,
        /// What is wrong and the fix.
        reason: String,
    },
    /// A source with several rows that can't be used.
    #[error("{count} rows of {name} can't be used:{}fix them{}", lines(rows, *more), or(skips))]
    Rows {
        /// The source.
        name: String,
        /// The number of such rows.
        count: usize,
        /// What is wrong with each of the first rows, with its file and line.
        rows: Vec<String>,
        /// The number of rows that aren't listed.
        more: usize,
        /// The settings that skip such rows; empty if there are none.
        skips: String,
    },
    /// A recipe with all its problems.
    #[error("{}", problems_of(path, problems))]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// The problems, one sentence each. Those of settings given by `--set` begin with `--set` and aren't attributed to the
        /// file.
        problems: Vec<String>,
    },
    /// A file that can't be written.
    #[error("cannot write {}: {source}; {}", path.display(), write_fix(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A repository of the hub that can't be used.
    #[error("{id}: {reason}")]
    Hub {
        /// The id as it was given.
        id: String,
        /// What is wrong and the fix.
        reason: String,
    },
    /// A run that stopped because it was asked to.
    #[error("stopped at step {step}, which is saved in {}; add --resume to continue", output.display())]
    Stopped {
        /// The last step that was finished.
        step: u64,
        /// The run folder.
        output: PathBuf,
    },
    /// Options or folders that don't go together.
    #[error("{0}")]
    Usage(String),
    /// A run that can't continue.
    #[error("{0}")]
    Run(String),
    /// A step with numbers that aren't finite.
    #[error("{}; {}", .0, .0.advice())]
    NonFinite(Box<Diagnosis>),
}

/// What to do about a file that can't be written.
fn write_fix(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "check the permissions of its folder or choose another output folder"
        }
        ErrorKind::NotFound => "make its folder first or choose another one",
        ErrorKind::IsADirectory => "it is a folder; name a file",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a part of the path is a file; choose another output folder"
        }
        _ => "free some space or choose another output folder",
    }
}

/// The first rows that can't be used, one per line, and how many more there are.
fn lines(rows: &[String], more: usize) -> String {
    let rows: String = rows.iter().map(|row| format!("\n  {row}")).collect();
    let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
    format!("{rows}\n{more}")
}

/// How to skip bad rows instead of fixing them.
fn or(way: &str) -> String {
    if way.is_empty() { String::new() } else { format!(", or {way}") }
}

/// A recipe's problems, one per line: those of the file after its name, then those of `--set`. A single problem is the whole
/// message.
fn problems_of(path: &Path, problems: &[String]) -> String {
    let (given, own): (Vec<&String>, Vec<&String>) = problems.iter().partition(|problem| problem.starts_with("--set"));
    let own = own.into_iter().map(|problem| format!("{}: {problem}", path.display()));
    let all: Vec<String> = own.chain(given.into_iter().cloned()).collect();
    match &all[..] {
        [one] => one.clone(),
        several => format!("the recipe has {} problems:\n  {}", several.len(), several.join("\n  ")),
    }
}

impl Error {
    /// Whether the user can fix it before anything has run; otherwise it is a failed run.
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Run(_) | Self::NonFinite(_))
    }
}

/// A result of the library.
pub type Result<T> = std::result::Result<T, Error>;
