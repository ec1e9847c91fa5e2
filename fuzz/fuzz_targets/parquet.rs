//! Rows of parquet.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::data::formats::conversation;
use weft::data::sources::Source;
use weft_fuzz::{check, folder, write};

static PATH: LazyLock<PathBuf> = LazyLock::new(|| folder("parquet").join("rows.parquet"));

fuzz_target!(|data: &[u8]| {
    write(&PATH, data);
    match Source::at(&PATH, "train").rows() {
        // A small file may have a million rows: runs of one value.
        Ok(rows) => {
            for row in rows.take(10_000) {
                match row {
                    Ok(row) => drop(conversation(&row.fields, None)),
                    Err(error) => check(&error),
                }
            }
        }
        Err(error) => check(&error),
    }
});
