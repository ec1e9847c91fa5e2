//! Where rows come from: files (JSONL, JSON, parquet, CSV, plain text), recognised by their extensions, and folders of
//! files laid out as on the hub. `paths` finds them, `formats` interprets the rows.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::formats::Form;
use super::hold_out::Side;
use super::paths::{Paths, Place};
use super::row_range::RowRange;
use super::settings::{OnRow, RowPolicy, TrainOn};
use super::strict_json::{self, NotJson};
use super::{csv_file, json_file, parquet_file};
use crate::error::{Error, Result};
use crate::files::rows_file::{kind, kind_of_name, open, read_error};
use crate::files::stand_in;
use crate::hub;

/// The fields of a row.
pub type Fields = Map<String, Value>;

/// The longest line of a JSONL file that is read.
pub const MAX_LINE_BYTES: usize = 64 << 20;
/// The largest JSON file that is read, since all of it has to be in memory.
pub const MAX_JSON_BYTES: u64 = 1 << 30;

/// A source of rows, as a recipe names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Files, folders with files named after their split, data sets of the hub, or patterns of file names.
    pub path: Paths,
    /// The split that is read where `path` has splits.
    pub split: Option<String>,
    /// The rows that are used; default: all.
    pub rows: Option<RowRange>,
    /// The form of its rows; by default the keys of each row tell it.
    pub format: Option<Form>,
    /// Which of a chat's turns are trained on; default: the last one.
    #[serde(skip_serializing_if = "is_last")]
    pub train_on: Option<TrainOn>,
    /// How often each of its rows occurs in an epoch.
    pub weight: f64,
    /// The side that is read if the rows are divided into training and held-out rows; default: both.
    #[serde(skip)]
    pub side: Option<Side>,
    /// What happens to its rows that can't be used as they are. The recipe sets it for all sources.
    #[serde(skip)]
    pub policy: RowPolicy,
    /// Unknown keys, which the recipe refuses.
    #[serde(flatten, skip_serializing)]
    pub unknown: Map<String, Value>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            path: Paths::default(),
            split: None,
            rows: None,
            format: None,
            train_on: None,
            weight: 1.0,
            side: None,
            policy: RowPolicy::default(),
            unknown: Map::new(),
        }
    }
}

/// A row with its place.
pub struct Row {
    /// The row's fields.
    pub fields: Fields,
    /// The keys whose values contain something that isn't JSON: NaN, or half of a surrogate pair.
    pub(super) not_json: Vec<(String, NotJson)>,
    path: Arc<Path>,
    /// The row's number, counted from 1.
    pub(super) number: usize,
    /// Whether `number` is a line number; in files other than JSONL it counts rows.
    is_line: bool,
}

impl Row {
    /// The file and number of the row, as errors name them.
    pub fn place(&self) -> String {
        format!("{}{}{}", self.path.display(), if self.is_line { ":" } else { " row " }, self.number)
    }

    /// The file that the row is from.
    pub(crate) fn file(&self) -> &Path {
        &self.path
    }

    /// Refuses halves of surrogate pairs, whatever their keys.
    ///
    /// # Errors
    /// The first such value.
    pub(crate) fn check_halves(&self) -> Result<()> {
        let half = self.not_json.iter().find(|(_, found)| *found == NotJson::HalfPair);
        half.map_or(Ok(()), |(key, found)| Err(self.wrong(found.told(key))))
    }

    /// An error in this row.
    pub fn wrong(&self, reason: String) -> Error {
        wrong(&self.path, self.number, self.is_line, reason)
    }
}

fn wrong(path: &Path, number: usize, is_line: bool, reason: String) -> Error {
    let path = path.to_owned();
    match is_line {
        true => Error::Row { path, line: number, reason },
        false => Error::Record { path, row: number, reason },
    }
}

/// Whether a source is trained on as sources were before they could name their turns; such a one is written as it was.
fn is_last(train_on: &Option<TrainOn>) -> bool {
    matches!(train_on, None | Some(TrainOn::Last))
}

