//! Tokenizers in the layouts of Qwen3, Llama 3 and Llama 2, against the ids and texts of transformers 5.24.0.

mod scratch;
mod tokenizer_layouts;

use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizer_layouts::{DENSE, write};
use weft::data::chat_template::TextModel;

/// Ids as in a vocabulary whose rows are rounded up: behind a gap, and with gaps between them.
const GAPS: [u32; 6] = [300, 301, 302, 310, 311, 400];
/// Words, a contraction, digits, white space; emoji of several code points, CJK; controls; marks that aren't seen.
const SAMPLES: [&str; 4] = [
    "hello world's 1234!!\n\n  x",
    "\u{1f600}\u{1f469}\u{200d}\u{1f680} \u{4f60}\u{597d} \u{65e5}\u{672c}",
    "\u{0}\u{7}\t\u{1b}[0m\u{7f}\r\n\u{85}",
    "caf\u{e9} \u{a0}\u{202e}\u{feff}",
];

fn open(folder: &Path) -> TextModel {
    TextModel::open(folder).unwrap_or_else(|e| panic!("{e}"))
}

fn ids(text: &TextModel, sample: &str) -> Vec<u32> {
    text.encode(sample).expect("it encodes")
}

/// Encodes each sample to its ids and decodes it to itself, and decodes the beginnings of an emoji's bytes.
#[track_caller]
fn has_ids(text: &TextModel, expected: [&[u32]; 4], beginnings: [(usize, &str); 3]) {
    for (sample, expected) in SAMPLES.iter().zip(expected) {
        assert_eq!(ids(text, sample), expected, "{sample:?}");
        assert_eq!(&text.decode_canvas(expected), sample);
        assert_eq!(&text.decode_answer(expected), sample);
    }
    for (len, beginning) in beginnings {
        assert_eq!(text.decode_canvas(&expected[1][..len]), beginning);
        assert_eq!(text.decode_answer(&expected[1][..len]), beginning);
    }
    // A network may predict any id, those of no token among them.
    for id in [0, 255, 256, 298, 299, text.last_id() + 1, u32::MAX] {
        let _ = text.decode_canvas(&[expected[1][0], id, id]);
    }
}

/// The bytes of the second sample, whose ids are the bytes in byte-level BPE.
fn bytes() -> Vec<u32> {
    SAMPLES[1].bytes().map(u32::from).collect()
}

const CONTROLS: [u32; 12] = [0, 7, 9, 27, 91, 48, 109, 127, 13, 10, 194, 133];
const MARKS: [u32; 13] = [99, 97, 102, 268, 32, 194, 160, 226, 128, 174, 239, 187, 191];
/// What is left of the bytes of an emoji.
const BEGINNINGS: [(usize, &str); 3] = [(2, "\u{fffd}"), (3, "\u{fffd}"), (5, "\u{1f600}\u{fffd}")];

#[test]
fn qwen3() {
    let folder = scratch::folder("qwen3");
    tokenizer_layouts::qwen3(&folder, DENSE, "");
    let text = open(&folder);
    let words = [259, 263, 108, 100, 264, 32, 49, 50, 51, 52, 269, 266, 32, 32, 120];
    has_ids(&text, [&words, &bytes(), &CONTROLS, &MARKS], BEGINNINGS);
    assert_eq!(ids(&text, "cafe\u{301}"), [99, 97, 102, 268], "the accent is composed");
    let chat = "<|im_start|>a<think>\n</think><|im_end|>\n<|mask|><|endoftext|>";
    let expected = [271, 97, 273, 10, 274, 272, 10, 275, 270];
    assert_eq!((ids(&text, chat), text.decode_canvas(&expected)), (expected.to_vec(), chat.to_owned()));
    assert_eq!(text.decode_answer(&expected), "a<think>\n</think>", "thinking is no special token, and stays");
    assert_eq!((text.eos_token_id(), text.end_token_ids()), (272, vec![272]));
}

#[test]
fn added_tokens_keep_their_ids_behind_a_gap() {
    let folder = scratch::folder("gaps");
    tokenizer_layouts::qwen3(&folder, GAPS, "");
    let text = open(&folder);
    let words = [259, 263, 108, 100, 264, 32, 49, 50, 51, 52, 269, 266, 32, 32, 120];
    has_ids(&text, [&words, &bytes(), &CONTROLS, &MARKS], BEGINNINGS);
    let chat = "<|im_start|>a<think>\n</think><|im_end|>\n<|mask|><|endoftext|>";
    let expected = [301, 97, 310, 10, 311, 302, 10, 400, 300];
    assert_eq!((ids(&text, chat), text.decode_canvas(&expected)), (expected.to_vec(), chat.to_owned()));
    assert_eq!(text.decode_answer(&expected), "a<think>\n</think>");
    assert_eq!((text.last_id(), text.vocab_size(), text.eos_token_id()), (400, 276, 302));
    // The same tokenizer without tokenizer.json.
    fs::remove_file(folder.join("tokenizer.json")).expect("it was there");
    let vocab = tokenizer_layouts::letters().into_iter().chain(tokenizer_layouts::MERGES.map(|m| m.replace(' ', "")));
    let vocab: serde_json::Map<_, _> = vocab.enumerate().map(|(id, token)| (token, json!(id))).collect();
    write(&folder, "vocab.json", &vocab.into());
    fs::write(folder.join("merges.txt"), tokenizer_layouts::MERGES.join("\n")).expect("it is written");
    let slow = open(&folder);
    assert_eq!(ids(&slow, chat), expected);
    assert_eq!(ids(&slow, SAMPLES[0]), words);
}

