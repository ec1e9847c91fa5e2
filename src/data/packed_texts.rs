//! Packs plain texts into examples, as in continued pretraining: all texts one after another, each with an end token
//! behind it, in sequences of one length. Nothing is cut.

use super::{Dataset, Example};

/// Texts that are being packed.
pub(super) struct PackedTexts {
    max_seq_len: usize,
    eos_token_id: u32,
    /// The tokens of the example that isn't full yet.
    open: Vec<u32>,
    /// The text in which it begins.
    start: usize,
}

impl PackedTexts {
    /// Packs into sequences of that length, at least 1.
    pub fn new(max_seq_len: usize, eos_token_id: u32) -> Self {
        Self { max_seq_len, eos_token_id, open: vec![], start: 0 }
    }

    /// Adds a text and moves the examples that it fills into the dataset.
    pub fn push(&mut self, ids: &[u32], dataset: &mut Dataset) {
        let mut rest = ids.iter().copied().chain([self.eos_token_id]).peekable();
        while rest.peek().is_some() {
            if self.open.is_empty() {
                self.start = dataset.documents;
            }
            self.open.extend(rest.by_ref().take(self.max_seq_len - self.open.len()));
            if self.open.len() == self.max_seq_len {
                self.finish(dataset);
            }
        }
        dataset.documents += 1;
    }

    /// Moves the last example, which is shorter than the others, into the dataset.
    pub fn finish(&mut self, dataset: &mut Dataset) {
        if !self.open.is_empty() {
            let answer_ids = std::mem::take(&mut self.open);
            dataset.examples.push(Example { prompt_ids: vec![], answer_ids });
            dataset.starts.push(self.start as u32);
        }
    }
}
