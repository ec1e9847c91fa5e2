//! What a checkpoint's config.json may not say, and where it is said instead: the mask token's id, and whether the logits
//! are shifted. Each fact carries where it was found, so that a run can print it.

use std::borrow::Cow;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::family::Family;
use super::quantize::Quantization;
use crate::data::tokenizer_files::text_of;
use crate::error::{Error, Result};
use crate::files::read_if_there;

/// Contents by which a tokenizer's added token is known as its mask token.
///
/// # Source
/// The tokenizers of Dream, dLLM, LLaDA, Open-dLLM, SDAR and Fast-dLLM v2. The first one is dLLM's, which `weft convert` adds where a tokenizer
/// has none.
pub const MASK_TOKENS: [&str; 7] = ["<|mask|>", "<|MASK|>", "[MASK]", "<M>", "<|mdm_mask|>", "<[MASK]>", "|<MASK>|"];

/// What a user says of a checkpoint, against whatever its files say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The id of the mask token.
    pub mask_token_id: Option<u32>,
    /// Whether the logits that predict position i sit at position i-1.
    pub logits_shifted: Option<bool>,
    /// Whether f16 weights are rounded to bf16 as they are read; otherwise they are widened to f32.
    pub rounds_halves: bool,
    /// How the linear layers of the model's blocks are quantized when they are loaded.
    pub quantize: Option<Quantization>,
}

/// A value, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Where it was found, as words that follow "from".
    pub source: String,
}

/// The facts of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The id of the mask token.
    pub mask_token_id: Found<u32>,
    /// Whether the logits that predict position i sit at position i-1.
    pub logits_shifted: Found<bool>,
}

/// A token that a tokenizer's files add to its vocabulary.
#[derive(Clone, Debug, Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// What a checkpoint's tokenizer files say of special tokens. It takes no tokenizer: only their lists are read.
#[derive(Default)]
pub(crate) struct TokenizerFiles {
    /// The vocabulary proper, by id.
    vocabulary: std::collections::HashMap<u32, String>,
    added: Vec<Added>,
    /// The content of `mask_token`, and the file that has it.
    mask_token: Option<(String, &'static str)>,
}

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Option<Value>,
    #[serde(rename = "merges")]
    _merges: Option<IgnoredAny>,
}

impl TokenizerFiles {
    /// Reads the lists of a folder's tokenizer; a folder without one has empty lists.
    ///
    /// # Errors
    /// A file that can't be read or isn't JSON.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::of(folder, |name| Ok(read_if_there(&folder.join(name))?.map(Cow::from)))
    }

    /// Like [`TokenizerFiles::read`], from the texts that `text` has by the files' names; `folder` is named in errors.
    ///
    /// # Errors
    /// Those of [`TokenizerFiles::read`].
    pub(crate) fn of<'a>(folder: &Path, text: impl Fn(&str) -> Result<Option<Cow<'a, str>>>) -> Result<Self> {
        let files = Files { folder, text };
        let mut own = Self::default();
        if let Some(file) = files.json::<TokenizerJson>("tokenizer.json")? {
            own.added = file.added_tokens;
            own.take_vocabulary(file.model.and_then(|model| model.vocab).unwrap_or_default());
        } else if let Some(vocabulary) = files.json::<Value>("vocab.json")? {
            own.take_vocabulary(vocabulary);
        }
        for (name, id) in files.json::<Map<String, Value>>("added_tokens.json")?.into_iter().flatten() {
            own.add(id.as_u64(), &name);
        }
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            // A damaged map is reported where the tokenizer is opened.
            let fields = match files.json::<Map<String, Value>>(file) {
                Err(_) if file == "special_tokens_map.json" => None,
                fields => fields?,
            };
            let Some(fields) = fields else { continue };
            for (id, token) in fields.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
                own.add(id.parse().ok(), token["content"].as_str().unwrap_or_default());
            }
            let mask = fields.get("mask_token").and_then(text_of);
            own.mask_token = own.mask_token.or_else(|| mask.map(|mask| (mask, file)));
        }
        Ok(own)
    }

    fn take_vocabulary(&mut self, vocabulary: Value) {
        match vocabulary {
            Value::Object(tokens) => {
                let token = |(token, id): (String, Value)| Some((id.as_u64()? as u32, token));
                self.vocabulary = tokens.into_iter().filter_map(token).collect();
            }
            Value::Array(tokens) => {
                let token = |(id, entry): (usize, Value)| {
                    let content = entry.get(0).unwrap_or(&entry).as_str()?;
                    Some((id as u32, content.to_owned()))
                };
                self.vocabulary = tokens.into_iter().enumerate().filter_map(token).collect();
            }
            _ => {}
        }
    }

    fn add(&mut self, id: Option<u64>, content: &str) {
        let id = id.and_then(|id| u32::try_from(id).ok());
        if let Some(id) = id.filter(|id| self.added.iter().all(|token| token.id != *id)) {
            self.added.push(Added { id, content: content.to_owned() });
        }
    }

    fn id_of(&self, content: &str) -> Option<u32> {
        let added = self.added.iter().find(|token| token.content == content).map(|token| token.id);
        added.or_else(|| self.vocabulary.iter().find(|(_, token)| *token == content).map(|(id, _)| *id))
    }

    /// The mask token by its role, or the one added token with a name that only mask tokens have.
    fn mask(&self) -> Option<Found<u32>> {
        let by_role = self.mask_token.as_ref().and_then(|(content, file)| {
            let source = format!("mask_token {content:?} of {file}");
            self.id_of(content).map(|value| Found { value, source })
        });
        if by_role.is_some() {
            return by_role;
        }
        let named: Vec<&Added> = self.added.iter().filter(|token| MASK_TOKENS.contains(&&*token.content)).collect();
        match named[..] {
            [Added { id, content }] => {
                Some(Found { value: *id, source: format!("the tokenizer's added token {content:?}") })
            }
            _ => None,
        }
    }

    /// The text of an id that is an ordinary token rather than an added one.
    fn ordinary(&self, id: u32) -> Option<&str> {
        let is_added = self.added.iter().any(|token| token.id == id);
        let is_mask = |token: &str| {
            MASK_TOKENS.contains(&token) || self.mask_token.as_ref().is_some_and(|(content, _)| content == token)
        };
        self.vocabulary.get(&id).map(String::as_str).filter(|token| !is_added && !is_mask(token))
    }
}

