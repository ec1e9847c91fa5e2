//! What goes into the network: packed sequences, and the rows of them that are predicted.

use std::ops::Range;

/// A packed batch: sequences one after the other, without padding.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids `[N]`.
    pub ids: Vec<u32>,
    /// Positions within each sequence `[N]`.
    pub positions: Vec<u32>,
    /// The range of each sequence's tokens.
    pub sequences: Vec<Range<usize>>,
    /// Keys of the adapters' dropout `[N]`; `None` turns it off.
    pub dropout_keys: Option<Vec<u64>>,
}

/// The rows of a batch that are predicted, with their targets and loss weights.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// Token indices into the batch, ascending.
    pub rows: &'a [usize],
    /// The clean token of each row.
    pub ids: &'a [u32],
    /// The weight of each row's `nll` in the loss.
    pub weights: &'a [f32],
}

impl Batch {
    /// Packs sequences into a batch.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self { ids: vec![], positions: vec![], sequences: vec![], dropout_keys: None };
        for ids in sequences {
            let start = batch.ids.len();
            batch.ids.extend(ids);
            batch.positions.extend(0..ids.len() as u32);
            batch.sequences.push(start..batch.ids.len());
        }
        batch
    }

    /// Some of the batch's rows, ascending, as a batch of their own in which they keep their positions; dropout is off.
    pub(super) fn part(&self, rows: &[usize]) -> Self {
        let before = |token: usize| rows.partition_point(|row| *row < token);
        Self {
            ids: rows.iter().map(|row| self.ids[*row]).collect(),
            positions: rows.iter().map(|row| self.positions[*row]).collect(),
            sequences: self.sequences.iter().map(|s| before(s.start)..before(s.end)).collect(),
            dropout_keys: None,
        }
    }
}
