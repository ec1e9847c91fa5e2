//! What is said of a source's rows: which were skipped and why, which of their keys nothing reads, and which turns are
//! context only. `weft data` and `weft train` print it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Counts of a source's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// The number of rows.
    pub rows: usize,
    /// The number of rows that are skipped, by the reason.
    pub skipped: BTreeMap<String, usize>,
    /// The keys that nothing reads, each with the number of rows that have it; a field of turns is named
    /// `messages[].name`.
    pub unread: BTreeMap<String, usize>,
    /// The number of rows whose tools the chat template doesn't read.
    pub unread_tools: usize,
    /// The special tokens that are text in prompts, each with the number of rows that have it.
    #[serde(default)]
    pub typed: BTreeMap<String, usize>,
    /// The number of the assistant's turns that are in prompts only.
    pub context_turns: usize,
    /// The number of the assistant's turns that are answers.
    pub answer_turns: usize,
}

/// What is said of one row.
#[derive(Debug, Default)]
pub(super) struct RowNotes {
    /// The keys that nothing reads.
    pub unread: Vec<String>,
    /// Whether it has tools that the chat template doesn't read.
    pub has_unread_tools: bool,
    /// The special tokens that are text in its prompts.
    pub typed: BTreeSet<String>,
    /// The number of the assistant's turns.
    pub assistant_turns: usize,
}

impl Notes {
    /// Adds a row from which `answers` examples are made.
    pub(super) fn add(&mut self, row: RowNotes, answers: usize) {
        self.rows += 1;
        for key in row.unread {
            *self.unread.entry(key).or_default() += 1;
        }
        for token in row.typed {
            *self.typed.entry(token).or_default() += 1;
        }
        self.unread_tools += usize::from(row.has_unread_tools);
        self.answer_turns += answers;
        self.context_turns += if answers > 0 { row.assistant_turns - answers } else { 0 };
    }

    /// Counts a row as skipped.
    pub(super) fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
    }

    /// What is said of the rows, one line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.skipped.iter().map(|(reason, count)| format!("{count} rows skipped: {reason}")).collect();
        if self.unread_tools > 0 {
            lines.push(format!("{} rows have tools, which the chat template does not read", self.unread_tools));
        }
        if !self.unread.is_empty() {
            let named = |(key, count): (&String, &usize)| match *count == self.rows {
                true => key.clone(),
                false => format!("{key} ({count} of {} rows)", self.rows),
            };
            lines.push(format!("columns not read: {}", self.unread.iter().map(named).collect::<Vec<_>>().join(", ")));
        }
        if !self.typed.is_empty() {
            let named = |(token, count): (&String, &usize)| format!("{token} ({count} of {} rows)", self.rows);
            let tokens = self.typed.iter().map(named).collect::<Vec<_>>().join(", ");
            lines.push(format!("special tokens in prompts are read as text (data.special_tokens): {tokens}"));
        }
        if self.context_turns > 0 {
            let all = self.context_turns + self.answer_turns;
            lines.push(format!("{} of {all} assistant turns are context only (data.train_on)", self.context_turns));
        }
        lines
    }
}
