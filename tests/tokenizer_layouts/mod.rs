//! Small tokenizers in the layouts of Qwen3's, Llama 3's and Llama 2's files.
#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Merges of byte-level BPE: `hello`, ` wor`, contractions, digits, line breaks, an accented letter.
pub const MERGES: [&str; 14] =
    ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "o r", "Ġwo r", "' s", "1 2", "Ċ Ċ", "Ġ Ġ", "Ã ©", "! !"];

/// Qwen3's added tokens right behind the vocabulary.
pub const DENSE: [u32; 6] = [270, 271, 272, 273, 274, 275];

/// The letter that stands for a byte in byte-level BPE: itself if it can be seen, else one from U+0100 on.
pub fn letters() -> Vec<String> {
    let seen = |b: u32| (33..127).contains(&b) || (161..173).contains(&b) || (174..256).contains(&b);
    let mut unseen = 255;
    let mut letter = |b: u32| match seen(b) {
        true => char::from_u32(b).expect("a letter"),
        false => {
            unseen += 1;
            char::from_u32(unseen).expect("a letter")
        }
    };
    (0..256).map(move |b| letter(b).to_string()).collect()
}

fn numbered(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect()
}

fn added(tokens: &[(u32, &str, bool)]) -> Vec<Value> {
    let token = |(id, content, special): &(u32, &str, bool)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special })
    };
    tokens.iter().map(token).collect()
}

/// What tokenizer_config.json says of added tokens.
fn decoder_of(added: &[Value]) -> Map<String, Value> {
    let token = |token: &Value| {
        let mut token = token.as_object().expect("a table").clone();
        (token.remove("id").expect("it has an id").to_string(), Value::Object(token))
    };
    added.iter().map(token).collect()
}

pub fn write(folder: &Path, file: &str, content: &Value) {
    fs::write(folder.join(file), content.to_string()).expect("it is written");
}

fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}

fn split(digits: &str) -> Value {
    let regex = format!(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+\
         |\\s+(?!\\S)|\\s+"
    );
    let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level()] })
}

/// Qwen3's added tokens; `ids` are those of the end of a text, the turn's marks, the thinking's marks, and the mask.
pub fn qwen3_added(ids: [u32; 6]) -> Vec<Value> {
    let [text, start, end, think, thought, mask] = ids;
    added(&[
        (text, "<|endoftext|>", true),
        (start, "<|im_start|>", true),
        (end, "<|im_end|>", true),
        (think, "<think>", false),
        (thought, "</think>", false),
        (mask, "<|mask|>", true),
    ])
}

/// Qwen3's layout: 270 tokens of byte-level BPE, and added tokens of these ids.
pub fn qwen3(folder: &Path, ids: [u32; 6], template: &str) {
    let vocab = numbered(letters().into_iter().chain(MERGES.map(|m| m.replace(' ', ""))));
    let added = qwen3_added(ids);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": { "type": "NFC" },
        "pre_tokenizer": split("\\p{N}"), "post_processor": byte_level(), "decoder": byte_level(),
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                   "vocab": vocab, "merges": MERGES },
    });
    let config = json!({
        "add_bos_token": false, "added_tokens_decoder": decoder_of(&added), "bos_token": null,
        "chat_template": template, "eos_token": { "__type": "AddedToken", "content": "<|im_end|>", "lstrip": false }, "errors": "replace",
        "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer", "unk_token": null,
    });
    write(folder, "tokenizer.json", &tokenizer);
    write(folder, "tokenizer_config.json", &config);
}

/// Llama 3's layout. The word ` world` is a token that no merge leads to.
pub fn llama3(folder: &Path, template: &str) {
    let tokens = letters().into_iter().chain(MERGES.map(|m| m.replace(' ', ""))).chain(["Ġworld".to_owned()]);
    let bos = "<|begin_of_text|>";
    let specials = [bos, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
    let specials: Vec<(u32, &str, bool)> = (271..).zip(specials).map(|(id, token)| (id, token, true)).collect();
    let added = added(&specials);
    let writes_bos = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { bos: { "id": bos, "ids": [271], "tokens": [bos] } },
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": split("\\p{N}{1,3}"),
        "post_processor": { "type": "Sequence", "processors": [byte_level(), writes_bos] }, "decoder": byte_level(),
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                   "vocab": numbered(tokens), "merges": MERGES },
    });
    let config = json!({
        "added_tokens_decoder": decoder_of(&added), "bos_token": bos, "chat_template": template,
        "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write(folder, "tokenizer.json", &tokenizer);
    write(folder, "tokenizer_config.json", &config);
}

/// Llama 2's layout: sentencepiece's BPE with a token for each byte.
pub fn llama2(folder: &Path) {
    let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
    let pieces =
        ["\u{2581}", "h", "e", "l", "o", "w", "r", "d", "\u{e9}", "he", "ll", "hell", "hello", "\u{2581}hello"];
    let merges = ["h e", "l l", "he ll", "hell o", "\u{2581} hello"];
    let specials = ["<unk>", "<s>", "</s>"];
    let tokens = specials.map(str::to_owned).into_iter().chain(bytes).chain(pieces.map(str::to_owned));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&[(0, "<unk>", true), (1, "<s>", true), (2, "</s>", true)]),
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" } ] },
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                   "vocab": numbered(tokens), "merges": merges },
    });
    let config = json!({
        "bos_token": { "__type": "AddedToken", "content": "<s>" },
        "eos_token": { "__type": "AddedToken", "content": "</s>" }, "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write(folder, "tokenizer.json", &tokenizer);
    write(folder, "tokenizer_config.json", &config);
}
