//! The rows of a run as its pages list them: each source with its counts, and what is left out of it. `weft reproduce` keeps
//! them with the outcome of the base.

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::counted::counted;
use crate::data::notes::{Notes, Skipped, in_order};
use crate::data::{Mixed, Part};

/// A source of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRows {
    /// Its path, with split and rows.
    pub name: String,
    /// Whether its rows are held out.
    pub is_held_out: bool,
    /// The number of its rows.
    pub rows: usize,
    /// The number of its rows that are skipped.
    pub skipped: usize,
    /// The number of its examples.
    pub examples: usize,
    /// What it gives, as part of a sentence: `3 examples`.
    pub gives: String,
    /// The number of its answers that are cut.
    pub cut: usize,
    /// Why rows and answers are skipped, and which answers are cut.
    pub left_out: Vec<String>,
}

/// The names of the columns of a table of sources.
pub const COLUMNS: [&str; 6] = ["", "used for", "rows", "skipped", "gives", "answers cut"];

impl SourceRows {
    /// The sources of the training rows, followed by those of the held-out rows. Sequences have at most `max_seq_len` tokens.
    pub fn of(train: &Mixed, held_out: Option<&Mixed>, max_seq_len: usize) -> Vec<Self> {
        let of = |mixed: &Mixed, is_held_out: bool| -> Vec<Self> {
            mixed.parts.iter().map(|part| Self::of_part(part, is_held_out, max_seq_len)).collect()
        };
        let held_out = held_out.map(|mixed| of(mixed, true)).unwrap_or_default();
        [of(train, false), held_out].concat()
    }

    fn of_part(part: &Part, is_held_out: bool, max_seq_len: usize) -> Self {
        Self {
            name: part.name.clone(),
            is_held_out,
            rows: part.notes.rows,
            skipped: part.notes.num_skipped(),
            examples: part.examples,
            gives: part.how_many(),
            cut: part.truncated,
            left_out: left_out(part, max_seq_len),
        }
    }

    /// The cells of its row in a table with [`COLUMNS`].
    pub fn cells(&self) -> Vec<String> {
        let used = if self.is_held_out { "held-out evaluation" } else { "training" };
        let [rows, skipped, cut] = [self.rows, self.skipped, self.cut].map(|count| count.to_string());
        vec![self.name.clone(), used.to_owned(), rows, skipped, self.gives.clone(), cut]
    }

    /// What is left out of it, as a list that says which of the rows are held out.
    pub fn remarks(&self) -> impl Iterator<Item = String> {
        let of = if self.is_held_out { "held out: " } else { "" };
        self.left_out.iter().map(move |remark| format!("{of}{remark}"))
    }
}

/// The table of a run's sources.
pub fn table(sources: &[SourceRows]) -> Table {
    let head = COLUMNS.map(str::to_owned).to_vec();
    let rows = [head].into_iter().chain(sources.iter().map(SourceRows::cells)).collect();
    Table { title: "rows".to_owned(), rows, note: String::new() }
}

/// What a run leaves out of a source: skipped rows and answers, with the reasons, and the ends of answers that are cut at the
/// given number of tokens.
fn left_out(part: &Part, max_seq_len: usize) -> Vec<String> {
    let Notes { rows, skipped, skipped_answers, first_cut, cut_rows, .. } = &part.notes;
    let because = |what: String, reason: &str, first: &str| format!("{what} skipped: {reason} (the first in {first})");
    let of_rows = in_order(skipped).into_iter().map(|(reason, Skipped { count, first })| {
        because(format!("{count} of {}", counted(*rows, "row")), reason, first)
    });
    let of_answers = in_order(skipped_answers)
        .into_iter()
        .map(|(reason, Skipped { count, first })| because(counted(*count, "answer"), reason, first));
    let cut = (part.truncated > 0 && part.documents == 0).then(|| {
        let more = if *cut_rows > first_cut.len() { ", ..." } else { "" };
        let answers = counted(part.truncated, "answer");
        format!("{answers} cut at {max_seq_len} tokens (in {}{more})", first_cut.join(", "))
    });
    of_rows.chain(of_answers).chain(cut).collect()
}
