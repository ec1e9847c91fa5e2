//! Reads the rows of a parquet file as JSON fields, nested columns included. The crate `parquet` panics on some damaged
//! files, so calls to it are guarded; `parquet_pages` checks the sizes that it would trust too easily.

use std::fs::File;
use std::path::Path;

use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::guarded::guarded;
use super::parquet_pages;
use super::sources::Fields;
use crate::error::{Error, Result};
use crate::files::stand_in::cannot_open;

/// Reads the rows of a file; nothing follows an error.
///
/// # Errors
/// A file that can't be opened or whose header is damaged; as an item, a row that can't be read.
pub fn rows(path: &Path) -> Result<impl Iterator<Item = std::result::Result<Fields, String>> + use<>> {
    let (file, reader) = open(path)?;
    check_codecs(&reader).map_err(|reason| Error::Config { path: path.to_owned(), reason })?;
    guarded(|| parquet_pages::check_pages(&file, reader.metadata())).map_err(|reason| format(path, reason))?;
    let mut rows = guarded(|| Ok(reader.into_iter())).map_err(|reason| format(path, reason))?;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        let next = || match rows.next() {
            Some(row) => row.map(Some).map_err(|e| e.to_string()),
            None => Ok(None),
        };
        let row = if failed { None } else { guarded(next).transpose() };
        let row = row.map(|row| row.and_then(|row| fields(&row)));
        failed |= row.as_ref().is_some_and(std::result::Result::is_err);
        row.map(|row| row.map_err(|reason| format!("the parquet file can't be read here ({reason}); fetch it again")))
    }))
}

/// The number of rows that the file declares.
///
/// # Errors
/// A file that can't be opened or whose header is damaged.
pub fn count(path: &Path) -> Result<usize> {
    let (_, reader) = open(path)?;
    Ok(usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0))
}

/// The names of a column's classes, which the library `datasets` writes into the file (`ClassLabel`) because the column has
/// their numbers; empty if there are none.
pub fn class_names(path: &Path, column: &str) -> Vec<String> {
    let names = || -> Option<Vec<String>> {
        let (_, reader) = open(path).ok()?;
        let pairs = reader.metadata().file_metadata().key_value_metadata()?;
        let text = pairs.iter().find(|pair| pair.key == "huggingface")?.value.as_ref()?;
        let metadata: Value = serde_json::from_str(text).ok()?;
        let feature = &metadata["info"]["features"][column];
        let names = feature["names"].as_array().filter(|_| feature["_type"] == "ClassLabel")?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    };
    names().unwrap_or_default()
}

fn open(path: &Path) -> Result<(File, SerializedFileReader<File>)> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| cannot_open(path, source))?;
    parquet_pages::check_footer(&file).map_err(|reason| format(path, reason))?;
    let of_reader = file.try_clone().map_err(read)?;
    let reader = guarded(|| SerializedFileReader::new(of_reader).map_err(|e| e.to_string()));
    Ok((file, reader.map_err(|reason| format(path, reason))?))
}

/// Refuses codecs that aren't read.
fn check_codecs(reader: &SerializedFileReader<File>) -> std::result::Result<(), String> {
    let columns = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
    let mut codecs = columns.map(|column| (column.compression(), column.column_path()));
    match codecs.find(|(codec, _)| matches!(codec, Compression::LZO)) {
        Some((codec, column)) => {
            let name = codec.to_string();
            let name = name.split('(').next().unwrap_or(&name);
            Err(format!(
                "its column {column} is compressed by {name}, and Weft reads Snappy, gzip, brotli, zstd, LZ4 and no compression; \
                 write it again with pandas: to_parquet(FILE, compression=\"zstd\")"
            ))
        }
        None => Ok(()),
    }
}

fn format(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), reason }
}

fn fields(row: &Row) -> std::result::Result<Fields, String> {
    let mut fields = Map::new();
    for (name, field) in row.get_column_iter() {
        if fields.insert(name.clone(), value(field)?).is_some() {
            return Err(format!("the column {name:?} appears twice"));
        }
    }
    Ok(fields)
}

/// Converts a field to JSON; bytes that aren't text and numbers that JSON can't express become null.
fn value(field: &Field) -> std::result::Result<Value, String> {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::from(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) | Field::Date(x) | Field::TimeMillis(x) => Value::from(*x),
        Field::Long(x) | Field::TimeMicros(x) | Field::TimestampMillis(x) | Field::TimestampMicros(x) => {
            Value::from(*x)
        }
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float16(x) => float(f64::from(*x)),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Decimal(_) => Value::from(field.to_string()),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(fields(row)?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<std::result::Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, entry)| Ok((key.to_string(), value(entry)?)));
            Value::Object(entries.collect::<std::result::Result<_, String>>()?)
        }
    })
}