impl Source {
    /// A source of a file, or of a folder's split, with all its rows.
    pub fn at(path: &Path, split: &str) -> Self {
        Self { path: path.into(), split: Some(split.to_owned()), ..Self::default() }
    }

    /// The path, with split and rows if they are given.
    pub fn name(&self) -> String {
        let has_splits = self.path.iter().any(|path| path.is_dir() || hub::is_dataset(path))
            || self.path.places().is_ok_and(|places| places.iter().any(|place| place.counts.len() > 1));
        let split = self.split.as_ref().filter(|_| has_splits).map(|split| format!(" {split}"));
        let rows = self.rows.map(|rows| format!(" [{rows}]"));
        let side = self.side.filter(Side::is_held_out).map(|_| " (rows held out)");
        format!("{}{}{}{}", self.path, split.unwrap_or_default(), rows.unwrap_or_default(), side.unwrap_or_default())
    }

    /// The files in the order in which they are read; those of the hub are downloaded first.
    ///
    /// # Errors
    /// A folder that has no file of the split, files of several kinds, or some of the shards only; an id whose files
    /// can't be downloaded; a pattern that matches nothing; a file that is named twice.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        Ok(self.parts()?.into_iter().flat_map(|(files, _)| files).collect())
    }

    /// The files of each path, with the number of first rows that are used of them.
    pub(super) fn parts(&self) -> Result<Vec<(Vec<PathBuf>, Option<usize>)>> {
        let split = self.split.as_deref().unwrap_or("train");
        let part = |place: &Place| Ok((place.files(split)?, place.count(split)?));
        let parts = self.path.places()?.iter().map(part).collect::<Result<Vec<_>>>()?;
        let (mut known, all) = (BTreeSet::new(), parts.iter().flat_map(|(files, _)| files));
        let is_known = |file: &&PathBuf| !known.insert(file.canonicalize().unwrap_or_else(|_| file.to_path_buf()));
        match all.collect::<Vec<_>>().into_iter().find(is_known) {
            None => Ok(parts),
            Some(file) => {
                let reason = format!(
                    "{} names it twice; name it once, and to see its rows more often set the weight of a source",
                    self.path
                );
                Err(Error::Config { path: file.clone(), reason })
            }
        }
    }

    /// Reads the rows.
    ///
    /// # Errors
    /// The errors of [`Source::files`] and [`read_file`]; as items, rows that can't be read.
    pub fn rows(&self) -> Result<impl Iterator<Item = Result<Row>> + use<>> {
        let parts = self.parts()?;
        let range = match self.rows {
            Some(range) if range.needs_count() => range.of(count_all(&parts)?),
            Some(range) => range.of(0),
            None => 0..usize::MAX,
        };
        let rows = parts.into_iter().flat_map(|(files, most)| {
            let rows = files.into_iter().flat_map(|file| match read_file(&file) {
                Ok(rows) => rows,
                Err(error) => Box::new(std::iter::once(Err(error))),
            });
            rows.take(most.unwrap_or(usize::MAX))
        });
        // An unreadable row before the slice is an error too, unless such rows are skipped.
        let skips = self.policy.bad_row == OnRow::Skip;
        let is_told = move |row: &Result<Row>| row.as_ref().is_err_and(|error| !(skips && is_of_row(error)));
        let within = move |(i, row): (usize, Result<Row>)| (i >= range.start || is_told(&row)).then_some(row);
        let rows = rows.take(range.end).enumerate().filter_map(within);
        let sided = self.side.map(|side| (side, self.clone()));
        let is_read = move |row: &Result<Row>| match (&sided, row) {
            (Some((side, source)), Ok(row)) => side.has(row, source),
            // A row that can't be read is reported once, as a training row.
            (Some((side, _)), Err(_)) => !side.is_held_out(),
            (None, _) => true,
        };
        Ok(rows.filter(is_read))
    }
}

