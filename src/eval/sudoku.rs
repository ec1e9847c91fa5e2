//! 4x4 Sudoku: reads the problems of d1's test set and scores answers by the cells that were empty.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::{Problem, Score, Task, by_protocol};

/// The instruction of d1's protocol, in our words.
pub(crate) const INSTRUCTION: &str = "Solve this 4x4 Sudoku. It is written as 16 digits, row by row, 0 for an empty cell. \
Fill the empty cells so that each row, each column and each 2x2 box holds 1, 2, 3 and 4 once. Think between <reasoning> \
and </reasoning>, then write the 16 digits of the solved grid between <answer> and </answer>.";

/// The number of cells in a grid.
pub(crate) const CELLS: usize = 16;

/// The problems of a CSV of `Puzzle,Solution`; an error is a line with its reason.
pub(crate) fn read_csv(text: &str) -> impl Iterator<Item = Result<Problem, (usize, String)>> {
    let is_header = |i: usize, line: &str| i == 0 && line.trim() == "Puzzle,Solution";
    let rows = text.lines().enumerate().filter(move |(i, line)| !line.trim().is_empty() && !is_header(*i, line));
    rows.map(|(i, line)| {
        let grids = line.split_once(',').map(|(puzzle, solution)| [grid(puzzle), grid(solution)]);
        match grids {
            Some([Some(puzzle), Some(solution)]) => {
                let question = format!("Solve the following Sudoku puzzle: {puzzle}\n");
                Ok(by_protocol(Task::Sudoku, question, json!(solution)))
            }
            _ => Err((i + 1, format!("{line:?} is not a Sudoku; write 16 digits, a comma and 16 digits"))),
        }
    })
}

/// Restores a grid to 16 digits; a spreadsheet may have dropped leading zeros.
fn grid(field: &str) -> Option<String> {
    let digits = field.trim();
    let is_grid = digits.len() <= CELLS && !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'4').contains(&b));
    is_grid.then(|| format!("{digits:0>16}"))
}

/// Scores a generation: of the cells that were empty, how many are now right.
///
/// # Source
/// d1's `parse_sudoku_answers` (dllm-reasoning/d1, eval/parse_and_get_acc.py).
pub fn score(question: &str, generation: &str, ground_truth: &Value) -> Score {
    let solution = ground_truth.as_str().unwrap_or_default();
    let puzzle = puzzle(question).unwrap_or_default();
    let mut extracted: String = extract(generation).chars().filter(|c| !c.is_whitespace()).take(CELLS).collect();
    if !extracted.is_empty() {
        // d1 counts missing digits of an answer as zeros.
        let missing = CELLS - extracted.chars().count();
        extracted.extend(std::iter::repeat_n('0', missing));
    }
    let empty = puzzle.bytes().enumerate().filter(|(_, digit)| *digit == b'0').map(|(cell, _)| cell);
    let (mut correct, mut total) = (0, 0);
    for cell in empty {
        let truth = solution.chars().nth(cell);
        total += 1;
        correct += usize::from(truth.is_some() && extracted.chars().nth(cell) == truth);
    }
    Score { extracted: json!(extracted), correct, total }
}

/// The first run of 16 digits in a question.
pub fn puzzle(question: &str) -> Option<&str> {
    static RUN: LazyLock<Regex> = LazyLock::new(|| Regex::new("[0-9]{16}").expect("the pattern is valid"));
    RUN.find(question).map(|m| m.as_str())
}

/// The first non-empty text among the places where d1 looks for an answer.
fn extract(generation: &str) -> &str {
    static PATTERNS: LazyLock<[Regex; 5]> = LazyLock::new(|| {
        let fenced = r"(?s)<answer>.*?```\s*([\d\s]+)```";
        let tagged = r"(?s)<answer>(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|</answer>)";
        let after = r"(?s)</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)";
        let before = r"(?s).*?(\d{16})\s*</answer>";
        // This is Python's `\b`, for which every numeric character is part of a word.
        let anywhere = r"(?:^|[^\p{L}\p{N}_])(\d{16})(?:[^\p{L}\p{N}_]|$)";
        [fenced, tagged, after, before, anywhere].map(|p| Regex::new(p).expect("the pattern is valid"))
    });
    let [fenced, tagged, after, before, anywhere] = &*PATTERNS;
    let found = |pattern: &Regex| pattern.captures(generation).and_then(|c| c.get(1)).map(|m| m.as_str());
    let places = [found(fenced), found(tagged), found(after), found(before), found(anywhere)];
    places.into_iter().flatten().map(str::trim).find(|text| !text.is_empty()).unwrap_or_default()
}
