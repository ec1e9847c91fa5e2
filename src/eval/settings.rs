//! `[eval]` of a recipe: the task that base and adapter are scored on, and the answers that a report shows.

use serde::{Deserialize, Serialize};

use super::Task;

/// Answers that a report shows of a recipe with a task.
const SAMPLES: usize = 3;

/// `[eval]`: a task that base and adapter are scored on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalTable {
    /// The task; none where absent.
    pub task: Option<Task>,
    /// Problems; all where absent.
    pub limit: Option<usize>,
    /// Rows whose answers before and after training are shown in report.html; where absent, 3 with a task, else none.
    pub samples: Option<usize>,
}

impl EvalTable {
    /// How many rows' answers the report shows.
    pub fn num_samples(&self) -> usize {
        self.samples.unwrap_or(if self.task.is_some() { SAMPLES } else { 0 })
    }

    /// Whether a run asks the sampler for anything.
    pub fn generates(&self) -> bool {
        self.task.is_some() || self.num_samples() > 0
    }
}
