//! Inputs that people bring, from public reports: a row of the table for each, with the input made, the program run and
//! the right outcome asserted. Other suites test the same kinds in depth; here each report has its own row, so that none is
//! lost. `../shared/cases.md` lists the reports where the project is developed; elsewhere that comparison is left out.

mod fixtures;
mod scratch;

/// The rows by kind, and what they share.
mod cases {
    pub mod adapters;
    pub mod asking;
    pub mod bad_rows;
    pub mod chats;
    pub mod files;
    pub mod models;
    pub mod program;
    pub mod runs;
}

use std::collections::BTreeSet;
use std::panic;
use std::path::Path;

use cases::program::Case;

fn table() -> Vec<Case> {
    use cases::{adapters, asking, bad_rows, chats, files, models, runs};
    let parts =
        [adapters::CASES, models::CASES, chats::CASES, bad_rows::CASES, files::CASES, asking::CASES, runs::CASES];
    parts.concat()
}

#[test]
fn every_input_has_the_right_outcome() {
    let mut wrong = vec![];
    for (id, check) in table() {
        if panic::catch_unwind(check).is_err() {
            wrong.push(id);
        }
    }
    assert!(wrong.is_empty(), "the outcome is another for {}", wrong.join(", "));
}

#[test]
fn every_id_is_a_row_once() {
    let ids: Vec<&str> = table().iter().map(|(id, _)| *id).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "{ids:?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases.md");
    let Ok(list) = std::fs::read_to_string(&path) else {
        eprintln!("NOT COMPARED: {} isn't there, so that the rows aren't held against its list", path.display());
        return;
    };
    let listed = list.lines().filter_map(|line| line.strip_prefix("| ")?.split([' ', '|']).next());
    let mut listed: Vec<String> = listed.filter(|id| !["id", "---"].contains(id)).map(str::to_owned).collect();
    let bullets = list.lines().filter(|line| line.starts_with("- ")).count();
    listed.extend((1..=bullets).map(|i| format!("also {i}")));
    assert!(listed.len() > 30, "{listed:?}");
    let missing: Vec<&String> = listed.iter().filter(|id| !unique.contains(id.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} of {} have no row", path.display());
}
