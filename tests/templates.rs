//! Chat templates of one feature each, rendered by transformers and by Weft to the same bytes. The folder
//! `transformers_templates` has the templates, their inputs and what transformers made of them.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use scratch::folder;
use serde_json::{Map, Value, json};
use weft::data::chat::Turn;
use weft::data::chat_template::TextModel;
use weft::data::tokenizer;

/// Inputs that aren't variables of the template to Weft: they have arguments of their own, or are special tokens.
const OWN: [&str; 8] =
    ["messages", "tools", "add_generation_prompt", "now", "bos_token", "eos_token", "unk_token", "pad_token"];

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers_templates");
    let entries = fs::read_dir(folder).expect("the folder is there").flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

/// Turns as a row's reader would give them.
fn turns(messages: &Value) -> Vec<Turn> {
    let turn = |message: &Value| {
        let mut fields: Map<String, Value> = message.as_object().expect("a message").clone();
        let role = fields.shift_remove("role").expect("a role");
        let content = fields.shift_remove("content").map(|content| content.as_str().expect("a text").to_owned());
        Turn { content, fields, ..Turn::new(role.as_str().expect("a name"), "") }
    };
    messages.as_array().expect("a list").iter().map(turn).collect()
}

/// Opens a template with an input's special tokens and renders the input.
fn rendered(folder: &Path, template: &str, input: &Value) -> Result<String, String> {
    let mut config = json!({ "eos_token": tokenizer::END_OF_TURN });
    let specials = ["bos_token", "eos_token", "unk_token", "pad_token"].iter().filter(|key| input.get(key).is_some());
    specials.for_each(|key| config[key] = input[key].clone());
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("the configuration is written");
    fs::write(folder.join("chat_template.jinja"), template).expect("the template is written");
    let mut text = TextModel::open(folder).map_err(|e| e.to_string())?;
    if let Some(seconds) = input["now"].as_i64() {
        text.set_time(seconds);
    }
    let variables = input.as_object().expect("an input").iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
    let variables: Map<String, Value> = variables.map(|(key, value)| (key.clone(), value.clone())).collect();
    text.set_template_kwargs(&variables, "").map_err(|e| e.to_string())?;
    let is_asked = input["add_generation_prompt"].as_bool().unwrap_or(false);
    let rendered = text.render_turns(&turns(&input["messages"]), input.get("tools"), is_asked);
    rendered.map(|text| text.expect("there is a template")).map_err(|e| e.to_string())
}

#[test]
fn weft_renders_what_transformers_renders() {
    let folder = folder("templates");
    tokenizer::train(&folder, &["a b c".to_owned()], 300).expect("the tokenizer trains");
    let (files, mut wrong) = (files(), vec![]);
    assert!(files.len() >= 40, "{} templates", files.len());
    for path in &files {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let file: toml::Table = toml::from_str(&fs::read_to_string(path).expect("it is read")).expect("it is TOML");
        let template = file["template"].as_str().expect("a template");
        for (i, case) in file["cases"].as_array().expect("cases").iter().enumerate() {
            let text = |key: &str| case.get(key).map(|text| text.as_str().expect("a text"));
            let input: Value = serde_json::from_str(text("input").expect("an input")).expect("it is JSON");
            let got = rendered(&folder, template, &input);
            let expected = [text("expected"), text("refused"), text("fails")];
            let is_right = match (expected, &got) {
                ([Some(expected), None, None], Ok(got)) => got == expected,
                ([None, Some(words), None], Err(got)) => got.ends_with(&format!("rejects the messages: {words}")),
                ([None, None, Some(_)], Err(_)) => true,
                _ => false,
            };
            if !is_right {
                wrong.push(format!("{name}, case {i}\n  transformers: {expected:?}\n  weft: {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
