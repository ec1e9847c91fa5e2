//! A task by its name: one of Weft's own, or one that a file describes. Reads its problems and scores its answers.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::asked::question_of_messages;
use super::code::Program;
use super::multiple_choice::LabelNames;
use super::task_file::{Kind, OwnTask};
use super::{Problem, Score, Task, code, countdown, gsm8k, math500, multiple_choice, questions, sudoku, text_answer};
use crate::data::formats;
use crate::data::settings::OnRow;
use crate::data::sources::{Fields, Row, Source, is_of_row};
use crate::error::{Error, Result};
use crate::files::read_text;

/// A task: one of Weft's, or one that a file describes.
#[derive(Clone, Debug)]
pub enum AnyTask {
    /// One of Weft's own.
    Known(Task),
    /// One that a file describes.
    Own(Arc<OwnTask>),
}

impl From<Task> for AnyTask {
    fn from(task: Task) -> Self {
        Self::Known(task)
    }
}

/// Whether a name is that of a task file.
pub fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "toml")
}

impl AnyTask {
    /// The task of this name, or of the file of this name, which ends in `.toml`.
    ///
    /// # Errors
    /// An unknown name; a file that can't be read or describes no task.
    pub fn parse(name: &str) -> Result<Self> {
        match is_file(name) {
            true => Ok(Self::Own(Arc::new(OwnTask::read(Path::new(name))?))),
            false => Task::parse(name).map(Self::Known),
        }
    }

