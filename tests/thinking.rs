//! `data.chat_template_kwargs`: variables of a chat template, on a template that thinks as Qwen3's does.

mod scratch;
mod tokenizer_layouts;

use std::fs;
use std::path::Path;
use std::process::Command;

use scratch::folder;
use serde_json::{Map, Value, json};
use tokenizer_layouts::DENSE;
use weft::data::chat_template::TextModel;
use weft::data::sources::Source;
use weft::data::token_cache::TokenCache;
use weft::data::{Conversation, Message, Reading, load};

/// Turns of the past lose their thinking; the answer behind the last question has one, empty where it has none of its
/// own. Without thinking the prompt ends with an empty one.
const TEMPLATE: &str = r"
{%- set last = namespace(user=-1) -%}
{%- for turn in messages -%}{%- if turn.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools -%}{{- 'tools: ' + tools | tojson + '\n' -}}{%- endif -%}
{%- for turn in messages -%}
    {%- set said = turn.content -%}
    {%- set thought = '' -%}
    {%- if turn.role == 'assistant' and '</think>' in said -%}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
        {%- set said = said.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + turn.role + '\n' -}}
    {%- if turn.role == 'assistant' and loop.index0 > last.user -%}
        {{- '<think>\n' + thought + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- said + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}";

fn kwargs(values: &Value) -> Map<String, Value> {
    values.as_object().expect("a table").clone()
}

fn thinking(name: &str, values: &Value) -> TextModel {
    with_template(name, TEMPLATE, values).unwrap_or_else(|e| panic!("{e}"))
}

fn with_template(name: &str, template: &str, values: &Value) -> Result<TextModel, String> {
    let folder = folder(name);
    tokenizer_layouts::qwen3(&folder, DENSE, template);
    let mut text = TextModel::open(&folder).unwrap_or_else(|e| panic!("{e}"));
    let set = text.set_template_kwargs(&kwargs(values), "data.chat_template_kwargs.");
    set.map(|()| text).map_err(|e| e.to_string().replace(&format!("{}/", folder.display()), ""))
}

fn turn(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

/// A chat of two questions whose first answer was thought about.
fn chat(answer: &str) -> Conversation {
    let past = turn("assistant", "<think>\nEasy.\n</think>\n\n2");
    Conversation { prompt: vec![turn("user", "1 + 1?"), past, turn("user", "2 + 2?")], answer: answer.to_owned() }
}

/// The texts of a conversation's prompt and answer.
fn example(text: &TextModel, conversation: &Conversation) -> [String; 2] {
    let example = text.example(conversation).unwrap_or_else(|e| panic!("{e}"));
    [example.prompt_ids, example.answer_ids].map(|ids| text.decode_canvas(&ids))
}

const PROMPT: &str = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n\
                      <|im_start|>assistant\n";
const EMPTY: &str = "<think>\n\n</think>\n\n";

#[test]
fn prompts_begin_the_whole_with_thinking_and_without() {
    for (name, values, prompt_end, answer_start) in [
        ("default", json!({}), "", EMPTY),
        ("on", json!({ "enable_thinking": true }), "", EMPTY),
        ("off", json!({ "enable_thinking": false }), EMPTY, ""),
    ] {
        let text = thinking(name, &values);
        let expected = [format!("{PROMPT}{prompt_end}"), format!("{answer_start}4<|im_end|>")];
        assert_eq!(example(&text, &chat("4")), expected, "{name}");
        let prompt = text.prompt_ids(&chat("").prompt).expect("it renders");
        assert_eq!(text.decode_canvas(&prompt), expected[0], "{name}: what is trained is asked");
    }
    let on = thinking("thought", &json!({}));
    let thought = "<think>\nTwo twos.\n</think>\n\n4";
    assert_eq!(example(&on, &chat(thought)), [PROMPT.to_owned(), format!("{thought}<|im_end|>")]);
    let off = thinking("unthought", &json!({ "enable_thinking": false }));
    let error = off.example(&chat(thought)).expect_err("the prompt says that nothing is thought").to_string();
    let expected = "the chat template ends the prompt with an empty thinking block, but the answer has its own; turn \
                    thinking on (data.chat_template_kwargs), or remove the thinking from the answers";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn an_answer_that_the_template_words_otherwise_ends_once() {
    let text = thinking("words", &json!({}));
    // The template puts the line breaks of its own around a thinking.
    let [_, answer] = example(&text, &chat("<think>Two twos.</think>4"));
    assert_eq!(answer, "<think>\nTwo twos.\n</think>\n\n4<|im_end|>");
    // These letters are part of the end token's text.
    for content in ["end", "im", "|"] {
        assert_eq!(example(&text, &chat(content))[1], format!("{EMPTY}{content}<|im_end|>"));
    }
}

#[test]
fn values_reach_the_template_as_they_are() {
    let template =
        "{{ a }} {{ b.c[1] }} {{ d is none }} {{ e is defined }} {{ tools is none }} {{ documents is none }}";
    let values = json!({ "a": "x", "b": { "c": [1, 2.5] }, "d": null });
    let text = with_template("values", template, &values).expect("all are read");
    assert_eq!(text.render(&[], true).expect("it renders").as_deref(), Some("x 2.5 True False True True"));
    let tools = thinking("tools", &json!({ "tools": [{ "name": "add" }] }));
    let rendered = tools.render(&[], false).expect("it renders");
    assert_eq!(rendered.as_deref(), Some("tools: [{\"name\": \"add\"}]\n"));
}

#[test]
fn names_that_the_template_does_not_read_are_refused() {
    let refused = |name: &str, template: &str, values: &Value| {
        let error = with_template(name, template, values).err().expect("it is refused");
        error.strip_prefix("tokenizer_config.json: data.chat_template_kwargs.").unwrap_or(&error).to_owned()
    };
    assert_eq!(
        refused("typo", TEMPLATE, &json!({ "enable_thinkng": false })),
        "enable_thinkng is not read by the chat template; it reads enable_thinking, tools"
    );
    for name in ["messages", "add_generation_prompt", "bos_token", "eos_token"] {
        let expected = format!("{name} is set by Weft itself; remove it");
        assert_eq!(refused("own", TEMPLATE, &json!({ name: "x" })), expected);
    }
    // Names of the template's own.
    let own = "is not read by the chat template; it reads enable_thinking, tools";
    assert_eq!(refused("turn", TEMPLATE, &json!({ "turn": 1 })), format!("turn {own}"));
    assert_eq!(refused("said", TEMPLATE, &json!({ "said": 1 })), format!("said {own}"));
    let nothing = "x is not read by the chat template, which reads no such variable";
    let calls = "{% if strftime_now is defined %}{{ raise_exception('x') }}{% endif %}{{ messages[0] }}";
    assert_eq!(refused("nothing", calls, &json!({ "x": 1 })), nothing);
    let set = "{% set x = 1 %}{{ x }}";
    assert_eq!(refused("set", set, &json!({ "x": 1 })), nothing);
    // A default for itself is none of its own.
    let default = "{%- set x = x if x is defined else 1 %}{{ x }}";
    let text = with_template("itself", default, &json!({ "x": 2 })).expect("it is read");
    assert_eq!(text.render(&[], false).expect("it renders").as_deref(), Some("2"));
    let folder = folder("none");
    weft::data::tokenizer::train(&folder, &["a".to_owned()], 300).expect("it trains");
    fs::write(folder.join("tokenizer_config.json"), "{\"eos_token\": \"<|eot_id|>\"}").expect("it is written");
    let mut text = TextModel::open(&folder).expect("it opens");
    let error = text.set_template_kwargs(&kwargs(&json!({ "x": 1 })), "").expect_err("nothing reads it").to_string();
    assert!(error.ends_with("x has no effect: the checkpoint has no chat template; remove it"), "{error}");
}

#[test]
fn cached_tokens_belong_to_the_values() {
    let folder = folder("cache");
    let row = json!({ "prompt": "hello", "response": "hello hello" });
    fs::write(folder.join("rows.jsonl"), row.to_string()).expect("it is written");
    let source = Source::at(&folder.join("rows.jsonl"), "train");
    let read = |text: &TextModel| {
        let cache = Some(TokenCache::new(&folder.join("tokens"), 1));
        let dataset = load(&source, &Reading { text, mask_token_id: DENSE[5], max_seq_len: 100, cache });
        (dataset.expect("it is read"), fs::read_dir(folder.join("tokens")).expect("it is there").count())
    };
    let [default, off, both, other_order] = [
        json!({}),
        json!({ "enable_thinking": false }),
        json!({ "enable_thinking": false, "tools": [] }),
        json!({ "tools": [], "enable_thinking": false }),
    ]
    .map(|values| thinking("keys", &values));
    let (first, one) = read(&default);
    let (second, two) = read(&off);
    assert_eq!((one, two), (1, 2));
    assert_ne!(first, second);
    assert_eq!(read(&off), (second.clone(), 2), "a hit");
    assert_eq!(read(&both), (second.clone(), 3));
    assert_eq!(read(&other_order), (second, 3), "the order says nothing");
    assert_eq!(read(&default), (first, 3));
}

/// Runs weft in a folder; what it prints, and its errors.
fn weft(folder: &Path, args: &[&str]) -> [String; 2] {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .current_dir(folder)
        .args(args)
        .env("WEFT_CACHE", "")
        .output()
        .expect("weft starts");
    [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("it is UTF-8"))
}

#[test]
fn every_command_that_renders_takes_them() {
    let folder = folder("commands");
    fs::create_dir(folder.join("base")).expect("it is made");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
        fs::copy(assets.join(file), folder.join("base").join(file)).expect("it is copied");
    }
    let template = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}{% if style == 'refuse' %}{{ raise_exception('refused') }}{% endif %}";
    fs::write(folder.join("base/chat_template.jinja"), template).expect("it is written");
    fs::write(folder.join("rows.jsonl"), "{\"prompt\": \"a\", \"response\": \"b\"}\n").expect("it is written");
    let recipe = "[model]\npath = \"base\"\n[data]\ntrain = \"rows.jsonl\"\n[data.chat_template_kwargs]\nstyle = \"refuse\"\n\
                  [train]\noutput = \"run\"\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    for command in ["data", "train", "plan", "inspect"] {
        let [_, errors] = weft(&folder, &[command, "recipe.toml"]);
        assert!(errors.contains("the chat template refuses the messages: refused"), "{command}: {errors}");
        let plain = ["--set", "data.chat_template_kwargs={ style = \"plain\" }", "--set", "train.max_steps=1"];
        let [_, errors] = weft(&folder, &[&[command, "recipe.toml"], &plain[..]].concat());
        assert!(!errors.contains("error"), "{command}: {errors}");
        let _ = fs::remove_dir_all(folder.join("run"));
        let wrong = ["--set", "data.chat_template_kwargs={ stile = 1 }"];
        let [_, errors] = weft(&folder, &[&[command, "recipe.toml"], &wrong[..]].concat());
        let expected = "data.chat_template_kwargs.stile is not read by the chat template; it reads style";
        assert!(errors.contains(expected), "{command}: {errors}");
    }
    let refused = "{\"style\": \"refuse\"}";
    for command in [&["generate", "--prompt", "a", "--gen-length", "8"][..], &["likelihood", "--data", "rows.jsonl"]] {
        let model = [command, &["--model", "base", "--chat-template-kwargs"]].concat();
        let [_, errors] = weft(&folder, &[&model[..], &[refused]].concat());
        assert!(errors.contains("the chat template refuses the messages: refused"), "{command:?}: {errors}");
        let [printed, errors] = weft(&folder, &[&model[..], &["{\"style\": 1}"]].concat());
        assert!(!printed.is_empty() && !errors.contains("error"), "{command:?}: {errors}");
        let [_, errors] = weft(&folder, &[&model[..], &["[1]"]].concat());
        assert!(errors.contains("give an object of JSON"), "{command:?}: {errors}");
    }
    let error = weft(&folder, &["data", "recipe.toml", "--set", "data.chat_template_kwargs=3"])[1].clone();
    assert!(error.contains("data.chat_template_kwargs = 3: give a table in { }"), "{error}");
}
