//! `weft eval` and `weft score` as their users meet them: the formats of generations, errors with file and line, and
//! figures that stay the same when generations are scored again.

mod commands;
mod scratch;

use std::fs;
use std::path::Path;

use commands::{printed, refused};
use scratch::folder;
use serde_json::{Value, json};
use weft::eval::asked::turns_of_row;

fn write(folder: &Path, file: &str, text: impl AsRef<[u8]>) {
    fs::write(folder.join(file), text).expect("the file is written");
}

fn row(key: &str, generation: &str, truth: Value) -> Value {
    json!({ "question": "How \"generations\": [many]?", key: generation, "ground_truth": truth })
}

const GSM8K_ROWS: &str = "{\"question\": \"What is 1 + 2?\", \"answer\": \"1 + 2 = 3\\n#### 3\"}\n\
                          {\"question\": \"What is 2 - 4?\", \"answer\": \"2 - 4 = -2\\n#### -2\"}\n";

#[test]
fn every_form_of_generations_scores_the_same() {
    let folder = folder("forms");
    let rows = |key: &str| {
        [
            row(key, "\\boxed{18}", json!(18)),
            row(key, "\\boxed{43,500}<|eot_id|>", json!(43500.0)),
            row(key, "none", json!(1.5)),
            row(key, "<answer>-10</answer>", Value::Null),
        ]
    };
    let lines = |key: &str| rows(key).map(|row| format!("{row}\n")).concat();
    write(&folder, "rows.jsonl", lines("generation"));
    write(&folder, "crlf.jsonl", lines("generations").replace('\n', "\r\n\r\n"));
    let whole = json!({ "metrics": { "wall_time": 1.0 }, "generations": rows("generations"), "gen_length": 128 });
    write(&folder, "pretty.json", serde_json::to_string_pretty(&whole).expect("JSON prints"));
    write(&folder, "compact.json", whole.to_string());
    let expected = "{\"extracted\":18.0,\"correct\":1,\"total\":1}\n{\"extracted\":43.0,\"correct\":0,\"total\":1}\n\
                    {\"extracted\":null,\"correct\":0,\"total\":1}\n{\"extracted\":-10.0,\"correct\":0,\"total\":1}\n";
    for file in ["rows.jsonl", "crlf.jsonl", "pretty.json", "compact.json"] {
        let text = printed(&folder, &["score", "--task", "gsm8k", file, "--out", "scores.jsonl"]);
        assert_eq!(
            text,
            "gsm8k on 4 generations: 25.0 % +- 25.0 (1 of 4), 95 % interval 4.6 to 69.9\nscores are in scores.jsonl\n",
            "{file}"
        );
        assert_eq!(fs::read_to_string(folder.join("scores.jsonl")).expect("the scores lie there"), expected, "{file}");
        assert_eq!(
            printed(&folder, &["score", "--task", "gsm8k", file]),
            text.replace("scores are in scores.jsonl\n", "")
        );
    }
}

#[test]
fn a_row_that_is_no_generation_is_told_with_file_and_line() {
    let folder = folder("errors");
    let good = row("generation", "\\boxed{18}", json!(18)).to_string();
    let score = |task: &str, file: &str| refused(&folder, &["score", "--task", task, file, "--out", "scores.jsonl"]);
    for (task, bad, reason) in [
        (
            "gsm8k",
            "{\"generation\": \"\", \"ground_truth\": 1}",
            "the key \"question\" is missing; a row needs question, ",
        ),
        (
            "gsm8k",
            "{\"question\": \"\", \"ground_truth\": 1}",
            "the key \"generation\" is missing; a row needs question, ",
        ),
        ("gsm8k", "{\"question\": \"\", \"generation\": \"\"}", "the key \"ground_truth\" is missing; a row needs "),
        ("gsm8k", "{\"question\": \"\", \"generation\": 5, \"ground_truth\": 1}", "generation is 5, not a string"),
        (
            "gsm8k",
            "{\"question\": \"\", \"generation\": \"\", \"ground_truth\": \"18\"}",
            "ground_truth is \"18\"; gsm8k's is a number or null",
        ),
        ("gsm8k", "7", "not a JSON object; write one object per line"),
        ("gsm8k", "{\"question\"", "not JSON (EOF while parsing an object at column 11); write one object per line"),
    ] {
        write(&folder, "rows.jsonl", format!("{good}\n\n{bad}\n"));
        let error = score(task, "rows.jsonl");
        assert!(error.starts_with(&format!("error: rows.jsonl:3: {reason}")), "{error}");
    }
    for (task, truth, reason) in [
        ("math500", "18", "ground_truth is 18; math500's is a text"),
        (
            "countdown",
            "[[1, 2.5], 3]",
            "ground_truth is [[1,2.5],3]; countdown's is [[30, 100, 93], 23], numbers and target",
        ),
        ("sudoku", "\"1\"", "the question \"\" holds no puzzle; write 16 digits, 0 for empty"),
    ] {
        let row = format!("{{\"question\": \"\", \"generation\": \"\", \"ground_truth\": {truth}}}");
        write(&folder, "rows.jsonl", &row);
        assert_eq!(score(task, "rows.jsonl"), format!("error: rows.jsonl:1: {reason}"));
        // d1's JSON, its row on the third line.
        write(&folder, "d1.json", format!("{{\n  \"generations\": [\n    {row}\n  ]\n}}"));
        assert_eq!(score(task, "d1.json"), format!("error: d1.json:3: {reason}"));
    }
    let row = "{\"question\": \"0000000000000000\", \"generation\": \"\", \"ground_truth\": \"12\"}";
    write(&folder, "rows.jsonl", row);
    assert!(score("sudoku", "rows.jsonl").ends_with(":1: ground_truth is \"12\"; sudoku's is a string of 16 digits"));
    assert!(!folder.join("scores.jsonl").exists(), "nothing is written for a file that is refused");
}

