//! The tasks of an experiment: their problems, and a network's answers to them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Experiment;
use crate::data::chat_template::TextModel;
use crate::data::sources::Source;
use crate::error::{Error, Result};
use crate::eval::Problem;
use crate::eval::any_task::AnyTask;
use crate::eval::generations::{Answering, Generation, answer};
use crate::eval::likelihood::MonteCarlo;
use crate::eval::sandbox::{Limits, Sandbox, refusal};
use crate::eval::settings::TaskTable;
use crate::eval::task_score::TaskScore;
use crate::model::block::Transformer;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::train::checkpoint;
use crate::train::metrics::scores_in;

/// A task with its problems.
pub struct Posed {
    /// The task.
    pub task: AnyTask,
    /// Its problems.
    pub problems: Vec<Problem>,
    /// Whether they are held-out rows of the recipe.
    pub is_held_out: bool,
}

/// The recipe's tasks with their problems, and where programs of answers run, if any do. A task whose rows are the held-out
/// ones is left out if there are none.
///
/// # Errors
/// A task file or rows that can't be read; two tasks of one name; a task of programs in a recipe that doesn't run them.
pub fn open(recipe: &Recipe, held_out: &[Source]) -> Result<(Vec<Posed>, Option<Sandbox>)> {
    let posed = |table: &TaskTable| -> Result<Posed> {
        let (task, sources) = table.open()?;
        if task.is_code() && !recipe.eval.run_code {
            return Err(refusal(task.name()));
        }
        let is_held_out = sources.is_none();
        let sources = sources.as_ref().map_or(held_out, |own| &own[..]);
        let mut problems = sources.iter().map(|source| task.problems(source)).collect::<Result<Vec<_>>>()?.concat();
        problems.truncate(table.limit.or(recipe.eval.limit).unwrap_or(problems.len()));
        Ok(Posed { task, problems, is_held_out })
    };
    let mut tasks = recipe.eval.entries().iter().map(posed).collect::<Result<Vec<_>>>()?;
    tasks.retain(|posed| !posed.problems.is_empty());
    let mut names = BTreeSet::new();
    if let Some(twice) = tasks.iter().find(|posed| !names.insert(posed.task.name().to_owned())) {
        let name = twice.task.name();
        return Err(Error::Usage(format!("two tasks are named {name:?}; set task.name in one of their files")));
    }
    let runs_code = tasks.iter().any(|posed| posed.task.is_code());
    let sandbox = runs_code.then(|| Sandbox::open(None, Limits::default())).transpose()?;
    Ok((tasks, sandbox))
}

impl Experiment {
    /// A network's scored answers to the recipe's first task; `None` without a task. The ranks divide the problems, and
    /// each rank returns all answers.
    ///
    /// # Errors
    /// A chat template that fails.
    pub fn evaluate(
        &self,
        model: &Transformer,
        text: &TextModel,
        progress: &Progress,
    ) -> Result<Option<Vec<Generation>>> {
        self.tasks.first().map(|posed| self.answer((model, text), posed, progress)).transpose()
    }

    /// A network's scored answers to one of the recipe's tasks, as [`Experiment::evaluate`] gives them.
    ///
    /// # Errors
    /// A chat template that fails.
    pub fn answer(
        &self,
        (model, text): (&Transformer, &TextModel),
        Posed { task, problems, .. }: &Posed,
        progress: &Progress,
    ) -> Result<Vec<Generation>> {
        let (mc_samples, seed) = (self.recipe.eval.mc_samples, self.recipe.train.seed);
        let how = Answering {
            sampling: self.sampling(model),
            draws: MonteCarlo { mc_samples, seed, ..MonteCarlo::default() },
            raw: false,
            sandbox: self.sandbox.clone(),
        };
        answer((model, text), (task, problems), &how, (&*self.ranks, progress))
    }

    /// A network's scores on the recipe's tasks. The ranks divide the problems, and each rank returns all scores.
    ///
    /// # Errors
    /// A chat template that fails.
    pub(super) fn scores(&self, model: &Transformer, text: &TextModel) -> Result<Vec<TaskScore>> {
        let score = |posed: &Posed| {
            let generations = self.answer((model, text), posed, &Progress::hidden())?;
            Ok(TaskScore::of(&posed.task, &generations))
        };
        self.tasks.iter().map(score).collect()
    }

    /// The base's scores on the recipe's tasks, from the log of a run that resumes from a checkpoint; `None` if it doesn't, and if
    /// the log lacks one of them. Every rank calls it.
    ///
    /// # Errors
    /// A log that can't be read.
    #[doc(hidden)]
    pub fn logged_before(&self, resumes: bool) -> Result<Option<Vec<TaskScore>>> {
        let output = &self.recipe.train.output;
        // Without a checkpoint the run begins again, and its log too.
        let is_there = resumes && self.ranks.is_first() && checkpoint::newest(output).is_some();
        let own = if is_there { scores_in(output, 0)? } else { vec![] };
        let lines = self.ranks.bytes_of_first(&serde_json::to_vec(&own).expect("lines are JSON"));
        let lines: Vec<Value> = serde_json::from_slice(&lines).expect("the first wrote it");
        let tasks = self.tasks.iter().map(|posed| (posed.task.name(), posed.task.kind(), posed.problems.len()));
        Ok(TaskScore::of_lines(&lines, tasks).filter(|scores| !scores.is_empty()))
    }
}
