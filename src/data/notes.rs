//! The notes on a source's rows: which were skipped and why, which answers were cut, which of the rows' keys nothing
//! reads, and which turns are context only. `weft data`, `weft plan` and `weft train` print them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::counted::{counted, verb};

/// Counts of a source's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// The number of rows.
    pub rows: usize,
    /// The rows that are skipped, by reason.
    pub skipped: BTreeMap<String, Skipped>,
    /// The answers that are skipped in rows with other answers, by reason.
    pub skipped_answers: BTreeMap<String, Skipped>,
    /// The number of rows with an answer that was cut.
    pub cut_rows: usize,
    /// The file and line of the first few of them.
    pub first_cut: Vec<String>,
    /// The keys that nothing reads, each with the number of rows that have it; a field of turns is named
    /// `messages[].name`.
    pub unread: BTreeMap<String, usize>,
    /// The number of rows whose tools the chat template doesn't read.
    pub unread_tools: usize,
    /// The special tokens in prompts that are read as text, each with the number of rows that have it.
    #[serde(default)]
    pub typed: BTreeMap<String, usize>,
    /// The number of the assistant's turns with an end token of their own at the end.
    #[serde(default)]
    pub own_ends: usize,
    /// The number of the assistant's turns that are in prompts only.
    pub context_turns: usize,
    /// The number of the assistant's turns that are answers.
    pub answer_turns: usize,
}

/// The rows or answers that are skipped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many rows or answers are skipped.
    pub count: usize,
    /// The file and line of the first one.
    pub first: String,
}

/// What is said of one row.
#[derive(Debug, Default)]
pub(super) struct RowNotes {
    /// The keys that nothing reads.
    pub unread: Vec<String>,
    /// Whether it has tools that the chat template doesn't read.
    pub has_unread_tools: bool,
    /// The special tokens in its prompts that are read as text.
    pub typed: BTreeSet<String>,
    /// The number of the assistant's turns with an end token of their own at the end.
    pub own_ends: usize,
    /// The number of the assistant's turns.
    pub assistant_turns: usize,
    /// The number of the assistant's turns that are answers, skipped ones included.
    pub answers: usize,
    /// Why answers are skipped while the row has others, once for each answer.
    pub skipped_answers: Vec<&'static str>,
    /// The file and line of the row, if something in it is skipped or cut.
    pub place: String,
}

/// The largest number of reasons that are counted separately; all others are counted together.
const MAX_REASONS: usize = 10;
/// The reason under which the others are counted.
const OTHER: &str = "other reasons";
/// The number of rows with cut answers that are named.
const NAMED: usize = 3;
/// The share of skipped rows above which a warning is given.
const WARNED_SHARE: f64 = 0.1;

impl Notes {
    /// Adds a row.
    pub(super) fn add(&mut self, row: RowNotes) {
        self.rows += 1;
        for key in row.unread {
            *self.unread.entry(key).or_default() += 1;
        }
        for token in row.typed {
            *self.typed.entry(token).or_default() += 1;
        }
        self.unread_tools += usize::from(row.has_unread_tools);
        self.own_ends += row.own_ends;
        self.answer_turns += row.answers;
        self.context_turns += if row.answers > 0 { row.assistant_turns - row.answers } else { 0 };
        for reason in row.skipped_answers {
            count(&mut self.skipped_answers, reason, &row.place);
        }
    }

    /// Counts a row as skipped.
    pub(crate) fn skip(&mut self, reason: &str, place: &str) {
        count(&mut self.skipped, reason, place);
    }

    /// Counts a row as one with an answer that is cut.
    pub(super) fn cut(&mut self, place: &str) {
        self.cut_rows += 1;
        if self.first_cut.len() < NAMED {
            self.first_cut.push(place.to_owned());
        }
    }

    /// The number of rows that are skipped.
    pub fn num_skipped(&self) -> usize {
        self.skipped.values().map(|skipped| skipped.count).sum()
    }

    /// Replaces every place, or returns `None` if one can't be replaced.
    pub(super) fn with_places(mut self, place: impl Fn(&str) -> Option<String>) -> Option<Self> {
        for skipped in self.skipped.values_mut().chain(self.skipped_answers.values_mut()) {
            skipped.first = place(&skipped.first)?;
        }
        for first in &mut self.first_cut {
            *first = place(first)?;
        }
        Some(self)
    }

