//! MATH-500: competition problems whose answer is LaTeX. Reads the problems and scores answers by equivalence.

use serde_json::{Value, json};

use super::{Problem, Score, Task, answer, by_protocol};
use crate::data::sources::Fields;

/// Reads a row of MATH-500: `{"problem": ..., "answer": "\\frac{3}{4}"}`; other keys are ignored.
///
/// # Errors
/// What is missing, as one sentence.
pub(super) fn problem(row: &Fields) -> Result<Problem, String> {
    let text = |key: &str| {
        row.get(key).and_then(Value::as_str).ok_or_else(|| {
            format!(
                "the text {key:?} is missing; a row is {{\"problem\": \"...\", \"answer\": \"\\\\frac{{3}}{{4}}\"}}"
            )
        })
    };
    Ok(by_protocol(Task::Math500, text("problem")?.to_owned(), json!(text("answer")?)))
}

/// Scores a generation: 1 if its last box is equivalent to the truth. If that box is empty or never closed, the text in
/// the answer tags takes its place. A text without any box is compared as a whole.
///
/// # Source
/// d1's `parse_math_answers` (dllm-reasoning/d1, eval/parse_and_get_acc.py).
pub fn score(generation: &str, ground_truth: &Value) -> Score {
    let boxed = answer::boxed(generation);
    let found = match boxed {
        Some(text) if !text.is_empty() => boxed,
        _ => answer::answered(generation).map(str::trim).or(boxed),
    };
    let is_correct = found.zip(ground_truth.as_str()).is_some_and(|(found, truth)| answer::is_equivalent(found, truth));
    Score { extracted: json!(found), correct: usize::from(is_correct), total: 1 }
}
