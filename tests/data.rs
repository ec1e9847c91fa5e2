//! Data: the forms of rows, the chat template against renderings by Python's jinja2 3.1, end tokens, truncation,
//! padding, and every error by its sentence.

mod scratch;

use std::path::Path;

use proptest::prelude::*;
use scratch::folder;
use weft::data::chat_template::TextModel;
use weft::data::packing::{Padding, pad_answers};
use weft::data::sources::Source;
use weft::data::{Conversation, Example, Message, Reading, load, tokenizer};

fn text_model(name: &str) -> TextModel {
    let folder = folder(&format!("text-{name}"));
    let texts = ["What is 7 + 5? It is 12.", "Solve the puzzle: 0143", "<answer>\n12\n</answer>"].map(str::to_owned);
    tokenizer::train(&folder, &texts, 300).expect("the tokenizer trains");
    TextModel::open(&folder).expect("the tokenizer opens")
}

fn with_template(name: &str, template: &str) -> TextModel {
    let folder = folder(name);
    tokenizer::train(&folder, &["a b c".to_owned()], 300).expect("the tokenizer trains");
    std::fs::write(folder.join("chat_template.jinja"), template).expect("the template is written");
    TextModel::open(&folder).expect("the template parses")
}

fn turn(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn load_text(name: &str, rows: &str, max_seq_len: usize) -> Result<weft::data::Dataset, String> {
    let path = folder(name).join("rows.jsonl");
    std::fs::write(&path, rows).expect("the rows are written");
    let folder = format!("{}/", path.parent().expect("the file has a folder").display());
    read(&path, &text_model(name), max_seq_len).map_err(|e| e.to_string().replace(&folder, ""))
}

fn read(path: &Path, text: &TextModel, max_seq_len: usize) -> weft::error::Result<weft::data::Dataset> {
    let mask_token_id = text.token_id(tokenizer::MASK).expect("the tokenizer has it");
    load(&Source::at(path, "train"), &Reading { text, mask_token_id, max_seq_len, cache: None })
}

#[test]
fn every_form_is_one_conversation() {
    let rows = [
        r#"{"messages": [{"role": "user", "content": "7 + 5?"}, {"role": "assistant", "content": "12"}]}"#,
        r#"{"prompt": "7 + 5?", "response": "12"}"#,
        "",
        r#"{"question": "7 + 5?", "answer": "12", "level": 3}"#,
        r#"{"problem": "7 + 5?", "solution": "12", "answer": "twelve"}"#,
        r#"{"problem": "7 + 5?", "answer": "12"}"#,
    ];
    let dataset = load_text("forms", &rows.join("\n"), 100).expect("the rows are read");
    let [first, rest @ ..] = &dataset.examples[..] else { panic!("no example") };
    assert_eq!(rest, vec![first.clone(); 4]);
    assert_eq!(dataset.truncated, 0);
}

#[test]
fn an_answer_ends_with_one_end_token() {
    let text = text_model("ends");
    let end = text.token_id(tokenizer::END_OF_TURN).expect("the tokenizer has it");
    let conversation = Conversation { prompt: vec![turn("user", "7 + 5?")], answer: "12".to_owned() };
    let example = text.example(&conversation).expect("the template renders");
    assert_eq!(example.answer_ids.iter().filter(|id| **id == end).count(), 1);
    assert_eq!(example.answer_ids.last(), Some(&end));
    assert_eq!(text.decode_answer(&example.answer_ids), "12");
}

#[test]
fn a_template_without_an_end_token_gets_one_and_drops_nothing() {
    let text = with_template(
        "no-end",
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    );
    let conversation = Conversation { prompt: vec![turn("user", "a")], answer: "b".to_owned() };
    let example = text.example(&conversation).expect("the template renders");
    assert_eq!(example.answer_ids.last(), Some(&text.eos_token_id()));
    assert_eq!(text.decode_answer(&example.answer_ids), "b\n");
}

#[test]
fn an_end_token_in_the_text_is_not_the_answers_own() {
    let text = with_template("text-end", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let conversation = Conversation { prompt: vec![turn("user", "a")], answer: "b<|eot_id|>c".to_owned() };
    let example = text.example(&conversation).expect("the template renders");
    assert_eq!(example.answer_ids.len(), 4, "nothing is cut, and the end follows: {:?}", example.answer_ids);
}

#[test]
fn a_list_of_templates_needs_a_default() {
    let folder = folder("list");
    tokenizer::train(&folder, &["a b c".to_owned()], 300).expect("the tokenizer trains");
    let open = |template: &str| {
        let config = format!("{{\"eos_token\": \"<|eot_id|>\", \"chat_template\": {template}}}");
        std::fs::write(folder.join("tokenizer_config.json"), config).expect("the config is written");
        TextModel::open(&folder)
    };
    let both = r#"[{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ bos_token is defined }}"}]"#;
    let rendered = open(both).expect("there is a default").render(&[], false).expect("the template renders");
    assert_eq!(rendered.as_deref(), Some("False"), "jinja2 prints so, and an absent token is undefined");
    let error = open(r#"[{"name": "tool", "template": "t"}]"#).err().expect("no default").to_string();
    assert!(error.ends_with("chat_template is neither a string nor a list with a template named default"), "{error}");
    let error = open("\"{% if %}\"").err().expect("no template").to_string();
    assert!(error.contains("tokenizer_config.json is damaged or in another format: the chat template"), "{error}");
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let messages = [turn("system", " Be brief. "), turn("user", "Hi <b>&"), turn("assistant", "Yo")];
    for (name, template, expected) in [
        (
            "llama3",
            "{{- bos_token }}\n{%- for message in messages %}\n    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|e|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|assistant|>\\n' }}\n{%- endif %}\n",
            "<|system|>\nBe brief.<|e|><|user|>\nHi <b>&<|e|><|assistant|>\nYo<|e|><|assistant|>\n",
        ),
        (
            "blocks",
            "{% for m in messages %}\n  {% if loop.first %}\n    S{{ m.content.strip() }}\n  {% elif m['role'] == 'user' %}\nU{{ m.content|length }}\n  {% else %}\n{% continue %}\n  {% endif %}\n{% endfor %}\nend",
            "    SBe brief.\nU7\nend",
        ),
        (
            "namespace",
            "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.role.upper() }};{% endfor %}{{ messages[0] | tojson }}{{ nothing }}",
            "1:USER;2:ASSISTANT;{\"role\": \"system\", \"content\": \" Be brief. \"}",
        ),
    ] {
        let rendered = with_template(name, template).render(&messages, true).expect("the template renders");
        assert_eq!(rendered.as_deref(), Some(expected), "{name}");
    }
}

#[test]
fn a_template_that_refuses_or_never_ends_is_an_error() {
    let refuses = with_template("refuses", "{{ raise_exception('roles must alternate') }}");
    let message = refuses.render(&[turn("user", "a")], true).expect_err("the template raises").to_string();
    assert!(message.ends_with("the chat template rejects the messages: roles must alternate"), "{message}");
    let endless =
        with_template("endless", "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}");
    endless.render(&[turn("user", "a")], true).expect_err("the fuel ends");
}

#[test]
fn long_answers_are_cut_and_counted() {
    let row = r#"{"prompt": "a", "response": "1 2 3 4 5 6 7 8 9"}"#;
    let whole = load_text("whole", row, 1000).expect("the row is read").examples.remove(0);
    let length = whole.prompt_ids.len() + whole.answer_ids.len();
    let cut = load_text("cut", row, length - 1).expect("the row is read");
    assert_eq!(cut.truncated, 1);
    assert_eq!(cut.examples[0].answer_ids, whole.answer_ids[..whole.answer_ids.len() - 1]);
    let prompt = whole.prompt_ids.len();
    let error = load_text("nothing", row, prompt).expect_err("no answer is left");
    assert_eq!(
        error,
        format!(
            "rows.jsonl:1: the prompt's {prompt} tokens leave no room for an answer within max_seq_len {prompt}; raise \
             data.max_seq_len or shorten the prompt"
        )
    );
}

#[test]
fn a_bad_row_is_told_with_its_line_and_the_fix() {
    let good = r#"{"prompt": "a", "response": "b"}"#;
    for (name, row, expected) in [
        (
            "json",
            "{\"prompt\": ",
            "rows.jsonl:2: not JSON (EOF while parsing a value at column 11); write one object per line",
        ),
        ("array", "[1]", "rows.jsonl:2: not a JSON object; write one object per line"),
        (
            "lacks",
            r#"{"prompt": "a"}"#,
            "rows.jsonl:2: the key \"response\" is missing; a row needs \"prompt\" and \"response\"",
        ),
        ("kind", r#"{"question": "a", "answer": 3}"#, "rows.jsonl:2: answer is 3, not a string"),
        (
            "empty",
            r#"{"prompt": "a", "response": " "}"#,
            "rows.jsonl:2: the answer is empty; drop the row or give it an answer",
        ),
        (
            "end",
            r#"{"prompt": "a", "response": "b <|eot_id|> c"}"#,
            "rows.jsonl:2: the answer contains an end token before its end; remove it",
        ),
        (
            "mask",
            r#"{"prompt": "a <|mdm_mask|>", "response": "b"}"#,
            "rows.jsonl:2: the text contains the model's mask token; remove it",
        ),
        (
            "form",
            r#"{"body": "a"}"#,
            "rows.jsonl:2: the keys [\"body\"] match no known format; give messages, conversations, prompt and response \
             (or completion), question and answer, problem and solution, instruction and output, text, or the columns of \
             s1k, s1k-1.1 or open-r1",
        ),
        (
            "last",
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            "rows.jsonl:2: messages ends with a turn of user; the last one must be the assistant's",
        ),
        (
            "role",
            r#"{"messages": [{"role": "bot", "content": "a"}]}"#,
            "rows.jsonl:2: messages holds the role \"bot\"; the known ones are system, developer, user, assistant and \
             tool",
        ),
    ] {
        assert_eq!(load_text(name, &format!("{good}\n{row}\n"), 100).expect_err(name), expected);
    }
    assert_eq!(
        load_text("no-row", "\n\n", 100).expect_err("no row"),
        "rows.jsonl: it has no rows; give a row per example"
    );
    let path = folder("utf8").join("rows.jsonl");
    std::fs::write(&path, b"{\"prompt\": \"\xff\"}").expect("the rows are written");
    let error = read(&path, &text_model("utf8"), 100).expect_err("no UTF-8").to_string();
    assert!(error.ends_with("rows.jsonl:1: byte 13 is not UTF-8; convert the file to UTF-8"), "{error}");
    let error = read(Path::new("absent.jsonl"), &text_model("absent"), 100).expect_err("no file").to_string();
    assert!(error.starts_with("cannot read absent.jsonl: "), "{error}");
}

#[test]
fn eos_padding_reaches_the_longest_and_is_told_apart() {
    let example = |prompt: usize, answer: usize| Example { prompt_ids: vec![1; prompt], answer_ids: vec![2; answer] };
    let (long, short) = (example(3, 5), example(1, 2));
    let padded = pad_answers(&[&long, &short], Padding::Eos, 9);
    assert_eq!((padded[0].ids.len(), padded[0].num_supervised), (5, 5));
    assert_eq!((padded[1].ids.as_slice(), padded[1].num_supervised), (&[2, 2, 9, 9, 9, 9, 9][..], 2));
    assert_eq!(pad_answers(&[&long, &short], Padding::None, 9)[1].ids, [2, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_answer_comes_back(answer in "\\PC{1,40}") {
        let text = text_model("any");
        let conversation = Conversation { prompt: vec![turn("user", "a")], answer: answer.clone() };
        let example = text.example(&conversation).expect("the template renders");
        prop_assert_eq!(text.decode_answer(&example.answer_ids), answer);
    }
}