#[test]
fn llama3() {
    let folder = scratch::folder("llama3");
    let template = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}\
                    <|eot_id|>{% endfor %}";
    tokenizer_layouts::llama3(&folder, template);
    let text = open(&folder);
    let words = [259, 270, 264, 32, 265, 51, 52, 269, 266, 32, 32, 120];
    has_ids(&text, [&words, &bytes(), &CONTROLS, &MARKS], BEGINNINGS);
    let turn = weft::data::Message { role: "a".to_owned(), content: "hello world".to_owned() };
    let rendered = text.render(&[turn], false).expect("it renders").expect("there is a template");
    let expected = [271, 273, 97, 274, 266, 259, 270, 275];
    assert_eq!(ids(&text, &rendered), expected, "the template writes the first token, and nothing else does");
    assert_eq!(ids(&text, "hello"), [259]);
    assert_eq!(text.end_token_ids(), [275]);
}

#[test]
fn llama2() {
    let folder = scratch::folder("llama2");
    tokenizer_layouts::llama2(&folder);
    let text = open(&folder);
    let words = [272, 259, 264, 263, 265, 262, 266, 42, 118, 259, 52, 53, 54, 55, 36, 36, 13, 13, 259, 259, 123];
    let emoji = [
        259, 243, 162, 155, 131, 243, 162, 148, 172, 229, 131, 144, 243, 162, 157, 131, 259, 231, 192, 163, 232, 168,
        192, 259, 233, 154, 168, 233, 159, 175,
    ];
    let controls = [259, 3, 10, 12, 30, 94, 51, 112, 130, 16, 13, 197, 136];
    let marks = [259, 102, 100, 105, 267, 259, 197, 163, 229, 131, 177, 242, 190, 194];
    let beginnings = [(2, "\u{fffd}"), (3, "\u{fffd}\u{fffd}"), (5, "\u{1f600}")];
    has_ids(&text, [&words, &emoji, &controls, &marks], beginnings);
    assert_eq!(ids(&text, "<s>hello</s> hello"), [1, 272, 2, 259, 272]);
    assert_eq!(text.end_token_ids(), [2]);
}

#[test]
fn other_files_complete_the_configuration() {
    let folder = scratch::folder("completed");
    tokenizer_layouts::qwen3(&folder, DENSE, "{{ bos_token is defined }}{{ pad_token }}{{ unk_token is defined }}");
    let config = fs::read(folder.join("tokenizer_config.json")).expect("it is there");
    let whole: serde_json::Value = serde_json::from_slice(&config).expect("it is JSON");
    let map = json!({ "eos_token": { "content": "<|endoftext|>" }, "bos_token": "<|im_start|>", "pad_token": "x",
                      "unk_token": "y" });
    write(&folder, "special_tokens_map.json", &map);
    let rendered = |text: &TextModel| text.render(&[], false).expect("it renders").expect("there is a template");
    let text = open(&folder);
    assert_eq!(text.eos_token_id(), 272, "tokenizer_config.json comes first");
    assert_eq!(rendered(&text), "False<|endoftext|>False", "null says that there is no such token");
    let mut lacking = whole.clone();
    for key in ["eos_token", "bos_token", "pad_token"] {
        lacking.as_object_mut().expect("a table").remove(key);
    }
    write(&folder, "tokenizer_config.json", &lacking);
    let completed = open(&folder);
    assert_eq!(completed.eos_token_id(), 270);
    assert_eq!(rendered(&completed), "TruexFalse");
    assert_ne!(completed.content_key(), text.content_key());
    lacking["eos_token"] = json!(null);
    write(&folder, "tokenizer_config.json", &lacking);
    assert_eq!(open(&folder).eos_token_id(), 270, "an end token there has to be");
    fs::write(folder.join("special_tokens_map.json"), "[1]").expect("it is written");
    let error = TextModel::open(&folder).err().expect("it is damaged").to_string();
    assert!(error.contains("special_tokens_map.json is damaged or of another format: not an object"), "{error}");
}

#[test]
fn added_tokens_are_read_where_the_configuration_has_none() {
    let folder = scratch::folder("added");
    tokenizer_layouts::qwen3(&folder, GAPS, "");
    fs::remove_file(folder.join("tokenizer.json")).expect("it was there");
    let vocab = tokenizer_layouts::letters().into_iter().enumerate().map(|(id, token)| (token, json!(id)));
    write(&folder, "vocab.json", &vocab.collect::<serde_json::Map<_, _>>().into());
    fs::write(folder.join("merges.txt"), "#version: 0.2\n").expect("it is written");
    let config = json!({ "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>",
                         "additional_special_tokens": ["<|im_start|>"] });
    write(&folder, "tokenizer_config.json", &config);
    write(
        &folder,
        "added_tokens.json",
        &json!({ "<|im_end|>": 302, "<|im_start|>": 301, "<think>": 310, "<|mask|>": 400 }),
    );
    let text = open(&folder);
    let expected = [301, 97, 310, 400, 302];
    assert_eq!(ids(&text, "<|im_start|>a<think><|mask|><|im_end|>"), expected);
    assert_eq!(text.decode_answer(&expected), "a<think><|mask|>", "named tokens are special, others are not");
    assert_eq!(text.token_id("<|endoftext|>"), None);
}
