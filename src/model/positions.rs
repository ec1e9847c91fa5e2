//! How many positions a model was trained for, as its config.json says, and the warning for sequences that have more.
//! Weft computes any number of positions: RoPE has no end, but what the model makes of positions it never saw is open.

use super::config::ModelConfig;

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

/// A warning if the longest of a recipe's sequences has more positions than the model was trained for.
pub fn warning_of_rows(config: &ModelConfig, longest: usize) -> Option<String> {
    warning(config, longest, "the longest row", |positions| format!("set data.max_seq_len={positions}"))
}
