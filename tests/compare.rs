//! `weft compare`: what it says of runs is what their folders hold, and what can't be compared isn't.

mod scratch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const RECIPE: &str = r#"
[model]
lora_rank = 2
[data]
train = "rows.jsonl"
held_out = "rows.jsonl"
held_out_rows = 4
[train]
max_steps = 6
eval_every = 3
micro_batch_size = 2
"#;

/// What is told of so few rows.
const FEW: &str = "the held-out losses rest on 4 held-out rows; fewer than 30 say little about others, so use more of them \
                   (data.held_out)";

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).env("WEFT_CACHE", "cache").args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs of the same rows at some rates.
fn runs(name: &str, settings: &[(&str, &[&str])]) -> PathBuf {
    let folder = scratch::folder(name);
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + {i}?\", \"response\": \"It is {}.\"}}\n", 2 * i);
    std::fs::write(folder.join("rows.jsonl"), (0..12).map(row).collect::<String>()).expect("the rows are written");
    std::fs::write(folder.join("recipe.toml"), RECIPE).expect("the recipe is written");
    for (run, settings) in settings {
        let output = format!("train.output=runs/{run}");
        let settings: Vec<&str> = settings.iter().copied().chain([&*output]).flat_map(|s| ["--set", s]).collect();
        let trained = weft(&folder, &[&["train", "recipe.toml", "--quiet"], &settings[..]].concat());
        assert!(trained.status.success(), "{}", text(&trained.stderr));
    }
    folder
}

