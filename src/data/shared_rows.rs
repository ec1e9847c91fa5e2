//! Finds examples that are both trained on and held out, by their tokens. The held-out loss says little about them.

use std::collections::HashMap;
use std::fmt;

use twox_hash::XxHash3_128;

use super::sources::Source;
use super::{Example, Mixed, place};
use crate::counted::{counted, verb};

/// How many held-out examples are trained on too, and the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRows {
    /// The number of held-out examples with the tokens of a training example.
    pub count: usize,
    /// The file and line of the first of them, and those of the training example; `None` where a file has changed.
    pub first: Option<[String; 2]>,
}

impl SharedRows {
    /// Compares the held-out examples with the training examples, each given with its sources; `None` if none is shared.
    pub fn find(train: (&Mixed, &[Source]), held_out: (&Mixed, &[Source])) -> Option<Self> {
        let examples = &held_out.0.dataset.examples;
        let mut trained: HashMap<u128, Option<usize>> = examples.iter().map(|example| (key(example), None)).collect();
        for (i, example) in train.0.dataset.examples.iter().enumerate() {
            if let Some(first) = trained.get_mut(&key(example)) {
                first.get_or_insert(i);
            }
        }
        let mut shared = examples.iter().enumerate().filter_map(|(i, e)| Some((i, trained[&key(e)]?)));
        let (of_held_out, of_train) = shared.next()?;
        let first =
            place_of(held_out, of_held_out).zip(place_of(train, of_train)).map(|(held_out, train)| [held_out, train]);
        Some(Self { count: 1 + shared.count(), first })
    }
}

impl fmt::Display for SharedRows {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let are = verb(self.count, ["is", "are"]);
        write!(f, "{} {are} trained on too", counted(self.count, "held-out example"))?;
        if let Some([held_out, train]) = &self.first {
            write!(f, " (the first is {held_out}, trained on as {train})")?;
        }
        write!(f, "; the held-out loss says little about them")
    }
}

/// A hash of the tokens of prompt and answer.
fn key(example: &Example) -> u128 {
    let mut hash = XxHash3_128::new();
    for ids in [&example.prompt_ids, &example.answer_ids] {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        hash.write(&bytes);
    }
    hash.finish_128()
}

/// The file and line of the row in which an example begins.
fn place_of((mixed, sources): (&Mixed, &[Source]), mut example: usize) -> Option<String> {
    for (part, source) in mixed.parts.iter().zip(sources) {
        match example.checked_sub(part.examples) {
            Some(of_rest) => example = of_rest,
            None => return place(source, part.row_of(example)),
        }
    }
    None
}
