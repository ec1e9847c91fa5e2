//! Tasks: their problems, d1's protocol for asking them, and scoring; and the likelihood of given answers. Generation
//! itself is in `sampler`.

pub mod answer;
pub mod answer_rows;
pub mod any_task;
pub mod arithmetic;
pub mod asked;
pub mod choice;
pub mod code;
pub(crate) mod countdown;
pub mod generations;
pub(crate) mod gsm8k;
pub mod likelihood;
pub(crate) mod math500;
pub(crate) mod multiple_choice;
pub(crate) mod questions;
pub mod sandbox;
mod sandbox_use;
pub(crate) mod settings;
pub mod stored;
pub(crate) mod sudoku;
pub(crate) mod task_file;
pub mod task_score;
mod template;
pub mod text_answer;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use any_task::AnyTask;
use asked::Question;
use task_file::Kind;

use crate::data::chat::Turn;
use crate::data::sources::Source;
use crate::error::{Error, Result};

/// A task of Weft's own.
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
    /// The likeliest of four ways in which a description goes on.
    Hellaswag,
    /// School questions of science with given answers.
    Arc,
    /// Questions with short answers, scored by normalised exact match and F1.
    Naturalquestions,
    /// Labels for texts, chosen by likelihood.
    Raft,
    /// Python functions by their docstrings.
    Humaneval,
    /// Short Python programs by their descriptions.
    Mbpp,
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
    /// The task's truth: a Sudoku's solution; a Countdown's numbers and target; GSM8K's number; MATH-500's LaTeX; the texts
    /// that count as right; the index of the right choice; a program's tests.
    pub ground_truth: Value,
    /// The answers to choose from; empty if the answer is generated.
    pub choices: Vec<String>,
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

impl fmt::Display for Accuracy {
    /// Such as `12.3 % +- 1.2 (64 of 520)`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { accuracy, standard_error, correct, total } = self;
        write!(f, "{:.1} % +- {:.1} ({correct} of {total})", 100.0 * accuracy, 100.0 * standard_error)
    }
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 10] = [
        Self::Sudoku,
        Self::Countdown,
        Self::Gsm8k,
        Self::Math500,
        Self::Hellaswag,
        Self::Arc,
        Self::Naturalquestions,
        Self::Raft,
        Self::Humaneval,
        Self::Mbpp,
    ];

    /// The task with this name.
    ///
    /// # Errors
    /// An unknown name; the error lists the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name).join(", ");
        let wrong = || {
            Error::Usage(format!(
                "unknown task {name:?}; the known ones are {known}, and files that end in .toml (docs/tasks.md)"
            ))
        };
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(wrong)
    }

    /// The task's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sudoku => "sudoku",
            Self::Countdown => "countdown",
            Self::Gsm8k => "gsm8k",
            Self::Math500 => "math500",
            Self::Hellaswag => "hellaswag",
            Self::Arc => "arc",
            Self::Naturalquestions => "naturalquestions",
            Self::Raft => "raft",
            Self::Humaneval => "humaneval",
            Self::Mbpp => "mbpp",
        }
    }

    /// How answers are scored; `None` for the tasks of d1's protocol, which have rules of their own.
    #[doc(hidden)]
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::Sudoku | Self::Countdown | Self::Gsm8k | Self::Math500 => None,
            Self::Hellaswag | Self::Arc | Self::Raft => Some(Kind::Choice),
            Self::Naturalquestions => Some(Kind::Exact),
            Self::Humaneval | Self::Mbpp => Some(Kind::Code),
        }
    }

    /// The data set of the hub that holds the task's rows, where there is one.
    #[doc(hidden)]
    pub fn of_hub(self) -> Option<&'static str> {
        match self {
            Self::Sudoku | Self::Countdown | Self::Gsm8k | Self::Math500 | Self::Raft => None,
            Self::Hellaswag => Some("hf://datasets/Rowan/hellaswag"),
            Self::Arc => Some("hf://datasets/allenai/ai2_arc/ARC-Challenge"),
            Self::Naturalquestions => Some("hf://datasets/google-research-datasets/nq_open/nq_open"),
            Self::Humaneval => Some("hf://datasets/openai/openai_humaneval/openai_humaneval"),
            Self::Mbpp => Some("hf://datasets/google-research-datasets/mbpp/full"),
        }
    }

    /// The instruction that d1's protocol puts before a question, in our words.
    fn instruction(self) -> &'static str {
        match self {
            Self::Sudoku => sudoku::INSTRUCTION,
            Self::Countdown => countdown::INSTRUCTION,
            _ => gsm8k::INSTRUCTION,
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
            _ => (ground_truth.is_string(), "a text"),
        };
        let wrong = || format!("ground_truth is {:.40}; {}'s is {truth}", ground_truth.to_string(), self.name());
        fits.then_some(()).ok_or_else(wrong)
    }
}

/// Reads a task's problems: d1's test file (CSV for Sudoku, JSONL for Countdown), rows of the task's data set (JSONL, JSON,
/// CSV or parquet; the task's split of a folder), or rows with their own `messages`, `question` and `ground_truth`.
///
/// # Errors
/// The file and place of a row that isn't a problem of the task.
pub fn read_problems(task: Task, path: &Path) -> Result<Vec<Problem>> {
    let task = AnyTask::from(task);
    task.problems(&Source::at(path, task.split()))
}

/// A problem in d1's protocol: one user turn with instruction and question; the answer begins with `<reasoning>`.
///
/// # Source
/// d1, arXiv 2504.12216, appendix, and its public evaluation.
fn by_protocol(task: Task, question: String, ground_truth: Value) -> Problem {
    let content = format!("{}\n\n{question}", task.instruction());
    let prompt = Question { turns: vec![Turn::new("user", &content)], tools: None };
    Problem { question, prompt, prefill: "<reasoning>".to_owned(), ground_truth, choices: vec![] }
}

/// Scores the text of a generation, that of d1's tasks as d1 does. Choices and programs aren't scored by their texts alone.
/// Never panics, whatever the text is.
pub fn score(task: Task, question: &str, generation: &str, ground_truth: &Value) -> Score {
    match task {
        Task::Sudoku => sudoku::score(question, generation, ground_truth),
        Task::Countdown => countdown::score(generation, ground_truth),
        Task::Gsm8k => gsm8k::score(generation, ground_truth),
        Task::Math500 => math500::score(generation, ground_truth),
        other => AnyTask::from(other).score(question, generation, ground_truth),
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
