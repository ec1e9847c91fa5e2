//! Reads generations from files, d1's JSON or JSONL, and writes their scores.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::any_task::AnyTask;
use super::choice::{Chosen, PairedBounds};
use super::generations::{Generation, of_outcome, run_again};
use super::likelihood::NllBound;
use super::multiple_choice::texts;
use super::sandbox::{Sandbox, refusal};
use super::task_file::Kind;
use super::{Score, code};
use crate::data::sources::{Fields, read_jsonl};
use crate::error::{Error, Result};
use crate::files::{read_text, write_whole};
use crate::sampler::cache::Work;

/// The contents of d1's file; its other keys are ignored.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    generations: Vec<&'a RawValue>,
}

/// Reads and scores generations: JSONL rows, or the `generations` of one JSON object, each with `question`,
/// `generation` (or `generations`) and `ground_truth`. If there is no `ground_truth`, the task's own columns are read, such as
/// `answer`. A row of a task of choices has `choices` and their `nll_bounds` too. Programs run in the sandbox; without one, the `outcome` in their rows counts.
///
/// # Errors
/// The file and line of a row that isn't a generation of the task; programs whose rows have no outcome, without a sandbox.
pub fn load(task: &AnyTask, path: &Path, sandbox: Option<&Sandbox>) -> Result<Vec<Generation>> {
    // Inside a JSON string the quotes would be escaped, so only a key can look like this.
    static IS_D1S: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#""generations"\s*:\s*\["#).expect("the pattern is valid"));
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let wrong = |line: usize, reason: String| Error::Row { path: path.to_owned(), line, reason };
    let read: Vec<Read> = match IS_D1S.is_match(&bytes) {
        true => from_json(task, &bytes).map_err(|(line, reason)| wrong(line, reason))?,
        false => read_jsonl(path)?
            .map(|row| {
                let row = row?;
                from_row(task, &row.fields).map_err(|reason| row.wrong(reason))
            })
            .collect::<Result<_>>()?,
    };
    if read.is_empty() {
        let reason = "there are no generations; give one per row, or d1's {\"generations\": [...]}";
        return Err(wrong(1, reason.to_owned()));
    }
    let again = sandbox.filter(|_| task.is_code()).map(|sandbox| {
        let programs: Vec<code::Program> = read.iter().filter_map(|read| read.program.clone()).collect();
        run_again(&programs, sandbox)
    });
    let mut again = again.map(Vec::into_iter);
    let scored = |Read { mut generation, score, .. }: Read| {
        let score = again.as_mut().map_or(score, Iterator::next);
        generation.score = score.ok_or_else(|| refusal(task.name()))?;
        Ok(generation)
    };
    read.into_iter().map(scored).collect()
}

/// The points that a file of [`super::generations::save`] gives each problem, for a task whose own rules aren't at hand;
/// `None` for a file without points.
///
/// # Errors
/// A file that can't be read.
pub fn points(path: &Path) -> Result<Option<Vec<f64>>> {
    let saved: Value = serde_json::from_str(&read_text(path)?)
        .map_err(|e| Error::Format { path: path.to_owned(), reason: e.to_string() })?;
    Ok(saved["generations"].as_array().and_then(|rows| rows.iter().map(|row| row["correct"].as_f64()).collect()))
}

/// A row without its score, the score if it is known without running a program, and the program.
struct Read {
    generation: Generation,
    score: Option<Score>,
    program: Option<code::Program>,
}

/// Writes one JSONL row per generation: `extracted`, `correct`, `total`.
///
/// # Errors
/// A file that can't be written.
pub fn save_scores(path: &Path, generations: &[Generation]) -> Result<()> {
    let row = |generation: &Generation| {
        let Score { extracted, correct, total } = &generation.score;
        format!("{}\n", json!({ "extracted": extracted, "correct": correct, "total": total }))
    };
    write_whole(path, generations.iter().map(row).collect::<String>().as_bytes())
}

/// The scores of d1's file; an error is a line with its reason.
fn from_json(task: &AnyTask, bytes: &[u8]) -> std::result::Result<Vec<Read>, (usize, String)> {
    let line_of = |offset: usize| 1 + bytes[..offset].iter().filter(|b| **b == b'\n').count();
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        (line_of(at), format!("byte {} of the file is not UTF-8; convert the file to UTF-8", at + 1))
    })?;
    let stored: Stored = serde_json::from_str(text)
        .map_err(|e| (e.line().max(1), format!("not JSON with a list of generations ({e}); write the file again")))?;
    let read = |raw: &&RawValue| {
        let wrong = |reason: String| (line_of(raw.get().as_ptr() as usize - text.as_ptr() as usize), reason);
        let fields = serde_json::from_str(raw.get())
            .map_err(|e| wrong(format!("an entry of generations is not a JSON object ({e}); make it one")))?;
        from_row(task, &fields).map_err(wrong)
    };
    stored.generations.iter().map(read).collect()
}

