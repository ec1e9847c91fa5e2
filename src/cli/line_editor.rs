//! Reads what a user types in a chat, on a terminal: lines that can be edited, with a history, by rustyline.

use std::io;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use weft::error::{Error, Result};

/// What is shown before the line.
const READY: &str = "> ";
/// What ends a line that goes on in the next one.
const CONTINUES: &str = "\\";

/// An editor of lines, with those of this chat as its history.
pub struct LineEditor(Editor<Lines, DefaultHistory>);

/// Tells the editor that a line goes on.
struct Lines;

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

impl Validator for Lines {
    fn validate(&self, typed: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(match typed.input().ends_with(CONTINUES) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Helper for Lines {}

impl LineEditor {
    /// An editor without a history yet.
    ///
    /// # Errors
    /// A terminal that can't be used.
    pub fn open() -> Result<Self> {
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_config(config).map_err(unread)?;
        editor.set_helper(Some(Lines));
        Ok(Self(editor))
    }

    /// The next line, or several that are joined by a backslash at the end; `None` where the user leaves by Ctrl-C or
    /// Ctrl-D.
    ///
    /// # Errors
    /// A terminal that can't be read.
    pub fn read(&mut self) -> Result<Option<String>> {
        match self.0.readline(READY) {
            Ok(typed) => Ok(Some(typed.replace(&format!("{CONTINUES}\n"), "\n"))),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
            Err(error) => Err(unread(error)),
        }
    }
}

fn unread(error: ReadlineError) -> Error {
    let source = match error {
        ReadlineError::Io(source) => source,
        other => io::Error::other(other.to_string()),
    };
    Error::Read { path: "standard input".into(), source }
}
