//! How sequences of different lengths share a micro-batch: packed as they are, or with answers padded by end tokens.

use serde::{Deserialize, Serialize};

use super::Example;

/// What follows an answer that is shorter than the longest of its micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Nothing: sequences are packed, and exactly one end token is supervised.
    #[default]
    None,
    /// End tokens, supervised like the answer, as in LLaDA's fine-tuning.
    Eos,
}

/// An answer with its padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaddedAnswer {
    /// The answer followed by the padding.
    pub ids: Vec<u32>,
    /// How many of the ids belong to the answer itself.
    pub num_supervised: usize,
}

/// The answers of a micro-batch. If `padding` is `eos`, they are padded until all sequences are as long as the longest.
pub fn pad_answers(examples: &[&Example], padding: Padding, eos_token_id: u32) -> Vec<PaddedAnswer> {
    let length = |e: &Example| e.prompt_ids.len() + e.answer_ids.len();
    let longest = examples.iter().map(|e| length(e)).max().unwrap_or(0);
    let pad = |e: &&Example| {
        let num_supervised = e.answer_ids.len();
        let mut ids = e.answer_ids.clone();
        if padding == Padding::Eos {
            ids.resize(longest - e.prompt_ids.len(), eos_token_id);
        }
        PaddedAnswer { ids, num_supervised }
    };
    examples.iter().map(pad).collect()
}
