//! Chats as people have them: content in parts, columns beside the question, history, turns as prompt and completion,
//! tools and thinking for the chat template, generation tags, turns that aren't trained on, and what is said of the rest.

mod scratch;

use std::fs;
use std::path::Path;

use scratch::folder;
use serde_json::{Value, json};
use weft::data::chat_template::TextModel;
use weft::data::formats::conversation;
use weft::data::settings::TrainOn;
use weft::data::sources::Source;
use weft::data::{Dataset, Message, Reading, load, place, tokenizer};
use weft::eval::generations::prompt_ids;
use weft::eval::{Task, read_problems};

/// What a row becomes, as "role: text" lines of which the last one is the answer.
fn told(row: &Value) -> Result<String, String> {
    let conversation = conversation(row.as_object().expect("a row"), None).map_err(|e| e.to_string())?;
    let conversation = conversation.expect("the row isn't passed over");
    let turns = conversation.prompt.iter().map(|turn| format!("{}: {}|", turn.role, turn.content));
    Ok(format!("{}{}", turns.collect::<String>(), conversation.answer))
}

#[track_caller]
fn becomes(row: &Value, expected: &str) {
    assert_eq!(told(row).as_deref(), Ok(expected), "{row}");
}

#[track_caller]
fn refused(row: &Value, reason: &str) {
    assert_eq!(told(row), Err(reason.to_owned()), "{row}");
}

fn with_template(folder: &Path, template: &str) -> TextModel {
    tokenizer::train(folder, &["a b c".to_owned()], 300).expect("the tokenizer trains");
    fs::write(folder.join("chat_template.jinja"), template).expect("the template is written");
    TextModel::open(folder).unwrap_or_else(|e| panic!("{template}: {e}"))
}

/// A template that writes the role and content of each turn, and nothing else.
const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}\
                     {% if add_generation_prompt %}assistant: {% endif %}";

fn read(text: &TextModel, folder: &Path, rows: &[Value], train_on: TrainOn) -> Result<Dataset, String> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(folder.join("rows.jsonl"), lines).expect("the rows are written");
    read_file(text, folder, train_on)
}

fn source(folder: &Path, train_on: TrainOn) -> Source {
    Source { train_on: Some(train_on), ..Source::at(&folder.join("rows.jsonl"), "train") }
}

fn read_file(text: &TextModel, folder: &Path, train_on: TrainOn) -> Result<Dataset, String> {
    let mask_token_id = text.token_id(tokenizer::MASK).expect("the tokenizer has it");
    let reading = Reading { text, mask_token_id, max_seq_len: 1000, cache: None };
    let told = |e: weft::error::Error| e.to_string().replace(&format!("{}/", folder.display()), "");
    load(&source(folder, train_on), &reading).map_err(told)
}

/// Prompts and answers as text.
fn texts(text: &TextModel, dataset: &Dataset) -> Vec<[String; 2]> {
    let texts = dataset.examples.iter();
    texts.map(|e| [text.decode_canvas(&e.prompt_ids), text.decode_answer(&e.answer_ids)]).collect()
}

fn user(content: Value) -> Value {
    json!({ "role": "user", "content": content })
}

fn assistant(content: &str) -> Value {
    json!({ "role": "assistant", "content": content })
}

#[test]
fn content_in_parts_is_joined() {
    let parts = json!([{ "type": "text", "text": "2+" }, { "type": "text", "text": "2?", "image": null }]);
    becomes(&json!({ "messages": [user(parts.clone()), assistant("4")] }), "user: 2+2?|4");
    let shared = json!([{ "from": "human", "value": parts }, { "from": "gpt", "value": "4" }]);
    becomes(&json!({ "conversations": shared }), "user: 2+2?|4");
    becomes(&json!({ "messages": [user(json!(["2+2?"])), assistant("4")] }), "user: 2+2?|4");
    for kind in ["image", "image_url", "input_audio"] {
        let parts = json!([{ "type": "text", "text": "What is this?" }, { "type": kind, "url": "a" }]);
        let reason = format!(
            "messages[0].content[1] is of type {kind:?}, but only text can be trained on; remove the part or the row"
        );
        refused(&json!({ "messages": [user(parts), assistant("4")] }), &reason);
    }
    refused(
        &json!({ "messages": [user(json!([{ "type": "text" }])), assistant("4")] }),
        "messages[0].content[0] is {\"type\":\"text\"}, which has no text; give {\"type\": \"text\", \"text\": ...}",
    );
}

