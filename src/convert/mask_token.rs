//! The mask token in the files of a tokenizer: found if it is there, else added as the first id behind the last one.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::json_edit::{edit, get, push, set};
use crate::data::chat_template::TextModel;
use crate::data::tokenizer_files::text_of;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use crate::model::facts::MASK_TOKENS;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The mask token of a tokenizer.
pub(super) struct MaskToken {
    pub content: String,
    pub id: u32,
    /// Whether the tokenizer's files lack it so far.
    pub is_new: bool,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

impl MaskToken {
    /// Finds the mask token of a folder's tokenizer: its `mask_token`, else an added token with a known name. If it
    /// has none, the token is `<|mask|>` with the first id behind the last one.
    ///
    /// # Errors
    /// A file that is missing or damaged; a `mask_token` that is no added token.
    pub fn find(folder: &Path, text: &TextModel) -> Result<Self> {
        let added = added_tokens(folder)?;
        let named = match read_if_there(&folder.join(CONFIG))? {
            Some(config) => named_mask(&folder.join(CONFIG), &config)?,
            None => None,
        };
        let known = |content: &str| added.get(content).map(|id| (content.to_owned(), *id));
        let found = match named {
            Some(name) => Some(known(&name).ok_or_else(|| Error::Config {
                path: folder.join(CONFIG),
                reason: format!("mask_token {name:?} is no added token of the tokenizer; remove it, or add the token"),
            })?),
            None => MASK_TOKENS.into_iter().find_map(known),
        };
        if let Some((content, id)) = found {
            return Ok(Self { content, id, is_new: false });
        }
        let last = added.into_values().max().unwrap_or(0).max(text.last_id());
        Ok(Self { content: MASK_TOKENS[0].to_owned(), id: last + 1, is_new: true })
    }

    /// The tokenizer's files that change, as names and new contents.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn edits(&self, folder: &Path) -> Result<Vec<(&'static str, String)>> {
        let has_tokenizer = folder.join(TOKENIZER).exists();
        let mut edits = vec![];
        for (name, edited) in [
            (TOKENIZER, &(|text: &str| self.in_tokenizer(text)) as &dyn Fn(&str) -> serde_json::Result<String>),
            (CONFIG, &|text| self.in_config(text, has_tokenizer)),
            (MAP, &|text| self.in_special_tokens(text)),
            (ADDED, &|text| if self.is_new { set(text, &self.content, &json!(self.id)) } else { Ok(text.to_owned()) }),
        ] {
            let Some(text) = read_if_there(&folder.join(name))? else { continue };
            let format = |e: serde_json::Error| Error::Format { path: folder.join(name), reason: e.to_string() };
            let edited = edited(&text).map_err(format)?;
            if edited != text {
                edits.push((name, edited));
            }
        }
        Ok(edits)
    }

    fn in_tokenizer(&self, text: &str) -> serde_json::Result<String> {
        if !self.is_new {
            return Ok(text.to_owned());
        }
        let token = json!({
            "id": self.id,
            "content": self.content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        });
        match get(text, "added_tokens")? {
            Some(_) => edit(text, "added_tokens", |tokens| push(tokens, &token)),
            None => set(text, "added_tokens", &json!([token])),
        }
    }

    /// tokenizer_config.json lists the added tokens if it did so before, or if no other file does.
    fn in_config(&self, text: &str, has_tokenizer: bool) -> serde_json::Result<String> {
        let token = json!({
            "content": self.content,
            "lstrip": false,
            "normalized": false,
            "rstrip": false,
            "single_word": false,
            "special": true,
        });
        let text = &*self.in_special_tokens(text)?;
        let (key, id) = ("added_tokens_decoder", self.id.to_string());
        match get(text, key)? {
            _ if !self.is_new => Ok(text.to_owned()),
            Some(_) => edit(text, key, |tokens| set(tokens, &id, &token)),
            None if has_tokenizer => Ok(text.to_owned()),
            None => set(text, key, &json!({ id: token })),
        }
    }

    fn in_special_tokens(&self, text: &str) -> serde_json::Result<String> {
        let named = get(text, "mask_token")?.map(serde_json::from_str::<Value>).transpose()?;
        match named.as_ref().and_then(text_of) {
            Some(named) if named == self.content => Ok(text.to_owned()),
            _ => set(text, "mask_token", &json!(self.content)),
        }
    }

    /// Checks that a folder's tokenizer reads the mask token as its one id.
    ///
    /// # Errors
    /// A tokenizer that reads it otherwise.
    pub fn check(&self, folder: &Path, source: &Path) -> Result<()> {
        let ids = TextModel::open(folder)?.encode(&self.content)?;
        match ids == [self.id] {
            true => Ok(()),
            false => Err(Error::Config {
                path: source.join(TOKENIZER),
                reason: format!(
                    "with {:?} added as token {} it reads that text as {ids:?}; add a mask token to the tokenizer and name \
                     it mask_token in {CONFIG}",
                    self.content, self.id
                ),
            }),
        }
    }
}

/// The `mask_token` of tokenizer_config.json.
fn named_mask(path: &Path, config: &str) -> Result<Option<String>> {
    let config: Value =
        serde_json::from_str(config).map_err(|e| Error::Format { path: path.to_owned(), reason: e.to_string() })?;
    Ok(text_of(&config["mask_token"]))
}

/// The ids of the tokens beyond the vocabulary, from every file that lists some.
fn added_tokens(folder: &Path) -> Result<BTreeMap<String, u32>> {
    let format = |name: &'static str| {
        move |e: serde_json::Error| Error::Format { path: folder.join(name), reason: e.to_string() }
    };
    let mut added = BTreeMap::new();
    if let Some(text) = read_if_there(&folder.join(ADDED))? {
        added = serde_json::from_str(&text).map_err(format(ADDED))?;
    }
    if let Some(text) = read_if_there(&folder.join(CONFIG))? {
        let tokens = get(&text, "added_tokens_decoder").map_err(format(CONFIG))?.unwrap_or("{}");
        let tokens: BTreeMap<u32, Value> = serde_json::from_str(tokens).map_err(format(CONFIG))?;
        added.extend(tokens.iter().filter_map(|(id, token)| Some((text_of(token)?, *id))));
    }
    if let Some(text) = read_if_there(&folder.join(TOKENIZER))? {
        let tokens = get(&text, "added_tokens").map_err(format(TOKENIZER))?.unwrap_or("[]");
        let tokens: Vec<AddedToken> = serde_json::from_str(tokens).map_err(format(TOKENIZER))?;
        added.extend(tokens.into_iter().map(|token| (token.content, token.id)));
    }
    Ok(added)
}
