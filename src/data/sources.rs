//! Rows of files, with the lines they stand on.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A row's fields.
pub type Fields = Map<String, Value>;

/// The rows of a JSONL file with their lines, counted from 1; empty lines are passed over.
///
/// # Errors
/// A file that can't be opened; as an item, a line that is no UTF-8, no JSON or no object.
pub fn read_jsonl(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Fields)>>> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let path = path.to_owned();
    let rows = BufReader::new(file).split(b'\n').enumerate().map(move |(i, bytes)| {
        let bytes = bytes.map_err(|source| Error::Read { path: path.clone(), source })?;
        let wrong = |reason: String| Error::Row { path: path.clone(), line: i + 1, reason };
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| wrong(format!("byte {} is no UTF-8; convert the file to UTF-8", e.valid_up_to() + 1)))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Some((i + 1, fields))),
            Ok(_) => Err(wrong("not a JSON object; write one object per line".to_owned())),
            Err(e) => Err(wrong(format!("not JSON ({e}); write one object per line"))),
        }
    });
    Ok(rows.filter_map(Result::transpose))
}
