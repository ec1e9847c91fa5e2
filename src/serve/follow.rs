//! An answer's text as it grows: what is new in it, and where a stop string ends it. The text sent so far is always a prefix of
//! the whole answer.

use std::sync::Arc;

/// The text of an answer so far.
pub(super) struct Follow {
    stop: Arc<[String]>,
    sent: String,
    stopped: Option<String>,
}

impl Follow {
    pub(super) fn new(stop: Arc<[String]>) -> Self {
        Self { stop, sent: String::new(), stopped: None }
    }

    /// The text that can be sent now that the answer begins with `text`.
    pub(super) fn grow(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        if let Some(at) = first_stop(text, &self.stop) {
            self.stopped = Some(text[..at].to_owned());
            return self.more(&text[..at]);
        }
        // A character's bytes may be split between tokens, and a stop string between blocks.
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        self.more(&whole[..whole.len() - held_back(whole, &self.stop)])
    }

    /// The rest of the answer that is still to be sent, and the whole answer, which is `text` unless a stop string ended it.
    pub(super) fn finish(&mut self, text: &str) -> (String, String) {
        if self.stopped.is_none() {
            self.stopped = first_stop(text, &self.stop).map(|at| text[..at].to_owned());
        }
        let whole = self.stopped.clone().unwrap_or_else(|| text.to_owned());
        (self.more(&whole), whole)
    }

    /// Whether a stop string has ended the answer.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    fn more(&mut self, text: &str) -> String {
        // Some tokenizers decode a prefix differently once more tokens follow; nothing is sent until the texts agree again.
        let Some(more) = text.strip_prefix(&self.sent).map(str::to_owned) else { return String::new() };
        self.sent.push_str(&more);
        more
    }
}

/// The position at which the first stop string begins.
pub(super) fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// The number of bytes at the end that may be the beginning of a stop string.
fn held_back(text: &str, stops: &[String]) -> usize {
    let begins = |len: &usize| {
        let end = text.get(text.len() - len..);
        end.is_some_and(|end| stops.iter().any(|stop| stop.len() > end.len() && stop.starts_with(end)))
    };
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    (1..longest.min(text.len() + 1)).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(stops: &[&str], texts: &[&str]) -> (Vec<String>, String) {
        let mut follow = Follow::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let (last, before) = texts.split_last().expect("there is a text");
        let mut sent: Vec<String> = before.iter().map(|text| follow.grow(text)).collect();
        let (rest, whole) = follow.finish(last);
        sent.push(rest);
        assert_eq!(sent.concat(), whole, "what is sent is the whole");
        (sent, whole)
    }

    #[test]
    fn texts_grow() {
        assert_eq!(follow(&[], &["", "ab", "ab", "abcd"]).0, ["", "ab", "", "cd"]);
        assert_eq!(follow(&[], &["a\u{fffd}", "a\u{e9}b"]).0, ["a", "\u{e9}b"], "half a character waits");
        assert_eq!(follow(&[], &["a\u{fffd}"]).1, "a\u{fffd}", "unless it stays half");
    }

    #[test]
    fn stop_strings_end_them() {
        assert_eq!(
            follow(&["\n\n", "END"], &["a EN", "a END b"]),
            (vec!["a ".to_owned(), String::new()], "a ".to_owned())
        );
        assert_eq!(
            follow(&["END"], &["a EN", "a ENTER"]),
            (vec!["a ".to_owned(), "ENTER".to_owned()], "a ENTER".to_owned())
        );
        assert_eq!(follow(&["b", "a"], &["xab"]).1, "x", "the first one counts");
        assert_eq!(follow(&["\u{e9}\u{e9}"], &["a\u{e9}", "a\u{e9}\u{e9}"]).1, "a");
        assert_eq!(follow(&["aab"], &["aa", "aaa", "aaab"]).1, "a");
        assert_eq!(follow(&["x"], &["x"]).1, "");
        assert_eq!(follow(&["x"], &["ax", "axyz"]).0, ["a", ""], "nothing follows a stop string");
    }
}
