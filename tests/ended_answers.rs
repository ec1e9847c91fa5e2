//! End tokens at the ends of answers, as tools and exports leave them, and turns without content, which templates reject.

mod scratch;

use std::fs;
use std::path::Path;

use scratch::folder;
use serde_json::json;
use weft::data::chat_template::TextModel;
use weft::data::sources::Source;
use weft::data::{Dataset, Reading, load, tokenizer};

fn text_model(folder: &Path, template: Option<&str>) -> TextModel {
    tokenizer::train(&folder.join("text"), &["one two three".to_owned()], 300).expect("the tokenizer trains");
    if let Some(template) = template {
        fs::write(folder.join("text/chat_template.jinja"), template).expect("it is written");
    }
    TextModel::open(&folder.join("text")).expect("the tokenizer opens")
}

fn read(folder: &Path, text: &TextModel, rows: &[String]) -> Result<Dataset, String> {
    let mask_token_id = text.token_id(tokenizer::MASK).expect("it has one");
    let reading = Reading { text, mask_token_id, max_seq_len: 100, cache: None };
    let path = folder.join("rows.jsonl");
    fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("they are written");
    load(&Source::at(&path, "train"), &reading)
        .map_err(|e| e.to_string().replace(&format!("{}/", folder.display()), ""))
}

fn pair(prompt: &str, response: &str) -> String {
    json!({ "prompt": prompt, "response": response }).to_string()
}

#[test]
fn an_end_token_at_the_end_of_an_answer_is_the_one_that_belongs_there() {
    let folder = folder("own-ends");
    let text = text_model(&folder, None);
    let end = text.token(text.eos_token_id()).expect("it is a token");
    let read = |row: String| read(&folder, &text, &[row]);
    let plain = read(pair("a", "b")).expect("it is read");
    for ended in [format!("b{end}"), format!("b{end}\n"), format!("b{end}{end}")] {
        let with_end = read(pair("a", &ended)).expect("it is read");
        assert_eq!(with_end.examples, plain.examples, "{ended:?}");
        let note = "1 turn of the assistant already ends with an end token, so no second one is added";
        assert_eq!(with_end.notes.lines(), [note]);
    }
    let inside = read(pair("a", &format!("b{end}c"))).expect_err("it is refused");
    assert_eq!(inside, "rows.jsonl:1: the answer contains an end token before its end; remove it");
    let alone = read(pair("a", &end)).expect_err("it is refused");
    assert!(alone.contains("the answer is empty"), "{alone}");
    // An earlier answer loses its end token too, so that no prompt holds it as text.
    let chat = |first: &str| {
        let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
        let turns = [turn("user", "a"), turn("assistant", first), turn("user", "c"), turn("assistant", "d")];
        json!({ "messages": turns }).to_string()
    };
    let [ended, plain] = [chat(&format!("b{end}")), chat("b")].map(|row| read(row).expect("it is read"));
    assert_eq!((ended.examples, ended.notes.typed.len()), (plain.examples, 0));
}

#[test]
fn a_template_that_rejects_a_turn_without_content_is_told_with_the_turn() {
    let folder = folder("no-content");
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}";
    let text = text_model(&folder, Some(template));
    let turns = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": null, "tool_calls": [{ "name": "f" }] },
        { "role": "tool", "content": "b" },
        { "role": "assistant", "content": "c" },
    ]);
    let rows = [pair("a", "b"), json!({ "messages": turns }).to_string()];
    let error = read(&folder, &text, &rows).expect_err("it is refused");
    assert!(error.starts_with("rows.jsonl:2: "), "{error}");
    assert!(error.ends_with("(turn 2 of 4 has no content beside its tool calls; give it \"\")"), "{error}");
}
