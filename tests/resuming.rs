//! `weft train --resume` as its user meets it: what a run tells that went on, that is finished, that never began.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::Value;

/// A run of four steps with a checkpoint after two.
fn run_folder(name: &str) -> PathBuf {
    let folder = folder(name);
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    for (file, rows) in [("rows.jsonl", 0..8), ("held-out.jsonl", 8..12)] {
        fs::write(folder.join(file), rows.map(row).collect::<String>()).expect("the rows are written");
    }
    let recipe = "[model]\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"held-out.jsonl\"\n[train]\n\
                  output = \"run\"\nlr = 1e-3\nmicro_batch_size = 2\ncheckpoint_every = 2\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(folder).args(arguments).output();
    output.expect("weft starts")
}

fn train(folder: &Path, more: &[&str]) -> Output {
    let output = weft(folder, &[&["train", "recipe.toml"], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn results(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("run/results.json")).expect("the results are there");
    serde_json::from_str(&text).expect("they are JSON")
}

#[test]
fn a_resumed_run_tells_of_its_whole() {
    let folder = run_folder("resumed-whole");
    let whole = stdout(&train(&folder, &[]));
    assert!(whole.contains("trained 4 steps in "), "{whole}");
    assert!(whole.contains("try it: weft generate --model tiny-base --adapter run/adapter --gen-length 2 "), "{whole}");
    let first = results(&folder);
    let metrics = |folder: &Path| -> Vec<Value> {
        let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there is a log");
        text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
    };
    // As a crash after three steps leaves it.
    for left in ["checkpoints/step-00000004", "adapter"] {
        fs::remove_dir_all(folder.join("run").join(left)).expect("it was there");
    }
    fs::remove_file(folder.join("run/results.json")).expect("it was there");
    let resumed = stdout(&train(&folder, &["--resume"]));
    assert!(resumed.contains(", resumed at step 2\n"), "{resumed}");
    let second = results(&folder);
    assert_eq!(first["held_out_loss"], second["held_out_loss"], "the first loss is that of the run's beginning");
    let seconds: f64 = metrics(&folder).iter().filter_map(|line| line["step_seconds"].as_f64()).sum();
    let told = second["train_seconds"].as_f64().expect("a number");
    assert!((told - seconds).abs() < 1e-6 * seconds, "{told} s are those of all four steps, {seconds} s");
    let report = fs::read_to_string(folder.join("run/report.html")).expect("there is a report");
    assert!(report.contains("held-out loss, before and after"));
}

#[test]
fn a_finished_run_has_nothing_to_resume_and_is_left_alone() {
    let folder = run_folder("finished");
    train(&folder, &[]);
    let kept = ["report.html", "results.json", "metrics.jsonl", "adapter/adapter_model.safetensors"];
    let state = || kept.map(|name| fs::metadata(folder.join("run").join(name)).and_then(|m| m.modified()).expect(name));
    let before = state();
    let told = stdout(&train(&folder, &["--resume"]));
    assert_eq!(told, "the run in run is finished (4 steps); there is nothing to resume\n");
    let json = stdout(&train(&folder, &["--resume", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&json).expect("it is JSON"), results(&folder));
    assert_eq!(before, state(), "no file was written");
    // Another recipe is refused before anything is computed.
    let other = weft(&folder, &["train", "recipe.toml", "--resume", "--set", "train.epochs=2"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("train.epochs was 1 and is 2"), "{}", stderr(&other));
    let fix = "leave out --resume and add --set model.adapter=run/adapter --set train.output=FOLDER\n";
    assert!(stderr(&other).ends_with(fix), "{}", stderr(&other));
    train(&folder, &["--set", "model.adapter=run/adapter", "--set", "train.output=FOLDER"]);
    assert!(stdout(&other).is_empty(), "{}", stdout(&other));
}

/// Under a constant learning rate no step depends on the length of its run.
#[test]
fn a_finished_run_goes_on_for_more_epochs_at_a_constant_rate() {
    let folder = run_folder("longer");
    let set = |settings: &[&'static str]| -> Vec<&'static str> {
        let constant = ["train.lr_schedule=constant", "train.warmup_steps=2", "objective.entropy_every=2"];
        constant.iter().chain(settings).flat_map(|setting| ["--set", setting]).collect()
    };
    train(&folder, &set(&["train.output=whole", "train.epochs=3"]));
    train(&folder, &set(&["train.epochs=1"]));
    let refused = |settings: &[&'static str]| {
        let output = weft(&folder, &[&["train", "recipe.toml", "--resume"], &set(settings)[..]].concat());
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    assert!(refused(&["train.epochs=2", "train.lr_schedule=linear"]).contains("train.epochs was 1 and is 2"));
    let longer = stdout(&train(&folder, &[&["--resume"], &set(&["train.epochs=3"])[..]].concat()));
    assert!(longer.contains("trained 12 steps in ") && longer.contains(", resumed at step 4\n"), "{longer}");
    for file in ["adapter/adapter_model.safetensors", "checkpoints/step-00000012/state.safetensors"] {
        let [run, whole] = ["run", "whole"].map(|run| fs::read(folder.join(run).join(file)).expect(file));
        assert!(run == whole, "{file} has other bytes");
    }
    let finished = stdout(&train(&folder, &[&["--resume"], &set(&["train.epochs=3"])[..]].concat()));
    assert_eq!(finished, "the run in run is finished (12 steps); there is nothing to resume\n");
    assert!(refused(&["train.epochs=2"]).contains("train.epochs was 3 and is 2"), "it has more steps already");
}

#[test]
fn settings_of_the_evaluation_say_nothing_of_a_finished_run() {
    let folder = run_folder("finished-eval");
    train(&folder, &[]);
    for setting in ["eval.samples=1", "train.eval_every=1"] {
        let told = stdout(&train(&folder, &["--resume", "--set", setting]));
        assert_eq!(told, "the run in run is finished (4 steps); there is nothing to resume\n", "{setting}");
    }
}

#[test]
fn a_run_that_never_began_is_not_begun_by_mistake() {
    let folder = run_folder("never-began");
    let none = weft(&folder, &["train", "recipe.toml", "--resume"]);
    assert_eq!(none.status.code(), Some(2));
    assert_eq!(stderr(&none), "error: run holds no run to resume; leave out --resume to begin one\n");
    assert!(!folder.join("run").exists());
    // A crash before the first checkpoint leaves the recipe.
    train(&folder, &[]);
    for left in ["checkpoints", "adapter"] {
        fs::remove_dir_all(folder.join("run").join(left)).expect("it was there");
    }
    let other = weft(&folder, &["train", "recipe.toml", "--resume", "--set", "train.lr=1e-4"]);
    assert!(stderr(&other).contains("train.lr was 0.001 and is 0.0001; undo that or start over"), "{}", stderr(&other));
    let told = stderr(&train(&folder, &["--resume"]));
    assert!(told.contains("run has no checkpoint to resume from; the run begins at step 0\n"), "{told}");
    assert!(folder.join("run/adapter/adapter_model.safetensors").exists());
}

#[test]
fn settings_that_change_no_bit_may_change_meanwhile() {
    let folder = run_folder("free");
    train(&folder, &[]);
    let adapter = || fs::read(folder.join("run/adapter/adapter_model.safetensors")).expect("there is an adapter");
    let whole = adapter();
    for left in ["checkpoints/step-00000004", "adapter"] {
        fs::remove_dir_all(folder.join("run").join(left)).expect("it was there");
    }
    let settings = ["train.checkpoint_every=1", "train.eval_every=1", "train.activation_memory_gb=0"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    train(&folder, &[["--resume"].as_slice(), &settings].concat());
    assert!(adapter() == whole, "the adapter has other bytes");
    assert!(folder.join("run/checkpoints/step-00000003").is_dir(), "the new setting holds");
}

#[test]
fn an_output_that_is_a_file_or_nothing_is_refused() {
    let folder = run_folder("file-output");
    let refused = |setting: &str| {
        let output = weft(&folder, &["train", "recipe.toml", "--set", setting]);
        assert_eq!(output.status.code(), Some(2), "{setting}");
        stderr(&output)
    };
    assert_eq!(refused("train.output=rows.jsonl"), "error: train.output = rows.jsonl is a file; name a folder\n");
    let empty = "error: --set train.output is empty; name a folder, or leave it out\n";
    assert_eq!(refused("train.output=''"), empty);
    assert!(refused("data.held_out=''").contains("data.held_out is empty; name a file or folder of rows"));
}

#[test]
fn an_adapter_on_another_base_is_warned_of() {
    let folder = run_folder("other-base");
    train(&folder, &[]);
    let merged = weft(&folder, &["merge", "--model", "tiny-base", "--adapter", "run/adapter", "--out", "merged"]);
    assert!(merged.status.success(), "{}", stderr(&merged));
    let ask = |model: &str| {
        let all =
            ["generate", "--adapter", "run/adapter", "--prompt", "What is 2 + 1?", "--gen-length", "8", "--model"];
        let output = weft(&folder, &[&all, [model].as_slice()].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert_eq!(ask("tiny-base"), "");
    let warned =
        "warning: run/adapter was trained on tiny-base but is applied to merged; it is meaningless on another base\n";
    assert_eq!(ask("merged"), warned);
}

#[test]
fn the_best_weights_are_saved_and_patience_ends_a_run() {
    let folder = run_folder("best");
    // So high a rate that the loss falls at first and rises then.
    let settings =
        ["train.epochs=12", "train.eval_every=2", "train.lr=0.02", "train.keep_best=true", "train.patience=3"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let told = stdout(&train(&folder, &settings));
    let whole = results(&folder);
    let read = |file: &str| fs::read(folder.join("run").join(file)).expect(file);
    let adapters = || ["adapter", "best-adapter"].map(|of| read(&format!("{of}/adapter_model.safetensors")));
    let [last, best] = adapters();
    assert!(last != best && folder.join("run/best-adapter/README.md").exists());
    let steps = whole["steps"].as_u64().expect("a number");
    let (at, lowest) = (whole["best"]["step"].as_u64().expect("a number"), whole["best"]["held_out_loss"].as_f64());
    assert_eq!(steps, at + 6, "three evaluations after the best one: {whole}");
    assert!(steps < 48 && told.contains("the run ended early"), "{told}");
    assert!(told.contains(&format!(" at step {at}, saved in run/best-adapter\n")), "{told}");
    let folders = format!(
        "the last adapter (step {steps}) is in run/adapter\n\
         the best adapter (step {at}, lowest held-out loss) is in run/best-adapter\n"
    );
    assert!(told.contains(&folders), "{told}");
    assert!(told.contains("try it: weft generate --model tiny-base --adapter run/best-adapter "), "{told}");
    let page = String::from_utf8(read("report.html")).expect("UTF-8");
    for part in [format!("last adapter, of step {steps}"), format!("best adapter, of step {at}")] {
        assert!(page.contains(&part), "{part} is missing");
    }
    let log = String::from_utf8(read("metrics.jsonl")).expect("UTF-8");
    let losses = log.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).expect("it is JSON");
        Some((line["step"].as_u64()?, line["held_out_nll_bound"].as_f64()?))
    });
    let least = losses.filter(|(step, _)| *step > 0).min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are some");
    assert_eq!((at, lowest), (least.0, Some(least.1)));
    // The best adapter has that loss: a run that starts from it measures it first.
    let from_best = ["model.adapter=run/best-adapter", "train.output=next", "train.max_steps=1"];
    let from_best: Vec<&str> = from_best.iter().flat_map(|setting| ["--set", setting]).collect();
    train(&folder, &from_best);
    let next = fs::read_to_string(folder.join("next/results.json")).expect("the results are there");
    let next: Value = serde_json::from_str(&next).expect("they are JSON");
    assert_eq!(next["held_out_loss"]["before"].as_f64(), lowest);
    // A finished run is finished, and one that crashed in between ends at the same bits.
    let resume = [&["--resume"], &settings[..]].concat();
    let told = stdout(&train(&folder, &resume));
    assert_eq!(told, format!("the run in run is finished ({steps} steps); there is nothing to resume\n"));
    for left in [&format!("checkpoints/step-{steps:08}"), "adapter", "best-adapter"] {
        fs::remove_dir_all(folder.join("run").join(left)).expect("it was there");
    }
    fs::remove_file(folder.join("run/results.json")).expect("it was there");
    train(&folder, &resume);
    assert!(adapters() == [last, best]);
    assert_eq!(results(&folder)["best"], whole["best"]);
    // As a crash behind the last checkpoint leaves it.
    fs::remove_file(folder.join("run/results.json")).expect("it was there");
    train(&folder, &resume);
    assert_eq!(results(&folder)["steps"], steps);
}
