//! `[eval]` of a recipe: the tasks that base and adapter are scored on, and the number of answers in the report.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Task;
use super::any_task::{AnyTask, is_file};
use super::likelihood::MonteCarlo;
use crate::data::paths::Paths;
use crate::data::sources::Source;
use crate::error::Result;

/// The default number of answers in the report of a recipe with a task.
const SAMPLES: usize = 3;

/// The name of a task of Weft's own, or the path of a task file (`.toml`), which isn't read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskName(String);

impl TryFrom<String> for TaskName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        let known = || Task::ALL.map(Task::name).join(", ");
        match is_file(&name) || Task::ALL.iter().any(|task| task.name() == name) {
            true => Ok(Self(name)),
            false => Err(format!("the known values are {}, a file that describes a task (.toml)", known())),
        }
    }
}

impl From<TaskName> for String {
    fn from(TaskName(name): TaskName) -> Self {
        name
    }
}

impl TaskName {
    /// The name as it is given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A task of a recipe, with its rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskTable {
    /// The task.
    pub task: TaskName,
    /// Its rows; default: those of its file, of the hub, or the held-out rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Paths>,
    /// The split that is scored where its rows have splits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The number of its problems; default: `eval.limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Unknown keys, which the recipe refuses.
    #[serde(flatten, skip_serializing)]
    pub unknown: Map<String, Value>,
}

/// A task of `eval.tasks`: its name alone, or a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "give a task's name, or { task = \"arc\", data = \"arc.jsonl\" }; the names are sudoku, countdown, \
                               gsm8k, math500, hellaswag, arc, naturalquestions, raft, humaneval, mbpp and paths of task \
                               files (.toml)"
)]
pub enum TaskEntry {
    /// The name.
    Name(TaskName),
    /// The task with its rows.
    Table(TaskTable),
}

/// The `[eval]` table: the tasks that base and adapter are scored on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalTable {
    /// The task, scored on the held-out rows before and after training; default: none.
    pub task: Option<TaskName>,
    /// Several tasks, scored before and after training and after each epoch; default: none.
    pub tasks: Vec<TaskEntry>,
    /// The number of problems of each task; default: all.
    pub limit: Option<usize>,
    /// The masks that are drawn for each choice of a question.
    pub mc_samples: usize,
    /// Whether the tasks are scored after each epoch; default: with `tasks`, not with `task`.
    pub each_epoch: Option<bool>,
    /// Whether programs that the model wrote are run to score them.
    pub run_code: bool,
    /// The number of rows whose answers before and after training are shown in report.html; default: 3 with a task,
    /// else 0.
    pub samples: Option<usize>,
}

impl Default for EvalTable {
    fn default() -> Self {
        Self {
            task: None,
            tasks: vec![],
            limit: None,
            mc_samples: MonteCarlo::default().mc_samples,
            each_epoch: None,
            run_code: false,
            samples: None,
        }
    }
}

impl EvalTable {
    /// The tasks in the order in which they are scored.
    pub fn entries(&self) -> Vec<TaskTable> {
        let named = |task: &TaskName| TaskTable { task: task.clone(), ..TaskTable::default() };
        let entry = |entry: &TaskEntry| match entry {
            TaskEntry::Name(task) => named(task),
            TaskEntry::Table(table) => table.clone(),
        };
        self.task.iter().map(named).chain(self.tasks.iter().map(entry)).collect()
    }

    /// Whether there is a task.
    pub fn has_tasks(&self) -> bool {
        self.task.is_some() || !self.tasks.is_empty()
    }

    /// Whether the tasks are scored after each epoch.
    pub fn is_each_epoch(&self) -> bool {
        self.each_epoch.unwrap_or(!self.tasks.is_empty())
    }

    /// The number of rows whose answers the report shows.
    pub(crate) fn num_samples(&self) -> usize {
        self.samples.unwrap_or(if self.has_tasks() { SAMPLES } else { 0 })
    }

    /// Whether a run generates anything.
    pub fn generates(&self) -> bool {
        self.has_tasks() || self.num_samples() > 0
    }

    /// What is wrong with the values, one sentence per problem.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        let both = self.task.is_some() && !self.tasks.is_empty();
        refuse(
            both,
            "eval.task and eval.tasks are both set; name every task in eval.tasks, and leave out eval.task".to_owned(),
        );
        let entries = self.entries();
        for (index, entry) in entries.iter().enumerate() {
            let name = entry.task.as_str();
            refuse(name.is_empty(), "eval.tasks has a table without a task; write { task = \"arc\" }".to_owned());
            for key in entry.unknown.keys() {
                let known = ["task", "data", "split", "limit"];
                refuse(true, crate::settings::unknown("key", key, "eval.tasks.", known));
            }
            let is_first = both || entries.iter().position(|other| other.task == entry.task) == Some(index);
            refuse(!is_first, format!("eval.tasks names {name:?} twice; name it once"));
            let is_file = entry.data.as_ref().is_some_and(Paths::are_files);
            let idle = format!("eval.tasks has a split for {name}, whose data is a file; leave it out");
            refuse(entry.split.is_some() && is_file, idle);
            refuse(
                entry.limit == Some(0),
                format!("eval.tasks has limit = 0 for {name}, which scores nothing; give at least 1"),
            );
        }
        let draws = self.mc_samples;
        refuse(draws < 2, format!("eval.mc_samples = {draws} gives no standard error; give at least 2"));
        problems
    }
}

impl TaskTable {
    /// The task with the sources of its rows: what the table names, or the task's own; `None` stands for the held-out rows.
    ///
    /// # Errors
    /// The errors of [`AnyTask::parse`].
    pub fn open(&self) -> Result<(AnyTask, Option<[Source; 1]>)> {
        let task = AnyTask::parse(self.task.as_str())?;
        let split = Some(self.split.clone().unwrap_or_else(|| task.split().to_owned()));
        let own = match &self.data {
            Some(data) => Some(Source { path: data.clone(), ..Source::default() }),
            None => task.own_rows(),
        };
        Ok((task, own.map(|own| [Source { split, ..own }])))
    }

    /// Whether its rows are the held-out ones, as far as its name says.
    pub fn needs_held_out(&self) -> bool {
        self.data.is_none() && self.known().is_some_and(|task| task.of_hub().is_none())
    }

    /// The task, if it is one of Weft's own.
    pub fn known(&self) -> Option<Task> {
        Task::ALL.into_iter().find(|task| task.name() == self.task.as_str())
    }
}
