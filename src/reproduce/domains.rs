//! Rows of other kinds, on which every run of a comparison is scored at its end (`[[reproduce.also_score]]`), so that the report
//! can show what training on one task costs on others. The findings are in `forgetting`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::run::Point;
use crate::data::chat_template::TextModel;
use crate::data::formats::Form;
use crate::data::generated::{self, Puzzle};
use crate::data::paths::Paths;
use crate::data::row_range::RowRange;
use crate::data::sources::Source;
use crate::data::{Dataset, Example, load_mixed};
use crate::error::{Error, Result};
use crate::eval::Accuracy;
use crate::eval::any_task::AnyTask;
use crate::eval::generations::{Answering, accuracy_of, answer};
use crate::eval::likelihood::MonteCarlo;
use crate::eval::settings::TaskName;
use crate::experiment::reading;
use crate::model::block::Transformer;
use crate::parallel::Solo;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::sampler::generate::Sampling;
use crate::train::held_out::nll_bound_seen;
use crate::train::resolved::Resolved;
use crate::train::view::View;

/// The number of rows that are generated if a domain doesn't give one.
const ROWS: usize = 256;

/// The settings that a domain may change: how its answers are generated, and how its texts are split.
const CHANGEABLE: [&str; 2] = ["sampler.", "data.max_seq_len"];

/// Rows that every run is scored on, whatever it is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// The name.
    pub name: String,
    /// A generated task; its rows are the held-out ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<Puzzle>,
    /// A file or folder of rows, or a data set of the hub (its split test).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<Paths>,
    /// The form of the rows; by default their keys tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Form>,
    /// The number of rows; default: all, or 256 generated ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// The task that scores answers; without one, only the held-out loss is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Changes to the recipe's sampler, as `sampler.key=value`, or to `data.max_seq_len`, above which texts are split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
}

impl Domain {
    /// What is wrong with the values, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let of = format!("reproduce.also_score {:?}", self.name);
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        refuse(
            self.name.is_empty(),
            "reproduce.also_score has an empty name; give each of its tables a name".to_owned(),
        );
        let named = usize::from(self.generate.is_some()) + usize::from(self.held_out.is_some());
        let one = "give held_out, a file or folder of rows, or generate, a task";
        refuse(named != 1, format!("{of} names its rows in {named} ways; {one}"));
        refuse(self.rows == Some(0), format!("{of} has rows = 0; give at least 1, or leave it out"));
        let has_format = self.generate.is_some() && self.format.is_some();
        refuse(
            has_format,
            format!("{of} has a format, which is of files; leave it out, because generate makes its rows"),
        );
        for set in self.set.iter().filter(|set| !CHANGEABLE.iter().any(|start| set.trim_start().starts_with(start))) {
            refuse(true, format!("{of} sets {set:?}; it can set keys of [sampler] and data.max_seq_len alone"));
        }
        problems
    }

    /// The held-out rows; generated ones are written into `folder`.
    fn source(&self, folder: &Path) -> Result<Source> {
        let path: Paths = match (&self.held_out, self.generate) {
            (Some(path), _) => path.clone(),
            (None, Some(puzzle)) => {
                let rows = [0, self.rows.unwrap_or(ROWS)];
                let [_, held_out] = generated::write(puzzle, 0, rows, &folder.join(puzzle.name()))?;
                held_out.into()
            }
            (None, None) => return Err(Error::Usage(format!("reproduce.also_score {:?} names no rows", self.name))),
        };
        let rows = self.rows.map(RowRange::first);
        Ok(Source { path, split: Some("test".to_owned()), rows, format: self.format, ..Source::default() })
    }
}

/// A domain of a run.
#[derive(Clone, Debug)]
pub struct PlannedDomain {
    /// The domain.
    pub domain: Domain,
    /// The run's recipe with the domain's changes.
    pub recipe: Recipe,
}

/// Unpacks texts into sequences of their own, and splits those that are longer than a sequence. The score of a text must not
/// depend on the texts that it happens to be packed with. Each text ends with its end token.
fn apart(packed: &[Example], eos_token_id: u32, max_seq_len: usize) -> Vec<Example> {
    let ids: Vec<u32> = packed.iter().flat_map(|example| example.answer_ids.iter().copied()).collect();
    let texts = ids.split_inclusive(|id| *id == eos_token_id);
    let parts = texts.flat_map(|text| text.chunks(max_seq_len));
    parts.map(|part| Example { prompt_ids: vec![], answer_ids: part.to_vec() }).collect()
}

