//! Countdown: make a target of three numbers, using each once. Reads the problems and scores answers by evaluating the
//! expression.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::{Problem, Score, Task, answer, arithmetic, by_protocol};
use crate::data::sources::Fields;

/// The instruction of d1's protocol, in our words.
pub(crate) const INSTRUCTION: &str = "Make the target out of the numbers. Use each number exactly once, and +, -, * and /. \
Think between <reasoning> and </reasoning>, then write the expression, without an equals sign, between <answer> and \
</answer> as \\boxed{expression}.";

/// A row of d1's test file: `{"input": "30,100,93", "output": "23"}`.
///
/// # Errors
/// What is missing, as one sentence.
pub(super) fn problem(row: &Fields) -> Result<Problem, String> {
    let text = |key: &str| {
        row.get(key).and_then(Value::as_str).ok_or_else(|| {
            format!("the text {key:?} is missing; a row is {{\"input\": \"30,100,93\", \"output\": \"23\"}}")
        })
    };
    let whole = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("{text:?} is not a whole number"));
    let numbers = text("input")?.split(',').map(whole).collect::<Result<Vec<_>, _>>()?;
    let target = whole(text("output")?)?;
    let question = format!("Numbers: {numbers:?}\nTarget: {target}");
    Ok(by_protocol(Task::Countdown, question, json!([numbers, target])))
}

/// Scores a generation: 1 if the last box holds an expression that uses each number once and makes the target. If that
/// box is never closed, the text in the answer tags takes its place; without any box, the whole text does.
///
/// Unlike in d1, where Python gives up on them, brackets may nest deeper than 200; numbers beyond 128 bits are rounded.
///
/// # Source
/// d1's `parse_countdown_answers` (dllm-reasoning/d1, eval/parse_and_get_acc.py).
pub fn score(generation: &str, ground_truth: &Value) -> Score {
    static EQUATION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"([0-9+\-*/() ]+)=[0-9. ]+").expect("the pattern is valid"));
    let text = answer::boxed(generation).or_else(|| answer::answered(generation).map(str::trim)).unwrap_or(generation);
    let text = text.replace("\\div", "/").replace("\\times", "*").replace("\\cdot", "*");
    let extracted = match EQUATION.captures(&text).and_then(|c| c.get(1)) {
        Some(left) => left.as_str().trim().to_owned(),
        None => text,
    };
    let is_correct = truth(ground_truth).is_some_and(|(numbers, target)| {
        let value = || arithmetic::evaluate(&extracted);
        uses_each_once(&extracted, numbers) && value().is_some_and(|value| (value - target).abs() < 1e-5)
    });
    Score { extracted: json!(extracted), correct: usize::from(is_correct), total: 1 }
}

/// Reads the numbers and the target of `[[30, 100, 93], 23]`.
pub fn truth(ground_truth: &Value) -> Option<(Vec<i64>, f64)> {
    let [numbers, target] = &ground_truth.as_array()?[..] else { return None };
    let numbers = numbers.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<_>>>()?;
    Some((numbers, target.as_f64()?))
}

fn uses_each_once(expression: &str, mut numbers: Vec<i64>) -> bool {
    let no_digit = |c: char| !c.is_ascii_digit();
    let runs = expression.split(no_digit).filter(|run| !run.is_empty()).map(str::parse::<i64>);
    let Ok(mut used) = runs.collect::<Result<Vec<_>, _>>() else { return false };
    used.sort_unstable();
    numbers.sort_unstable();
    used == numbers
}
