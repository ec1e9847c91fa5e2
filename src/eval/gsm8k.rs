//! GSM8K: word problems whose answer is a number. Reads the problems and scores answers by that number.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Number, Value, json};

use super::{Problem, Score, Task, answer, by_protocol};
use crate::data::sources::Fields;

/// The instruction of d1's protocol, in our words.
pub(crate) const INSTRUCTION: &str = "You are good at mathematics. Solve the problem step by step. Think between <reasoning> \
and </reasoning>, then write the final answer between <answer> and </answer> as \\boxed{answer}.";

/// A row of GSM8K: `{"question": ..., "answer": "... #### 18"}`.
///
/// Negative answers are read as they are; d1 doesn't read them and scores such problems 0.
///
/// # Errors
/// What is missing, as one sentence.
pub(super) fn problem(row: &Fields) -> Result<Problem, String> {
    let text = |key: &str| {
        let form = "a row is {\"question\": \"...\", \"answer\": \"... #### 18\"}";
        row.get(key).and_then(Value::as_str).ok_or_else(|| format!("the text {key:?} is missing; {form}"))
    };
    let (question, solution) = (text("question")?, text("answer")?);
    let last = solution.rsplit_once("####").map(|(_, last)| last.trim());
    let truth = last.and_then(|last| last.replace(['$', ','], "").parse::<f64>().ok()).filter(|x| x.is_finite());
    let truth = truth.ok_or_else(|| match last {
        Some(last) => format!("the answer ends in \"#### {last:.40}\", which is not a number; write it as #### 18"),
        None => "the answer has no \"####\" before its number; end it in #### 18".to_owned(),
    })?;
    Ok(by_protocol(Task::Gsm8k, question.to_owned(), json!(truth)))
}

/// Scores a generation: 1 if the first number in a box equals the truth; without one, the last number in the answer
/// tags counts.
///
/// A box without a number is skipped. `1,000` is read as 1, as in d1.
///
/// # Source
/// d1's `parse_gsm_answers` (dllm-reasoning/d1, eval/parse_and_get_acc.py).
pub fn score(generation: &str, ground_truth: &Value) -> Score {
    static PATTERNS: LazyLock<[Regex; 2]> = LazyLock::new(|| {
        [r"\\boxed\{(.*?)\}", r"-?\d+\.?\d*"].map(|pattern| Regex::new(pattern).expect("the pattern is valid"))
    });
    let [in_box, number] = &*PATTERNS;
    let in_boxes = in_box.captures_iter(generation).find_map(|captures| {
        let text = captures.get(1)?.as_str();
        answer::number(text).or_else(|| answer::number(number.find(text)?.as_str()))
    });
    let in_tags = || {
        let text = answer::answered(generation)?;
        answer::number(text).or_else(|| answer::number(number.find_iter(text).last()?.as_str()))
    };
    let found = in_boxes.or_else(in_tags);
    let extracted = match found {
        // JSON has no infinity, so it is written as text, which still says that an answer was found.
        Some(x) => Number::from_f64(x).map_or_else(|| json!(x.to_string()), Value::Number),
        None => Value::Null,
    };
    let is_correct = found.is_some() && found == ground_truth.as_f64();
    Score { extracted, correct: usize::from(is_correct), total: 1 }
}