#[test]
fn columns_beside_the_question_are_part_of_the_prompt() {
    let dolly = json!({ "instruction": "Who wrote it?", "context": "By Ann.", "response": "Ann.", "category": "qa" });
    becomes(&dolly, "user: Who wrote it?\n\nBy Ann.|Ann.");
    becomes(&json!({ "question": "Who?", "context": "By Ann.", "answer": "Ann." }), "user: Who?\n\nBy Ann.|Ann.");
    becomes(&json!({ "question": "Who?", "context": null, "answer": "Ann." }), "user: Who?|Ann.");
    let reason =
        "context is {\"a\":1}, not a string; give it as text, or rename the column if it isn't part of the prompt";
    refused(&json!({ "question": "Who?", "context": { "a": 1 }, "answer": "Ann." }), reason);
    let history = json!([["1 + 1?", "2"], ["2 + 2?", "4"]]);
    let before = "system: Be brief.|user: 1 + 1?|assistant: 2|user: 2 + 2?|assistant: 4|";
    for (ask, reply) in
        [("instruction", "output"), ("prompt", "response"), ("question", "answer"), ("problem", "solution")]
    {
        let row = json!({ ask: "3 + 3?", reply: "6", "system": "Be brief.", "history": history });
        becomes(&row, &format!("{before}user: 3 + 3?|6"));
        becomes(&json!({ ask: "3 + 3?", reply: "6", "system": "", "history": [] }), "user: 3 + 3?|6");
        becomes(&json!({ ask: "3 + 3?", reply: "6", "system": null, "history": null }), "user: 3 + 3?|6");
        refused(
            &json!({ ask: "3 + 3?", reply: "6", "history": [["1 + 1?"]] }),
            "history[0] is [\"1 + 1?\"]; give a pair of strings [user, assistant]",
        );
        refused(
            &json!({ ask: "3 + 3?", reply: "6", "history": "1" }),
            "history is \"1\"; give a list of pairs [user, assistant]",
        );
    }
    let turns = json!([user(json!("Hi")), assistant("Yo")]);
    becomes(&json!({ "system": "Be brief.", "messages": turns }), "system: Be brief.|user: Hi|Yo");
}

#[test]
fn prompt_and_completion_may_be_turns() {
    let (ask, reply) = (json!([user(json!("2+2?"))]), json!([assistant("4")]));
    becomes(&json!({ "prompt": ask, "completion": reply }), "user: 2+2?|4");
    becomes(&json!({ "prompt": ask, "completion": "4" }), "user: 2+2?|4");
    becomes(&json!({ "prompt": "2+2?", "completion": reply }), "user: 2+2?|4");
    let long = json!({ "prompt": [{ "role": "system", "content": "S" }, user(json!("1?")), assistant("1"), user(json!("2?"))],
                       "completion": reply, "system": "other" });
    becomes(&long, "system: S|user: 1?|assistant: 1|user: 2?|4");
    refused(
        &json!({ "prompt": ask, "completion": [user(json!("4"))] }),
        "completion ends with a turn of user; the last one must be the assistant's",
    );
    let folder = folder("turns");
    let text = with_template(&folder, PLAIN);
    let read = read(&text, &folder, &[long], TrainOn::All).expect("the row is read");
    let prompt = "system: S|user: 1?|assistant: 1|user: 2?|assistant: ";
    assert_eq!(texts(&text, &read), [[prompt, "4|"]], "the prompt's own turns aren't trained on");
    assert_eq!(
        read.notes.lines(),
        ["columns not read: system", "1 of 2 assistant turns is context only (data.train_on)"]
    );
}