fn last_loss(folder: &Path, run: &str) -> f64 {
    let metrics = std::fs::read_to_string(folder.join(format!("runs/{run}/metrics.jsonl"))).expect("there are metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter_map(|line| line["held_out_nll_bound"].as_f64()).next_back().expect("it was evaluated")
}

#[test]
fn runs_of_a_sweep_are_compared() {
    let folder = runs("compare-sweep", &[("low", &["train.lr=1e-4"]), ("high", &["train.lr=1e-2"])]);
    let output = weft(&folder, &["compare", "runs/low", "runs/high", "--json", "--out", "page.html"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(object["remarks"], serde_json::json!([FEW]));
    assert_eq!(object["settings"].as_array().expect("a list").len(), 1, "{object}");
    assert_eq!(object["settings"][0]["key"], "train.lr");
    let [low, high] = ["low", "high"].map(|run| last_loss(&folder, run));
    for (run, loss) in object["runs"].as_array().expect("a list").iter().zip([low, high]) {
        let held_out = &run["held_out"];
        let number = |key: &str| held_out[key].as_f64().expect("a number");
        assert!((number("mean") - loss).abs() < 1e-9 * loss, "the rows' sum is the loss: {held_out}, {loss}");
        assert!(number("low") > 0.0, "a loss can't be below 0: {held_out}");
        assert!(number("low") < loss && loss < number("high") && number("count") == 4.0, "{held_out}");
        assert_eq!((&run["not_comparable"], &run["is_finished"]), (&Value::Null, &true.into()));
    }
    let difference = &object["runs"][1]["held_out_difference"];
    assert!((difference["mean"].as_f64().expect("a number") - (high - low)).abs() < 1e-9, "{difference}");
    assert_eq!(object["runs"][0]["held_out_difference"], Value::Null);
    // A folder of runs stands for the runs in it, and what holds no run is told.
    std::fs::create_dir(folder.join("runs/notes")).expect("a folder");
    let of_folder = weft(&folder, &["compare", "runs", "--json", "--out", "other.html"]);
    let of_folder: Value = serde_json::from_slice(&of_folder.stdout).expect("one object");
    let names: Vec<&Value> = of_folder["runs"].as_array().expect("a list").iter().map(|run| &run["name"]).collect();
    assert_eq!(names, ["high", "low"]);
    let without = "runs/notes is left out: it holds no run (recipe.json is missing)";
    assert_eq!(of_folder["remarks"], serde_json::json!([without, FEW]));
    let given = ["compare", "runs/low", "runs/high", "runs/notes", "rows.jsonl", "runs/low/adapter"];
    let told = text(&weft(&folder, &given).stderr);
    let adapter = "holds an adapter or a checkpoint, whose run is the folder above it";
    let others =
        [without, "rows.jsonl is left out: it is a file", &format!("runs/low/adapter is left out: it {adapter}")];
    let all = others.iter().chain([&FEW]).map(|remark| format!("warning: {remark}\n")).collect::<String>();
    assert_eq!(told, all);
    let page = std::fs::read_to_string(folder.join("page.html")).expect("there is a page");
    assert_eq!(page.matches("<svg").count(), 7, "a chart of differences and six of curves");
    assert_eq!(page.matches("<script").count(), 1);

    let output = weft(&folder, &["compare", "runs/low", "runs/high"]);
    let shown = text(&output.stdout);
    assert!(shown.starts_with("settings that differ\n"), "{shown}");
    assert!(shown.contains(&format!("{low:.4}")) && shown.contains(&format!("{:+.4} [", high - low)), "{shown}");
    assert!(shown.ends_with("the page is in compare.html\n"), "{shown}");
    assert!(folder.join("compare.html").exists());
}

#[test]
fn runs_that_cant_be_compared_are_told() {
    let folder = runs("compare-others", &[("one", &[]), ("other", &["data.held_out_rows=3"])]);
    let output = weft(&folder, &["compare", "runs/one", "runs/other"]);
    assert!(output.status.success());
    assert_eq!(
        text(&output.stderr),
        format!(
            "warning: other can't be compared with one: its held-out rows differ from those of one\nwarning: {}\n",
            FEW.replace("4 held-out", "3 held-out")
        )
    );
    // One line is enough for several runs.
    std::fs::create_dir(folder.join("runs/third")).expect("a folder");
    for file in ["recipe.json", "metrics.jsonl", "held_out.json", "results.json"] {
        let [from, to] = ["other", "third"].map(|run| folder.join("runs").join(run).join(file));
        std::fs::copy(from, to).expect("it is copied");
    }
    let several = text(&weft(&folder, &["compare", "runs/one", "runs/other", "runs/third"]).stderr);
    let told = "warning: other and third can't be compared with one: their held-out rows differ from those of one\n";
    assert!(several.starts_with(told), "{several}");
    let shown = text(&output.stdout);
    assert!(shown.contains("data.held_out_rows"), "{shown}");
    let page = std::fs::read_to_string(folder.join("compare.html")).expect("there is a page");
    assert!(page.contains("can&#39;t be compared"), "the page says so too");
    let object = weft(&folder, &["compare", "runs/one", "runs/other", "--json"]);
    let object: Value = serde_json::from_slice(&object.stdout).expect("one object");
    assert_eq!(object["runs"][1]["held_out_difference"], Value::Null);

    // A tokenizer of another kind, as a run's recipe.json says it.
    let path = folder.join("runs/other/recipe.json");
    let mut saved: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("it is there")).expect("JSON");
    assert_eq!(saved["recipe"]["tokenizer"].as_str().expect("a hash").len(), 32);
    saved["recipe"]["tokenizer"] = "0".into();
    std::fs::write(&path, saved.to_string()).expect("it is written");
    let told = text(&weft(&folder, &["compare", "runs/one", "runs/other"]).stderr);
    assert!(told.contains("its tokenizer or chat template differs from that of one"), "{told}");
    // A run of an earlier version has neither hash nor rows; the losses are still shown.
    std::fs::remove_file(folder.join("runs/one/held_out.json")).expect("it was there");
    let output = weft(&folder, &["compare", "runs/one", "runs/other"]);
    assert!(output.status.success() && text(&output.stdout).contains(&format!("{:.4}", last_loss(&folder, "one"))));
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = scratch::folder("compare-refused");
    std::fs::create_dir_all(folder.join("study/lora/base")).expect("a folder");
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    std::fs::write(folder.join("page.html"), "").expect("a file");
    let study = "whose study/report.md compares them";
    for (arguments, told) in [
        (&["empty", "other"][..], "other doesn't exist".to_owned()),
        (&["empty"], "empty holds no run (recipe.json is missing)".to_owned()),
        (&["empty", "page.html"], "empty holds no run (recipe.json is missing), page.html is a file".to_owned()),
        (&["study"], format!("study holds the runs of weft reproduce, {study}")),
        (&["study/lora"], format!("study/lora holds the runs of one setting of weft reproduce, {study}")),
    ] {
        let output = weft(&folder, &[&["compare"], arguments].concat());
        assert_eq!(output.status.code(), Some(2));
        let fix = "give the folders of two or more runs (the train.output of weft train)";
        assert_eq!(text(&output.stderr), format!("error: {told}; {fix}\n"));
    }
    let twice = weft(&folder, &["compare", "empty", "./empty"]);
    assert_eq!(text(&twice.stderr), "error: ./empty is given twice; give each run once\n");
}
