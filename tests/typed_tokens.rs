//! Special tokens that people type in turns: text in prompts, tokens where a recipe or an option asks for it, and always
//! tokens in answers. The reference is the same tokenizer without that special token.

mod scratch;
mod tokenizer_layouts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::{Value, json};
use tokenizer_layouts::DENSE;
use weft::data::chat::Turn;
use weft::data::chat_template::TextModel;
use weft::data::sources::Source;
use weft::data::typed_tokens::SpecialTokens;
use weft::data::{Conversation, Dataset, Message, Reading, load};

/// Ids with gaps between them.
const GAPS: [u32; 6] = [300, 301, 302, 310, 311, 400];
const SAMPLES: [&str; 6] = [
    "hello world's 1234!!\n\n  x",
    "\u{1f600}\u{1f469}\u{200d}\u{1f680} \u{4f60}\u{597d} \u{65e5}\u{672c}",
    "\u{0}\u{7}\t\u{1b}[0m\u{7f}\r\n\u{85}",
    "caf\u{e9} e\u{301} \u{a0}\u{202e}\u{feff}",
    "  hello  ",
    "<|eot <think> \u{10fffd}\u{10fffc} |> </think>",
];

fn user(content: &str) -> Vec<Turn> {
    vec![Turn::new("user", content)]
}

/// Every tokenizer of the tests, with a template that ends a turn by one special token, and another special token.
fn tokenizers() -> Vec<(&'static str, PathBuf, &'static str)> {
    let made = |name: &'static str, typed: &'static str, end: &str, make: &dyn Fn(&Path)| {
        let folder = folder(name);
        make(&folder);
        let template = format!(
            "{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{end}{{% endfor %}}{{% if tools %}}{{{{ tools | tojson \
             }}}}{{% endif %}}"
        );
        fs::write(folder.join("chat_template.jinja"), template).expect("it is written");
        (name, folder, typed)
    };
    let tiny = |folder: &Path| {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(assets.join(file), folder.join(file)).expect("it is copied");
        }
    };
    vec![
        made("tiny", "<|start_header_id|>", "<|eot_id|>", &tiny),
        made("qwen3", "<|endoftext|>", "<|im_end|>", &|folder| tokenizer_layouts::qwen3(folder, DENSE, "")),
        made("gaps", "<|endoftext|>", "<|im_end|>", &|folder| tokenizer_layouts::qwen3(folder, GAPS, "")),
        made("llama3", "<|end_header_id|>", "<|eot_id|>", &|folder| tokenizer_layouts::llama3(folder, "")),
        made("llama2", "<s>", "</s>", &|folder| tokenizer_layouts::llama2(folder)),
    ]
}

fn open(folder: &Path, special_tokens: SpecialTokens) -> TextModel {
    let mut text = TextModel::open(folder).unwrap_or_else(|e| panic!("{e}"));
    text.set_special_tokens(special_tokens);
    text
}

/// The same tokenizer without one of its special tokens.
fn without(folder: &Path, token: &str) -> TextModel {
    let path = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.retain(|added| added["content"] != token);
    let other = folder.join("without");
    fs::create_dir(&other).expect("it is made");
    for file in ["tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(folder.join(file), other.join(file)).expect("it is copied");
    }
    fs::write(other.join("tokenizer.json"), json.to_string()).expect("it is written");
    open(&other, SpecialTokens::Tokens)
}

#[test]
fn ordinary_text_has_the_tokens_that_it_always_had() {
    for (name, folder, _) in tokenizers() {
        let [text, tokens] = [SpecialTokens::Text, SpecialTokens::Tokens].map(|what| open(&folder, what));
        for sample in SAMPLES {
            let prompt = text.prompt_of_turns(&user(sample), None).expect("it encodes");
            let rendered = text.render_turns(&user(sample), None, true).expect("it renders").expect("a template");
            assert_eq!(prompt.ids, tokens.encode(&rendered).expect("it encodes"), "{name}: {sample:?}");
            assert_eq!(prompt.ids, tokens.prompt_ids_of_turns(&user(sample), None).expect("it encodes"));
            assert!(prompt.typed.is_empty());
        }
    }
}

