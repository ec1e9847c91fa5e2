//! How a run sees an example: the sequence that the network reads, and the tokens of it that may be masked. Training, its
//! evaluation on held-out rows and plans share it; the batches of such sequences are `model::batch`'s.

use std::ops::Range;

use crate::data::Example;
use crate::objective::Objective;
use crate::objective::blocks::{AnswerBlocks, BLOCK_LENGTH, Blocks};

/// How a run sees its examples.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Which part of an answer is noised at once.
    pub blocks: Blocks,
    /// Tokens per block.
    pub block_length: usize,
    /// The token that fills the last block.
    pub eos_token_id: u32,
}

/// An example as the network reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Prompt and clean answer, with its padding; masks behind a block that is noised by itself.
    pub ids: Vec<u32>,
    /// The tokens that may be masked: the answer, or the block of it that was drawn.
    pub answer: Range<usize>,
    /// How many of those tokens are the answer's own; the rest is padding.
    pub num_supervised: usize,
    /// The number of blocks among which one was drawn.
    pub drawn_of: usize,
}

impl View {
    /// The view of whole answers.
    pub const WHOLE: Self = Self { blocks: Blocks::None, block_length: BLOCK_LENGTH, eos_token_id: 0 };

    /// An objective's view.
    pub fn of(objective: &Objective, eos_token_id: u32) -> Self {
        Self { blocks: objective.blocks, block_length: objective.block_length, eos_token_id }
    }

    /// The sequence of a prompt and an answer whose first `own` tokens aren't padding. `u` in `[0, 1)` draws the block if
    /// one is noised by itself.
    pub fn sequence(&self, [prompt, answer]: [&[u32]; 2], own: usize, u: impl Fn() -> f64, mask: u32) -> Sequence {
        let mut ids = [prompt, answer].concat();
        let mut seen = prompt.len()..ids.len();
        let (mut num_supervised, mut drawn_of) = (own, 1);
        match self.blocks {
            Blocks::None => {}
            Blocks::Bd3lm => {
                ids.resize(self.rows_of(ids.len()) / 2, self.eos_token_id);
                seen.end = ids.len();
            }
            Blocks::Blockwise => {
                let blocks = AnswerBlocks { own, padded: answer.len(), block_length: self.block_length };
                let block = blocks.drawn(u());
                drawn_of = blocks.count();
                num_supervised = own.saturating_sub(block.start).min(block.len());
                seen = prompt.len() + block.start..prompt.len() + block.end;
                ids[seen.end..].fill(mask);
            }
        }
        Sequence { ids, answer: seen, num_supervised, drawn_of }
    }

    /// The tokens of an example's whole answer, with the end tokens that fill its last block.
    pub(crate) fn answer_len(&self, Example { prompt_ids, answer_ids }: &Example) -> usize {
        let (prompt, tokens) = (prompt_ids.len(), prompt_ids.len() + answer_ids.len());
        match self.blocks {
            Blocks::None | Blocks::Blockwise => answer_ids.len(),
            Blocks::Bd3lm => tokens.next_multiple_of(self.block_length) - prompt,
        }
    }

    /// The number of rows that the network reads for a sequence of this many tokens.
    pub fn rows_of(&self, tokens: usize) -> usize {
        match self.blocks {
            Blocks::None | Blocks::Blockwise => tokens,
            Blocks::Bd3lm => 2 * tokens.next_multiple_of(self.block_length),
        }
    }
}