    /// The task's name; that of a file without one is the file's.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(task) => task.name(),
            Self::Own(own) => &own.name,
        }
    }

    /// How its answers are scored; `None` for the tasks of d1, which have rules of their own.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Known(task) => task.kind(),
            Self::Own(own) => Some(own.kind),
        }
    }

    /// Whether its answers are programs.
    pub fn is_code(&self) -> bool {
        self.kind() == Some(Kind::Code)
    }

    /// Whether its answers are choices.
    pub fn is_choice(&self) -> bool {
        self.kind() == Some(Kind::Choice)
    }

    /// The rows that it has without being given any: a file's own, or those of the hub.
    pub fn own_rows(&self) -> Option<Source> {
        match self {
            Self::Known(task) => task.of_hub().map(|path| Source::at(Path::new(path), self.split())),
            Self::Own(own) => own.rows(),
        }
    }

    /// The split that is scored where the rows have splits.
    pub fn split(&self) -> &str {
        match self {
            // The labels of HellaSwag's split test aren't public, and NaturalQuestions' open form has no such split.
            Self::Known(Task::Hellaswag | Task::Naturalquestions) => "validation",
            Self::Known(_) => "test",
            Self::Own(own) => own.split.as_deref().unwrap_or("test"),
        }
    }

    /// Reads its problems from a source.
    ///
    /// # Errors
    /// The file and place of a row that isn't a problem of the task; a source without problems.
    pub fn problems(&self, source: &Source) -> Result<Vec<Problem>> {
        let path = &source.path.to_path();
        let is_csv = path.extension().is_some_and(|e| e == "csv") && path.is_file();
        let mut problems: Vec<Problem> = match (self, is_csv) {
            (Self::Known(Task::Sudoku), true) => sudoku::read_csv(&read_text(path)?)
                .map(|row| row.map_err(|(line, reason)| Error::Row { path: path.to_owned(), line, reason }))
                .collect::<Result<_>>()?,
            _ => {
                let mut names = LabelNames::default();
                let named = source.rows()?.map(|mut row| {
                    if let (Self::Known(Task::Raft), Ok(row)) = (self, &mut row) {
                        names.name(row);
                    }
                    row
                });
                named.filter_map(|row| self.of_row(row, source)).collect::<Result<_>>()?
            }
        };
        if let Self::Known(Task::Raft) = self {
            let refuse = |reason| Error::Config { path: path.to_owned(), reason };
            problems = multiple_choice::with_labels(problems).map_err(refuse)?;
        }
        match problems.is_empty() {
            true => Err(Error::Row {
                path: path.to_owned(),
                line: 1,
                reason: "there are no problems; give one per line".to_owned(),
            }),
            false => Ok(problems),
        }
    }

    /// The problem of a row; `None` if the row can't be read or isn't of its form and the source skips such rows. Reading
    /// the source counts them.
    fn of_row(&self, row: Result<Row>, source: &Source) -> Option<Result<Problem>> {
        let skips = source.policy.bad_row == OnRow::Skip;
        let row = match row {
            Ok(row) => row,
            Err(error) => return (!skips || !is_of_row(&error)).then_some(Err(error)),
        };
        if let Err(error) = row.check_halves() {
            return (!skips).then_some(Err(error));
        }
        match self.problem(&row.fields) {
            Err(_) if skips && formats::chat(&row.fields, source.format).is_err() => None,
            problem => Some(problem.map_err(|reason| row.wrong(reason))),
        }
    }

    /// The problem of a row.
    ///
    /// # Errors
    /// What is wrong with it, as one sentence.
    pub fn problem(&self, row: &Fields) -> std::result::Result<Problem, String> {
        let task = match self {
            Self::Own(own) => return own.problem(row),
            Self::Known(task) => *task,
        };
        if row.contains_key("messages") {
            return self.of_messages(row);
        }
        match task {
            Task::Sudoku => {
                Err("the row has no \"messages\"; give those, or d1's CSV file (Puzzle,Solution)".to_owned())
            }
            Task::Countdown => countdown::problem(row),
            Task::Gsm8k => gsm8k::problem(row),
            Task::Math500 => math500::problem(row),
            Task::Hellaswag => multiple_choice::hellaswag(row),
            Task::Arc => multiple_choice::arc(row),
            Task::Raft => multiple_choice::raft(row),
            Task::Naturalquestions => questions::problem(row),
            Task::Humaneval => code::humaneval(row),
            Task::Mbpp => code::mbpp(row),
        }
    }

    /// The problem of a row with its own prompt and truth.
    fn of_messages(&self, row: &Fields) -> std::result::Result<Problem, String> {
        let prompt = question_of_messages(row)?;
        let Some(Value::String(question)) = row.get("question") else {
            return Err("the key \"question\" is missing; give the problem's text, which scoring needs".to_owned());
        };
        let ground_truth = row.get("ground_truth").ok_or("the key \"ground_truth\" is missing; give the answer")?;
        let choices = multiple_choice::texts(row.get("choices")).unwrap_or_default();
        if self.is_choice() && choices.len() < 2 {
            return Err("the row has no list \"choices\" of two texts or more; give those to choose from".to_owned());
        }
        self.check(question, &choices, ground_truth)?;
        Ok(Problem {
            question: question.clone(),
            prompt,
            prefill: String::new(),
            ground_truth: ground_truth.clone(),
            choices,
        })
    }

    /// Checks that the task can score answers against this question and truth.
    ///
    /// # Errors
    /// What is wrong, as one sentence with the value.
    pub(super) fn check(
        &self,
        question: &str,
        choices: &[String],
        ground_truth: &Value,
    ) -> std::result::Result<(), String> {
        let wrong = |truth: &str| {
            Err(format!("ground_truth is {:.40}; {}'s is {truth}", ground_truth.to_string(), self.name()))
        };
        match (self, self.kind()) {
            (Self::Known(task), None) => task.check(question, ground_truth),
            (_, Some(Kind::Choice)) => match ground_truth.as_u64() {
                Some(right) if (right as usize) < choices.len() => Ok(()),
                _ => wrong(&format!("the index of one of the {} choices, counted from 0", choices.len())),
            },
            (_, Some(Kind::Code)) => code::check(ground_truth),
            (_, Some(Kind::Number)) if ground_truth.is_number() => Ok(()),
            (_, Some(Kind::Number)) => wrong("a number"),
            (_, Some(Kind::Exact | Kind::Regex)) if text_answer::accepted(ground_truth).is_some() => Ok(()),
            _ => wrong("a text, or a list of the texts that count as right"),
        }
    }

    /// Scores a generated text, for a task that neither chooses nor runs programs. Never panics, whatever the text is.
    pub fn score(&self, question: &str, generation: &str, ground_truth: &Value) -> Score {
        let (extracted, is_correct) = match (self, self.kind()) {
            (Self::Known(task), None) => return super::score(*task, question, generation, ground_truth),
            (_, Some(Kind::Number)) => {
                let found = text_answer::last_number(generation);
                (json!(found), found.is_some() && found == ground_truth.as_f64())
            }
            (Self::Own(own), _) => {
                let found = own.find(generation);
                (json!(found), found.is_some_and(|found| text_answer::is_one_of(found, ground_truth, own.normalize)))
            }
            _ => {
                let found = text_answer::short(generation);
                (json!(found), text_answer::is_one_of(found, ground_truth, true))
            }
        };
        Score { extracted, correct: usize::from(is_correct), total: 1 }
    }

    /// The program of an answer, for a task of code.
    pub fn program(&self, generation: &str, ground_truth: &Value) -> Program {
        code::program(generation, ground_truth)
    }
}
