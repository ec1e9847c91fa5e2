//! Special tokens that people type within a turn, such as `<|eot_id|>` in a question about templates. They are read as
//! text, unless a recipe or an option asks for tokens. A chat is rendered with a private character in place of each of
//! them, which distinguishes them from the special tokens that the template itself writes. `hidden_tokens` puts the
//! characters in, and this file encodes the rendered text. A text without typed special tokens takes the ordinary path.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::chat::Turn;
use super::guarded::guarded;
use super::hidden_tokens::Hidden;
use crate::error::{self, Error};

/// How special tokens in the turns of a prompt are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecialTokens {
    /// Text like any other.
    #[default]
    Text,
    /// Tokens, like those of the chat template.
    Tokens,
}

impl SpecialTokens {
    /// Reads a value's name.
    ///
    /// # Errors
    /// A name that isn't known.
    pub fn parse(name: &str) -> error::Result<Self> {
        match name {
            "text" => Ok(Self::Text),
            "tokens" => Ok(Self::Tokens),
            _ => Err(Error::Usage("the known values are text and tokens".to_owned())),
        }
    }
}

/// The special tokens of a tokenizer.
pub(super) struct SpecialFinder {
    /// The tokens by the first byte of their texts, the longest first, each with its index.
    by_first: Vec<Vec<(String, usize)>>,
    /// The ids by index.
    ids: Vec<u32>,
    /// The token for characters that the vocabulary lacks.
    unk: Option<u32>,
    /// Made when it is first needed, because most data sets have no special tokens in their prompts.
    renamed: OnceLock<Result<Renamed, String>>,
}

/// A tokenizer for which the texts of special tokens are text like any other, and which knows the special tokens by
/// other names, made of characters that no text contains.
struct Renamed {
    tokenizer: Tokenizer,
    /// The real ids by the ids that this tokenizer gives to the names.
    ids: HashMap<u32, u32>,
}

/// The first of the 32 noncharacters that names are made of. Unicode keeps them out of all texts.
const DIGITS: u32 = 0xFDD0;

/// The name of the special token of this index.
fn name(index: usize) -> String {
    let digit = |place: u32| char::from_u32(DIGITS + (index as u32 >> (5 * place)) % 32).expect("a noncharacter");
    (0..4).rev().map(digit).collect()
}

fn is_of_names(c: char) -> bool {
    (DIGITS..DIGITS + 32).contains(&u32::from(c))
}

impl SpecialFinder {
    pub(super) fn new(tokenizer: &Tokenizer, unk: Option<u32>) -> Self {
        let special: BTreeMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let special = special.into_iter().filter(|(_, token)| token.special && !token.content.is_empty());
        let (mut by_first, mut ids) = (vec![vec![]; 256], vec![]);
        for (id, token) in special {
            by_first[usize::from(token.content.as_bytes()[0])].push((token.content, ids.len()));
            ids.push(id);
        }
        by_first.iter_mut().for_each(|tokens| tokens.sort_by_key(|(text, _): &(String, usize)| Reverse(text.len())));
        Self { by_first, ids, unk, renamed: OnceLock::new() }
    }

    /// The special tokens in a text, from left to right, each the longest at its place.
    pub(super) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, usize)> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            let at = |(at, first): (usize, &u8)| {
                let tokens = &self.by_first[usize::from(*first)];
                let is_here = |(token, _): &&(String, usize)| text.as_bytes()[at..].starts_with(token.as_bytes());
                let (token, index) = tokens.iter().find(is_here)?;
                Some((at..at + token.len(), *index))
            };
            let found = text.as_bytes().iter().enumerate().skip(from).find_map(at)?;
            from = found.0.end;
            Some(found)
        })
    }

    /// Whether turns or tools contain a special token.
    pub(super) fn is_in(&self, turns: &[Turn], tools: Option<&Value>) -> bool {
        let in_turn =
            |turn: &Turn| self.is_in_text(turn.text()) || turn.fields.values().any(|value| self.is_in_value(value));
        turns.iter().any(in_turn) || tools.is_some_and(|tools| self.is_in_value(tools))
    }

    /// Whether a text contains a special token.
    pub(super) fn is_in_text(&self, text: &str) -> bool {
        self.find(text).next().is_some()
    }

    fn is_in_value(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.is_in_text(text),
            Value::Array(items) => items.iter().any(|item| self.is_in_value(item)),
            Value::Object(fields) => fields.iter().any(|(key, value)| self.is_in_text(key) || self.is_in_value(value)),
            _ => false,
        }
    }

    /// The tokens of a rendered text: the special tokens in it are tokens, the hidden ones are text.
    ///
    /// # Errors
    /// A tokenizer that can't read them as text.
    pub(super) fn ids(&self, tokenizer: &Tokenizer, rendered: &str, hidden: &Hidden) -> Result<Vec<u32>, String> {
        let renamed = self.renamed.get_or_init(|| self.rename(tokenizer)).as_ref().map_err(Clone::clone)?;
        // 1. The text with names in place of the template's special tokens, and with the text of the typed ones.
        let (mut text, mut copied, mut written) = (String::with_capacity(rendered.len()), 0, vec![]);
        for (range, index) in self.find(rendered) {
            text.push_str(&hidden.shown(&rendered[copied..range.start]));
            text.push_str(&name(index));
            written.push(self.ids[index]);
            copied = range.end;
        }
        text.push_str(&hidden.shown(&rendered[copied..]));
        if rendered.contains(is_of_names) {
            return Err(
                "the prompt holds a noncharacter (U+FDD0 to U+FDEF) beside special tokens; remove it".to_owned()
            );
        }
        // 2. Its tokens, with the ids of the special tokens in place of those of their names.
        let encoded = guarded(|| renamed.tokenizer.encode_fast(text, false).map_err(|e| e.to_string()))?;
        let ids = encoded.get_ids();
        // Some tokenizers, such as those of SentencePiece's unigram models, find special tokens in any text.
        let is_found = |id: &u32| Some(*id) != self.unk && hidden.ids().any(|hidden| self.ids[hidden] == *id);
        let mut special = ids.iter().filter_map(|id| renamed.ids.get(id));
        if ids.iter().any(is_found) || !special.by_ref().eq(&written) {
            return Err(
                "this tokenizer can't read special tokens as text; remove them from the turns, or ask for tokens \
                        (data.special_tokens = \"tokens\", --special-tokens tokens)"
                    .to_owned(),
            );
        }
        Ok(ids.iter().map(|id| *renamed.ids.get(id).unwrap_or(id)).collect())
    }

    fn rename(&self, tokenizer: &Tokenizer) -> Result<Renamed, String> {
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        let added = tokenizer.get_added_tokens_decoder();
        let renamed =
            |(index, id): (usize, &u32)| AddedToken { content: name(index), special: false, ..added[id].clone() };
        let tokens: Vec<AddedToken> = self.ids.iter().enumerate().map(renamed).collect();
        tokenizer.add_tokens(tokens).map_err(|e| e.to_string())?;
        let id = |index: usize| {
            tokenizer.token_to_id(&name(index)).ok_or_else(|| "its special tokens have no ids".to_owned())
        };
        let ids = (0..self.ids.len()).map(|index| Ok((id(index)?, self.ids[index]))).collect::<Result<_, String>>()?;
        Ok(Renamed { tokenizer, ids })
    }
}