/// The number of rows of all parts.
fn count_all(parts: &[(Vec<PathBuf>, Option<usize>)]) -> Result<usize> {
    let of_part = |(files, most): &(Vec<PathBuf>, Option<usize>)| -> Result<usize> {
        let all = files.iter().try_fold(0_usize, |n, file| count(file).map(|of_file| n.saturating_add(of_file)))?;
        Ok(all.min(most.unwrap_or(usize::MAX)))
    };
    parts.iter().try_fold(0_usize, |n, part| of_part(part).map(|of_part| n.saturating_add(of_part)))
}

/// Whether an error of [`Source::rows`] is about one row, so that the rows after it can be read. No row can be read after
/// damage in a parquet file.
pub(crate) fn is_of_row(error: &Error) -> bool {
    match error {
        Error::Row { .. } => true,
        Error::Record { path, .. } => kind_of_name(path) != Some("parquet"),
        _ => false,
    }
}

/// Reads the rows of a file, whose extension shows its kind (JSONL may have the extension of JSON).
///
/// # Errors
/// A file that can't be opened, is damaged as a whole, or has another extension; as items, rows that can't be read.
pub fn read_file(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Row>>>> {
    let shared: Arc<Path> = path.into();
    Ok(match kind_within(path)? {
        "jsonl" => Box::new(read_jsonl(path)?),
        "txt" => Box::new(std::iter::once(read_document(path))),
        kind @ ("csv" | "tsv") => {
            let row =
                move |(number, fields)| Row { fields, not_json: vec![], path: shared.clone(), number, is_line: true };
            Box::new(csv_rows(path, kind)?.map(move |read| read.map(&row)))
        }
        "json" => {
            let rows = json_file::read(path)?.into_iter().enumerate();
            Box::new(rows.map(move |(i, value)| as_row(value, &shared, i + 1, false)))
        }
        _ => {
            let rows = parquet_file::rows(path)?.enumerate();
            Box::new(rows.map(move |(i, fields)| match fields {
                Ok(fields) => Ok(Row { fields, not_json: vec![], path: shared.clone(), number: i + 1, is_line: false }),
                Err(reason) => Err(wrong(&shared, i + 1, false, reason)),
            }))
        }
    })
}

fn csv_rows(path: &Path, kind: &str) -> Result<csv_file::Rows> {
    csv_file::Rows::open(path, if kind == "tsv" { b'\t' } else { b',' })
}

/// Reads a text file, the whole of which is one row with the key `text`.
fn read_document(path: &Path) -> Result<Row> {
    let mut bytes = vec![];
    open(path)?.take(MAX_LINE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
    if bytes.len() > MAX_LINE_BYTES {
        let most = MAX_LINE_BYTES >> 20;
        let reason = format!("it is longer than {most} MiB, the most that is read as one text; split it into files");
        return Err(Error::Config { path: path.to_owned(), reason });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let reason = format!("byte {} is no UTF-8; convert the file to UTF-8", e.utf8_error().valid_up_to() + 1);
        Error::Config { path: path.to_owned(), reason }
    })?;
    // Some editors begin a file with a byte order mark.
    let fields = Fields::from_iter([("text".to_owned(), Value::from(text.trim_start_matches('\u{feff}')))]);
    Ok(Row { fields, not_json: vec![], path: path.into(), number: 1, is_line: false })
}

/// Reads the rows of a JSONL file; empty lines are skipped.
///
/// # Errors
/// A file that can't be opened; as an item, a line that is too long, isn't UTF-8, isn't JSON or isn't an object.
pub(crate) fn read_jsonl(path: &Path) -> Result<impl Iterator<Item = Result<Row>> + use<>> {
    let shared: Arc<Path> = path.into();
    let row = move |line: Result<(usize, String)>| {
        let (number, text) = line?;
        let value = strict_json::parse_with_nan(&text).map_err(|e| {
            // Each line is parsed as a text of its own, and the error already names its place in the file.
            let told = e.to_string().replace(" at line 1 column ", " at column ");
            let reason = match e.is_data() {
                true => format!("{told}; keep one of them"),
                false => format!("not JSON ({told}); write one object per line"),
            };
            wrong(&shared, number, true, reason)
        })?;
        as_row(value, &shared, number, true)
    };
    Ok(lines(path)?.map(row))
}

/// The non-empty lines with their numbers. Reading goes on after a line that is too long or isn't UTF-8, and ends where
/// the file can't be read.
fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(usize, String)>> + use<>> {
    let (path, mut file, mut number) = (path.to_owned(), BufReader::new(open(path)?), 0);
    let (mut failed, mut is_endless) = (false, false);
    let mut next = move || -> Result<Option<(usize, String)>> {
        loop {
            if is_endless {
                return Ok(None);
            }
            let mut bytes = vec![];
            let read = (&mut file).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes);
            read.map_err(|e| read_error(&path, e))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            number += 1;
            let wrong = |reason: String| wrong(&path, number, true, reason);
            if bytes.len() > MAX_LINE_BYTES {
                drop(bytes);
                let mut rest = (&mut file).take(MAX_JSON_BYTES);
                rest.skip_until(b'\n').map_err(|e| read_error(&path, e))?;
                is_endless = rest.limit() == 0;
                let most = MAX_LINE_BYTES >> 20;
                return Err(wrong(format!("the line is longer than {most} MiB, the most that is read; cut the row")));
            }
            let text = String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to() + 1;
                wrong(format!("byte {at} is not UTF-8; convert the file to UTF-8"))
            })?;
            let text = text.trim_end_matches(['\r', '\n']);
            // Some editors begin a file with a byte order mark.
            let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if !text.trim().is_empty() {
                return Ok(Some((number, text.to_owned())));
            }
        }
    };
    Ok(std::iter::from_fn(move || {
        let line = if failed { None } else { next().transpose() };
        failed |= line.as_ref().is_some_and(|line| line.as_ref().is_err_and(|error| !is_of_row(error)));
        line
    }))
}

