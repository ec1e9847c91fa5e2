//! `[eval]` of a recipe: the task that base and adapter are scored on, and the number of answers in the report.

use serde::{Deserialize, Serialize};

use super::Task;

/// The default number of answers in the report of a recipe with a task.
const SAMPLES: usize = 3;

/// The `[eval]` table: a task that base and adapter are scored on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalTable {
    /// The task; default: none.
    pub task: Option<Task>,
    /// The number of problems; default: all.
    pub limit: Option<usize>,
    /// The number of rows whose answers before and after training are shown in report.html; default: 3 with a task,
    /// else 0.
    pub samples: Option<usize>,
}

impl EvalTable {
    /// The number of rows whose answers the report shows.
    pub(crate) fn num_samples(&self) -> usize {
        self.samples.unwrap_or(if self.task.is_some() { SAMPLES } else { 0 })
    }

    /// Whether a run generates anything.
    pub fn generates(&self) -> bool {
        self.task.is_some() || self.num_samples() > 0
    }
}
