//! Makes characters visible that would act on a terminal or on the order of letters instead of being shown. Pages,
//! `weft data` and `--trace` print the texts of rows and models through this.

use std::borrow::Cow;

/// Whether a character would act instead of being shown: control characters except line breaks and tabs, and the marks
/// that change the direction of writing (`U+202E` makes a line read backwards).
///
/// # Source
/// Unicode Standard Annex 9, table 1, for the marks of direction.
fn is_hidden(c: char) -> bool {
    let is_mark = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    is_mark || c.is_control() && !matches!(c, '\n' | '\t')
}

/// The text with control characters and marks of direction in the form `\u{202e}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_hidden(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_shown() {
        assert_eq!(visible("evil \u{202e}txt.exe\u{2069}\u{200f}"), "evil \\u{202e}txt.exe\\u{2069}\\u{200f}");
        assert_eq!(visible("\u{1b}[31mred\u{7}\r\n\tnext\u{9b}"), "\\u{1b}[31mred\\u{7}\\r\n\tnext\\u{9b}");
        // Letters of every script and their joiners stay.
        for text in ["\u{5e9}\u{5dc}\u{5d5}\u{5dd}", "\u{1f468}\u{200d}\u{1f469}", "a\u{301} \u{2028}"] {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text));
        }
    }
}
