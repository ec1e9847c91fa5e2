//! The files of a checkpoint's tokenizer. What one of them leaves out is looked up in the others, as transformers does.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::files::read_if_there;

/// The files that may hold what tokenizer_config.json lacks.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// The text of tokenizer_config.json, completed by the folder's other files: special tokens from
/// special_tokens_map.json, and tokens beyond the vocabulary from added_tokens.json. A damaged tokenizer_config.json is
/// returned as it is.
///
/// # Errors
/// A file that can't be read; another file than tokenizer_config.json that is damaged.
pub(super) fn config(folder: &Path) -> Result<String> {
    let text = read_if_there(&folder.join("tokenizer_config.json"))?.unwrap_or_else(|| "{}".to_owned());
    let Ok(Value::Object(mut config)) = serde_json::from_str(&text) else { return Ok(text) };
    let given = config.len();
    // An end token that is null is as good as none; any other null says that there is no such token.
    config.retain(|key, value| key != "eos_token" || !value.is_null());
    match object(&folder.join(SPECIAL_TOKENS)) {
        Ok(special) => {
            for (key, value) in special {
                config.entry(key).or_insert(value);
            }
        }
        // The end token is all that a tokenizer can't do without.
        Err(error) if config.contains_key("eos_token") => eprintln!("warning: {error}; the run goes on without it"),
        Err(error) => return Err(error),
    }
    if !config.contains_key("added_tokens_decoder") {
        let added = object(&folder.join(ADDED_TOKENS))?;
        if !added.is_empty() {
            let decoder = added_tokens_decoder(added, &config);
            config.insert("added_tokens_decoder".to_owned(), decoder);
        }
    }
    Ok(if config.len() == given { text } else { Value::Object(config).to_string() })
}

/// The fields of a JSON file; none if it is absent.
fn object(path: &Path) -> Result<Map<String, Value>> {
    let Some(text) = read_if_there(path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text)
        .map_err(|e| Error::Format { path: path.to_owned(), reason: format!("not an object of JSON ({e})") })
}

/// The `added_tokens_decoder` that stands for the tokens and ids of added_tokens.json; a token that the configuration
/// names is a special one.
fn added_tokens_decoder(added: Map<String, Value>, config: &Map<String, Value>) -> Value {
    let listed = config.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten();
    let named = config.iter().filter(|(key, _)| key.ends_with("_token")).map(|(_, token)| token);
    let special: Vec<String> = named.chain(listed).filter_map(text_of).collect();
    let token = |(content, id): (String, Value)| {
        let is_special = special.contains(&content);
        (id.to_string(), json!({ "content": content, "special": is_special, "normalized": !is_special }))
    };
    added.into_iter().map(token).collect::<Map<String, Value>>().into()
}

/// A special token is either a string or an object that contains it.
pub(crate) fn text_of(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// Reads the tokenizer of a tokenizer.json. Like transformers, it neither truncates nor pads, whatever the file asks
/// for. Added tokens have the ids that the file gives them.
pub(super) fn tokenizer(json: &[u8]) -> std::result::Result<Tokenizer, String> {
    let build = |json: &[u8]| Tokenizer::from_bytes(json).map_err(|e| e.to_string());
    let mut tokenizer = build(json)?;
    let Added { added_tokens } = serde_json::from_slice(json).unwrap_or_default();
    let has_id = |added: &AddedToken| tokenizer.token_to_id(&added.content) == Some(added.id);
    if !added_tokens.iter().all(has_id) {
        tokenizer = build(&with_ids(json, &added_tokens)?)?;
    }
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The added tokens of a tokenizer.json.
#[derive(Default, Deserialize)]
struct Added {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Puts the added tokens into the model's vocabulary. The `tokenizers` crate numbers added tokens one after another
/// from the vocabulary's size, so ids behind a gap would become others; ids of the vocabulary it leaves as they are.
fn with_ids(json: &[u8], added_tokens: &[AddedToken]) -> std::result::Result<Vec<u8>, String> {
    let mut fields: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if let Some(vocab) = fields.pointer_mut("/model/vocab").and_then(Value::as_object_mut) {
        for AddedToken { id, content } in added_tokens {
            vocab.entry(content.as_str()).or_insert(json!(id));
        }
    }
    Ok(fields.to_string().into_bytes())
}