#[test]
fn a_file_that_is_none_is_told() {
    let folder = folder("files");
    let score = |file: &str| refused(&folder, &["score", "--task", "gsm8k", file]);
    write(&folder, "cut.json", "{\n\"generations\": [\n{\"question\": \"a\",\n");
    assert!(score("cut.json").starts_with("error: cut.json:4: not JSON with a list of generations (EOF "));
    write(&folder, "entry.json", "{\n\"generations\": [\n5]}");
    assert!(score("entry.json").starts_with("error: entry.json:3: an entry of generations is not a JSON object ("));
    write(&folder, "latin.json", b"{\"generations\": [\n\"\xe9\"]}");
    let latin = "error: latin.json:2: byte 20 of the file is not UTF-8; convert the file to UTF-8";
    assert_eq!(score("latin.json"), latin);
    let mut lines = row("generation", "", json!(1)).to_string().into_bytes();
    lines.extend(b"\n{\"\xe9\": 1}\n");
    write(&folder, "latin.jsonl", lines);
    assert_eq!(score("latin.jsonl"), "error: latin.jsonl:2: byte 3 is not UTF-8; convert the file to UTF-8");
    for (file, text) in [("none.json", "{\"generations\": []}"), ("none.jsonl", "\n")] {
        write(&folder, file, text);
        let reason = "there are no generations; give one per row, or d1's {\"generations\": [...]}";
        assert_eq!(score(file), format!("error: {file}:1: {reason}"));
    }
    assert!(score("absent.json").starts_with("error: cannot read absent.json: No such file"));
    let unknown = refused(&folder, &["score", "--task", "chess", "absent.json"]);
    assert_eq!(
        unknown,
        "error: unknown task \"chess\"; the known ones are sudoku, countdown, gsm8k, math500, hellaswag, arc, naturalquestions, raft, humaneval, mbpp, and files that end in .toml (docs/tasks.md)"
    );
    write(&folder, "good.jsonl", row("generation", "", json!(1)).to_string());
    let error = refused(&folder, &["score", "--task", "gsm8k", "good.jsonl", "--out", "absent/scores.jsonl"]);
    assert!(error.starts_with("error: cannot write absent/scores.jsonl: No such file"), "{error}");
    assert!(error.ends_with("; make its folder first or choose another one"), "{error}");
}

#[test]
fn an_evaluation_is_d1s_json_and_scores_the_same_again() {
    let folder = folder("again");
    write(&folder, "gsm8k.jsonl", GSM8K_ROWS);
    let math = json!({ "problem": "What is 1/4 + 1/2?", "answer": "\\frac{3}{4}", "level": 1, "unique_id": "x" });
    write(&folder, "math500.jsonl", math.to_string());
    for (task, problems, truth) in [("gsm8k", 2, json!(3.0)), ("math500", 1, json!("\\frac{3}{4}"))] {
        let data = format!("{task}.jsonl");
        let eval = ["eval", "--model", "tiny-base", "--task", task, "--data", &data, "--gen-length", "32"];
        let _ = fs::remove_file(folder.join("out.json"));
        let eval = [&eval[..], &["--out", "out.json"]].concat();
        let first = printed(&folder, &eval);
        let count = if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") };
        assert!(first.starts_with(&format!("{task} on {count}: ")), "{first}");
        assert_eq!(refused(&folder, &eval), "error: --out out.json is there already; name another file, or remove it");
        let text = fs::read_to_string(folder.join("out.json")).expect("the generations lie there");
        let out: Value = serde_json::from_str(&text).expect("JSON");
        let [generation, ..] = &out["generations"].as_array().expect("a list")[..] else { panic!("{text}") };
        let keys: Vec<&String> = generation.as_object().expect("a row").keys().collect();
        assert_eq!(keys, ["question", "generations", "ground_truth"]);
        assert_eq!(generation["ground_truth"], truth);
        assert_eq!(out["metrics"]["total"], problems);
        let again = printed(&folder, &["score", "--task", task, "out.json"]);
        let figures = |text: &str| text.lines().next().and_then(|l| l.split_once(": ")).map(|(_, f)| f.to_owned());
        assert_eq!(figures(&again), figures(&first));
    }
}