/// A file's kind by its name, except for JSONL with the extension of JSON: two lines or more, the first one an object.
fn kind_within(path: &Path) -> Result<&'static str> {
    let kind = kind(path)?;
    stand_in::check_file(path)?;
    if kind != "json" {
        return Ok(kind);
    }
    let mut lines = lines(path)?;
    match (lines.next(), lines.next()) {
        // The JSON reader reports lines that can't be read.
        (Some(Ok((_, first))), Some(_)) if matches!(strict_json::parse_with_nan(&first), Ok(Value::Object(_))) => {
            Ok("jsonl")
        }
        _ => Ok(kind),
    }
}

fn as_row(value: Value, path: &Arc<Path>, number: usize, is_line: bool) -> Result<Row> {
    match value {
        Value::Object(mut fields) => {
            let not_json = strict_json::take_not_json(&mut fields);
            Ok(Row { fields, not_json, path: path.clone(), number, is_line })
        }
        _ if is_line => Err(wrong(path, number, is_line, "not a JSON object; write one object per line".to_owned())),
        _ => Err(wrong(path, number, is_line, "not a JSON object; give an object per row".to_owned())),
    }
}

/// The number of rows that a reader gives; one that can't be read is a row too.
fn count_rows<T>(mut rows: impl Iterator<Item = Result<T>>) -> Result<usize> {
    rows.try_fold(0, |n, row| match row {
        Err(error) if !is_of_row(&error) => Err(error),
        _ => Ok(n + 1),
    })
}

/// The number of rows in a file.
fn count(path: &Path) -> Result<usize> {
    match kind_within(path)? {
        "jsonl" => count_rows(lines(path)?),
        "json" => Ok(json_file::read(path)?.len()),
        "txt" => Ok(1),
        kind @ ("csv" | "tsv") => count_rows(csv_rows(path, kind)?),
        _ => parquet_file::count(path),
    }
}