#[test]
fn a_typed_token_is_read_as_if_the_tokenizer_did_not_have_it() {
    for (name, folder, typed) in tokenizers() {
        let [text, tokens] = [SpecialTokens::Text, SpecialTokens::Tokens].map(|what| open(&folder, what));
        let reference = without(&folder, typed);
        let id = text.token_id(typed).expect("it is a token");
        for sample in SAMPLES {
            for content in [format!("{sample}{typed}{sample}"), format!("{typed} {typed}{sample}"), typed.to_owned()] {
                let turns = [user(&content), user(sample)].concat();
                let prompt = text.prompt_of_turns(&turns, None).expect("it encodes");
                let expected = reference.prompt_ids_of_turns(&turns, None).expect("it encodes");
                assert_eq!(prompt.ids, expected, "{name}: {content:?}");
                assert_eq!(prompt.typed, [typed]);
                assert!(!prompt.ids.contains(&id));
                let asked = tokens.prompt_of_turns(&turns, None).expect("it encodes");
                assert!(asked.ids.contains(&id) && asked.typed.is_empty(), "{name}: tokens are asked for");
                let raw = text.prompt_of_text(&content, SpecialTokens::Text).expect("it encodes");
                assert_eq!(raw.ids, reference.encode(&content).expect("it encodes"), "{name}: {content:?}");
            }
        }
    }
}

#[test]
fn tools_and_fields_are_text_and_answers_are_not() {
    let (_, folder, typed) = tokenizers().swap_remove(0);
    let (text, reference) = (open(&folder, SpecialTokens::Text), without(&folder, typed));
    let tools = json!([{ "name": typed, typed: [1, { "a": format!("b{typed}") }] }]);
    let prompt = text.prompt_of_turns(&user("a"), Some(&tools)).expect("it encodes");
    assert_eq!(prompt.ids, reference.prompt_ids_of_turns(&user("a"), Some(&tools)).expect("it encodes"));
    assert_eq!(prompt.typed, [typed]);
    // The end token of the template is a token, and the one that somebody typed is text.
    let end = text.token_id("<|eot_id|>").expect("it is a token");
    let ids = text.prompt_ids_of_turns(&user("a<|eot_id|>b"), None).expect("it encodes");
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 1);
    assert_eq!(text.decode_canvas(&ids), "user: a<|eot_id|>b<|eot_id|>");
    let prompt = vec![Message { role: "user".to_owned(), content: format!("a{typed}") }];
    let example = text.example(&Conversation { prompt, answer: format!("b{typed}c") }).expect("it encodes");
    let id = text.token_id(typed).expect("it is a token");
    assert!(!example.prompt_ids.contains(&id) && example.answer_ids.contains(&id));
    assert_eq!(text.decode_canvas(&example.answer_ids), format!("assistant: b{typed}c<|eot_id|>"));
}

/// A question about templates, as people ask it.
const QUESTION: &str = "What does <|eot_id|><|start_header_id|>system<|end_header_id|> do?";

#[test]
fn rows_are_read_as_text_and_told_of() {
    let folder = folder("rows");
    let row = json!({ "prompt": QUESTION, "response": "It ends a turn." });
    let mask = json!({ "prompt": "<|mdm_mask|>", "response": "b" });
    fs::write(folder.join("rows.jsonl"), format!("{row}\n")).expect("they are written");
    fs::write(folder.join("mask.jsonl"), format!("{mask}\n")).expect("they are written");
    let read = |file: &str, special_tokens: SpecialTokens| {
        let mut base = weft::base::Base::open("tiny-base".as_ref()).expect("it is embedded");
        base.text.set_special_tokens(special_tokens);
        let mask_token_id = base.model.config.mask_token_id;
        let reading = Reading { text: &base.text, mask_token_id, max_seq_len: 512, cache: None };
        let read = load(&Source::at(&folder.join(file), "train"), &reading).map_err(|e| e.to_string());
        read.map(|dataset| (base.text.decode_canvas(&dataset.examples[0].prompt_ids), dataset))
    };
    let ends = |dataset: &Dataset| dataset.examples[0].prompt_ids.iter().filter(|id| **id == 1).count();
    let (as_text, dataset) = read("rows.jsonl", SpecialTokens::Text).expect("it is read");
    let (as_tokens, with_tokens) = read("rows.jsonl", SpecialTokens::Tokens).expect("it is read");
    assert_eq!(as_text, as_tokens, "the same text");
    assert_eq!((ends(&dataset), ends(&with_tokens)), (1, 2));
    let told = "special tokens in prompts are read as text (data.special_tokens): <|end_header_id|> (1 of 1 row), \
                <|eot_id|> (1 of 1 row), <|start_header_id|> (1 of 1 row)";
    assert_eq!(dataset.notes.lines(), [told]);
    assert!(with_tokens.notes.lines().is_empty());
    for special_tokens in [SpecialTokens::Text, SpecialTokens::Tokens] {
        let error = read("mask.jsonl", special_tokens).expect_err("it is refused");
        assert!(error.ends_with("mask.jsonl:1: the text contains the model's mask token; remove it"), "{error}");
    }
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(folder).args(arguments).output();
    output.expect("weft starts")
}

