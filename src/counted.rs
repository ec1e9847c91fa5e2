//! Counts in sentences: "1 row", "2 rows". Sentences are in English only, so a noun's plural is its ending.

use std::fmt::Display;

/// A number that sentences count with.
pub trait Count: Display + PartialEq + From<u8> {}

impl<N: Display + PartialEq + From<u8>> Count for N {}

/// A number and its noun, given in the singular: `1 row`, `2 rows`, `3 batches`.
pub fn counted<N: Count>(count: N, noun: &str) -> String {
    let is_one = count == N::from(1);
    let ending = if noun.ends_with('s') || noun.ends_with("ch") { "es" } else { "s" };
    format!("{count} {noun}{}", if is_one { "" } else { ending })
}

/// The verb of a counted subject, given for one and for several: `verb(2, ["is", "are"])`.
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
