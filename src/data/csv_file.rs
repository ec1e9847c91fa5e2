//! Reads the rows of a CSV or TSV file: the first record names the columns, and every cell is a text. The memory that a
//! record may take is bounded, as that of a line of JSONL is.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind as IoKind, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::{Error as CsvError, ErrorKind, Reader, ReaderBuilder, StringRecord};
use serde_json::Value;

use super::sources::{Fields, MAX_LINE_BYTES};
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::files::rows_file::{open, read_error};

/// The separators of cells that a file may have although its extension names another one.
const OTHERS: [u8; 2] = [b';', b'\t'];

/// The columns whose cells may hold a list as JSON.
const LISTS: [&str; 3] = ["messages", "conversations", "history"];

/// The rows of a file, each with its first line. Reading goes on after a row that doesn't have the header's columns.
pub(super) struct Rows {
    path: PathBuf,
    reader: Reader<Bounded>,
    ahead_of_reader: Rc<RefCell<Unread>>,
    names: Vec<String>,
    /// The next row, and whether a quote in it may still be open, which only the end of the file shows.
    ahead: Option<(Result<(usize, Fields)>, bool)>,
    /// Whether the file can't be read further.
    has_failed: bool,
}

/// The bytes that the reader has taken from the file since the current record began.
#[derive(Default)]
struct Unread {
    bytes: VecDeque<u8>,
    /// The place of the first of them in the file.
    start: u64,
    /// The line of the first of them, counted from 0.
    line: usize,
}

impl Unread {
    /// Drops the bytes before a place in the file.
    fn advance(&mut self, to: u64) {
        let count = usize::try_from(to.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.line += self.bytes.drain(..count).filter(|byte| *byte == b'\n').count();
        self.start += count as u64;
    }

    /// The line of the first byte that isn't a line break, counted from 1. The reader leaves the second byte of a line
    /// break, and empty lines, to the record after them.
    fn first_line(&self) -> usize {
        let breaks = self.bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
        1 + self.line + breaks.filter(|byte| **byte == b'\n').count()
    }

    /// Whether the number of quotes before a place in the file is odd.
    fn has_odd_quotes(&self, to: u64) -> bool {
        let count = usize::try_from(to.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.bytes.iter().take(count).filter(|byte| **byte == b'"').count() % 2 == 1
    }
}

impl Rows {
    /// Opens a file whose cells are separated by `delimiter`. If that makes a single column of a header that contains
    /// semicolons or tabs, these are the separators: spreadsheets write semicolons if the comma is the decimal separator.
    ///
    /// # Errors
    /// A file that can't be opened, or whose header can't be read.
    pub fn open(path: &Path, delimiter: u8) -> Result<Self> {
        let rows = Self::open_by(path, delimiter)?;
        let other = match &rows.names[..] {
            [name] => OTHERS.into_iter().find(|other| name.contains(char::from(*other))),
            _ => None,
        };
        other.map_or(Ok(rows), |other| Self::open_by(path, other))
    }

    fn open_by(path: &Path, delimiter: u8) -> Result<Self> {
        let unread = Rc::new(RefCell::new(Unread::default()));
        let bounded = Bounded { from: open(path)?, unread: unread.clone() };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bounded);
        // Without the names of its columns the whole file can't be read, even if bad rows are skipped.
        let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
        let header = reader.headers().cloned().map_err(|e| match told(path, 1, e) {
            Error::Row { reason, .. } => refuse(format!("the header can't be read: {reason}")),
            other => other,
        })?;
        let names = names(&header).map_err(refuse)?;
        let path = path.to_owned();
        let mut rows = Self { path, reader, ahead_of_reader: unread, names, ahead: None, has_failed: false };
        rows.ahead = rows.read();
        Ok(rows)
    }

    fn read(&mut self) -> Option<(Result<(usize, Fields)>, bool)> {
        if self.has_failed {
            return None;
        }
        self.ahead_of_reader.borrow_mut().advance(self.reader.position().byte());
        let mut record = StringRecord::new();
        let read = self.reader.read_record(&mut record);
        let unread = self.ahead_of_reader.borrow();
        let line = unread.first_line();
        match read {
            Ok(false) => None,
            Ok(true) => {
                let has_lines = record.iter().next_back().is_some_and(|cell| cell.contains('\n'));
                let is_open = has_lines && unread.has_odd_quotes(self.reader.position().byte());
                Some((Ok((line, fields(&self.names, &record))), is_open))
            }
            Err(error) => {
                self.has_failed = error.is_io_error();
                Some((Err(told(&self.path, line, error)), false))
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<(usize, Fields)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (row, is_open) = self.ahead.take()?;
        self.ahead = self.read();
        // Quotes come in pairs; a quote that isn't closed takes the rows after it into its cell.
        if self.ahead.is_none() && is_open {
            let reason = "a quote of this row is not closed before the end of the file; close it".to_owned();
            return Some(row.and_then(|(line, _)| Err(Error::Row { path: self.path.clone(), line, reason })));
        }
        Some(row)
    }
}

/// A stream whose records are bounded.
struct Bounded {
    from: Box<dyn Read>,
    unread: Rc<RefCell<Unread>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let mut unread = self.unread.borrow_mut();
        unread.bytes.extend(&buffer[..read]);
        if unread.bytes.len() > MAX_LINE_BYTES {
            let most = MAX_LINE_BYTES >> 20;
            let reason =
                format!("the record is longer than {most} MiB, the most that is read; close its quote, or cut it");
            return Err(io::Error::new(IoKind::FileTooLarge, reason));
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

/// The error for a record that begins in this line.
fn told(path: &Path, line: usize, error: CsvError) -> Error {
    let reason = match error.into_kind() {
        ErrorKind::Io(source) if source.kind() == IoKind::FileTooLarge => {
            return Error::Config { path: path.to_owned(), reason: format!("line {line}: {source}") };
        }
        ErrorKind::Io(source) => return read_error(path, source),
        ErrorKind::Utf8 { err, .. } => format!("cell {} is not UTF-8; convert the file to UTF-8", err.field() + 1),
        ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "the row has {} and the header {expected_len}; quote the cells that hold separators, line breaks or \
             quotes",
            counted(len, "cell")
        ),
        other => format!("{other:?}"),
    };
    Error::Row { path: path.to_owned(), line, reason }
}