/// A model's scores in a domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainScore {
    /// The name of the domain.
    pub name: String,
    /// The accuracy; `None` without a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// The held-out loss, in nats per answer token.
    pub nll_bound: f64,
}

impl PlannedDomain {
    /// Scores a model. If the domain is the run's own held-out rows, scored in the same way, the run's scores `own` are
    /// returned. Generated rows are written into `folder`.
    ///
    /// # Errors
    /// Rows that can't be read; sampling lengths that don't divide.
    pub fn score(
        &self,
        (model, text): (&Transformer, &TextModel),
        (run, own): (&Recipe, &Point),
        folder: &Path,
    ) -> Result<DomainScore> {
        let name = self.domain.name.clone();
        if self.is_of(run) {
            return Ok(DomainScore { name, accuracy: own.accuracy, nll_bound: own.nll_bound });
        }
        let source = self.domain.source(folder)?;
        let accuracy = match &self.domain.task {
            None => None,
            Some(name) => {
                let task = AnyTask::parse(name.as_str())?;
                let problems = task.problems(&source)?;
                let seed = self.recipe.train.seed;
                let how = Answering {
                    sampling: Sampling { seed, ..self.recipe.sampling(&model.config) },
                    draws: MonteCarlo { mc_samples: self.recipe.eval.mc_samples, seed, ..MonteCarlo::default() },
                    raw: false,
                    sandbox: None,
                };
                Some(accuracy_of(&answer((model, text), (&task, &problems), &how, (&Solo, &Progress::hidden()))?))
            }
        };
        let Dataset { mut examples, documents, .. } =
            load_mixed(&[source], &reading(&self.recipe, text, model.config.mask_token_id))?.dataset;
        if documents > 0 {
            examples = apart(&examples, text.eos_token_id(), self.recipe.data.max_seq_len.0);
        }
        let view = View::of(&self.recipe.objective, text.eos_token_id());
        Ok(DomainScore { name, accuracy, nll_bound: nll_bound_seen(model, &examples, &view) })
    }

    /// Whether the domain's rows are the held-out rows of a run, scored in the same way.
    fn is_of(&self, run: &Recipe) -> bool {
        let Domain { generate, task, rows, .. } = &self.domain;
        let rows = rows.unwrap_or(ROWS);
        let own_rows = run.data.held_out_rows.map_or(Some(ROWS), |rows| rows.as_first());
        let is_whole = task.is_none() || run.eval.limit.is_none_or(|limit| limit >= rows);
        let is_same = (&self.recipe.sampler, self.recipe.data.max_seq_len) == (&run.sampler, run.data.max_seq_len);
        generate.is_some()
            && *generate == run.data.generate
            && own_rows == Some(rows)
            && *task == run.eval.task
            && is_whole
            && is_same
    }

    /// What the scores depend on besides the run's recipe, as an outcome saves it.
    pub fn resolved(&self) -> Resolved {
        let table = |domain: &Domain, recipe: &Recipe| {
            let Domain { name, generate, held_out, format, rows, task, .. } = domain;
            json!({
                "also_score": {
                    "name": name,
                    "generate": generate,
                    "held_out": held_out,
                    "format": format,
                    "rows": rows,
                    "task": task,
                    "max_seq_len": recipe.data.max_seq_len,
                },
                "sampler": recipe.sampler,
            })
        };
        let none = Domain {
            name: String::new(),
            generate: None,
            held_out: None,
            format: None,
            rows: None,
            task: None,
            set: vec![],
        };
        Resolved { recipe: table(&self.domain, &self.recipe), defaults: table(&none, &Recipe::default()) }
    }

    /// How the domain differs from those that an outcome was scored on, given in the form of [`PlannedDomain::resolved`];
    /// `None` if it is one of them.
    pub fn differs_from(&self, saved: &Value) -> Option<String> {
        let name = &self.domain.name;
        let is_own = |of: &&Value| of["also_score"]["name"] == **name;
        match saved.as_array().into_iter().flatten().find(is_own) {
            None => Some(format!("it was not scored on reproduce.also_score {name:?}")),
            Some(saved) => {
                let differing = self.resolved().differences(saved);
                (!differing.is_empty()).then(|| format!("in reproduce.also_score {name:?}, {}", differing.join("; ")))
            }
        }
    }
}
