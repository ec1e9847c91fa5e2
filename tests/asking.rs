//! `weft generate` on what people ask: chats, system turns, files of rows, texts with holes, markers and long prompts.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::{Value, json};
use weft::eval::asked::turns_of_row;

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(folder).args(arguments).output();
    output.expect("weft starts")
}

const SHORT: [&str; 7] = ["generate", "--model", "tiny-base", "--gen-length", "8", "--diffusion-steps", "4"];

fn ask(folder: &Path, more: &[&str]) -> [String; 2] {
    let output = weft(folder, &[&SHORT, more].concat());
    let [told, shown] = [output.stderr, output.stdout].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert!(output.status.success(), "{told}");
    [shown, told]
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = weft(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the file is there");
    text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

/// The text of the embedded base's mask token.
fn mask() -> String {
    let base = weft::base::Base::open("tiny-base".as_ref()).expect("it is embedded");
    base.text.decode_canvas(&[base.model.config.mask_token_id])
}

#[test]
fn a_chat_is_asked_from_a_file() {
    let folder = folder("asking-chat");
    let file = |name: &str, value: Value| fs::write(folder.join(name), value.to_string()).expect("it is written");
    let user = |content: &str| json!({ "role": "user", "content": content });
    file("one.json", json!([user("What is 7 + 5?")]));
    file("system.json", json!([{ "role": "system", "content": "Be brief." }, user("What is 7 + 5?")]));
    let chat = json!([user("Hi."), { "role": "assistant", "content": "Hello." }, user("What is 7 + 5?")]);
    file("chat.json", json!({ "messages": chat }));
    file("ended.json", json!([user("Hi."), { "role": "assistant", "content": "Hello." }]));
    let of = |name: &str| ask(&folder, &["--messages", name])[0].clone();
    assert_eq!(of("one.json"), ask(&folder, &["--prompt", "What is 7 + 5?"])[0]);
    assert_eq!(of("system.json"), ask(&folder, &["--prompt", "What is 7 + 5?", "--system", "Be brief."])[0]);
    assert!(!of("chat.json").is_empty());
    let told = refused(&folder, &[&SHORT[..], &["--messages", "ended.json"]].concat());
    assert!(
        told.ends_with("its last turn is the assistant's; end it with the user's turn, or add --infill\n"),
        "{told}"
    );
    let told = refused(&folder, &[&SHORT[..], &["--messages", "system.json", "--system", "Be."]].concat());
    assert!(told.contains("there is a system turn already; leave out --system, or remove that turn"), "{told}");
    for (text, expected) in
        [("[]", "the list is empty; give a list of turns"), ("{", "not JSON"), ("3", "it holds no list")]
    {
        fs::write(folder.join("wrong.json"), text).expect("it is written");
        let told = refused(&folder, &[&SHORT[..], &["--messages", "wrong.json"]].concat());
        assert!(told.contains("wrong.json: ") && told.contains(expected), "{told}");
    }
}

#[test]
fn a_mask_in_a_prompt_is_refused_or_filled_in_place() {
    let (folder, mask) = (folder("asking-infill"), mask());
    let text = format!("What is {mask} + 5?");
    let told = refused(&folder, &[&SHORT[..], &["--prompt", &text]].concat());
    let fix = "remove it, or add --infill to fill the masks of the last turn in place\n";
    assert_eq!(told, format!("error: the prompt contains the mask token {mask}; {fix}"));
    let fill = |more: &[&str]| -> String {
        let output = weft(&folder, &[&["generate", "--model", "tiny-base", "--infill"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end_matches('\n').to_owned()
    };
    for more in [&["--prompt", &text][..], &["--prompt", &text, "--raw"], &["--prompt", &text, "--system", "Be brief."]]
    {
        let filled = fill(&[more, &["--keep-special-tokens"]].concat());
        assert!(filled.starts_with("What is ") && filled.ends_with(" + 5?") && !filled.contains(&mask), "{filled}");
    }
    let turns = json!([{ "role": "user", "content": "A sum?" }, { "role": "assistant", "content": format!("7 + {mask} = 12") }]);
    fs::write(folder.join("chat.json"), turns.to_string()).expect("it is written");
    let filled = fill(&["--messages", "chat.json", "--keep-special-tokens"]);
    assert!(filled.starts_with("7 + ") && filled.ends_with(" = 12"), "{filled}");
    let told = refused(&folder, &["generate", "--model", "tiny-base", "--infill", "--prompt", "What is 7 + 5?"]);
    assert!(
        told.contains(&format!("holds no mask token to fill; write {mask} for each token that is missing")),
        "{told}"
    );
    assert_eq!(weft(&folder, &[&SHORT[..], &["--infill", "--prompt", &text]].concat()).status.code(), Some(2));
}

#[test]
fn a_file_of_rows_is_answered_and_goes_on_where_it_stopped() {
    let (folder, mask) = (folder("asking-rows"), mask());
    let user = |content: &str| json!({ "role": "user", "content": content });
    let rows = [
        json!({ "id": 3, "prompt": "What is 7 + 5?" }),
        json!({ "messages": [{ "role": "system", "content": "Be brief." }, user("Hi."),
            { "role": "assistant", "content": "Hello." }, user("What is 1 + 5?")], "score": 0.1 }),
        json!({ "question": "What is 2 + 2?", "answer": "4", "tags": ["a"] }),
        json!({ "conversations": [{ "from": "human", "value": "What is 3 + 2?" }] }),
        json!({ "instruction": "Add.", "input": "3 and 4" }),
        json!({ "messages": [user("What is 7 + 5?"), { "role": "assistant", "content": "12" }] }),
    ];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(folder.join("rows.jsonl"), &text).expect("they are written");
    let run = |out: &str| ask(&folder, &["--data", "rows.jsonl", "--out", out]);
    assert_eq!(run("whole.jsonl"), ["6 answers are in whole.jsonl\n".to_owned(), String::new()]);
    let whole = fs::read_to_string(folder.join("whole.jsonl")).expect("it is there");
    let answers = lines(&folder.join("whole.jsonl"));
    for (row, answer) in rows.iter().zip(&answers) {
        let mut own = answer.as_object().expect("an object").clone();
        assert!(own.remove("generation").is_some_and(|text| text.is_string()), "{answer}");
        assert_eq!(&Value::Object(own), row, "a row keeps its keys");
    }
    let one = ask(&folder, &["--prompt", "What is 7 + 5?"])[0].trim_end_matches('\n').to_owned();
    assert_eq!(answers[0]["generation"], one.as_str(), "a batch changes no answer");
    assert_eq!(answers[5]["generation"], one.as_str(), "an answer in the row isn't shown to the model");
    // As a crash in the middle of the fourth answer leaves it.
    let third = whole.match_indices('\n').nth(2).expect("there are six").0;
    fs::write(folder.join("part.jsonl"), &whole[..third + 9]).expect("it is written");
    assert_eq!(run("part.jsonl")[0], "6 answers are in part.jsonl (3 were there)\n");
    assert_eq!(fs::read_to_string(folder.join("part.jsonl")).expect("it is there"), whole);
    assert_eq!(run("whole.jsonl")[0], "6 answers are in whole.jsonl (6 were there)\n");
    assert_eq!(fs::read_to_string(folder.join("whole.jsonl")).expect("it is there"), whole);
    // Answers of another kind don't count.
    let other = ["--temperature", "3", "--seed", "7", "--data", "rows.jsonl", "--out", "whole.jsonl"];
    let told = refused(&folder, &[&SHORT[..], &other].concat());
    assert!(told.contains("whole.jsonl:1: the model and the options of this command give another answer"), "{told}");
    assert_eq!(fs::read_to_string(folder.join("whole.jsonl")).expect("it is there"), whole);

    let wrong = |row: &str| {
        fs::write(folder.join("wrong.jsonl"), format!("{{\"prompt\": \"a\"}}\n{row}\n")).expect("it is written");
        refused(&folder, &[&SHORT[..], &["--data", "wrong.jsonl", "--out", "new/wrong-out.jsonl"]].concat())
    };
    for (row, expected) in [
        (json!({ "prompt": "a", "generation": "b" }), "wrong.jsonl:2: the row has a key \"generation\" of its own"),
        (json!({ "prompt": format!("a {mask}") }), "wrong.jsonl:2: the prompt contains the mask token; remove it"),
        (json!({ "nothing": 1 }), "wrong.jsonl:2: the keys [\"nothing\"] match no known format"),
        (json!({ "text": "b" }), "wrong.jsonl:2: the row asks nothing; give it a prompt"),
    ] {
        let told = wrong(&row.to_string());
        assert!(told.contains(expected), "{told}");
    }
    fs::write(folder.join("other.jsonl"), "{\"prompt\": \"other\"}\n").expect("it is written");
    let told = refused(&folder, &[&SHORT[..], &["--data", "other.jsonl", "--out", "whole.jsonl"]].concat());
    assert!(
        told.contains("whole.jsonl:1: it is not the answer to the same row of --data; name another file"),
        "{told}"
    );
    let told = refused(&folder, &[&SHORT[..], &["--data", "rows.jsonl", "--out", "rows.jsonl"]].concat());
    assert_eq!(told, "error: --out rows.jsonl is the file of --data; name another one\n");
    assert_eq!(fs::read_to_string(folder.join("rows.jsonl")).expect("it is there"), text);
}

/// Prints tools, and a turn's name, thinking and calls.
const WITH_TOOLS: &str = "{% if tools %}{{ tools | tojson }}|{% endif %}{% for m in messages %}{{ m.role }}\
    {% if m.name %} {{ m.name }}{% endif %}: {% if m.reasoning_content %}({{ m.reasoning_content }}) {% endif %}\
    {{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments }}){% endfor %}|\
    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
/// What that template prints of [`tools`], and of [`turns_with_fields`].
const PRINTED_TOOLS: &str = "[{\"function\": {\"name\": \"add\"}}]|";
const PRINTED_TURNS: &str = "user Ann: What is 7 + 5?|assistant: (Call it.) add(7, 5)|tool add: 12|assistant: ";
const OF_TOOLS: [&str; 9] =
    ["generate", "--model", "base", "--gen-length", "8", "--diffusion-steps", "4", "--temperature", "0"];

fn tools(name: &str) -> Value {
    json!([{ "function": { "name": name } }])
}

fn turns_with_fields() -> Vec<Value> {
    vec![
        json!({ "role": "user", "name": "Ann", "content": "What is 7 + 5?" }),
        json!({ "role": "assistant", "content": null, "reasoning_content": "Call it.",
            "tool_calls": [{ "function": { "name": "add", "arguments": "7, 5" } }] }),
        json!({ "role": "tool", "name": "add", "content": "12" }),
    ]
}

/// A folder in which `base` is the embedded base with the chat template that prints tools.
fn folder_with_base(name: &str) -> PathBuf {
    let folder = folder(name);
    let (base, assets) = (folder.join("base"), Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base"));
    fs::create_dir(&base).expect("it is made");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(assets.join(file), base.join(file)).expect("it is copied");
    }
    fs::write(base.join("chat_template.jinja"), WITH_TOOLS).expect("it is written");
    folder
}

fn ask_with_tools(folder: &Path, more: &[&str]) -> String {
    let output = weft(folder, &[&OF_TOOLS, more].concat());
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim_end_matches('\n').to_owned()
}

#[test]
fn rows_are_asked_with_their_tools_and_fields() {
    let folder = folder_with_base("asking-row-tools");
    let (turns, with_tools) = (turns_with_fields(), format!("{PRINTED_TOOLS}{PRINTED_TURNS}"));
    let answer = json!({ "role": "assistant", "content": "12" });
    let answered = [&turns[..], std::slice::from_ref(&answer)].concat();
    let rows = [
        (json!({ "messages": turns, "tools": tools("add") }), with_tools.clone()),
        (json!({ "messages": answered, "tools": tools("add").to_string() }), with_tools.clone()),
        (json!({ "messages": turns }), PRINTED_TURNS.to_owned()),
        (json!({ "prompt": turns, "tools": tools("add") }), with_tools),
        (json!({ "prompt": turns, "completion": [answer] }), PRINTED_TURNS.to_owned()),
        (
            json!({ "prompt": "What is 7 + 5?", "tools": tools("add") }),
            format!("{PRINTED_TOOLS}user: What is 7 + 5?|assistant: "),
        ),
    ];
    let text: String = rows.iter().map(|(row, _)| format!("{row}\n")).collect();
    fs::write(folder.join("rows.jsonl"), text).expect("they are written");
    ask_with_tools(&folder, &["--data", "rows.jsonl", "--out", "out.jsonl"]);
    let base = weft::base::Base::open(&folder.join("base")).expect("it opens");
    let answers = lines(&folder.join("out.jsonl"));
    assert_eq!(answers.len(), rows.len());
    for ((row, printed), answer) in rows.iter().zip(answers) {
        let question = turns_of_row(row.as_object().expect("a row")).expect("it asks");
        let ids = base.text.prompt_ids_of_turns(&question.turns, question.tools.as_ref()).expect("it renders");
        assert_eq!(base.text.decode_canvas(&ids), *printed, "{row}");
        assert_eq!(answer["generation"], ask_with_tools(&folder, &["--raw", "--prompt", printed]), "{row}");
    }
}

#[test]
fn a_chat_is_asked_with_its_tools_and_fields() {
    let (folder, mask) = (folder_with_base("asking-chat-tools"), mask());
    let file = |value: Value| fs::write(folder.join("chat.json"), value.to_string()).expect("it is written");
    let (chat, turns) = (["--messages", "chat.json"], turns_with_fields());
    let raw = |printed: &str| ask_with_tools(&folder, &["--raw", "--prompt", printed]);
    file(json!({ "messages": turns, "tools": tools("add") }));
    assert_eq!(ask_with_tools(&folder, &chat), raw(&format!("{PRINTED_TOOLS}{PRINTED_TURNS}")));
    let system = ask_with_tools(&folder, &[&chat[..], &["--system", "Be brief."]].concat());
    assert_eq!(system, raw(&format!("{PRINTED_TOOLS}system: Be brief.|{PRINTED_TURNS}")));
    file(json!(turns));
    assert_eq!(ask_with_tools(&folder, &chat), raw(PRINTED_TURNS));
    file(json!({ "messages": turns, "tools": 3 }));
    let told = refused(&folder, &[&OF_TOOLS[..], &chat].concat());
    assert!(told.contains("chat.json: tools is 3; give a list of objects"), "{told}");

    // A mask is refused wherever the template prints it, which shows that it does.
    file(json!({ "messages": turns, "tools": tools(&mask) }));
    let told = refused(&folder, &[&OF_TOOLS[..], &chat].concat());
    assert!(told.contains("the prompt contains the mask token"), "{told}");
    let infill = [&["generate", "--model", "base", "--infill"], &chat[..]].concat();
    let hole = json!({ "role": "user", "content": format!("7 + {mask}") });
    file(json!({ "messages": [hole], "tools": tools("add") }));
    assert!(weft(&folder, &infill).status.success());
    let mut thinking = hole.clone();
    thinking["reasoning_content"] = mask.as_str().into();
    for chat in [json!({ "messages": [hole], "tools": tools(&mask) }), json!([thinking])] {
        file(chat);
        let told = refused(&folder, &infill);
        assert!(told.contains("the prompt contains the mask token"), "{told}");
    }
}

/// The embedded base was trained for 512 positions.
#[test]
fn all_bad_rows_are_reported_before_the_first_is_answered() {
    let folder = folder("bad-rows");
    let rows = "{\"prompt\": \"What is 7 + 5?\"}\n{\n{\"prompt\": 3}\n{\"generation\": 1, \"prompt\": \"a\"}\n";
    fs::write(folder.join("rows.jsonl"), rows).expect("the rows are written");
    let told = refused(&folder, &[&SHORT[..], &["--data", "rows.jsonl", "--out", "out.jsonl"]].concat());
    let lines: Vec<&str> = told.lines().collect();
    let fix = "fix them, or --on-bad-row skip skips and counts such rows";
    assert_eq!((lines[0], lines[4]), ("error: 3 rows of rows.jsonl can't be used:", fix), "{told}");
    for (line, at) in lines[1..4].iter().zip(2..) {
        assert!(line.starts_with(&format!("  rows.jsonl:{at}: ")), "{told}");
    }
    assert!(!folder.join("out.jsonl").exists(), "nothing is answered");

    // The fix works: each bad row is counted, whether the answers before it are there or not, and the others get their answers.
    let rows = format!("{rows}{{\"prompt\": \"What is 3 + 5?\", \"response\": \"\"}}\n");
    fs::write(folder.join("rows.jsonl"), rows).expect("the rows are written");
    let skip = ["--data", "rows.jsonl", "--on-bad-row", "skip", "--out", "out.jsonl"];
    let [said, told] = ask(&folder, &skip);
    assert_eq!(said, "2 answers are in out.jsonl; 3 rows skipped\n");
    let json =
        "warning: 1 row skipped: not JSON (EOF while parsing an object at column 1) (the first in rows.jsonl:2)\n";
    assert!(told.contains(json) && told.lines().count() == 3, "{told}");
    let answers = fs::read_to_string(folder.join("out.jsonl")).expect("they are there");
    let [first, second] = answers.split_inclusive('\n').collect::<Vec<_>>()[..] else { panic!("{answers}") };
    assert!(second.starts_with("{\"prompt\":\"What is 3 + 5?\",\"response\":\"\",\"generation\":"), "{second}");
    fs::write(folder.join("out.jsonl"), first).expect("it is written");
    assert_eq!(
        ask(&folder, &skip),
        ["2 answers are in out.jsonl (1 was there); 3 rows skipped\n".to_owned(), told.clone()]
    );
    assert_eq!(fs::read_to_string(folder.join("out.jsonl")).expect("it is there"), answers);
    let again = ["2 answers are in out.jsonl (2 were there); 3 rows skipped\n".to_owned(), told];
    assert_eq!(ask(&folder, &skip), again);
    fs::write(folder.join("rows.jsonl"), "{\n{\n").expect("the rows are written");
    let told = refused(&folder, &[&SHORT[..], &skip[..5], &["none.jsonl"]].concat());
    let none = "error: rows.jsonl: all its 2 rows are skipped, for this reason: not JSON (EOF while parsing an object at column 1)";
    assert!(told.starts_with(none), "{told}");
}

#[test]
fn more_positions_than_the_model_was_trained_for_are_told() {
    let folder = folder("asking-positions");
    let long = "1 + 1, ".repeat(400);
    let row = json!({ "prompt": "Count.", "response": long }).to_string();
    fs::write(folder.join("rows.jsonl"), format!("{row}\n{row}\n")).expect("they are written");
    let recipe = "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    let told = |arguments: &[&str]| String::from_utf8_lossy(&weft(&folder, arguments).stderr).into_owned();
    let warns = |told: &str, what: &str, fix: &str| {
        let warning = " tokens, but the model was trained for 512 positions (max_sequence_length in config.json)";
        let lines: Vec<&str> = told.lines().filter(|line| line.contains(warning)).collect();
        assert_eq!(lines.len(), 1, "{told}");
        assert!(lines[0].starts_with(&format!("warning: {what} has ")) && lines[0].ends_with(fix), "{told}");
    };
    let fix = "; set data.max_seq_len=512";
    warns(&told(&["data", "recipe.toml"]), "the longest row", fix);
    let json: Value =
        serde_json::from_slice(&weft(&folder, &["data", "recipe.toml", "--json"]).stdout).expect("one object");
    let [longest, tokens] = ["longest", "tokens"].map(|key| json["beyond_positions"][key].as_u64().expect("a number"));
    assert_eq!((longest - 512) * 2, tokens, "of two rows of one length");
    let counted = format!("fail beyond them; 2 examples have {tokens} tokens there{fix}");
    assert!(told(&["data", "recipe.toml"]).contains(&counted));
    assert_eq!(told(&["data", "recipe.toml", "--set", "data.max_seq_len=512"]), "", "the fix works");
    warns(&told(&["plan", "recipe.toml"]), "the longest row", fix);
    warns(&told(&["train", "recipe.toml", "--quiet", "--set", "train.max_steps=1"]), "the longest row", fix);
    let asked = ask(&folder, &["--prompt", &long])[1].clone();
    warns(&asked, "the longest prompt with its answer", "; shorten the prompt or --gen-length");
    assert_eq!(ask(&folder, &["--prompt", "1 + 1"])[1], "");
}

/// The embedded base ends its answer to this in the first block of eight.
#[test]
fn nothing_is_computed_behind_an_answers_end() {
    let folder = folder("asking-end");
    let blocks = ["--gen-length", "64", "--block-length", "8"];
    let prompt = ["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?"];
    for cache in ["none", "prefix", "dual"] {
        let ask = |more: &[&str]| {
            let output = weft(&folder, &[&prompt[..], &blocks, &["--cache", cache, "--trace"], more].concat());
            let steps =
                String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.starts_with("step ")).count();
            (String::from_utf8(output.stdout).expect("UTF-8"), steps)
        };
        let [(shown, steps), (whole, all)] = [ask(&[]), ask(&["--whole-canvas"])];
        assert_eq!(shown, whole, "{cache}");
        assert!(steps <= all && all == 32, "{cache}: {steps} of {all}");
        // A cache approximates, so that the answer is another one.
        assert!(cache != "none" || steps == 4, "one block of eight: {steps}");
    }
    let turns = json!([{ "role": "user", "content": "What is 7 + 5?" }, { "role": "assistant", "content": "12" }]);
    let row = json!({ "messages": turns, "question": "What is 7 + 5?", "ground_truth": 12 });
    fs::write(folder.join("rows.jsonl"), format!("{row}\n")).expect("it is written");
    let eval = |more: &[&str]| {
        let fixed = ["eval", "--model", "tiny-base", "--task", "gsm8k", "--data", "rows.jsonl", "--out", "out.json"];
        let _ = fs::remove_file(folder.join("out.json"));
        let output = weft(&folder, &[&fixed[..], &blocks, more].concat());
        let stored: Value =
            serde_json::from_slice(&fs::read(folder.join("out.json")).expect("it is there")).expect("JSON");
        let text = stored["generations"][0]["generations"].as_str().expect("a text").to_owned();
        (String::from_utf8_lossy(&output.stderr).into_owned(), text)
    };
    let [(told, text), (all, whole)] = [eval(&[]), eval(&["--whole-canvas"])];
    assert!(told.contains(": 4.0 evaluations") && all.contains(": 32.0 evaluations"), "{told}{all}");
    let first = whole.find("<|eot_id|>").expect("the answer ends");
    assert_eq!(text[..first + 10], whole[..first + 10], "up to the end it is the same");
    // Seven blocks of eight end tokens, which are stored as d1's file stores them.
    assert!(text.ends_with(&"<|eot_id|>".repeat(56)), "{text}");
}
