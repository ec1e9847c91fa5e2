//! Reads the rows of a CSV or TSV file: the first record names the columns, and every cell is a text. The memory that a
//! record may take is bounded, as that of a line of JSONL is.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use csv::{Error as CsvError, ErrorKind, Reader, ReaderBuilder, StringRecord};
use serde_json::Value;

use super::sources::{Fields, MAX_LINE_BYTES};
use crate::error::{Error, Result};
use crate::files::rows_file::{open, read_error};

/// A row's fields with its first line, or a line with what is wrong there.
pub(super) type Record = std::result::Result<(usize, Fields), (usize, String)>;

/// The columns whose cells may hold a list as JSON.
const LISTS: [&str; 3] = ["messages", "conversations", "history"];

/// The rows of a file; nothing follows an error.
pub(super) struct Rows {
    reader: Reader<Bounded>,
    seen: Rc<Seen>,
    names: Vec<String>,
    /// The row that comes next, and whether its last cell has several lines: only the end of the file shows whether the
    /// quote of that cell is closed.
    ahead: Option<(Record, bool)>,
    /// The first line of the newest record.
    line: usize,
}

impl Rows {
    /// Opens a file whose cells are separated by `delimiter`.
    ///
    /// # Errors
    /// A file that can't be opened, or whose header can't be read.
    pub fn open(path: &Path, delimiter: u8) -> Result<Self> {
        let seen = Rc::new(Seen::default());
        let bounded = Bounded { from: open(path)?, seen: seen.clone() };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bounded);
        let refuse = |(line, reason): (usize, String)| Error::Row { path: path.to_owned(), line, reason };
        let header = match reader.headers() {
            Ok(header) => header.clone(),
            Err(error) => match error.into_kind() {
                ErrorKind::Io(source) => return Err(read_error(path, source)),
                ErrorKind::Utf8 { err, .. } => return Err(refuse((1, no_utf8(err.field())))),
                other => return Err(refuse((1, format!("{other:?}")))),
            },
        };
        let names = names(&header).map_err(|reason| refuse((1, reason)))?;
        let mut rows = Self { reader, seen, names, ahead: None, line: 1 };
        rows.ahead = rows.read();
        Ok(rows)
    }

    fn read(&mut self) -> Option<(Record, bool)> {
        self.seen.in_record.set(0);
        let mut record = StringRecord::new();
        match self.reader.read_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                self.line = record.position().map_or(self.line, |at| at.line() as usize);
                let has_lines = record.iter().last().is_some_and(|cell| cell.contains('\n'));
                Some((Ok((self.line, fields(&self.names, &record))), has_lines))
            }
            Err(error) => Some((Err(told(&error, self.line)), false)),
        }
    }
}

impl Iterator for Rows {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let (row, has_lines) = self.ahead.take()?;
        if row.is_err() {
            return Some(row);
        }
        self.ahead = self.read();
        // Quotes come in pairs; without its pair, one takes the rows behind it into its cell.
        if self.ahead.is_none() && has_lines && self.seen.has_odd_quotes.get() {
            let reason = "a quote of this row is not closed before the end of the file; close it";
            return Some(row.and_then(|(line, _)| Err((line, reason.to_owned()))));
        }
        Some(row)
    }
}

/// What has been read of a file.
#[derive(Default)]
struct Seen {
    /// The number of bytes since the last record.
    in_record: Cell<usize>,
    /// Whether the number of all quotes is odd.
    has_odd_quotes: Cell<bool>,
}

/// A stream whose records are bounded.
struct Bounded {
    from: Box<dyn Read>,
    seen: Rc<Seen>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let in_record = self.seen.in_record.get() + read;
        self.seen.in_record.set(in_record);
        let quotes = buffer[..read].iter().filter(|byte| **byte == b'"').count();
        self.seen.has_odd_quotes.set(self.seen.has_odd_quotes.get() != (quotes % 2 == 1));
        if in_record > MAX_LINE_BYTES {
            let most = MAX_LINE_BYTES >> 20;
            let reason =
                format!("the record is longer than {most} MiB, the most that is read; close its quote, or cut it");
            return Err(io::Error::other(reason));
        }
        Ok(read)
    }
}

/// The names of the columns; one without a name, such as that of pandas' index, is named as pandas reads it.
fn names(header: &StringRecord) -> std::result::Result<Vec<String>, String> {
    let mut names: Vec<String> = vec![];
    for (i, name) in header.iter().enumerate() {
        let name = if name.trim().is_empty() { format!("Unnamed: {i}") } else { name.trim().to_owned() };
        if names.contains(&name) {
            return Err(format!("the column {name:?} appears twice; keep one of them"));
        }
        names.push(name);
    }
    Ok(names)
}

fn fields(names: &[String], record: &StringRecord) -> Fields {
    let value = |name: &str, cell: &str| match cell {
        "" => Value::Null,
        list if LISTS.contains(&name) && list.starts_with('[') => {
            serde_json::from_str(list).unwrap_or_else(|_| Value::from(list))
        }
        text => Value::from(text),
    };
    names.iter().zip(record).map(|(name, cell)| (name.clone(), value(name, cell))).collect()
}

/// The line and the sentence of an error; `last` is the first line of the record before.
fn told(error: &CsvError, last: usize) -> (usize, String) {
    let line = error.position().map_or(last + 1, |at| at.line() as usize);
    let reason = match error.kind() {
        ErrorKind::Io(source) => source.to_string(),
        ErrorKind::Utf8 { err, .. } => no_utf8(err.field()),
        ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "the row has {len} cells and the header {expected_len}; quote the cells that hold separators, line breaks or \
             quotes"
        ),
        other => format!("{other:?}"),
    };
    (line, reason)
}

fn no_utf8(cell: usize) -> String {
    format!("cell {} is not UTF-8; convert the file to UTF-8", cell + 1)
}
