//! Dream's tokenizer. Its checkpoints contain `vocab.json` and `merges.txt` but no `tokenizer.json`: it is Qwen2's
//! byte-level BPE, whose splitting and normalisation the files don't describe.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::read_text;

/// The classes in tokenizer_config.json that stand for this tokenizer.
const CLASSES: [&str; 4] = ["DreamTokenizer", "DreamTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"];

/// Where a text is split before merging: English contractions, words with the character before them, single digits,
/// punctuation with the line breaks after it, line breaks, spaces.
///
/// # Source
/// Qwen2's public tokenizer.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` equivalent to a folder's files; `None` if they belong to another tokenizer.
///
/// # Errors
/// A file that is missing or damaged.
pub(crate) fn tokenizer_json(folder: &Path, config: &Value) -> Result<Option<Vec<u8>>> {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    if !CLASSES.contains(&class) || !folder.join("vocab.json").exists() {
        return Ok(None);
    }
    let path = folder.join("vocab.json");
    let vocab: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    let merges = read_text(&folder.join("merges.txt"))?;
    let merges: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version") && !l.trim().is_empty()).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let split = json!({ "type": "Split", "pattern": { "Regex": SPLIT }, "behavior": "Isolated", "invert": false });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(config),
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, byte_level] },
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    });
    Ok(Some(tokenizer.to_string().into_bytes()))
}

/// The tokens beyond the vocabulary, in the order of their ids.
fn added_tokens(config: &Value) -> Vec<Value> {
    let added = config["added_tokens_decoder"].as_object().into_iter().flatten();
    let mut tokens: Vec<(u64, Value)> = added
        .filter_map(|(id, token)| {
            let id: u64 = id.parse().ok()?;
            let flag = |key: &str| token[key].as_bool().unwrap_or(false);
            let token = json!({
                "id": id,
                "content": token["content"],
                "single_word": flag("single_word"),
                "lstrip": flag("lstrip"),
                "rstrip": flag("rstrip"),
                "normalized": flag("normalized"),
                "special": flag("special"),
            });
            Some((id, token))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}
