//! Rows of JSONL, JSON, CSV and TSV, in every form, by the first byte.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::data::formats::conversation;
use weft::data::sources::Source;
use weft::eval::any_task::AnyTask;
use weft::eval::{Task, stored};
use weft_fuzz::{check, folder, write};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("rows"));

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let path = FOLDER.join(["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"][usize::from(kind & 3)]);
    write(&path, data);
    let source = Source::at(&path, "train");
    match source.rows() {
        Ok(rows) => {
            for row in rows {
                match row {
                    Ok(row) => drop(conversation(&row.fields, None)),
                    Err(error) => check(&error),
                }
            }
        }
        Err(error) => check(&error),
    }
    for task in Task::ALL {
        let task = AnyTask::from(task);
        drop(task.problems(&source));
        drop(stored::load(&task, &path, None));
    }
});
