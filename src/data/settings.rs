//! `[data]` of a recipe: which rows are trained on and which are held out; and the checks of these settings.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::formats::Form;
use super::generated::Puzzle;
use super::hold_out::HeldOut;
use super::packing::Padding;
use super::paths::{Paths, Place};
use super::row_range::RowRange;
use super::sources::Source;
use super::typed_tokens::SpecialTokens;
use crate::settings::unknown;

/// The `[data]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataTable {
    /// Training rows: a file (JSONL, JSON, parquet, CSV), a folder with files named after their split, a data set of the
    /// hub, a pattern of file names, or a list of these.
    pub train: Option<Paths>,
    /// The split that is trained on if `train` or a source is a folder; default: `train`.
    pub split: Option<String>,
    /// Several sources of training rows, mixed by weight, instead of `train`.
    pub sources: Option<Vec<Source>>,
    /// Held-out rows, given like `train`, or the part of the training rows that is held out: `"10%"`, or a number.
    pub held_out: Option<HeldOut>,
    /// The split that is held out if `held_out` is a folder; default: `test`.
    pub held_out_split: Option<String>,
    /// The form of all rows, except of sources that name their own; by default the keys of each row tell it.
    pub format: Option<Form>,
    /// Which of a chat's turns are trained on, except in sources that say it themselves.
    pub train_on: TrainOn,
    /// What happens at a row that can't be used: `stop` refuses the source, `skip` skips the row and counts it.
    pub on_bad_row: OnRow,
    /// What happens if a prompt leaves no room for its answer: `stop` refuses the source, `skip` skips the answer.
    pub on_long_prompt: OnRow,
    /// What happens to an answer that ends beyond the longest sequence: `cut` cuts it, `skip` skips it.
    pub on_long_answer: OnLongAnswer,
    /// How special tokens in the turns of a prompt, such as `<|eot_id|>`, are read: as text, or as tokens.
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
    /// One of them in each epoch, drawn anew; its prompt is all that precedes it.
    Drawn,
}

impl TrainOn {
    /// The turns of held-out rows that are answers. An evaluation has no epochs to draw for, so under `drawn` every answer
    /// is evaluated.
    pub(super) fn of_held_out(self) -> Self {
        if self == Self::Drawn { Self::All } else { self }
    }
}

/// What happens at a row that can't be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRow {
    /// The source is refused, with all such rows.
    #[default]
    Stop,
    /// The row is skipped and counted.
    Skip,
}

/// What happens to an answer that ends beyond the longest sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLongAnswer {
    /// It loses its end.
    #[default]
    Cut,
    /// It is skipped and counted.
    Skip,
}

/// What happens to the rows of a source that can't be used as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowPolicy {
    /// `data.on_bad_row`.
    pub bad_row: OnRow,
    /// `data.on_long_prompt`.
    pub long_prompt: OnRow,
    /// `data.on_long_answer`.
    pub long_answer: OnLongAnswer,
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
            policy: self.policy(),
            ..source.clone()
        };
        let train =
            self.train.iter().map(|path| Source { path: path.clone(), rows: self.train_rows, ..Source::default() });
        train.chain(self.sources.iter().flatten().cloned()).map(|source| complete(&source)).collect()
    }

    /// What happens to rows that can't be used as they are.
    pub fn policy(&self) -> RowPolicy {
        RowPolicy { bad_row: self.on_bad_row, long_prompt: self.on_long_prompt, long_answer: self.on_long_answer }
    }

    /// The sources of held-out rows, unless a part of the training rows is held out. Where none are named, they are those
    /// of which a training path in dLLM's form counts rows, as in `ID[train:1000,test:100]`.
    pub fn held_out(&self) -> Vec<Source> {
        let split = Some(self.held_out_split().to_owned());
        let (rows, policy) = (self.held_out_rows, self.policy());
        let train_on = Some(self.train_on.of_held_out());
        let source = |path: Paths, format| Source {
            path,
            split: split.clone(),
            rows,
            format,
            train_on,
            policy,
            ..Source::default()
        };
        match &self.held_out {
            Some(held_out) => held_out.files().map(|path| source(path.clone(), self.format)).into_iter().collect(),
            None => {
                let counted = self.counted().filter(|(.., split)| split == self.held_out_split());
                counted.map(|(place, of, _)| source(place.given.into(), of.format)).collect()
            }
        }
    }

    /// Whether any rows are held out.
    pub fn has_held_out(&self) -> bool {
        self.held_out.is_some() || self.generate.is_some() || !self.held_out().is_empty()
    }

    /// The split that is held out of rows that have splits.
    fn held_out_split(&self) -> &str {
        self.held_out_split.as_deref().unwrap_or("test")
    }

    /// The paths of training sources that count rows of splits that aren't trained on, each with its source and split.
    fn counted(&self) -> impl Iterator<Item = (Place, Source, String)> {
        self.training().into_iter().flat_map(|source| {
            let trained = source.split.clone().unwrap_or_else(|| "train".to_owned());
            // Brackets that can't be read are reported when the rows are.
            let places = source.path.places().unwrap_or_default();
            let others = places.into_iter().flat_map(move |place| {
                let splits: Vec<String> = place.counts.iter().map(|(split, _)| split.clone()).collect();
                splits.into_iter().map(move |split| (place.clone(), split))
            });
            others.filter(move |(_, split)| *split != trained).map(move |(place, split)| (place, source.clone(), split))
        })
    }

    /// The problems with dLLM's counts, and with a held-out part of the training rows.
    fn held_out_problems(&self) -> Vec<String> {
        let mut problems = vec![];
        for (place, _, split) in self.counted() {
            let given = place.given.display();
            if split != self.held_out_split() {
                problems.push(format!(
                    "{given} counts rows of the split {split}, which nothing reads; leave that count out"
                ));
            } else if let Some(held_out) = &self.held_out {
                problems.push(format!(
                    "{given} counts rows of the split {split} to hold them out, and data.held_out = {held_out} holds out \
                     others; leave one of the two out"
                ));
            }
        }
        if let (Some(part @ (HeldOut::Percent(_) | HeldOut::Rows(_))), Some(_)) = (&self.held_out, &self.held_out_rows)
        {
            problems.push(format!(
                "data.held_out_rows belongs to rows that are given by themselves, and data.held_out = {part} is a part of \
                 the training rows; leave one of the two out"
            ));
        }
        problems
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
        let held_out = self.held_out.as_ref().and_then(HeldOut::files);
        for (key, paths) in [("train", self.train.as_ref()), ("held_out", held_out)] {
            let is_empty = paths.is_some_and(Paths::is_empty);
            refuse(is_empty, format!("data.{key} is empty; name a file or folder of rows, or leave it out"));
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
        problems.extend(self.held_out_problems());
        problems.extend(sources.iter().enumerate().flat_map(|(i, source)| problems_of(i, source)));
        problems
    }
}

fn problems_of(i: usize, source: &Source) -> Vec<String> {
    let known = ["path", "split", "rows", "format", "train_on", "weight"];
    let of = format!("data.sources[{i}].");
    let mut problems: Vec<String> = source.unknown.keys().map(|key| unknown("key", key, &of, known)).collect();
    if source.path.is_empty() {
        problems.push(format!("{of}path is missing; name a file or folder of rows"));
    }
    if !(source.weight > 0.0 && source.weight <= MAX_WEIGHT) {
        problems.push(format!("{of}weight = {} lies outside (0, {MAX_WEIGHT}]", source.weight));
    }
    problems
}
