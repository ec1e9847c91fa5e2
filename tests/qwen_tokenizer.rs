//! Dream's tokenizer from `vocab.json` and `merges.txt`, against transformers' numbers.

mod scratch;

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use weft::data::chat_template::TextModel;

const MERGES: [&str; 14] =
    ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "o r", "Ġwo r", "' s", "1 2", "Ċ Ċ", "Ġ Ġ", "Ã ©", "! !"];
const ADDED: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"];

/// The letter that stands for a byte in byte-level BPE: itself if it can be seen, else one from U+0100 on.
fn letters() -> Vec<char> {
    let seen = |b: u32| (33..127).contains(&b) || (161..173).contains(&b) || (174..256).contains(&b);
    let mut unseen = 255;
    let letter = |b: u32| match seen(b) {
        true => char::from_u32(b).expect("a letter"),
        false => {
            unseen += 1;
            char::from_u32(unseen).expect("a letter")
        }
    };
    (0..256).map(letter).collect()
}

/// A folder with the 256 bytes, a few merges and Dream's kind of added tokens.
fn folder(name: &str, class: &str) -> PathBuf {
    let folder = scratch::folder(name);
    let tokens = letters().into_iter().map(String::from).chain(MERGES.map(|m| m.replace(' ', "")));
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Map<String, Value> = ADDED
        .iter()
        .enumerate()
        .map(|(i, token)| ((vocab.len() + i).to_string(), json!({ "content": token, "special": true })))
        .collect();
    let config = json!({ "tokenizer_class": class, "eos_token": ADDED[0], "added_tokens_decoder": added });
    fs::write(folder.join("vocab.json"), Value::Object(vocab).to_string()).expect("written");
    fs::write(folder.join("merges.txt"), format!("#version: 0.2\n{}\n", MERGES.join("\n"))).expect("written");
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("written");
    folder
}

#[test]
fn tokens_are_those_of_transformers() {
    // Qwen2Tokenizer of transformers 5.23.0 on the same files.
    let expected = [259, 263, 108, 100, 264, 32, 49, 50, 269, 266, 32, 32, 99, 97, 102, 268, 32, 272, 10, 273, 120];
    for class in ["DreamTokenizer", "Qwen2Tokenizer"] {
        let text = TextModel::open(&folder(class, class)).unwrap_or_else(|e| panic!("{e}"));
        let encoded = text.encode("hello world's 12!!\n\n  cafe\u{301} <|im_end|>\n<|mask|>x").expect("it encodes");
        assert_eq!(encoded, expected);
        assert_eq!(text.decode_answer(&encoded), "hello world's 12!!\n\n  caf\u{e9} ", "an answer ends with the turn");
        assert_eq!(text.end_token_ids(), [270, 272]);
        assert_eq!(text.vocab_size(), 274);
    }
}

#[test]
fn other_tokenizers_need_a_tokenizer_json() {
    let folder = folder("other", "GPT2Tokenizer");
    let message = TextModel::open(&folder).err().expect("it is refused").to_string();
    assert!(message.contains("tokenizer.json: No such file"), "{message}");
}

#[test]
fn damaged_files_are_errors() {
    for (file, bytes) in [("vocab.json", "{"), ("vocab.json", "{\"a\": -1}"), ("merges.txt", "no such pair here\n")] {
        let folder = folder("damaged", "DreamTokenizer");
        fs::write(folder.join(file), bytes).expect("written");
        let message = TextModel::open(&folder).err().expect("it is refused").to_string();
        assert!(message.contains("is damaged or in another format"), "{file}: {message}");
    }
}