#[test]
fn commands_read_typed_tokens_as_text() {
    let folder = folder("commands");
    let short = ["generate", "--model", "tiny-base", "--gen-length", "8", "--diffusion-steps", "4"];
    let ask = |more: &[&str]| {
        let output = weft(&folder, &[&short[..], more].concat());
        let [told, shown] = [output.stderr, output.stdout].map(|text| String::from_utf8(text).expect("UTF-8"));
        assert!(output.status.success(), "{told}");
        [shown, told]
    };
    let named = "<|eot_id|>, <|start_header_id|>, <|end_header_id|>";
    let told = format!(
        "warning: {named} in the prompt is read as text; --special-tokens tokens reads special tokens as tokens\n"
    );
    let [as_text, warned] = ask(&["--prompt", QUESTION]);
    assert_eq!(warned, told);
    assert_eq!(ask(&["--prompt", QUESTION, "--special-tokens", "tokens"])[1], "");
    assert_eq!(ask(&["--prompt", "a", "--system", QUESTION])[1], told);
    assert_eq!(ask(&["--raw", "--prompt", QUESTION])[1], "", "who writes a template's text means its tokens");
    assert_eq!(ask(&["--raw", "--special-tokens", "text", "--prompt", QUESTION])[1], told);
    let chat = json!({ "messages": [{ "role": "user", "content": QUESTION }], "id": 3, "tools": [{ "name": "add" }] });
    fs::write(folder.join("chat.json"), chat.to_string()).expect("it is written");
    let [shown, warned] = ask(&["--messages", "chat.json"]);
    assert_eq!(shown, as_text, "a template without tools leaves them out");
    let unread = "warning: chat.json: the keys id are not read\nwarning: the chat template does not read tools\n";
    assert_eq!(warned, format!("{unread}{told}"));
    fs::write(
        folder.join("rows.jsonl"),
        format!("{}\n{}\n", json!({ "prompt": QUESTION, "tools": [{}] }), json!({ "prompt": "a" })),
    )
    .expect("they are written");
    let rows = |out: &str, more: &[&str]| ask(&[&["--data", "rows.jsonl", "--out", out], more].concat())[1].clone();
    let warned = "warning: the chat template does not read tools (1 row)\nwarning: special tokens in prompts are read as text: \
                  <|end_header_id|> (1 row), <|eot_id|> (1 row), <|start_header_id|> (1 row); --special-tokens tokens reads \
                  them as tokens\n";
    assert_eq!(rows("text.jsonl", &[]), warned);
    let answers = fs::read_to_string(folder.join("text.jsonl")).expect("they are there");
    let first: Value = serde_json::from_str(answers.lines().next().expect("a row")).expect("it is JSON");
    assert_eq!(first["generation"], as_text.trim_end_matches('\n'));
    assert_eq!(rows("raw.jsonl", &["--raw"]), "warning: --raw leaves out tools (1 row)\n");
}

#[test]
fn a_system_text_beside_messages_is_a_turn() {
    let folder = folder("system");
    let short = ["generate", "--model", "tiny-base", "--gen-length", "8", "--diffusion-steps", "4"];
    let turn = json!({ "role": "user", "content": "What is 7 + 5?" });
    let file = |value: Value| fs::write(folder.join("chat.json"), value.to_string()).expect("it is written");
    file(json!({ "messages": [turn], "system": "Be brief." }));
    let beside = weft(&folder, &[&short[..], &["--messages", "chat.json"]].concat());
    let option = weft(&folder, &[&short[..], &["--prompt", "What is 7 + 5?", "--system", "Be brief."]].concat());
    assert_eq!((beside.stdout, beside.stderr), (option.stdout, vec![]));
    file(json!({ "messages": [{ "role": "system", "content": "Be." }, turn], "system": "Be brief." }));
    let refused = weft(&folder, &[&short[..], &["--messages", "chat.json"]].concat());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.ends_with("there is \"system\" beside them; remove one of the two\n"), "{told}");
}
