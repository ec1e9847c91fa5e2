//! How many positions a model was trained for, as its config.json says, and the warning for sequences that have more.
//! Weft computes any number of positions: RoPE has no end, but what the model makes of positions it never saw is open.

use serde::Serialize;

use super::config::ModelConfig;
use crate::counted::{counted, verb};

/// The fields that name the number: LLaDA's, and the one that transformers' models share.
const FIELDS: [&str; 2] = ["max_sequence_length", "max_position_embeddings"];

/// The number of positions that the model was trained for and the field that names it; `None` if no field does.
pub fn trained(config: &ModelConfig) -> Option<(u64, &'static str)> {
    let named = |field: &'static str| Some((config.field(field)?.as_u64().filter(|n| *n > 0)?, field));
    FIELDS.into_iter().filter_map(named).min_by_key(|(positions, _)| *positions)
}

/// A warning if sequences of `longest` tokens have more positions than the model was trained for. `what` names the
/// longest sequence, and `fix` says how to shorten it to the given number.
pub fn warning(config: &ModelConfig, longest: usize, what: &str, fix: impl Fn(u64) -> String) -> Option<String> {
    let (positions, field) = trained(config).filter(|(positions, _)| longest as u64 > *positions)?;
    Some(format!(
        "{what} has {longest} tokens, but the model was trained for {positions} positions ({field} in config.json) and may \
         fail beyond them; {}",
        fix(positions)
    ))
}

/// How much of a recipe's sequences lies beyond the positions that the model was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Beyond {
    /// The number of positions that the model was trained for.
    pub positions: u64,
    /// The number of sequences that have more tokens than that.
    pub examples: usize,
    /// The number of their tokens that lie beyond these positions.
    pub tokens: u64,
    /// The tokens of the longest sequence.
    pub longest: usize,
}

impl Beyond {
    /// How much of sequences of these lengths lies beyond; `None` if nothing does.
    pub fn of(config: &ModelConfig, lengths: impl Iterator<Item = usize>) -> Option<Self> {
        let (positions, _) = trained(config)?;
        let mut beyond = Self { positions, examples: 0, tokens: 0, longest: 0 };
        for length in lengths.filter(|length| *length as u64 > positions) {
            beyond.examples += 1;
            beyond.tokens += length as u64 - positions;
            beyond.longest = beyond.longest.max(length);
        }
        (beyond.examples > 0).then_some(beyond)
    }

    /// The warning.
    pub fn warning(&self, config: &ModelConfig) -> Option<String> {
        let Self { positions, examples, tokens, longest } = self;
        warning(config, *longest, "the longest row", |_| {
            let have = verb(*examples, ["has", "have"]);
            let (examples, tokens) = (counted(*examples, "example"), counted(*tokens, "token"));
            format!("{examples} {have} {tokens} there; set data.max_seq_len={positions}")
        })
    }
}