/// What a row of a task's generations needs, whatever the task.
const NEEDED: &str = "a row needs question, generation and ground_truth";

/// The question and the right answer of a row of the task's own form, as `weft generate --data` leaves it; or `question` and
/// `answer`, whose text may be a number.
fn of_own_columns(task: &AnyTask, row: &Fields) -> std::result::Result<(String, Value), String> {
    let reason = match task.problem(row) {
        Ok(problem) => return Ok((problem.question, problem.ground_truth)),
        Err(reason) => reason,
    };
    let pair = row.get("question").and_then(Value::as_str).zip(row.get("answer").filter(|answer| !answer.is_null()));
    let found = pair.and_then(|(question, answer)| {
        let number = answer.as_str().and_then(|text| text.trim().parse::<f64>().ok()).map(|number| json!(number));
        let truths = [Some(answer.clone()), number].into_iter().flatten();
        let truth = truths.into_iter().find(|truth| task.check(question, &[], truth).is_ok())?;
        Some((question.to_owned(), truth))
    });
    found.ok_or_else(|| {
        format!(
            "the key \"ground_truth\" is missing; {NEEDED}, or the columns of {}'s own rows ({reason})",
            task.name()
        )
    })
}

fn from_row(task: &AnyTask, row: &Fields) -> std::result::Result<Read, String> {
    let get = |key: &str| row.get(key).ok_or_else(|| format!("the key {key:?} is missing; {NEEDED}"));
    let text = |key: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key} is {:.40}, not a string", other.to_string())),
    };
    // d1 writes `generations` even for a single one.
    let key = if row.contains_key("generations") { "generations" } else { "generation" };
    if !row.contains_key(key) && row.contains_key("question") {
        return Err(format!(
            "the key {key:?} is missing; {NEEDED}; weft generate --data FILE --out ANSWERS writes answers"
        ));
    }
    let is_own = !row.contains_key("ground_truth") && row.contains_key(key) && !task.is_choice();
    let (question, ground_truth) = match is_own {
        true => of_own_columns(task, row)?,
        false => (text("question", get("question")?)?, get("ground_truth")?.clone()),
    };
    let generation = text(key, get(key)?)?;
    let choices = texts(row.get("choices")).unwrap_or_default();
    task.check(&question, &choices, &ground_truth)?;
    let chosen = task.is_choice().then(|| chosen(row, choices)).transpose()?;
    let score = match (task.kind(), &chosen) {
        (_, Some(chosen)) => Some(chosen.score(&ground_truth)),
        (Some(Kind::Code), _) => row.get("outcome").filter(|outcome| outcome.is_string()).cloned().map(of_outcome),
        _ => Some(task.score(&question, &generation, &ground_truth)),
    };
    let program = task.is_code().then(|| task.program(&generation, &ground_truth));
    let (unscored, work) = (Score { extracted: Value::Null, correct: 0, total: 1 }, Work::default());
    let generation = Generation { question, generation, ground_truth, score: unscored, work, chosen };
    Ok(Read { generation, score, program })
}

/// The choices of a row with their bounds.
fn chosen(row: &Fields, choices: Vec<String>) -> std::result::Result<Chosen, String> {
    let bounds = row.get("nll_bounds").and_then(Value::as_array);
    // JSON has no infinity, which is written as null.
    let bound = |value: &Value| NllBound {
        nll_bound: value.as_f64().unwrap_or(f64::INFINITY),
        standard_error: 0.0,
        answer_tokens: 0,
    };
    let bounds: Vec<NllBound> = bounds.into_iter().flatten().map(bound).collect();
    let [margin, margin_error] = ["nats", "standard_error"].map(|key| {
        let margin = row.get("margin").and_then(|margin| margin[key].as_f64());
        margin.unwrap_or(0.0)
    });
    match bounds.len() == choices.len() {
        true => Ok(Chosen { choices, of: PairedBounds { bounds, margin, margin_error } }),
        false => Err(format!(
            "there are {} choices and {} nll_bounds; give the file that weft eval wrote",
            choices.len(),
            bounds.len()
        )),
    }
}
