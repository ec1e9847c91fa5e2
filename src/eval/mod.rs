//! Tasks: their problems, d1's protocol for asking them, and scoring; and the likelihood of given answers. Generation
//! itself is in `sampler`.

pub mod answer;
pub mod answer_rows;
pub mod arithmetic;
pub mod asked;
pub(crate) mod countdown;
pub mod generations;
pub(crate) mod gsm8k;
pub mod likelihood;
pub(crate) mod math500;
pub(crate) mod settings;
pub mod stored;
pub(crate) mod sudoku;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use asked::{Question, question_of_messages};

use crate::data::chat::Turn;
use crate::data::formats;
use crate::data::settings::OnRow;
use crate::data::sources::{Fields, Row, Source, is_of_row};
use crate::error::{Error, Result};
use crate::files::read_text;

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// 4x4 Sudoku, scored by empty cells.
    Sudoku,
    /// Make a target of three numbers.
    Countdown,
    /// Word problems whose answer is a number.
    Gsm8k,
    /// Competition problems whose answer is LaTeX.
    Math500,
}

/// A problem of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The question.
    pub question: String,
    /// The question: the turns before the answer, and the tools.
    pub prompt: Question,
    /// The beginning of the answer, which is given to the model.
    pub prefill: String,
    /// The task's truth: a Sudoku's solution; a Countdown's numbers and target; GSM8K's number; MATH-500's LaTeX.
    pub ground_truth: Value,
}

/// The score of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The extracted answer: a string, for GSM8K a number; an empty string or null if none was found.
    pub extracted: Value,
    /// The points scored.
    pub correct: usize,
    /// The points that were possible.
    pub total: usize,
}

/// The share of points with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// The points scored divided by the points possible, in `[0, 1]`.
    pub accuracy: f64,
    /// The standard error of the share; problems are independent, and the points of one problem form a cluster.
    pub standard_error: f64,
    /// The points scored.
    pub correct: usize,
    /// The points that were possible.
    pub total: usize,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 4] = [Self::Sudoku, Self::Countdown, Self::Gsm8k, Self::Math500];

    /// The task with this name.
    ///
    /// # Errors
    /// An unknown name; the error lists the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name).join(", ");
        let wrong = || Error::Usage(format!("unknown task {name:?}; the known ones are {known}"));
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(wrong)
    }

    /// The task's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sudoku => "sudoku",
            Self::Countdown => "countdown",
            Self::Gsm8k => "gsm8k",
            Self::Math500 => "math500",
        }
    }

    /// The instruction that d1's protocol puts before a question, in our words.
    fn instruction(self) -> &'static str {
        match self {
            Self::Sudoku => sudoku::INSTRUCTION,
            Self::Countdown => countdown::INSTRUCTION,
            Self::Gsm8k | Self::Math500 => gsm8k::INSTRUCTION,
        }
    }

    /// Checks that the task can score answers against this question and truth.
    ///
    /// # Errors
    /// What is wrong, as one sentence with the value.
    fn check(self, question: &str, ground_truth: &Value) -> std::result::Result<(), String> {
        let (fits, truth) = match self {
            Self::Sudoku => {
                if sudoku::puzzle(question).is_none() {
                    return Err(format!("the question {question:.40?} holds no puzzle; write 16 digits, 0 for empty"));
                }
                (
                    ground_truth.as_str().is_some_and(|text| text.chars().count() == sudoku::CELLS),
                    "a string of 16 digits",
                )
            }
            Self::Countdown => (countdown::truth(ground_truth).is_some(), "[[30, 100, 93], 23], numbers and target"),
            // d1 writes null for negative answers, which it doesn't read.
            Self::Gsm8k => (ground_truth.is_number() || ground_truth.is_null(), "a number or null"),
            Self::Math500 => (ground_truth.is_string(), "a text"),
        };
        let wrong = || format!("ground_truth is {:.40}; {}'s is {truth}", ground_truth.to_string(), self.name());
        fits.then_some(()).ok_or_else(wrong)
    }
}

/// Reads a task's problems: d1's test file (CSV for Sudoku, JSONL for Countdown), GSM8K's or MATH-500's rows (JSONL,
/// JSON or parquet; the split `test` of a folder), or rows with their own `messages`, `question` and `ground_truth`.
///
/// # Errors
/// The file and place of a row that isn't a problem of the task.
pub fn read_problems(task: Task, path: &Path) -> Result<Vec<Problem>> {
    problems_of(task, &Source::at(path, "test"))
}

