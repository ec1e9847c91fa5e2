//! Reads what a user types into a chat on a terminal. Lines can be edited and have a history, both by rustyline.

use std::cell::Cell;
use std::io;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use weft::error::{Error, Result};

/// The text that is shown before the line.
const READY: &str = "> ";
/// The end of a line that continues on the next one.
const CONTINUES: &str = "\\";

/// A line editor, whose history is the lines of this chat.
pub struct LineEditor(Editor<Lines, DefaultHistory>);

/// Tells the editor whether a line continues on the next one, and remembers whether anything is typed in it.
#[derive(Default)]
struct Lines {
    is_empty: Cell<bool>,
}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;

    /// There are no hints, but this is called whenever the line has changed.
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.is_empty.set(line.is_empty());
        None
    }
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
    /// An editor with an empty history.
    ///
    /// # Errors
    /// A terminal that can't be used.
    pub fn open() -> Result<Self> {
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_config(config).map_err(unread)?;
        editor.set_helper(Some(Lines::default()));
        Ok(Self(editor))
    }

    /// The next line, joined with the lines that follow it as long as they end in a backslash; `None` if the user leaves by
    /// Ctrl-C or Ctrl-D in an empty line. In any other line, Ctrl-C begins a new one.
    ///
    /// # Errors
    /// A terminal that can't be read.
    pub fn read(&mut self) -> Result<Option<String>> {
        loop {
            return match self.0.readline(READY) {
                Ok(typed) => Ok(Some(typed.replace(&format!("{CONTINUES}\n"), "\n"))),
                Err(ReadlineError::Interrupted) if self.0.helper().is_some_and(|lines| !lines.is_empty.get()) => {
                    continue;
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(unread(error)),
            };
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
