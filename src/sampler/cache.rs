//! The network as a sampling loop calls it: which rows of each canvas a step computes, and the keys and values that a
//! block's first step stores for its later ones. The forward that uses them is `model::cached`'s.

use std::iter::Sum;
use std::ops::{Add, Range};

use serde::{Deserialize, Serialize};
use weft_kernels::tensor::Tensor;

use crate::error::{Error, Result};
use crate::model::batch::Batch;
use crate::model::block::Transformer;
use crate::model::cached::{KeysValues, Part};
use crate::settings::in_plain_words;

/// The rows whose keys and values the later steps of a block take from its first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Caching {
    /// No rows: every step computes every row.
    #[default]
    None,
    /// The rows before the block.
    Prefix,
    /// The rows before and after the block.
    Dual,
}

impl Caching {
    /// Parses the name of a caching.
    ///
    /// # Errors
    /// An unknown name, with those that are known.
    pub fn parse(name: &str) -> Result<Self> {
        serde_json::from_value(name.into()).map_err(|e: serde_json::Error| Error::Usage(in_plain_words(&e.to_string())))
    }

    /// The caching's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Prefix => "prefix",
            Self::Dual => "dual",
        }
    }

    /// The rows of a canvas of `len` tokens that a block's later steps compute. `before` counts the rows before the
    /// block that also predict it: one if logits are shifted.
    fn later_rows(self, block: &Range<usize>, len: usize, before: usize) -> Range<usize> {
        let start = block.start.saturating_sub(before);
        match self {
            Self::None => 0..len,
            Self::Prefix => start..len,
            Self::Dual => start..block.end,
        }
    }
}

/// The work that filling a canvas took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Forwards of the network; two per step under guidance.
    pub forwards: u64,
    /// Rows that these forwards computed.
    pub rows: u64,
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { forwards: self.forwards + other.forwards, rows: self.rows + other.rows }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), Add::add)
    }
}

/// A network that is called on the same canvases again and again.
pub(super) struct Network<'a> {
    pub(super) model: &'a Transformer,
    caching: Caching,
    /// Keys and values stored since the block's first step.
    cache: Option<KeysValues>,
    /// The work that each canvas has taken so far.
    pub(super) work: Vec<Work>,
}

impl<'a> Network<'a> {
    pub(super) fn new(model: &'a Transformer, caching: Caching, canvases: usize) -> Self {
        Self { model, caching, cache: None, work: vec![Work::default(); canvases] }
    }

    /// Drops what an earlier block stored, so that the next step computes every row.
    pub(super) fn start_block(&mut self) {
        self.cache = None;
    }

    /// The head's inputs at some positions of each canvas, while its block in `blocks` is denoised. Nothing is computed
    /// for a canvas without positions.
    ///
    /// # Shapes
    /// `[positions of all canvases, D]`.
    pub(super) fn head_inputs(
        &mut self,
        canvases: &[Vec<u32>],
        positions: &[Vec<usize>],
        blocks: &[Range<usize>],
    ) -> Tensor {
        let before = usize::from(self.model.config.logits_shifted);
        let caching = if self.cache.is_some() { self.caching } else { Caching::None };
        let rows_of = |((ids, positions), block): ((&Vec<u32>, &Vec<usize>), _)| match positions.is_empty() {
            true => 0..0,
            false => caching.later_rows(block, ids.len(), before),
        };
        let rows: Vec<Range<usize>> = canvases.iter().zip(positions).zip(blocks).map(rows_of).collect();
        for (work, rows) in self.work.iter_mut().zip(&rows) {
            *work = *work + Work { forwards: u64::from(!rows.is_empty()), rows: rows.len() as u64 };
        }
        // A cache addresses rows by their place in the batch, so every canvas keeps its place, computed or not.
        let keeps_place = self.caching != Caching::None;
        let packed = |(ids, rows): (&'_ Vec<u32>, &Range<usize>)| match keeps_place || !rows.is_empty() {
            true => ids.len(),
            false => 0,
        };
        let lengths = canvases.iter().zip(&rows).map(packed);
        let batch = Batch::pack(canvases.iter().zip(lengths).map(|(ids, len)| &ids[..len]));
        let starts = || batch.sequences.iter().map(|s| s.start);
        let predicted: Vec<usize> =
            starts().zip(positions).flat_map(|(start, at)| at.iter().map(move |i| start + i)).collect();
        if !keeps_place {
            return self.model.predicting_inputs(&batch, &predicted);
        }
        let computed: Vec<usize> =
            starts().zip(&rows).flat_map(|(start, rows)| rows.clone().map(move |i| start + i)).collect();
        let cache = self.cache.get_or_insert_with(|| KeysValues::new(self.model, &batch));
        self.model.predicting_inputs_cached(&batch, cache, Part { computed: &computed, predicted: &predicted })
    }
}