/// A tokenizer's files as texts by name.
struct Files<'a, F> {
    folder: &'a Path,
    text: F,
}

impl<'a, F: Fn(&str) -> Result<Option<Cow<'a, str>>>> Files<'_, F> {
    /// A file's value; `None` if the file isn't there.
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = (self.text)(name)? else { return Ok(None) };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|e| Error::Format { path: self.folder.join(name), reason: e.to_string() })
    }
}

/// Finds the facts: what the user says comes first, then config.json, the tokenizer, and what is known of the family.
///
/// # Errors
/// A checkpoint that names no mask token, with how to name it.
pub(super) fn find(
    family: &'static Family,
    fields: &Map<String, Value>,
    tokenizer: &TokenizerFiles,
    overrides: Overrides,
) -> std::result::Result<Facts, String> {
    let by_user = || "the setting".to_owned();
    let by_family = || format!("its family, {}", family.name);
    let configured = |key: &str| fields.get(key).filter(|value| !value.is_null());
    let in_config = match configured("mask_token_id") {
        None => None,
        Some(id) => {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| format!("mask_token_id = {} is no token's id", fields["mask_token_id"]))?;
            Some(Found { value: id, source: "config.json".to_owned() })
        }
    };
    let in_tokenizer = tokenizer.mask();
    let other = in_tokenizer.as_ref().map(|found| (found.value, found.source.clone()));
    let given = overrides.mask_token_id.map(|value| Found { value, source: by_user() });
    let known = family.mask_token_id.map(|value| Found { value, source: by_family() });
    let Some(mut mask_token_id) = given.or(in_config).or(in_tokenizer).or(known) else {
        return Err(
            "no mask token: neither config.json has mask_token_id nor does the tokenizer name one; give its id by \
                    --mask-token-id N, or model.mask_token_id in a recipe, or turn an autoregressive checkpoint into a \
                    diffusion one by weft convert"
                .to_owned(),
        );
    };
    if let Some((id, source)) = other.filter(|(id, _)| *id != mask_token_id.value) {
        mask_token_id.source = format!("{}, against {id}, {source}", mask_token_id.source);
    }
    let logits_shifted = match (overrides.logits_shifted, configured("logits_shifted")) {
        (Some(value), _) => Found { value, source: by_user() },
        (None, Some(value)) => {
            let flag = value.as_bool().ok_or_else(|| format!("logits_shifted = {value} is neither true nor false"))?;
            Found { value: flag, source: "config.json".to_owned() }
        }
        (None, None) => Found { value: family.logits_shifted, source: by_family() },
    };
    Ok(Facts { mask_token_id, logits_shifted })
}

impl Facts {
    /// Refuses a mask token that stands for text; iLLaDA's, which its authors chose so, is known by its family.
    pub(super) fn check(&self, family: &Family, tokenizer: &TokenizerFiles) -> std::result::Result<(), String> {
        let Found { value: id, source } = &self.mask_token_id;
        match tokenizer.ordinary(*id).filter(|_| family.mask_token_id != Some(*id)) {
            None => Ok(()),
            Some(token) => {
                // What contradicts the id is the last clause.
                let source = source.split(", against").next().unwrap_or_default();
                let own = tokenizer.mask().filter(|own| own.value != *id);
                let own = own.map_or_else(String::new, |own| format!(", {} by {}", own.value, own.source));
                Err(format!(
                    "mask_token_id {id}, from {source}, is the ordinary token {token:?} of the tokenizer; give the mask token's \
                     own id{own}"
                ))
            }
        }
    }
}

impl std::fmt::Display for Facts {
    /// The facts as a run's first lines print them.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { mask_token_id: mask, logits_shifted: shift } = self;
        let place = if shift.value { "shifted: those at i-1 predict i" } else { "at the position they predict" };
        write!(f, "mask token {} (from {}); logits {place} (from {})", mask.value, mask.source, shift.source)
    }
}
