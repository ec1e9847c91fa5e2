//! Reads the rows of a JSON file, all of which is held in memory.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::sources::MAX_JSON_BYTES;
use super::strict_json;
use crate::error::{Error, Result};
use crate::files::rows_file::{open, read_error};

/// Columns that distinguish an object that is a row from one that contains rows.
const COLUMNS: [&str; 11] = [
    "messages",
    "conversations",
    "prompt",
    "response",
    "completion",
    "instruction",
    "question",
    "problem",
    "text",
    "output",
    "answer",
];

/// Reads the rows of a JSON file: those of its one array, or the file's only object as one row.
pub(super) fn read(path: &Path) -> Result<Vec<Value>> {
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let large = |bytes: u64| {
        let reason =
            format!("its {bytes} bytes are more than the {MAX_JSON_BYTES} that Weft reads of a JSON file; write JSONL");
        Error::Config { path: path.to_owned(), reason }
    };
    // A file that is too large even before it is decompressed isn't read at all.
    if let Ok(file) = fs::metadata(path).as_ref().map(fs::Metadata::len)
        && file > MAX_JSON_BYTES
    {
        return Err(large(file));
    }
    let mut bytes = vec![];
    open(path)?.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(large(bytes.len() as u64));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| format(format!("byte {} is not UTF-8", e.utf8_error().valid_up_to() + 1)))?;
    let other = |found: &str| format(format!("it holds {found}, not an array of rows or an object with one array"));
    let parsed = strict_json::parse_with_nan(text.trim_start_matches('\u{feff}'));
    match parsed.map_err(|e| format(if e.is_data() { e.to_string() } else { format!("not JSON ({e})") }))? {
        Value::Array(rows) => Ok(rows),
        Value::Object(fields) if COLUMNS.iter().any(|column| fields.contains_key(*column)) => {
            Ok(vec![Value::Object(fields)])
        }
        Value::Object(fields) => {
            let mut arrays: Vec<_> = fields.into_iter().filter(|(_, value)| value.is_array()).collect();
            match (arrays.pop(), arrays.len()) {
                (Some((_, Value::Array(rows))), 0) => Ok(rows),
                (None, _) => Err(other("an object without an array")),
                (_, others) => Err(other(&format!("an object with {} arrays", others + 1))),
            }
        }
        _ => Err(other("a single value")),
    }
}
