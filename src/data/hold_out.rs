//! Which rows are held out: those of separate files, or a part of the training rows. The part is chosen by the seed
//! and by the content of a row, so that equal rows are on the same side and no other setting moves a row.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bad_rows::of_reader;
use super::chat::Chat;
use super::formats;
use super::paths::Paths;
use super::row_content::has_answer;
use super::sources::{Row, Source};
use super::token_cache::text_key;
use crate::counted::counted;
use crate::error::{Error, Result};

/// What is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum HeldOut {
    /// Files, folders or data sets of the hub.
    Files(Paths),
    /// A percentage of the training rows, such as `"10%"`.
    Percent(f64),
    /// A number of the training rows.
    Rows(usize),
}

impl HeldOut {
    /// The files, if files are held out.
    pub fn files(&self) -> Option<&Paths> {
        if let Self::Files(paths) = self { Some(paths) } else { None }
    }

    /// The number of rows that are held out of `rows`; a share holds out at least one.
    fn of(&self, rows: usize) -> usize {
        match self {
            Self::Files(_) => 0,
            Self::Percent(percent) => ((percent * rows as f64 / 100.0).round() as usize).max(1),
            Self::Rows(count) => *count,
        }
    }
}

impl TryFrom<Value> for HeldOut {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let wrong = || {
            format!(
                "{value} is neither rows nor a part of them; give a path, a share of the training rows such as \"10%\", \
                     or their number"
            )
        };
        match &value {
            Value::Number(number) => {
                let count = number.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
                count.map(Self::Rows).ok_or_else(wrong)
            }
            Value::String(text) => {
                let share = text.strip_suffix('%').and_then(|percent| percent.trim().parse::<f64>().ok());
                let count = text.strip_suffix("rows").and_then(|count| count.trim().parse::<usize>().ok());
                match (share, count) {
                    (Some(percent), _) if percent > 0.0 && percent < 100.0 => Ok(Self::Percent(percent)),
                    (Some(_), _) | (_, Some(0)) => Err(wrong()),
                    (_, Some(count)) => Ok(Self::Rows(count)),
                    _ => Paths::try_from(value).map(Self::Files),
                }
            }
            Value::Array(_) => Paths::try_from(value).map(Self::Files),
            _ => Err(wrong()),
        }
    }
}

impl From<HeldOut> for Value {
    fn from(held_out: HeldOut) -> Self {
        match held_out {
            HeldOut::Files(paths) => paths.into(),
            HeldOut::Percent(percent) => format!("{percent}%").into(),
            HeldOut::Rows(count) => count.into(),
        }
    }
}

impl fmt::Display for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Files(paths) => paths.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Rows(count) => f.write_str(&counted(*count, "row")),
        }
    }
}

/// One side of a division of rows: the rows that are trained on, or those that are held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    seed: u64,
    /// Rows whose keys are at most this one are held out.
    last: u128,
    is_held_out: bool,
}

impl Side {
    /// Whether this side is that of the held-out rows.
    pub(super) fn is_held_out(&self) -> bool {
        self.is_held_out
    }

    /// Whether a row is on this side.
    pub(super) fn has(&self, row: &Row, source: &Source) -> bool {
        let chat = formats::chat(&row.fields, source.format).ok().flatten();
        (key(row, chat.as_ref(), self.seed) <= self.last) == self.is_held_out
    }
}

/// The key by which rows are chosen: a hash of the seed and of the row's content. Columns that nothing reads, such as a
/// row's number, don't count, because rows that differ only in them become the same example.
fn key(row: &Row, chat: Option<&Chat>, seed: u64) -> u128 {
    let said = chat.map_or_else(|| json!(row.fields), |chat| json!([chat.turns, chat.tools]));
    text_key(&[&seed.to_le_bytes(), said.to_string().as_bytes()])
}

/// Divides the rows of the training sources into the sources that are trained on and the held-out ones. Over all sources,
/// as many rows are held out as `held_out` says, or nearly as many if equal rows would otherwise be separated. A source
/// without held-out rows isn't among the held-out ones.
///
/// # Errors
/// Rows that can't be read; too few rows to divide; a source of which no row is left to train on.
pub fn divide(sources: Vec<Source>, held_out: &HeldOut, seed: u64) -> Result<(Vec<Source>, Vec<Source>)> {
    let (mut keys, mut unusable) = (vec![], 0);
    for (i, source) in sources.iter().enumerate() {
        for row in source.rows()? {
            // A row that can't be used is reported, or skipped, when the rows are read as examples.
            let row = match row.map_err(of_reader) {
                Ok(row) => row,
                Err(Ok(_)) => {
                    unusable += 1;
                    continue;
                }
                Err(Err(error)) => return Err(error),
            };
            match formats::chat(&row.fields, source.format) {
                Ok(Some(chat)) if has_answer(&row, &chat, source) => keys.push((key(&row, Some(&chat), seed), i)),
                _ => unusable += 1,
            }
        }
    }
    if keys.is_empty() {
        // Why no row can be used is told when the rows are read as examples.
        return Ok((sources, vec![]));
    }
    keys.sort_unstable();
    let rows = keys.len();
    let last = last_key(&keys, held_out.of(rows)).ok_or_else(|| {
        let why = match unusable {
            0 => String::new(),
            _ => format!(" ({} can't be used; without data.held_out, weft data says why)", counted(unusable, "row")),
        };
        Error::Usage(format!(
            "data.held_out = {held_out} of {}{why} leaves no distinct rows on one side; give more rows, or another part",
            counted(rows, "row")
        ))
    })?;
    let count =
        |i: usize, is_held_out: bool| keys.iter().filter(|(key, of)| *of == i && (*key <= last) == is_held_out).count();
    let with_side = |source: &Source, is_held_out: bool| {
        let train_on = source.train_on.map(|train_on| if is_held_out { train_on.of_held_out() } else { train_on });
        Source { side: Some(Side { seed, last, is_held_out }), train_on, ..source.clone() }
    };
    for (i, source) in sources.iter().enumerate() {
        if count(i, false) == 0 && count(i, true) > 0 {
            let name = source.name();
            return Err(Error::Usage(format!(
                "data.held_out = {held_out} holds out every row of {name}; hold out fewer, or leave the source out"
            )));
        }
    }
    let held = sources.iter().enumerate().filter(|(i, _)| count(*i, true) > 0);
    let held = held.map(|(_, source)| with_side(source, true)).collect();
    Ok((sources.iter().map(|source| with_side(source, false)).collect(), held))
}

/// The last key of the rows that are held out, given all keys in order and the wanted number of rows: the end of the
/// group of equal keys that comes nearest, with rows left on both sides. `None` if all keys are equal, or none is wanted.
fn last_key(keys: &[(u128, usize)], wanted: usize) -> Option<u128> {
    let is_end = |i: &usize| keys[*i].0 != keys[*i + 1].0;
    let ends = (0..keys.len().saturating_sub(1)).filter(is_end);
    let nearest = ends.min_by_key(|i| (*i + 1).abs_diff(wanted)).filter(|_| wanted > 0 && wanted < keys.len());
    nearest.map(|i| keys[i].0)
}