#[test]
fn an_answer_needs_a_turn_before_it() {
    let reason = "messages holds the answer alone; give the turn that it answers, or the text as \"text\"";
    refused(&json!({ "messages": [assistant("4")] }), reason);
}

/// Expected texts come from jinja2 3.1.6 with transformers' settings and an extension for the tag like transformers' own.
#[test]
fn generation_tags_render_as_nothing() {
    let turn = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let messages = [turn("user", "Hi"), turn("assistant", "Yo")];
    for (i, (template, expected)) in [
        (
            "{% for m in messages %}\n  {% generation %}\n  [{{ m.content }}]\n  {% endgeneration %}\nafter\n{% endfor %}\n",
            "  [Hi]\nafter\n  [Yo]\nafter\n",
        ),
        (
            "{% for m in messages %} a {%- generation -%} {{ m.content }} {%- endgeneration -%} b {% endfor %}",
            " aHib  aYob ",
        ),
        ("{% set x = 'out' %}{% generation %}{% set x = 'in' %}{{ x }}{% endgeneration %}{{ x }}", "inout"),
        (
            "{{ '{% generation %}' }}{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ \"it's {%- endgeneration -%}\" }}",
            "{% generation %}{% generation %}it's {%- endgeneration -%}",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{%generation%}{% set ns.n = ns.n + 1 %}{{ loop.index }}{%endgeneration%}{% endfor %}{{ ns.n }}{{ {'a': {'b': 1}}['a']['b'] }}{% set d = {'generation': '}}'} %}{{ d.generation }}",
            "1221}}",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let text = with_template(&folder(&format!("generation-{i}")), template);
        let rendered = text.render(&messages, false).expect("the template renders");
        assert_eq!(rendered.as_deref(), Some(expected), "{template}");
    }
    let folder = folder("unclosed");
    with_template(&folder, "{{ messages[0].content }}");
    for template in ["{% generation %}a", "a{% endgeneration %}", "{% generation", "{{ '", "{% raw %}{% generation %}"]
    {
        fs::write(folder.join("chat_template.jinja"), template).expect("the template is written");
        let error = TextModel::open(&folder).err().unwrap_or_else(|| panic!("{template} is refused")).to_string();
        assert!(error.contains("chat_template.jinja") && error.contains("doesn't parse"), "{error}");
    }
}

/// Reads what Qwen's templates read: tools, calls, results and thinking.
const WITH_TOOLS: &str = "{% if tools %}T{{ tools | tojson }}{% endif %}\
    {% for m in messages %}<{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}>\
    {% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}{{ m.content }}\
    {% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}\
    {% if m.tool_call_id %}#{{ m['tool_call_id'] }}{% endif %}|{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

#[test]
fn tools_and_fields_of_turns_reach_the_template() {
    let folder = folder("tools");
    let text = with_template(&folder, WITH_TOOLS);
    let tools = json!([{ "type": "function", "function": { "name": "add" } }]);
    let messages = json!([
        { "role": "developer", "content": "D", "name": null, "tool_calls": null },
        { "role": "user", "content": "2+2?" },
        { "role": "assistant", "tool_calls": [{ "function": { "name": "add", "arguments": { "a": 2 } } }] },
        { "role": "tool", "name": "add", "tool_call_id": "x1", "content": "4" },
        { "role": "assistant", "content": "4", "reasoning_content": "So 4." },
    ]);
    let answer = [
        "T[{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]<developer>D|<user>2+2?|\
         <assistant>add{\"a\": 2}|<tool add>4#x1|<assistant>",
        "(So 4.)4|",
    ];
    for given in [tools.clone(), json!(tools.to_string())] {
        let row = json!({ "messages": messages, "tools": given });
        let read = read(&text, &folder, &[row], TrainOn::Last).expect("the row is read");
        assert_eq!(texts(&text, &read), [answer]);
        assert_eq!(read.notes.lines(), ["1 of 2 assistant turns is context only (data.train_on)"]);
    }
    // A problem of `weft eval` is asked in the same tokens, with or without an answer in its row.
    let asked = messages.as_array().map(|turns| &turns[..4]);
    for turns in [messages.clone(), json!(asked)] {
        let row = json!({ "messages": turns, "tools": tools, "question": "2+2?", "ground_truth": 4 });
        fs::write(folder.join("problems.jsonl"), row.to_string()).expect("it is written");
        let problems = read_problems(Task::Gsm8k, &folder.join("problems.jsonl")).unwrap_or_else(|e| panic!("{e}"));
        let ids = prompt_ids(&text, &problems).expect("it renders");
        assert_eq!(ids.iter().map(|ids| text.decode_canvas(ids)).collect::<Vec<_>>(), [answer[0]]);
    }
    // A call is an answer too.
    let called = json!({ "messages": messages.as_array().map(|turns| &turns[..3]), "tools": tools });
    let all = read(&text, &folder, &[json!({ "messages": messages, "tools": tools }), called], TrainOn::All);
    let all = all.expect("the rows are read");
    let answers: Vec<String> = texts(&text, &all).into_iter().map(|[_, answer]| answer).collect();
    assert_eq!(answers, ["add{\"a\": 2}|", "(So 4.)4|", "add{\"a\": 2}|"]);
    for none in [json!(null), json!([]), json!(""), json!("null")] {
        let row = json!({ "messages": [user(json!("a")), assistant("b")], "tools": none });
        let read = read(&text, &folder, &[row], TrainOn::Last).expect("the row is read");
        assert_eq!(texts(&text, &read), [["<user>a|<assistant>", "b|"]]);
    }
    refused(
        &json!({ "messages": [user(json!("a")), assistant("b")], "tools": "add" }),
        "tools is \"add\"; give a list of objects, one for each tool, or the JSON text of such a list",
    );
}

#[test]
fn what_nothing_reads_is_told() {
    let folder = folder("unread");
    let text = with_template(&folder, PLAIN);
    let chat = |answer: Value| json!([user(json!("a")), answer]);
    let rows = [
        json!({ "messages": chat(json!({ "role": "assistant", "content": "b", "reasoning_content": "r", "weight": 1 })),
                "tools": [{ "name": "add" }], "id": 1, "score": 0.5 }),
        json!({ "messages": chat(assistant("b")), "tools": null, "id": 2, "score": null }),
        json!({ "prompt": "a", "response": "b", "completion": "c", "id": 3 }),
    ];
    let read = read(&text, &folder, &rows, TrainOn::Last).expect("the rows are read");
    let expected = [
        "1 row has tools, which the chat template does not read",
        "columns not read: completion (1 of 3 rows), id, messages[].reasoning_content (1 of 3 rows), score (1 of 3 rows)",
    ];
    assert_eq!(read.notes.lines(), expected);
}

#[test]
fn turns_are_trained_on_as_they_say() {
    let folder = folder("turns-trained");
    let text = with_template(&folder, PLAIN);
    let chat = |more: [Value; 3]| {
        let turns = (0..3).flat_map(|i| {
            let mut answer = assistant(&format!("a{i}"));
            answer.as_object_mut().expect("a turn").extend(more[i].as_object().cloned().unwrap_or_default());
            [user(json!(format!("q{i}"))), answer]
        });
        json!({ "messages": turns.collect::<Vec<_>>() })
    };
    let none = json!({});
    let rows = [
        chat([json!({}), json!({}), json!({ "train": false })]),
        chat([json!({}), json!({ "weight": 0 }), json!({ "weight": 1 })]),
        chat([json!({ "weight": 0.0 }), json!({ "train": false }), json!({ "weight": 0 })]),
    ];
    let last = read(&text, &folder, &rows, TrainOn::Last).expect("the rows are read");
    let [q1, q2] = [
        "user: q0|assistant: a0|user: q1|assistant: ",
        "user: q0|assistant: a0|user: q1|assistant: a1|user: q2|assistant: ",
    ];
    assert_eq!(texts(&text, &last), [[q2, "a2|"]]);
    let first = format!("(the first in {}:1)", folder.join("rows.jsonl").display());
    let skipped = format!("2 rows skipped: weight 0 or train false says that their answers are not trained on {first}");
    assert_eq!(last.notes.lines(), [&*skipped, "2 of 3 assistant turns are context only (data.train_on)"]);
    assert_eq!(last.passed_over, 2);
    let all = read(&text, &folder, &rows, TrainOn::All).expect("the rows are read");
    let first = ["user: q0|assistant: ", "a0|"];
    assert_eq!(texts(&text, &all), [first, [q1, "a1|"], first, [q2, "a2|"]]);
    assert_eq!((all.passed_over, all.starts.as_slice()), (1, &[0, 0, 1, 1][..]));
    let of_row = |row: usize| place(&source(&folder, TrainOn::All), row);
    assert!(of_row(1).is_some_and(|place| place.ends_with("rows.jsonl:2")) && of_row(3).is_none());
    let error = read(&text, &folder, &rows[2..], TrainOn::All).expect_err("nothing is trained on");
    let expected = "rows.jsonl: no turn of its 1 row is trained on; remove weight 0 or train false from the turns to be \
                    trained on";
    assert_eq!(error, expected);
    let error = read(&text, &folder, &[chat([json!({ "weight": 0.5 }), none.clone(), none.clone()])], TrainOn::All);
    let expected = "rows.jsonl:1: messages[1].weight is 0.5; give 1, or 0 for a turn that is not trained on, since other \
                    weights aren't supported";
    assert_eq!(error, Err(expected.to_owned()));
    let error = read(&text, &folder, &[chat([json!({ "content": " " }), none.clone(), none])], TrainOn::All);
    let expected = "rows.jsonl:1: turn 2 of 6: the answer is empty; set its weight to 0, or give it an answer";
    assert_eq!(error, Err(expected.to_owned()));
}

#[test]
fn nan_is_null_where_nobody_reads_it() {
    let folder = folder("nan");
    let text = with_template(&folder, PLAIN);
    let rows = |name: &str, rows: &str| {
        fs::write(folder.join(name), rows).expect("the rows are written");
        let mask_token_id = text.token_id(tokenizer::MASK).expect("the tokenizer has it");
        let reading = Reading { text: &text, mask_token_id, max_seq_len: 100, cache: None };
        let told = |e: weft::error::Error| e.to_string().replace(&format!("{}/", folder.display()), "");
        load(&Source::at(&folder.join(name), "train"), &reading).map_err(told)
    };
    let good =
        "{\"prompt\":\"NaN \\\" -Infinity\",\"completion\":\"b\",\"score\":NaN,\"of\":[{\"x\":-Infinity},Infinity]}";
    for (name, file) in [("a.jsonl", format!("{good}\n")), ("a.json", format!("[{good}]"))] {
        let read = rows(name, &file).expect("the row is read");
        assert_eq!(texts(&text, &read), [["user: NaN \" -Infinity|assistant: ", "b|"]], "{name}");
        assert_eq!(read.notes.lines(), ["columns not read: of, score"]);
    }
    let told = "NaN or Infinity, and NaN is not JSON; write null, or drop the row";
    let error = rows("b.jsonl", "{\"prompt\":\"a\",\"completion\":NaN}\n").expect_err("it is read");
    assert_eq!(error, format!("b.jsonl:1: completion holds {told}"));
    let turns =
        "[{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"p\":NaN}]}]";
    assert_eq!(rows("b.json", turns).expect_err("it is read"), format!("b.json row 1: messages holds {told}"));
    let error = rows("c.jsonl", "{\"prompt\":NaN,\"completion\":\"b\"\n").expect_err("the object isn't closed");
    assert_eq!(error, "c.jsonl:1: not JSON (expected value at column 11); write one object per line");
}
