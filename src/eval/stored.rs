//! Reads generations from files, d1's JSON or JSONL, and writes their scores.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Score, Task, score};
use crate::data::sources::{Fields, read_jsonl};
use crate::error::{Error, Result};
use crate::files::write_whole;

/// The contents of d1's file; its other keys are ignored.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    generations: Vec<&'a RawValue>,
}

/// Reads and scores generations: JSONL rows, or the `generations` of one JSON object, each with `question`,
/// `generation` (or `generations`) and `ground_truth`.
///
/// # Errors
/// The file and line of a row that isn't a generation of the task.
pub fn load(task: Task, path: &Path) -> Result<Vec<Score>> {
    // Inside a JSON string the quotes would be escaped, so only a key can look like this.
    static IS_D1S: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#""generations"\s*:\s*\["#).expect("the pattern is valid"));
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let wrong = |line: usize, reason: String| Error::Row { path: path.to_owned(), line, reason };
    let scores: Vec<Score> = match IS_D1S.is_match(&bytes) {
        true => from_json(task, &bytes).map_err(|(line, reason)| wrong(line, reason))?,
        false => read_jsonl(path)?
            .map(|row| {
                let row = row?;
                from_row(task, &row.fields).map_err(|reason| row.wrong(reason))
            })
            .collect::<Result<_>>()?,
    };
    match scores.is_empty() {
        true => {
            Err(wrong(1, "there are no generations; give one per row, or d1's {\"generations\": [...]}".to_owned()))
        }
        false => Ok(scores),
    }
}

/// Writes one JSONL row per score: `extracted`, `correct`, `total`.
///
/// # Errors
/// A file that can't be written.
pub fn save_scores(path: &Path, scores: &[Score]) -> Result<()> {
    let row = |Score { extracted, correct, total }: &Score| {
        format!("{}\n", json!({ "extracted": extracted, "correct": correct, "total": total }))
    };
    write_whole(path, scores.iter().map(row).collect::<String>().as_bytes())
}

/// The scores of d1's file; an error is a line with its reason.
fn from_json(task: Task, bytes: &[u8]) -> std::result::Result<Vec<Score>, (usize, String)> {
    let line_of = |offset: usize| 1 + bytes[..offset].iter().filter(|b| **b == b'\n').count();
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        (line_of(at), format!("byte {} of the file is not UTF-8; convert the file to UTF-8", at + 1))
    })?;
    let stored: Stored = serde_json::from_str(text)
        .map_err(|e| (e.line().max(1), format!("not JSON with a list of generations ({e}); write the file again")))?;
    let score = |raw: &&RawValue| {
        let wrong = |reason: String| (line_of(raw.get().as_ptr() as usize - text.as_ptr() as usize), reason);
        let fields = serde_json::from_str(raw.get())
            .map_err(|e| wrong(format!("an entry of generations is not a JSON object ({e}); make it one")))?;
        from_row(task, &fields).map_err(wrong)
    };
    stored.generations.iter().map(score).collect()
}

fn from_row(task: Task, row: &Fields) -> std::result::Result<Score, String> {
    let get = |key: &str| {
        let form = "a row needs question, generation and ground_truth";
        row.get(key).ok_or_else(|| format!("the key {key:?} is missing; {form}"))
    };
    let text = |key: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key} is {:.40}, not a string", other.to_string())),
    };
    let question = text("question", get("question")?)?;
    // d1 writes `generations` even for a single one.
    let key = if row.contains_key("generations") { "generations" } else { "generation" };
    let generation = text(key, get(key)?)?;
    let ground_truth = get("ground_truth")?;
    task.check(&question, ground_truth)?;
    Ok(score(task, &question, &generation, ground_truth))
}
