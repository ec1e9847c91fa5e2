//! What goes into the network: packed sequences, and the rows of them that are predicted.

use std::ops::Range;

use weft_kernels::attention::Visible;

use crate::objective::{Blocks, Objective};

/// Which tokens of its sequence a token attends to. Blocks are counted by position, from the start of the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionKind {
    /// All of them.
    #[default]
    Bidirectional,
    /// Those of its own block and of the blocks before it.
    BlockCausal {
        /// Tokens per block.
        block_length: usize,
    },
    /// A sequence is `[x_t ; x_0]`, a noised half and a clean half with the same positions. A noised token attends to its
    /// own block in the noised half and to the blocks before it in the clean half; a clean token attends to its own
    /// block and the blocks before it in the clean half.
    ///
    /// # Source
    /// BD3LM, arXiv 2503.09573, section 4.
    BlockDiffusion {
        /// Tokens per block.
        block_length: usize,
    },
}

impl AttentionKind {
    /// The attention with which an objective trains.
    pub fn of(objective: &Objective) -> Self {
        Self::of_blocks(objective.blocks, objective.block_length)
    }

    /// The attention with which blocks are trained.
    pub(crate) fn of_blocks(blocks: Blocks, block_length: usize) -> Self {
        match blocks {
            Blocks::None | Blocks::Blockwise => Self::Bidirectional,
            Blocks::Bd3lm => Self::BlockDiffusion { block_length },
        }
    }
}

/// A packed batch: sequences one after the other, without padding.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids `[N]`.
    pub ids: Vec<u32>,
    /// Positions within each sequence `[N]`.
    pub positions: Vec<u32>,
    /// The range of each sequence's tokens.
    pub sequences: Vec<Range<usize>>,
    /// Which tokens of its sequence a token attends to.
    pub attention_kind: AttentionKind,
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
        Self::pack_as(AttentionKind::Bidirectional, sequences.into_iter().map(|ids| [ids, ids]))
    }

    /// Packs sequences, each given noised and clean, for a kind of attention; only block diffusion reads the clean ones
    /// too. The row of a noised token is its sequence's start plus its position.
    pub fn pack_as<'a>(kind: AttentionKind, sequences: impl IntoIterator<Item = [&'a [u32]; 2]>) -> Self {
        let (ids, positions, ranges) = (vec![], vec![], vec![]);
        let mut batch = Self { ids, positions, sequences: ranges, attention_kind: kind, dropout_keys: None };
        for [noised, clean] in sequences {
            assert_eq!(noised.len(), clean.len(), "two halves of one length");
            let start = batch.ids.len();
            let halves = if batch.has_halves() { &[noised, clean][..] } else { &[noised] };
            for half in halves {
                batch.ids.extend(*half);
                batch.positions.extend(0..half.len() as u32);
            }
            batch.sequences.push(start..batch.ids.len());
        }
        batch
    }

    /// Whether a sequence is a noised half followed by a clean one.
    fn has_halves(&self) -> bool {
        matches!(self.attention_kind, AttentionKind::BlockDiffusion { .. })
    }

    /// Which rows of a sequence see which, `[rows, rows]` with 1 for seen: for comparisons. The network makes no such mask.
    pub(crate) fn attention_mask(&self, sequence: usize) -> Vec<u8> {
        let rows = self.sequences[sequence].clone();
        let Some(visible) = self.visible(rows.clone()) else { return vec![1; rows.len() * rows.len()] };
        let sees = |visible: &Visible, row: usize| {
            visible.ranges.iter().any(|[start, end]| (*start as usize..*end as usize).contains(&row))
        };
        visible.iter().flat_map(|visible| rows.clone().map(|row| u8::from(sees(visible, row)))).collect()
    }

    /// What each of some rows attends to, in the batch's rows; `None` if that is its whole sequence.
    pub(super) fn visible(&self, rows: impl Iterator<Item = usize>) -> Option<Vec<Visible>> {
        match self.attention_kind {
            AttentionKind::Bidirectional => None,
            AttentionKind::BlockCausal { block_length } | AttentionKind::BlockDiffusion { block_length } => {
                Some(rows.map(|row| self.visible_in_blocks(row, block_length)).collect())
            }
        }
    }

    fn visible_in_blocks(&self, row: usize, block_length: usize) -> Visible {
        let sequence = self.sequence_of(row);
        let len = if self.has_halves() { sequence.len() / 2 } else { sequence.len() };
        let position = self.positions[row] as usize;
        let (start, clean) = (position - position % block_length, sequence.end - len);
        let end = start.saturating_add(block_length).min(len);
        match row < clean {
            true => Visible::new(sequence.start + start..sequence.start + end, clean..clean + start),
            false => Visible::new(clean..clean, clean..clean + end),
        }
    }

    fn sequence_of(&self, row: usize) -> &Range<usize> {
        &self.sequences[self.sequences.partition_point(|sequence| sequence.end <= row)]
    }

    /// The row whose output predicts a token if logits are shifted: the row before it. No row comes before a sequence's
    /// first token, which its own row predicts. In block diffusion the first token of a later block is predicted by the
    /// clean row before it, which sees the blocks before the token, as an autoregressive model does.
    pub(super) fn row_before(&self, row: usize) -> usize {
        let position = self.positions[row] as usize;
        if position == 0 {
            return row;
        }
        let AttentionKind::BlockDiffusion { block_length } = self.attention_kind else { return row - 1 };
        let sequence = self.sequence_of(row);
        let len = sequence.len() / 2;
        let is_noised = row < sequence.start + len;
        if is_noised && position.is_multiple_of(block_length) { row - 1 + len } else { row - 1 }
    }

    /// Some of the batch's rows, ascending, as a batch of their own in which they keep their positions; dropout is off.
    pub(super) fn part(&self, rows: &[usize]) -> Self {
        let before = |token: usize| rows.partition_point(|row| *row < token);
        Self {
            ids: rows.iter().map(|row| self.ids[*row]).collect(),
            positions: rows.iter().map(|row| self.positions[*row]).collect(),
            sequences: self.sequences.iter().map(|s| before(s.start)..before(s.end)).collect(),
            // What a row attends to depends on the rows that aren't in the part, so the caller asks the whole batch.
            attention_kind: AttentionKind::Bidirectional,
            dropout_keys: None,
        }
    }
}
