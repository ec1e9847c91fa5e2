//! `weft reproduce` on rows of every origin: a file, generated ones, and a data set of the hub. Without a task it compares
//! held-out losses. What it prints and reports is meant to be read.

mod hub_server;
mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const RECIPE: &str = "[model]\nlora_rank = 4\n[train]\noutput = \"runs/study\"\nmicro_batch_size = 4\nlr = 1e-3\nmax_steps = 4\n\
                      [reproduce]\nseeds = 2\nevaluations = 2\ntiming_rounds = 1\n\
                      arms = [\"sft-masked\", \"weft-masked\", \"cart\"]\n";
const FILES: &str = "[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\nheld_out_rows = 4\n";

fn rows() -> String {
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    (0..32).map(row).collect()
}

fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).env("WEFT_CACHE", "").stdin(Stdio::null());
    command.output().expect("the program starts")
}

/// What a finished comparison prints, and its report.
fn finished(output: Output, folder: &Path) -> (String, String) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(folder.join("runs/study/report.md")).expect("there is a report");
    (String::from_utf8(output.stdout).expect("it prints UTF-8"), page)
}

fn report(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("runs/study/report.json")).expect("there is a report");
    serde_json::from_str(&text).expect("the report is JSON")
}

/// The sentence on two arms, with its verdict.
fn assert_sentence(text: &str, start: &str) {
    let line = text.lines().find(|line| line.trim_start_matches("- ").starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line starts with {start:?}:\n{text}"));
    assert!(line.contains(" over 2 seeds; ") && line.contains('[') && line.contains("nats per answer token"), "{line}");
    assert!(["not told apart", "is better"].iter().any(|verdict| line.ends_with(verdict)), "{line}");
}

/// `weft compare` reads the runs of a comparison, whose losses at the end are given, and says what its folder holds.
fn assert_its_runs_are_compared(folder: &Path, losses: [f64; 2]) {
    let runs = ["sft-masked", "weft-masked"].map(|arm| format!("runs/study/all/{arm}/seed-1"));
    let compared = weft(folder, &["compare", &runs[0], &runs[1], "--json"]);
    let compared: Value = serde_json::from_slice(&compared.stdout).expect("one object");
    for (i, loss) in losses.into_iter().enumerate() {
        let run = &compared["runs"][i];
        assert_eq!((&run["is_finished"], &run["steps"]), (&true.into(), &4.into()), "{run}");
        assert_eq!(run["held_out_loss"][1].as_f64(), Some(loss), "{run}");
        assert_eq!(run["held_out_loss"][0], report(folder)["settings"][0]["base"]["nll_bound"], "{run}");
    }
    let remark = "sft-masked/seed-1 and weft-masked/seed-1 are runs of weft reproduce, which keeps no losses of single rows, \
                  so there are no intervals; runs/study/report.md compares the arms over seeds";
    assert_eq!(compared["remarks"], serde_json::json!([remark]));
    let refused = String::from_utf8_lossy(&weft(folder, &["compare", "runs/study"]).stderr).into_owned();
    let told = "error: runs/study holds the runs of weft reproduce, whose runs/study/report.md compares them; give ";
    assert!(refused.starts_with(told), "{refused}");
}

#[test]
fn rows_of_a_file_are_compared_by_held_out_losses() {
    let folder = scratch::folder("compare-files");
    fs::write(folder.join("rows.jsonl"), format!("{}{{\"id\": 1}}\n", rows())).expect("the rows are written");
    let recipe = format!("{RECIPE}{FILES}on_bad_row = \"skip\"\n");
    fs::write(folder.join("study.toml"), recipe).expect("the recipe is written");
    let (told, page) = finished(weft(&folder, &["reproduce", "study.toml"]), &folder);
    // The terminal shows the main table and the sentences.
    for part in ["held-out loss in nats per answer token at the end", "  base ", "  sft-masked ", "  weft-masked "] {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    for text in [&told, &page] {
        assert_sentence(text, "WeFT - SFT: ");
        assert_sentence(text, "CART - SFT: ");
    }
    // Every table says what it is, without the paper's numbers; symbols and arms are explained.
    for part in [
        "## In short",
        "## How to read the tables",
        "- `weft-masked` sets `objective.kind=weft objective.normalizer=masked`",
        "## Held-out loss in nats per answer token at the end",
        "## During training\n\nHeld-out loss, nats per answer token, during training",
        ", seeds 1 to 2. A seed's runs share",
        "| source | used for | rows | skipped | gives | answers cut |\n| --- | --- | --- | --- | --- | --- |\n\
         | rows.jsonl | training | 33 | 1 | 32 examples | 0 |\n\
         | rows.jsonl [0:4] | held-out evaluation | 4 | 0 | 4 examples | 0 |\n",
        "\n- 1 of 33 rows skipped: the keys [\"id\"] match no known format (the first in rows.jsonl:33)\n",
        "Beware: the held-out losses rest on 4 held-out examples; fewer than 30 say little about others",
        "Paired differences:",
        "## Ablations at the end",
        "## Gradient norms and the spread of the rates",
        "## Times",
        "![loss](loss-all.svg) ![differences](differences-all.svg)",
    ] {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    assert!(!page.contains("Accuracy in percent") && !page.contains("## Table"), "{page}");
    // The recipe as it is has no name that a reader meets, except for that of its files.
    let svg = fs::read_to_string(folder.join("runs/study/loss-all.svg")).expect("there is a chart");
    let is_named = |text: &str| ["Setting all", "| all ", "all: ", "under all"].iter().any(|name| text.contains(name));
    assert!(![&page, &told, &svg].into_iter().any(|text| is_named(text)), "{page}{told}");
    // The differences are those of the runs' losses, seed by seed.
    let report = report(&folder);
    let loss = |arm: &str, seed: usize| {
        let path = folder.join(format!("runs/study/all/{arm}/seed-{seed}/outcome.json"));
        let saved: Value = serde_json::from_str(&fs::read_to_string(path).expect("it is done")).expect("JSON");
        assert_eq!(saved["outcome"]["points"][1].get("accuracy"), None);
        saved["outcome"]["points"][1]["nll_bound"].as_f64().expect("a number")
    };
    let mean = (1..=2).map(|seed| loss("weft-masked", seed) - loss("sft-masked", seed)).sum::<f64>() / 2.0;
    let differences = report["settings"][0]["differences"].as_array().expect("there are differences");
    assert!(differences.iter().all(|d| d["metric"] == "nll_bound"));
    let own = differences.iter().find(|d| d["arm"] == "weft-masked" && d["step"] == 4).expect("the pair is there");
    assert!((own["paired"]["difference"]["mean"].as_f64().expect("a number") - mean).abs() < 1e-12);
    assert_eq!(report["average"], serde_json::json!([null, null, null]));
    assert_its_runs_are_compared(&folder, [loss("sft-masked", 1), loss("weft-masked", 1)]);
    // It continues with --resume, as a run does; nothing is left to do.
    let again = weft(&folder, &["reproduce", "study.toml", "--resume"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("6 runs, 6 of them done"));
    assert_eq!(finished(again, &folder), (told, page));
}

#[test]
fn generated_rows_are_compared_without_a_task_and_with_one() {
    let folder = scratch::folder("compare-generated");
    let settings = "[data]\ngenerate = \"sudoku\"\ntrain_rows = 16\nheld_out_rows = 2\n\
                    [sampler]\ngen_length = 8\nblock_length = 8\ndiffusion_steps = 2\n\
                    [[reproduce.settings]]\nname = \"plain\"\n\
                    [[reproduce.settings]]\nname = \"scored\"\nset = [\"eval.task=sudoku\"]\n";
    let two = RECIPE.replace(", \"cart\"", "").replace("timing_rounds = 1", "timing_rounds = 0");
    fs::write(folder.join("study.toml"), two + settings).expect("the recipe is written");
    let (told, page) = finished(weft(&folder, &["reproduce", "study.toml"]), &folder);
    assert!(told.contains("accuracy in percent at the end"), "{told}");
    assert!(told.contains("plain: WeFT - SFT: ") && told.contains("scored: WeFT - SFT: "), "{told}");
    assert!(page.contains("## Accuracy in percent at the end\n\n|  | plain | scored | average |\n"), "{page}");
    assert!(page.contains("| sft-masked | - | "), "the setting without a task has no accuracy:\n{page}");
    // A chart of one difference isn't drawn, and neither are ablations where there are none.
    assert!(!page.contains("differences-") && !page.contains("## Ablations"), "{page}");
    assert!(page.contains("![accuracy](accuracy-scored.svg) ![loss](loss-scored.svg)\n"), "{page}");
    let exists = |name: &str| folder.join("runs/study").join(name).exists();
    assert!(exists("loss-plain.svg") && !exists("accuracy-plain.svg") && !exists("differences-plain.svg"));
}

#[cfg(feature = "hub")]
#[test]
fn a_data_set_of_the_hub_is_compared() {
    use hub_server::{Files, Hub};
    let (folder, hub) = (scratch::folder("compare-hub"), Hub::start());
    let files = Files::default().with("data/train.jsonl", rows().as_bytes());
    hub.serve("datasets/tiny/rows", files.with("data/test.jsonl", rows().as_bytes()));
    let data = "[data]\ntrain = \"tiny/rows\"\nheld_out = \"tiny/rows\"\nheld_out_rows = 4\n";
    let one = RECIPE.replace("seeds = 2", "seeds = 1").replace("evaluations = 2", "evaluations = 1");
    fs::write(folder.join("study.toml"), one + data).expect("the recipe is written");
    let output = hub_server::run(hub_server::weft(&folder, &hub.endpoint, &["reproduce", "study.toml"]));
    let (told, page) = finished(output, &folder);
    let line = told.lines().find(|line| line.starts_with("WeFT - SFT: ")).expect("there is a sentence");
    assert!(line.ends_with(" nats per answer token over 1 seed; one seed has no interval (reproduce.seeds)"), "{line}");
    assert!(!page.contains("loss-all.svg"), "a chart of one step isn't drawn:\n{page}");
}

#[test]
fn settings_that_a_comparison_does_not_use_are_told() {
    let folder = scratch::folder("compare-warnings");
    fs::write(folder.join("rows.jsonl"), rows()).expect("the rows are written");
    fs::write(folder.join("study.toml"), format!("{RECIPE}{FILES}")).expect("the recipe is written");
    let stderr = |args: &[&str]| String::from_utf8_lossy(&weft(&folder, args).stderr).into_owned();
    let small = ["reproduce", "study.toml", "--set", "reproduce.seeds=1", "--set", "reproduce.arms=[\"sft-masked\"]"];
    let idle = ["train.patience=2", "reproduce.timing_rounds=0", "train.max_steps=40", "reproduce.evaluations=10"];
    let idle: Vec<&str> = idle.iter().flat_map(|setting| ["--set", setting]).collect();
    let told = stderr(&[&small[..], &idle].concat());
    assert!(told.starts_with("warning: train.patience has no effect in a comparison: every run is scored"), "{told}");
    for warning in [
        "warning: train.max_steps = 40 has no effect: the run has 8 steps; raise train.epochs to train longer\n",
        "warning: reproduce.evaluations = 10, but a run has only 8 steps, after each of which it is scored\n",
        "warning: the held-out losses rest on 4 held-out examples; ",
    ] {
        assert!(told.contains(warning), "{warning}: {told}");
    }
    let told = stderr(&[&small[..], &["--resume", "--report-only"]].concat());
    assert!(told.contains("cannot be used with"), "{told}");
    // Without held-out rows there is nothing to compare; a setting's own mistake isn't the command line's.
    let alone = stderr(&[&small[..], &["--set", "data.held_out=", "--set", "data.held_out_rows=0"]].concat());
    assert!(alone.contains("data.held_out is empty"), "{alone}");
    let text = format!("{RECIPE}[data]\ntrain = \"rows.jsonl\"\n");
    fs::write(folder.join("alone.toml"), &text).expect("the recipe is written");
    let told = stderr(&["reproduce", "alone.toml"]);
    let expected =
        "error: alone.toml: the recipe has no held-out rows, so there is nothing to compare; set data.held_out";
    assert!(told.starts_with(expected), "{told}");
    let wrong = format!("{RECIPE}{FILES}[[reproduce.settings]]\nname = \"a\"\nset = [\"train.rate=1\"]\n");
    fs::write(folder.join("wrong.toml"), wrong).expect("the recipe is written");
    let told = stderr(&["reproduce", "wrong.toml", "--set", "train.lr=2e-3"]);
    assert!(told.starts_with("error: wrong.toml: reproduce.settings \"a\": unknown key train.rate"), "{told}");
    // Other commands pass over the table, and say so.
    let told = stderr(&["data", "study.toml"]);
    assert!(told.starts_with("warning: [reproduce] has no effect here: only weft reproduce reads it"), "{told}");
    let told = stderr(&["data", "study.toml", "--set", "reproduce.seeds=2"]);
    assert!(told.ends_with("--set: unknown table reproduce; only weft reproduce reads it\n"), "{told}");
}
