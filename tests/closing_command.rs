//! The command that a run prints at its end: it runs as it is printed, and asks what a held-out row asks.
#![cfg(unix)]

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::{Value, json};

fn train(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(folder).arg("train").args(arguments).output();
    let output = output.expect("weft starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    let line = shown.lines().find_map(|line| line.strip_prefix("try it: "));
    line.unwrap_or_else(|| panic!("{shown}")).to_owned()
}

/// Runs a printed command in a shell that knows `weft`.
fn paste(folder: &Path, command: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_weft")).parent().expect("a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let shell = Command::new("sh").arg("-c").arg(command).current_dir(folder).env("PATH", path).output();
    let output = shell.expect("a shell starts");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    output
}

fn run_folder(name: &str, held_out: &Value, more: &str) -> PathBuf {
    let folder = folder(name);
    // One answer of twenty is long.
    let answer = |i: usize| if i == 3 { "1 + 1, ".repeat(30) } else { (i + 1).to_string() };
    let row = |i: usize| format!("{}\n", json!({ "prompt": format!("What is {i} + 1?"), "response": answer(i) }));
    fs::write(folder.join("rows.jsonl"), (0..20).map(row).collect::<String>()).expect("the rows are written");
    fs::write(folder.join("held-out.jsonl"), format!("{held_out}\n")).expect("the rows are written");
    let recipe = format!(
        "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"held-out.jsonl\"\n{more}[train]\noutput = \"my run\"\n\
         max_steps = 1\n"
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

#[test]
fn the_printed_command_runs_and_asks_a_held_out_row() {
    let model = "weft generate --model tiny-base --adapter 'my run/adapter'";
    let row = json!({ "prompt": "What's 3 + 4?", "response": "7" });
    let folder = run_folder("plain", &row, "");
    let command = train(&folder, &["recipe.toml", "--set", "eval.samples=1"]);
    assert_eq!(command, format!("{model} --gen-length 3 --prompt 'What'\\''s 3 + 4?'"));
    // The report shows the same answer.
    let answer = String::from_utf8(paste(&folder, &command).stdout).expect("UTF-8");
    let page = fs::read_to_string(folder.join("my run/report.html")).expect("there is a page");
    let shown = page.split("<h3>after</h3><pre>").nth(1).and_then(|rest| rest.split("</pre>").next());
    let shown = shown.expect("there is an answer").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&");
    assert_eq!(shown.replace("&lt;", "<").replace("&gt;", ">"), answer.trim_end_matches('\n'));
    assert!(page.contains("Answers of at most 3 tokens in one step."), "{page}");
    let folder = run_folder(
        "sampler",
        &row,
        "[sampler]\ngen_length = 64\nblock_length = 2\ndiffusion_steps = 64\ntemperature = 0.5\n",
    );
    let command = train(&folder, &["recipe.toml", "--set", "data.special_tokens=tokens"]);
    let options = "--special-tokens tokens --gen-length 4 --block-length 2 --diffusion-steps 4 --temperature 0.5";
    assert_eq!(command, format!("{model} {options} --prompt 'What'\\''s 3 + 4?'"));
    paste(&folder, &command);

    let turns = json!([{ "role": "system", "content": "Be\nbrief." }, { "role": "user", "content": "What's\n3 + 4?" }]);
    let mut messages = turns.as_array().expect("a list").clone();
    messages.push(json!({ "role": "assistant", "content": "7" }));
    let folder = run_folder("chat", &json!({ "messages": messages }), "");
    let command = train(&folder, &["recipe.toml"]);
    assert_eq!(command, format!("{model} --gen-length 3 --messages 'my run/question.json'"));
    let question: Value =
        serde_json::from_slice(&fs::read(folder.join("my run/question.json")).expect("it is there")).expect("JSON");
    assert_eq!(question, turns);
    paste(&folder, &command);
}

#[test]
fn texts_are_continued() {
    let folder = folder("texts");
    fs::write(folder.join("rows.jsonl"), "{\"text\": \"\\n One two three four five six seven eight nine ten.\"}\n")
        .expect("written");
    let recipe = "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmax_steps = 1\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let command = train(&folder, &["recipe.toml"]);
    assert!(command.ends_with(" --raw --prompt 'One two three four five six seven eight'"), "{command}");
    paste(&folder, &command);
}

/// The command of the quick start is the one that README.md shows.
#[test]
fn the_readme_shows_the_command_of_the_quick_start() {
    let folder = folder("quick");
    let settings = ["train.max_steps=1", "data.train_rows=64", "data.held_out_rows=2", "eval.limit=1"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let command = train(&folder, &[&settings[..], &["--quiet"]].concat());
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("it is there");
    assert!(readme.contains(&format!("try it: {command}\n")), "{command}");
    paste(&folder, &command);
}

#[test]
fn any_length_of_an_answer_finds_its_blocks() {
    let folder = folder("lengths");
    let ask = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .current_dir(&folder)
            .args(["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?", "--gen-length"])
            .args(more)
            .output()
            .expect("weft starts");
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for (length, block, steps) in
        [("48", "24", "24"), ("33", "11", "18"), ("37", "37", "18"), ("40", "20", "20"), ("64", "32", "32")]
    {
        assert_eq!(ask(&[length]), ask(&[length, "--block-length", block, "--diffusion-steps", steps]), "{length}");
    }
    assert_eq!(ask(&["9", "--block-length", "3"]), ask(&["9", "--block-length", "3", "--diffusion-steps", "6"]));
}
