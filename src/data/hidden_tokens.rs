//! Hides special tokens in the turns and tools of a chat before it is rendered: each becomes a private character that
//! occurs nowhere else in the chat. `typed_tokens` encodes the rendered text, with their texts back in place.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::chat::Turn;
use super::typed_tokens::SpecialFinder;

/// The last private character of Unicode; signs are taken from it downwards.
const LAST: u32 = 0x0010_FFFD;
/// The first private character of the last plane.
const FIRST: u32 = 0x0010_0000;

/// The special tokens that occur as text in a chat, each with the character in its place.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Sign, text and index of each, in the order in which they occur first.
    tokens: Vec<(char, String, usize)>,
    /// The private characters of the chat itself.
    taken: BTreeSet<char>,
}

impl Hidden {
    /// Hides nothing yet. The signs will be characters that don't occur in this text.
    pub(super) fn beside(text: &str) -> Self {
        let taken = text.chars().filter(|c| u32::from(*c) >= FIRST).collect();
        Self { tokens: vec![], taken }
    }

    /// Like [`Hidden::beside`], for the texts of turns and tools.
    pub(super) fn of(turns: &[Turn], tools: Option<&Value>) -> Self {
        let json = serde_json::to_string(&(turns, tools)).expect("turns are JSON");
        Self::beside(&json)
    }

    /// The indices of the hidden tokens.
    pub(super) fn ids(&self) -> impl Iterator<Item = usize> {
        self.tokens.iter().map(|(.., index)| *index)
    }

    /// The texts of the hidden tokens that occur in a rendered text.
    pub(super) fn within(&self, rendered: &str) -> Vec<String> {
        let tokens = self.tokens.iter().filter(|(sign, ..)| rendered.contains(*sign));
        tokens.map(|(_, text, _)| text.clone()).collect()
    }

    /// A text with the hidden tokens back in place.
    pub(super) fn shown(&self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for c in text.chars() {
            match self.tokens.iter().find(|(sign, ..)| *sign == c) {
                Some((_, token, _)) => shown.push_str(token),
                None => shown.push(c),
            }
        }
        shown
    }

    /// A text without its special tokens, except one that stays.
    pub(super) fn text(&mut self, finder: &SpecialFinder, text: &str, stays: Option<&str>) -> String {
        let (mut hidden, mut copied) = (String::with_capacity(text.len()), 0);
        for (range, index) in finder.find(text) {
            let token = &text[range.clone()];
            if Some(token) == stays {
                continue;
            }
            hidden.push_str(&text[copied..range.start]);
            hidden.push(self.sign(token, index));
            copied = range.end;
        }
        hidden.push_str(&text[copied..]);
        hidden
    }

    /// A turn without special tokens in its text and its other fields, except one that stays in the text.
    pub(super) fn turn(&mut self, finder: &SpecialFinder, turn: &Turn, stays: Option<&str>) -> Turn {
        let content = turn.content.as_ref().map(|content| self.text(finder, content, stays));
        // The template reads a turn's own fields by their names, so the names stay.
        let fields = turn.fields.iter().map(|(key, value)| (key.clone(), self.value(finder, value))).collect();
        Turn { content, fields, ..turn.clone() }
    }

    /// A value without special tokens in its texts and keys.
    pub(super) fn value(&mut self, finder: &SpecialFinder, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(finder, text, None).into(),
            Value::Array(items) => items.iter().map(|item| self.value(finder, item)).collect(),
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| (self.text(finder, key, None), self.value(finder, value));
                fields.iter().map(field).collect::<Map<String, Value>>().into()
            }
            other => other.clone(),
        }
    }

    fn sign(&mut self, token: &str, index: usize) -> char {
        if let Some((sign, ..)) = self.tokens.iter().find(|(.., of)| *of == index) {
            return *sign;
        }
        let free = |c: &char| !self.taken.contains(c) && self.tokens.iter().all(|(sign, ..)| sign != c);
        let sign = (FIRST..=LAST).rev().filter_map(char::from_u32).find(free);
        let sign = sign.expect("a chat has fewer special tokens than there are private characters");
        self.tokens.push((sign, token.to_owned(), index));
        sign
    }
}