/// Reads a task's problems like [`read_problems`], from any source of rows.
///
/// # Errors
/// The errors of [`read_problems`].
pub fn problems_of(task: Task, source: &Source) -> Result<Vec<Problem>> {
    let path = &source.path.to_path();
    let problems: Vec<Problem> = match (task, path.extension().is_some_and(|e| e == "csv") && path.is_file()) {
        (Task::Sudoku, true) => sudoku::read_csv(&read_text(path)?)
            .map(|row| row.map_err(|(line, reason)| Error::Row { path: path.to_owned(), line, reason }))
            .collect::<Result<_>>()?,
        _ => source.rows()?.filter_map(|row| problem(task, row, source)).collect::<Result<_>>()?,
    };
    match problems.is_empty() {
        true => Err(Error::Row {
            path: path.to_owned(),
            line: 1,
            reason: "there are no problems; give one per line".to_owned(),
        }),
        false => Ok(problems),
    }
}

/// The problem of a row; `None` if the row can't be read or isn't of its form and the source skips such rows. Reading the
/// source counts them.
fn problem(task: Task, row: Result<Row>, source: &Source) -> Option<Result<Problem>> {
    let skips = source.policy.bad_row == OnRow::Skip;
    let row = match row {
        Ok(row) => row,
        Err(error) => return (!skips || !is_of_row(&error)).then_some(Err(error)),
    };
    if let Err(error) = row.check_halves() {
        return (!skips).then_some(Err(error));
    }
    match from_row(task, &row.fields) {
        Err(_) if skips && formats::chat(&row.fields, source.format).is_err() => None,
        problem => Some(problem.map_err(|reason| row.wrong(reason))),
    }
}

fn from_row(task: Task, row: &Fields) -> std::result::Result<Problem, String> {
    if row.contains_key("messages") {
        let prompt = question_of_messages(row)?;
        let Some(Value::String(question)) = row.get("question") else {
            return Err("the key \"question\" is missing; give the problem's text, which scoring needs".to_owned());
        };
        let ground_truth = row.get("ground_truth").ok_or("the key \"ground_truth\" is missing; give the answer")?;
        task.check(question, ground_truth)?;
        return Ok(Problem {
            question: question.clone(),
            prompt,
            prefill: String::new(),
            ground_truth: ground_truth.clone(),
        });
    }
    match task {
        Task::Sudoku => Err("the row has no \"messages\"; give those, or d1's CSV file (Puzzle,Solution)".to_owned()),
        Task::Countdown => countdown::problem(row),
        Task::Gsm8k => gsm8k::problem(row),
        Task::Math500 => math500::problem(row),
    }
}

/// A problem in d1's protocol: one user turn with instruction and question; the answer begins with `<reasoning>`.
///
/// # Source
/// d1, arXiv 2504.12216, appendix, and its public evaluation.
fn by_protocol(task: Task, question: String, ground_truth: Value) -> Problem {
    let content = format!("{}\n\n{question}", task.instruction());
    let prompt = Question { turns: vec![Turn::new("user", &content)], tools: None };
    Problem { question, prompt, prefill: "<reasoning>".to_owned(), ground_truth }
}

/// Scores a generation as d1 does. Never panics, whatever the text is.
pub fn score(task: Task, question: &str, generation: &str, ground_truth: &Value) -> Score {
    match task {
        Task::Sudoku => sudoku::score(question, generation, ground_truth),
        Task::Countdown => countdown::score(generation, ground_truth),
        Task::Gsm8k => gsm8k::score(generation, ground_truth),
        Task::Math500 => math500::score(generation, ground_truth),
    }
}

/// The accuracy of these scores: a ratio of sums, with the standard error of the linearised ratio estimator.
///
/// # Source
/// Cochran, Sampling Techniques (1977), section 6.4.
pub fn accuracy(scores: &[Score]) -> Accuracy {
    let correct: usize = scores.iter().map(|s| s.correct).sum();
    let total: usize = scores.iter().map(|s| s.total).sum();
    let (n, whole) = (scores.len() as f64, total.max(1) as f64);
    let p = correct as f64 / whole;
    let squares: f64 = scores.iter().map(|s| (s.correct as f64 - p * s.total as f64).powi(2)).sum();
    let standard_error = if scores.len() > 1 { (n / (n - 1.0) * squares).sqrt() / whole } else { 0.0 };
    Accuracy { accuracy: p, standard_error, correct, total }
}