    /// What is said of the rows, one line each.
    pub fn lines(&self) -> Vec<String> {
        let skipped = |what: &'static str, of: &BTreeMap<String, Skipped>| -> Vec<String> {
            let line = |(reason, Skipped { count, first }): (&String, &Skipped)| {
                format!("{} skipped: {reason} (the first in {first})", counted(*count, what))
            };
            in_order(of).into_iter().map(line).collect()
        };
        let mut lines = skipped("row", &self.skipped);
        lines.extend(skipped("answer", &self.skipped_answers));
        if !self.first_cut.is_empty() {
            let more = if self.cut_rows > self.first_cut.len() { ", ..." } else { "" };
            lines.push(format!("cut answers in {}{more}", self.first_cut.join(", ")));
        }
        if self.unread_tools > 0 {
            let have = verb(self.unread_tools, ["has", "have"]);
            let rows = counted(self.unread_tools, "row");
            lines.push(format!("{rows} {have} tools, which the chat template does not read"));
        }
        if !self.unread.is_empty() {
            let named = |(key, count): (&String, &usize)| match *count == self.rows {
                true => key.clone(),
                false => format!("{key} ({count} of {})", counted(self.rows, "row")),
            };
            lines.push(format!("columns not read: {}", self.unread.iter().map(named).collect::<Vec<_>>().join(", ")));
        }
        if !self.typed.is_empty() {
            let named =
                |(token, count): (&String, &usize)| format!("{token} ({count} of {})", counted(self.rows, "row"));
            let tokens = self.typed.iter().map(named).collect::<Vec<_>>().join(", ");
            lines.push(format!("special tokens in prompts are read as text (data.special_tokens): {tokens}"));
        }
        if self.context_turns > 0 {
            let all = self.context_turns + self.answer_turns;
            let (turns, are) = (self.context_turns, verb(self.context_turns, ["is", "are"]));
            lines.push(format!("{turns} of {all} assistant turns {are} context only (data.train_on)"));
        }
        if self.own_ends > 0 {
            let (answers, end) = (counted(self.own_ends, "turn"), verb(self.own_ends, ["ends", "end"]));
            lines
                .push(format!("{answers} of the assistant already {end} with an end token, so no second one is added"));
        }
        lines
    }

    /// A warning if more than a tenth of the rows of the source with this name are skipped.
    pub fn warning(&self, name: &str) -> Option<String> {
        let (skipped, rows) = (self.num_skipped(), self.rows);
        let most = self.most_skipped(|_| true).filter(|_| skipped as f64 > WARNED_SHARE * rows as f64)?;
        let are = verb(skipped, ["is", "are"]);
        Some(format!("{skipped} of the {} of {name} {are} skipped, more than a tenth, {most}", counted(rows, "row")))
    }

    /// The given reason for which the most rows are skipped, as the end of a sentence about all skipped rows.
    pub(crate) fn most_skipped(&self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        let meant = self.skipped.iter().filter(|(reason, _)| is_meant(reason));
        let (reason, Skipped { count, first }) = meant.max_by_key(|(_, skipped)| skipped.count)?;
        let share = if *count == self.num_skipped() { String::new() } else { format!("{count} of them ") };
        Some(format!("{share}for this reason: {reason} (the first in {first})"))
    }
}

/// The reasons, of which the other ones that are counted together come last.
pub fn in_order(skipped: &BTreeMap<String, Skipped>) -> Vec<(&String, &Skipped)> {
    let mut reasons: Vec<(&String, &Skipped)> = skipped.iter().collect();
    reasons.sort_by_key(|(reason, _)| *reason == OTHER);
    reasons
}

/// Counts a row or answer under its reason. Reasons that differ only in their numbers count as one, in the words of the
/// first.
fn count(skipped: &mut BTreeMap<String, Skipped>, reason: &str, place: &str) {
    let kind = without_numbers(reason);
    let known = skipped.keys().find(|known| without_numbers(known) == kind).cloned();
    let is_full = known.is_none() && skipped.len() >= MAX_REASONS;
    let key = known.unwrap_or_else(|| if is_full { OTHER.to_owned() } else { reason.to_owned() });
    skipped.entry(key).or_insert_with(|| Skipped { count: 0, first: place.to_owned() }).count += 1;
}

fn without_numbers(reason: &str) -> String {
    reason.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}
