//! What the commands say of rows that are skipped, cut, or both trained on and held out.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::{Value, json};

fn pair(prompt: &str, response: &str) -> String {
    json!({ "prompt": prompt, "response": response }).to_string()
}

fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).env("WEFT_CACHE", "").output().expect("weft starts")
}

fn told(output: &Output) -> [String; 2] {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// Two sources, of which one has four bad rows among ten, and held-out rows with one.
fn recipe(name: &str) -> PathBuf {
    let folder = folder(name);
    let line = |i: usize| if i % 3 == 1 { "{".to_owned() } else { pair(&format!("{i} + 1?"), &(i + 1).to_string()) };
    let rows = |range: std::ops::Range<usize>| range.map(|i| line(i) + "\n").collect::<String>();
    let good = |i: usize| pair(&format!("{i} - 1?"), &i.to_string()) + "\n";
    fs::write(folder.join("a.jsonl"), (0..4).map(good).collect::<String>()).expect("it is written");
    fs::write(folder.join("b.jsonl"), rows(1..11)).expect("it is written");
    fs::write(folder.join("held-out.jsonl"), rows(8..20)).expect("it is written");
    let recipe = "[model]\nlora_rank = 1\n[data]\nheld_out = \"held-out.jsonl\"\n[[data.sources]]\npath = \"a.jsonl\"\n\
                  [[data.sources]]\npath = \"b.jsonl\"\n[train]\noutput = \"run\"\nmicro_batch_size = 2\nmax_steps = 1\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    folder
}

#[test]
fn commands_warn_of_what_is_skipped_and_shared() {
    let folder = recipe("warned");
    let refused = weft(&folder, &["data", "recipe.toml"]);
    assert_eq!(refused.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("4 rows of b.jsonl can't be used:\n  b.jsonl:1: not JSON"), "{errors}");
    let skip = ["--set", "data.on_bad_row=skip"];
    let reason = "not JSON (EOF while parsing an object at column 1)";
    let warning = |rows: &str, first: &str| {
        format!("warning: {rows} are skipped, more than a tenth, for this reason: {reason} (the first in {first})\n")
    };
    let warnings = [
        warning("4 of the 10 rows of b.jsonl", "b.jsonl:1"),
        warning("4 of the 12 rows of held-out.jsonl", "held-out.jsonl:3"),
    ];
    let shared = "2 held-out examples are trained on too (the first is held-out.jsonl:1, trained on as b.jsonl:8); the held-out \
                  loss says little about them";
    let line = format!("4 rows skipped: {reason} (the first in b.jsonl:1)\n");
    for command in ["data", "plan", "train"] {
        let [shown, warned] = told(&weft(&folder, &[&[command, "recipe.toml"][..], &skip].concat()));
        assert!(warned.starts_with(&warnings.concat()), "{command}: {warned}");
        assert!(shown.contains(&line), "{command}: {shown}");
        let told = if command == "data" { &shown } else { &warned };
        assert!(
            told.contains(&format!("{}: {shared}\n", if command == "data" { "note" } else { "warning" })),
            "{told}"
        );
        let output = ["--set", "train.output=run-2"];
        let json = weft(&folder, &[&[command, "recipe.toml", "--json"][..], &skip, &output].concat());
        let json: Value = serde_json::from_str(&self::told(&json)[0]).expect("one object");
        let of_b = if command == "data" { &json["sources"][1] } else { &json["rows"]["train"][1] };
        assert_eq!((&of_b["passed_over"], &of_b["examples"]), (&4.into(), &6.into()), "{command}: {json}");
        let expected = json!({ reason: { "count": 4, "first": "b.jsonl:1" } });
        assert_eq!(of_b["notes"]["skipped"], expected, "{command}");
    }
    // A run resumes with the same rows, and no other way of skipping.
    let resumed = weft(&folder, &[&["train", "recipe.toml", "--resume"][..], &skip].concat());
    assert!(told(&resumed)[0].contains("is finished"));
    let other =
        weft(&folder, &["train", "recipe.toml", "--resume", "--set", "data.on_long_answer=skip", skip[0], skip[1]]);
    let errors = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(errors.contains("data.on_long_answer was \"cut\" and is \"skip\""), "{errors}");
}

#[test]
fn what_was_cut_is_named() {
    let folder = recipe("cut");
    let long = |i: usize| pair(&format!("{i}?"), &"1 2 3 4 5 ".repeat(20)) + "\n";
    fs::write(folder.join("a.jsonl"), (0..5).map(long).collect::<String>()).expect("it is written");
    let args = ["data", "recipe.toml", "--set", "data.on_bad_row=skip", "--set", "data.max_seq_len=64"];
    let [shown, _] = told(&weft(&folder, &args));
    let cut = "  5 answers cut at 64 tokens\n  cut answers in a.jsonl:1, a.jsonl:2, a.jsonl:3, ...\n";
    assert!(shown.contains(cut), "{shown}");
    let [shown, warned] =
        told(&weft(&folder, &[&args[..], &["--set", "data.sources=[{path=\"a.jsonl\"},{path=\"b.jsonl\"}]"]].concat()));
    assert!(shown.contains(cut) && warned.contains("warning: "), "{shown}");
    let skip = weft(&folder, &[&args[..], &["--set", "data.on_long_answer=skip"]].concat());
    let errors = String::from_utf8_lossy(&skip.stderr).into_owned();
    let none = "a.jsonl: all its 5 rows are skipped, for this reason: prompt and answer together are longer \
                than data.max_seq_len (the first in a.jsonl:1); fix the rows\n";
    assert!(errors.ends_with(none), "{errors}");
}

#[test]
fn reasons_that_are_counted_together_come_last() {
    let folder = recipe("many-reasons");
    // Each of these keys makes another error; words that come after "other" are among them.
    let rows: String = ('a'..='z').map(|c| format!("{{\"{c}\": 1}}\n")).collect();
    let good: String = (0..8).map(|i| pair(&format!("{i} - 1?"), "1") + "\n").collect();
    fs::write(folder.join("b.jsonl"), format!("{}\n{rows}{good}", pair("a", ""))).expect("it is written");
    let [shown, _] = told(&weft(&folder, &["data", "recipe.toml", "--set", "data.on_bad_row=skip"]));
    let of_b = shown.split("b.jsonl: ").nth(1).unwrap_or_else(|| panic!("{shown}"));
    let skipped: Vec<&str> = of_b.lines().filter(|line| line.contains(" skipped: ")).take(11).collect();
    assert!(skipped.len() == 11 && skipped[10].contains("other reasons"), "{skipped:?}");
}

#[test]
fn the_most_frequent_reason_is_told_with_its_number() {
    let folder = recipe("reasons");
    let empty = || pair("2?", "") + "\n";
    let good = |i: usize| pair(&format!("{i} - 1?"), "1") + "\n";
    let rows = ["{\n".to_owned(), empty(), "[]\n".to_owned(), empty(), pair("", "") + "\n"].concat();
    fs::write(folder.join("b.jsonl"), rows + &(0..8).map(good).collect::<String>()).expect("it is written");
    let [_, warned] = told(&weft(&folder, &["data", "recipe.toml", "--set", "data.on_bad_row=skip"]));
    let expected = "warning: 5 of the 13 rows of b.jsonl are skipped, more than a tenth, 3 of them for this reason: the answer is \
                    empty (the first in b.jsonl:2)\n";
    assert!(warned.contains(expected), "{warned}");
}
