//! Counts in sentences: "1 row", "2 rows". All sentences are in English, so a noun's plural follows from its ending.

use std::fmt::Display;

/// A type of number that sentences can contain.
pub trait Count: Display + PartialEq + From<u8> {}

impl<N: Display + PartialEq + From<u8>> Count for N {}

/// A number with its noun, which is given in the singular: `1 row`, `2 rows`, `3 batches`.
pub fn counted<N: Count>(count: N, noun: &str) -> String {
    let is_one = count == N::from(1);
    let ending = if noun.ends_with('s') || noun.ends_with("ch") { "es" } else { "s" };
    format!("{count} {noun}{}", if is_one { "" } else { ending })
}

/// The verb for a counted subject, given in the singular and the plural: `verb(2, ["is", "are"])`.
pub fn verb<N: Count>(count: N, [one, several]: [&'static str; 2]) -> &'static str {
    if count == N::from(1) { one } else { several }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_the_rest_plural() {
        assert_eq!([counted(0, "row"), counted(1_u64, "row"), counted(2_usize, "row")], ["0 rows", "1 row", "2 rows"]);
        assert_eq!([counted(1, "micro-batch"), counted(2, "micro-batch")], ["1 micro-batch", "2 micro-batches"]);
        assert_eq!([counted(1.0, "token"), counted(1.5, "token")], ["1 token", "1.5 tokens"]);
        assert_eq!([verb(1, ["is", "are"]), verb(2, ["is", "are"])], ["is", "are"]);
    }
}
