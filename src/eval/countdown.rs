//! Countdown: make a target of three numbers, each used once. Problems, and scoring by evaluating the expression.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::{Problem, Score, Task, answer, by_protocol};
use crate::data::sources::Fields;

/// What d1's protocol asks for, in our words.
pub const INSTRUCTION: &str = "Make the target out of the numbers. Use each number exactly once, and +, -, * and /. \
Think between <reasoning> and </reasoning>, then write the expression, without an equals sign, between <answer> and \
</answer> as \\boxed{expression}.";

/// A row of d1's test file: `{"input": "30,100,93", "output": "23"}`.
///
/// # Errors
/// What is missing, as one sentence.
pub fn problem(row: &Fields) -> Result<Problem, String> {
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

/// Scores a generation: 1 where the boxed expression uses each number once and makes the target.
///
/// # Source
/// d1's public scorer (dllm-reasoning/d1, eval).
pub fn score(generation: &str, ground_truth: &Value) -> Score {
    static EQUATION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"([0-9+\-*/() ]+)=[0-9. ]+").expect("the pattern is valid"));
    let text = match answer::boxed(generation) {
        Some(text) => text,
        // d1 looks at the tags only where a box was begun and not closed.
        None if generation.contains("\\boxed") => answer::tagged(generation).map_or(generation, str::trim),
        None => generation,
    };
    let text = text.replace("\\div", "/").replace("\\times", "*").replace("\\cdot", "*");
    let extracted = match EQUATION.captures(&text).and_then(|c| c.get(1)) {
        Some(left) => left.as_str().trim().to_owned(),
        None => text,
    };
    let numbers: Option<Vec<i64>> = serde_json::from_value(ground_truth[0].clone()).ok();
    let is_correct = numbers.is_some_and(|numbers| uses_each_once(&extracted, numbers))
        && ground_truth[1]
            .as_f64()
            .zip(evaluate(&extracted))
            .is_some_and(|(target, value)| (value - target).abs() < 1e-5);
    Score { extracted, correct: usize::from(is_correct), total: 1 }
}

fn uses_each_once(expression: &str, mut numbers: Vec<i64>) -> bool {
    let is_digit = |c: char| !c.is_ascii_digit();
    let runs = expression.split(is_digit).filter(|run| !run.is_empty()).map(str::parse::<i64>);
    let Ok(mut used) = runs.collect::<Result<Vec<_>, _>>() else { return false };
    used.sort_unstable();
    numbers.sort_unstable();
    used == numbers
}

/// The value of an expression of numbers, `+ - * /` and brackets; `None` for anything else and for a division by 0.
/// Operators wait on a stack of their own, so that no depth of brackets can exhaust the program's.
fn evaluate(expression: &str) -> Option<f64> {
    let (mut values, mut operators) = (vec![], vec![]);
    let mut rest = expression.trim_start();
    let mut wants_value = true;
    while let Some(c) = rest.chars().next() {
        let mut taken = 1;
        match c {
            '0'..='9' | '.' if wants_value => {
                taken = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                values.push(rest[..taken].parse::<f64>().ok()?);
                wants_value = false;
            }
            '(' if wants_value => operators.push('('),
            // A sign binds closer than any operator.
            '-' if wants_value => operators.push('~'),
            '+' if wants_value => {}
            '+' | '-' | '*' | '/' => {
                while operators.last().is_some_and(|o| precedence(*o) >= precedence(c)) {
                    apply(operators.pop()?, &mut values)?;
                }
                operators.push(c);
                wants_value = true;
            }
            ')' if !wants_value => loop {
                match operators.pop()? {
                    '(' => break,
                    operator => apply(operator, &mut values)?,
                }
            },
            _ => return None,
        }
        rest = rest[taken..].trim_start();
    }
    while let Some(operator) = operators.pop() {
        apply(operator, &mut values)?;
    }
    match values[..] {
        [value] if !wants_value => Some(value),
        _ => None,
    }
}

fn precedence(operator: char) -> u8 {
    match operator {
        '~' => 3,
        '*' | '/' => 2,
        '+' | '-' => 1,
        _ => 0,
    }
}

fn apply(operator: char, values: &mut Vec<f64>) -> Option<()> {
    let right = values.pop()?;
    let value = match operator {
        '~' => -right,
        '+' => values.pop()? + right,
        '-' => values.pop()? - right,
        '*' => values.pop()? * right,
        '/' if right != 0.0 => values.pop()? / right,
        _ => return None,
    };
    values.push(value);
    Some(())
}