#[test]
fn steps_are_half_the_length_where_only_that_is_given() {
    let folder = folder("steps");
    // 64 steps, the default, don't divide into 3 blocks; 48 do.
    let generate = ["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?", "--gen-length", "96"];
    let halved = printed(&folder, &generate);
    assert_eq!(halved, printed(&folder, &[&generate[..], &["--diffusion-steps", "48"]].concat()));
    let error = refused(&folder, &[&generate[..], &["--diffusion-steps", "64"]].concat());
    assert!(error.contains("diffusion_steps 64 is not a multiple of the 3 blocks"), "{error}");
}

#[test]
fn a_recipe_scores_base_and_adapter_on_gsm8k() {
    let folder = folder("recipe");
    write(&folder, "rows.jsonl", GSM8K_ROWS);
    let recipe = "[model]\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\n\
                  [train]\noutput = \"run\"\n[sampler]\ngen_length = 32\ndiffusion_steps = 4\n\
                  [eval]\ntask = \"gsm8k\"\nlimit = 1\n";
    write(&folder, "recipe.toml", recipe);
    let text = printed(&folder, &["train", "recipe.toml"]);
    assert!(text.contains("gsm8k on the same 1 held-out problem:\n  base     0.0 %"), "{text}");
    for side in ["base", "adapter"] {
        let file = format!("run/{side}-generations.json");
        assert!(printed(&folder, &["score", "--task", "gsm8k", &file]).starts_with("gsm8k on 1 generation: "));
    }
    let error = refused(&folder, &["train", "recipe.toml", "--set", "data.generate=gsm8k"]);
    let reason = "data.generate = \"gsm8k\": the known values are sudoku, countdown, countdown_in_order";
    assert!(error.contains(reason), "{error}");
}

#[test]
fn a_row_needs_no_answer_to_be_asked() {
    let folder = folder("no-answers");
    let user = json!({ "role": "user", "content": "What is 7 + 5?" });
    let empty = json!({ "role": "assistant", "content": "" });
    let rows = [
        json!({ "messages": [user, empty] }),
        json!({ "messages": [user, { "role": "assistant", "content": null }] }),
        json!({ "conversations": [{ "from": "human", "value": "What is 7 + 5?" }, { "from": "gpt", "value": " " }] }),
        json!({ "prompt": "What is 7 + 5?", "response": "" }),
        json!({ "prompt": [user], "completion": [empty] }),
        json!({ "question": "What is 7 + 5?", "answer": 12 }),
        json!({ "question": "What is 7 + 5?", "answer": ["12", "twelve"] }),
        json!({ "instruction": "What is 7 + 5?", "output": " " }),
    ];
    for row in &rows {
        let question = turns_of_row(row.as_object().expect("a row")).expect("it asks");
        assert_eq!((question.turns.len(), question.turns[0].text()), (1, "What is 7 + 5?"), "{row}");
    }
    for row in [json!({ "prompt": " " }), json!({ "messages": [{ "role": "user", "content": "" }, empty] })] {
        let error = turns_of_row(row.as_object().expect("a row")).expect_err("it asks nothing").to_string();
        assert_eq!(error, "the row asks nothing; give it a prompt, or messages with a user's turn");
    }
    // A file of questions with an empty column of answers, and one with its references, which weft score reads.
    write(&folder, "rows.csv", "question,answer\nWhat is 7 + 5?,\nWhat is 1 + 1?,\n");
    let ask = |out: &str| {
        let asked =
            ["generate", "--model", "tiny-base", "--gen-length", "8", "--diffusion-steps", "4", "--data", "rows.csv"];
        assert_eq!(printed(&folder, &[&asked[..], &["--out", out]].concat()), format!("2 answers are in {out}\n"));
    };
    ask("out.jsonl");
    let told = refused(&folder, &["score", "--task", "gsm8k", "out.jsonl"]);
    let lacks = "error: out.jsonl:1: the key \"ground_truth\" is missing; a row needs question, generation and ground_truth, or \
                 the columns of gsm8k's own rows (the text \"answer\" is missing; a row is {\"question\": \"...\", \"answer\": \"... #### 18\"})";
    assert_eq!(told, lacks);
    write(&folder, "rows.csv", "question,answer\nWhat is 7 + 5?,12\nWhat is 1 + 1?,1 + 1 #### 2\n");
    ask("scored.jsonl");
    assert!(printed(&folder, &["score", "--task", "gsm8k", "scored.jsonl"]).starts_with("gsm8k on 2 generations: "));
    // Each reference is read: both as a number alone and at the end of a solution.
    let right = |answer: &str, said: &str| json!({ "question": "", "answer": answer, "generation": said });
    let rows = [right("12", "\\boxed{12}"), right("1 + 1 #### 2", "\\boxed{2}"), right("3", "\\boxed{4}")];
    write(&folder, "rows.jsonl", rows.map(|row| format!("{row}\n")).concat());
    assert!(printed(&folder, &["score", "--task", "gsm8k", "rows.jsonl"]).contains("(2 of 3)"));
}
