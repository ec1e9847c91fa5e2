//! Rows of chats, with what stands beside question and answer.

use serde_json::{Value, json};

use super::program::{Case, recipe, refused, shows, turn, works};

pub const CASES: &[Case] = &[
    ("D1", dollys_context),
    ("D3", turns_as_prompt_and_completion),
    ("D4", tools),
    ("D5", thinking),
    ("D7", parts_of_content),
    ("D10", chats_of_several_turns),
    ("also 2", context_weights_and_roles),
];

fn dollys_context() {
    let row = json!({ "instruction": "Who wrote it?", "context": "The book is by Ann.", "response": "Ann.",
                      "category": "closed_qa" });
    let folder = recipe("dolly", &[row]);
    shows(
        &folder,
        &[],
        &["Who wrote it?\n\nThe book is by Ann.<|eot_id|>", "Ann.\n-- end token", "columns not read: category"],
    );
}

fn turns_as_prompt_and_completion() {
    let folder = recipe("trl", &[json!({ "prompt": [turn("user", "2+2?")], "completion": [turn("assistant", "4")] })]);
    shows(&folder, &[], &["user<|end_header_id|>\n2+2?<|eot_id|>", "-- answer, 2 tokens\n4\n-- end token"]);
}

/// The embedded base's chat template reads neither tools nor thinking; this one does.
const READS_ALL: &str = "{% if tools %}{{ tools | tojson }}|{% endif %}{% for m in messages %}{{ m.role }}: \
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}|{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// A folder whose recipe trains the embedded base under that template.
fn with_template(name: &str, row: &Value) -> std::path::PathBuf {
    let folder = recipe(name, std::slice::from_ref(row));
    let assets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
    std::fs::create_dir(folder.join("base")).expect("it is made");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(assets.join(file), folder.join("base").join(file)).expect("it is copied");
    }
    std::fs::write(folder.join("base/chat_template.jinja"), READS_ALL).expect("it is written");
    folder
}

fn tools() {
    let tools = json!([{ "type": "function", "function": { "name": "add", "description": null } }]);
    let turns = json!([turn("user", "2+2?"), turn("assistant", "4")]);
    let shown = "[{\"type\": \"function\", \"function\": {\"name\": \"add\"";
    for given in [tools.clone(), tools.to_string().into()] {
        let row = json!({ "messages": turns, "tools": given });
        let folder = with_template("tools", &row);
        shows(&folder, &["--set", "model.path=base", "--full"], &[shown]);
        shows(&recipe("no-tools", &[row]), &[], &["1 row has tools, which the chat template does not read"]);
    }
    let gap = json!({ "messages": turns, "tools": null });
    assert!(!works(&recipe("gap", &[gap]), &["data", "recipe.toml"]).contains("tools"));
}

fn thinking() {
    let thinks = json!({ "role": "assistant", "reasoning_content": "Two twos.", "content": "4" });
    let row = json!({ "messages": [turn("user", "2+2?"), thinks] });
    shows(&with_template("thinking", &row), &["--set", "model.path=base"], &["<think>Two twos.</think>4"]);
    shows(&recipe("no-thinking", &[row]), &[], &["columns not read: messages[].reasoning_content\n"]);
}

fn parts_of_content() {
    let of = |parts: Value| json!({ "messages": [{ "role": "user", "content": parts }, turn("assistant", "4")] });
    let folder = recipe("parts", &[of(json!([{ "type": "text", "text": "2+" }, { "type": "text", "text": "2?" }]))]);
    shows(&folder, &[], &["\n2+2?<|eot_id|>"]);
    let folder = recipe("image", &[of(json!([{ "type": "text", "text": "What?" }, { "type": "image", "url": "a" }]))]);
    refused(
        &folder,
        &["data", "recipe.toml"],
        &["rows.jsonl:1: messages[0].content[1] is of type \"image\"", "only text"],
    );
}

fn chats_of_several_turns() {
    let pair = |i: usize| [turn("user", &format!("{i}?")), turn("assistant", &format!("{i}."))];
    let folder = recipe("turns", &[json!({ "messages": (1..4).flat_map(pair).collect::<Vec<_>>() })]);
    shows(&folder, &[], &["rows.jsonl: 1 example,", "2 of 3 assistant turns are context only (data.train_on)"]);
    shows(&folder, &["--set", "data.train_on=all"], &["rows.jsonl: 3 examples", "\n1.\n", "\n2.\n", "\n3.\n"]);
    shows(&folder, &["--set", "data.train_on=drawn"], &["rows.jsonl: 1 chat (3 answers, one drawn"]);
}

fn context_weights_and_roles() {
    let folder = recipe("context", &[json!({ "question": "Who?", "context": "By Bob.", "answer": "Bob." })]);
    shows(&folder, &[], &["Who?\n\nBy Bob.<|eot_id|>"]);
    let left_out = json!({ "role": "assistant", "content": "b", "weight": 0 });
    let turns = json!([turn("user", "a?"), left_out, turn("user", "c?"), turn("assistant", "d")]);
    let folder = recipe("weight", &[json!({ "messages": turns })]);
    shows(&folder, &["--set", "data.train_on=all"], &["rows.jsonl: 1 example,", "-- answer, 2 tokens\nd\n"]);
    let folder = recipe("alone", &[json!({ "messages": [turn("assistant", "Hello.")] })]);
    refused(&folder, &["data", "recipe.toml"], &["rows.jsonl:1: ", "turn"]);
    let turns = json!([turn("developer", "Be brief."), turn("user", "a?"), turn("assistant", "b")]);
    shows(
        &recipe("developer", &[json!({ "messages": turns })]),
        &[],
        &["developer<|end_header_id|>\nBe brief.<|eot_id|>"],
    );
}
