//! Objectives in blocks: which part of an answer is noised at once, and what the network sees of the rest meanwhile.
//!
//! ```text
//! none       the answer is one canvas: all of it may be masked, and every token sees every other
//! blockwise  one block of the answer is drawn and noised; the prompt and the blocks before it are clean, everything
//!            after it is masked, and the loss is the block's alone
//! bd3lm      the network reads [x_t ; x_0], the noised sequence and the clean one; tokens of a block of x_t see each
//!            other and the blocks before them in x_0, so that all blocks are trained at once
//! ```
//!
//! Rates, weights and divisors are the objective's own, for the tokens that may be masked: with `blockwise` those of the
//! block, so that WeFT's `beta_ref` is the block's mean. Blocks of `blockwise` are counted from the start of the answer,
//! as LLaDA's sampler counts them; blocks of `bd3lm` are counted from the start of the sequence, and an answer is padded
//! by end tokens to a whole block.
//!
//! # Source
//! Blockwise SFT, arXiv 2508.19529; BD3LM, arXiv 2503.09573, with dLLM's layout of the two halves.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The default of `objective.block_length`, as in Weft's sampler.
pub(crate) const BLOCK_LENGTH: usize = 32;

/// Which part of an answer is noised at once, and what the network sees of the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// The whole answer is one canvas.
    #[default]
    None,
    /// One drawn block, with clean tokens before it and masks after it.
    Blockwise,
    /// All blocks at once, each with clean blocks before it.
    Bd3lm,
}

impl Blocks {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Blockwise => "blockwise",
            Self::Bd3lm => "bd3lm",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    /// An unknown name, with those that are known.
    pub fn parse(name: &str) -> Result<Self> {
        let known = [Self::None, Self::Blockwise, Self::Bd3lm];
        let found = known.into_iter().find(|blocks| blocks.name() == name);
        found
            .ok_or_else(|| Error::Usage(format!("{name:?}: the known values are {}", known.map(Self::name).join(", "))))
    }
}

/// The blocks of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerBlocks {
    /// Tokens of the answer itself.
    pub own: usize,
    /// Tokens of the answer with the padding after it.
    pub padded: usize,
    /// Tokens per block.
    pub block_length: usize,
}

impl AnswerBlocks {
    /// The number of blocks in which the answer has tokens of its own; at least 1.
    pub fn count(&self) -> usize {
        self.own.div_ceil(self.block_length).max(1)
    }

    /// The block that a uniform draw `u` in `[0, 1)` chooses: each is equally likely. Padding that fills the last block
    /// belongs to it.
    pub fn drawn(&self, u: f64) -> Range<usize> {
        let index = ((u * self.count() as f64) as usize).min(self.count() - 1);
        let start = (index * self.block_length).min(self.padded);
        start..start.saturating_add(self.block_length).min(self.padded)
    }
}
