//! Rows that can't be used: each with its place and the setting that would skip it, and the error that reports all of
//! them at once.

use std::collections::BTreeSet;

use super::settings::{OnRow, RowPolicy};
use super::sources::is_of_row;
use crate::error::Error;

/// A row that can't be used.
#[derive(Debug)]
pub(crate) struct BadRow {
    /// What is wrong.
    pub(super) error: Box<Error>,
    /// The file and number of the row.
    pub(crate) place: String,
    /// The setting that says whether such rows are skipped.
    pub(super) setting: &'static str,
}

/// The setting for rows that can't be read as chats or texts.
pub(super) const ON_BAD_ROW: &str = "on_bad_row";
/// The setting for prompts that leave no room for an answer.
pub(super) const ON_LONG_PROMPT: &str = "on_long_prompt";

/// The largest number of rows that the error lists.
const TOLD: usize = 10;

impl BadRow {
    /// A row that can't be read as a chat or a text.
    pub fn new(error: Error, place: String) -> Self {
        Self { error: Box::new(error), place, setting: ON_BAD_ROW }
    }

    /// Whether a source with this policy skips the row. The policy for long prompts is applied before a row becomes a bad one.
    pub(crate) fn is_skipped(&self, policy: RowPolicy) -> bool {
        self.setting == ON_BAD_ROW && policy.bad_row == OnRow::Skip
    }

    /// What is wrong, with the place of the row, which an error of the chat template doesn't name.
    fn told(&self) -> String {
        match &*self.error {
            Error::Row { .. } | Error::Record { .. } => self.error.to_string(),
            other if self.place.is_empty() => other.to_string(),
            other => format!("{}: {other}", self.place),
        }
    }

    /// What is wrong without the place and the fix: why the row is skipped.
    pub fn reason(&self) -> String {
        let reason = match &*self.error {
            Error::Row { reason, .. } | Error::Record { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        reason.split_once("; ").map_or(reason.clone(), |(reason, _)| reason.to_owned())
    }
}

/// The rows of a source that can't be used: the first few, and how many there are.
#[derive(Debug, Default)]
pub(crate) struct BadRows {
    first: Vec<BadRow>,
    count: usize,
    settings: BTreeSet<&'static str>,
    /// The number of all rows, once they have been read.
    pub(crate) rows: usize,
}

impl BadRows {
    /// Adds a row.
    pub fn push(&mut self, row: BadRow) {
        self.count += 1;
        self.settings.insert(row.setting);
        if self.first.len() < TOLD {
            self.first.push(row);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Like [`BadRows::into_error`], for a command that has the option `--on-bad-row` instead of a recipe.
    pub fn into_error_of_option(self, name: &str) -> Error {
        self.told(name, true, "--on-bad-row skip skips and counts such rows".to_owned())
    }

    /// The error that lists the bad rows of the source with this name. A single bad row gives its own error, which names the
    /// setting that skips the row only if `hints` is set.
    pub(crate) fn into_error(self, name: &str, hints: bool) -> Error {
        let settings: Vec<String> = self.settings.iter().map(|key| format!("data.{key} = \"skip\"")).collect();
        let skips = format!("{} skips and counts such rows", settings.join(", "));
        self.told(name, hints, skips)
    }

    fn told(mut self, name: &str, hints: bool, skips: String) -> Error {
        // If every row has the same problem, the rows aren't the cause.
        let first = self.first[0].error.to_string();
        let is_common = self.count == self.rows && self.first.iter().all(|row| row.error.to_string() == first);
        if self.count > 1 && !is_common {
            let more = self.count - self.first.len();
            let rows = self.first.iter().map(BadRow::told).collect();
            return Error::Rows { name: name.to_owned(), count: self.count, rows, more, skips };
        }
        let bad = self.first.remove(0);
        if !matches!(&*bad.error, Error::Row { .. } | Error::Record { .. }) && !is_common {
            // An error of the chat template names no row.
            return Error::Usage(bad.told());
        }
        let mut error = *bad.error;
        if let Error::Row { reason, .. } | Error::Record { reason, .. } = &mut error
            && hints
        {
            *reason = format!("{reason}; {skips}");
        }
        error
    }
}

/// Why a source can't be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// Rows that can't be used.
    Rows(BadRows),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Turns a reader's error into a bad row, or returns the error if no further row can be read after it.
pub(crate) fn of_reader(error: Error) -> Result<BadRow, Error> {
    if !is_of_row(&error) {
        return Err(error);
    }
    let place = match &error {
        Error::Record { path, row, .. } => format!("{} row {row}", path.display()),
        Error::Row { path, line, .. } => format!("{}:{line}", path.display()),
        _ => String::new(),
    };
    Ok(BadRow::new(error, place))
}
