//! `[data]` of a recipe: which rows are trained on and which are held out; and the checks of these settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::formats::Form;
use super::generated::Puzzle;
use super::packing::Padding;
use super::row_range::RowRange;
use super::sources::Source;
use super::typed_tokens::SpecialTokens;
use crate::settings::unknown;

/// The `[data]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataTable {
    /// Training rows: a file (JSONL, JSON, parquet), a folder with files named after their split, or a data set of the
    /// hub.
    pub train: Option<PathBuf>,
    /// The split that is trained on if `train` or a source is a folder; default: `train`.
    pub split: Option<String>,
    /// Several sources of training rows, mixed by weight, instead of `train`.
    pub sources: Option<Vec<Source>>,
    /// Held-out rows, given like `train`.
    pub held_out: Option<PathBuf>,
    /// The split that is held out if `held_out` is a folder; default: `test`.
    pub held_out_split: Option<String>,
    /// The form of all rows, except of sources that name their own; by default the keys of each row tell it.
    pub format: Option<Form>,
    /// Which of a chat's turns are trained on, except in sources that say it themselves.
    pub train_on: TrainOn,
    /// What special tokens are that stand in the turns of a prompt, such as `<|eot_id|>`: text, or tokens.
    pub special_tokens: SpecialTokens,
    /// Variables of the chat template beside its own, such as `enable_thinking`.
    pub chat_template_kwargs: Map<String, Value>,
    /// A generated task instead of files.
    pub generate: Option<Puzzle>,
    /// The training rows that are used or generated; default: all.
    pub train_rows: Option<RowRange>,
    /// The held-out rows that are used or generated; default: all.
    pub held_out_rows: Option<RowRange>,
    /// The longest sequence in tokens; longer answers are cut and counted, and texts are packed into sequences of this
    /// length.
    pub max_seq_len: MaxSeqLen,
    /// `none` packs sequences; `eos` pads answers to the micro-batch's longest and supervises the padding.
    pub padding: Padding,
}

/// Which of a chat's assistant turns are answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// The last one. The others are context.
    #[default]
    Last,
    /// Each one, as an example of its own whose prompt is all that precedes it.
    All,
}

/// A length that has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxSeqLen(pub usize);

impl Default for MaxSeqLen {
    fn default() -> Self {
        Self(4096)
    }
}

/// The largest weight. To see rows more often, take more epochs.
const MAX_WEIGHT: f64 = 1000.0;

/// The error for texts with padding.
pub(crate) const PADDED_TEXT: &str = "data.padding = \"eos\" pads answers; texts are packed, so set it to \"none\"";

impl DataTable {
    /// The sources of training rows; empty if they are generated.
    pub fn training(&self) -> Vec<Source> {
        let complete = |source: &Source| Source {
            split: source.split.clone().or_else(|| self.split.clone()),
            format: source.format.or(self.format),
            train_on: Some(source.train_on.unwrap_or(self.train_on)),
            ..source.clone()
        };
        let train =
            self.train.iter().map(|path| Source { path: path.clone(), rows: self.train_rows, ..Source::default() });
        train.chain(self.sources.iter().flatten().cloned()).map(|source| complete(&source)).collect()
    }

    /// The source of held-out rows.
    pub fn held_out(&self) -> Option<Source> {
        let split = self.held_out_split.as_deref().unwrap_or("test");
        let (rows, format, train_on) = (self.held_out_rows, self.format, Some(self.train_on));
        let source = |path| Source { rows, format, train_on, ..Source::at(path, split) };
        self.held_out.as_deref().map(source)
    }

    /// The problems of the table, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        let sources = self.sources.as_deref().unwrap_or_default();
        let named = [self.train.is_some(), !sources.is_empty(), self.generate.is_some()];
        let named = named.into_iter().filter(|is_named| *is_named).count();
        let one = "set data.train to a file or folder of rows, data.sources to several, or data.generate to a task";
        refuse(
            named != 1,
            match named {
                0 => format!("the recipe names no training rows; {one}"),
                _ => format!("the recipe names training rows in {named} ways; {one}"),
            },
        );
        let is_empty = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        for (key, path) in [("train", &self.train), ("held_out", &self.held_out)] {
            refuse(is_empty(path), format!("data.{key} is empty; name a file or folder of rows, or leave it out"));
        }
        refuse(
            self.max_seq_len.0 < 2,
            format!("data.max_seq_len = {} leaves no room for an answer", self.max_seq_len.0),
        );
        let slices = [("train_rows", self.train_rows), ("held_out_rows", self.held_out_rows)];
        for (key, rows) in slices {
            let is_slice = rows.is_some_and(|rows| rows.as_first().is_none());
            refuse(
                self.generate.is_some() && is_slice,
                format!("data.{key} is a slice; give the number of rows to generate"),
            );
        }
        let idle = self.train_rows.is_some() && !sources.is_empty();
        refuse(idle, "data.train_rows belongs to data.train; set the rows of each of data.sources instead".to_owned());
        let is_text = self.training().iter().chain(&self.held_out()).any(|source| source.format == Some(Form::Text));
        refuse(is_text && self.padding == Padding::Eos, PADDED_TEXT.to_owned());
        problems.extend(sources.iter().enumerate().flat_map(|(i, source)| problems_of(i, source)));
        problems
    }
}

fn problems_of(i: usize, source: &Source) -> Vec<String> {
    let known = ["path", "split", "rows", "format", "train_on", "weight"];
    let of = format!("data.sources[{i}].");
    let mut problems: Vec<String> = source.unknown.keys().map(|key| unknown("key", key, &of, known)).collect();
    if source.path.as_os_str().is_empty() {
        problems.push(format!("{of}path is missing; name a file or folder of rows"));
    }
    if !(source.weight > 0.0 && source.weight <= MAX_WEIGHT) {
        problems.push(format!("{of}weight = {} lies outside (0, {MAX_WEIGHT}]", source.weight));
    }
    problems
}
