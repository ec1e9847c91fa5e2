//! Ranks that fail, are killed or are asked to stop, under a real `mpirun`: all end within seconds, one line says why, and
//! the last checkpoint is whole. It skips loudly where there is no `mpirun`.
#![cfg(feature = "mpi")]

mod fixtures;
#[macro_use]
mod ranks;
mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use ranks::{RECIPE, adapter, essence, start, stderr, steps, train, trained, weft};
use serde_json::Value;

#[test]
fn a_mistake_that_all_meet_is_told_once() {
    needs_mpirun!();
    let folder = start("mistake", &RECIPE.replace("lr = 1e-3", "lr = -1.0"));
    let output = train(4, &folder, &[]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert_eq!(told.matches("train.lr = -1 is not a positive number").count(), 1, "{told}");
    assert!(told.contains("rank 0: error: recipe.toml: train.lr"), "{told}");
    assert!(!folder.join("run").exists());
}

#[test]
fn ranks_that_would_train_something_else_each_are_refused() {
    needs_mpirun!();
    for (name, setting, told) in [
        ("other-settings", "train.lr=2e-3", "train.lr was 0.001 and is 0.002"),
        ("other-rows", "data.train_rows=25", "data.train_rows was 26 and is 25"),
    ] {
        let folder = start(name, RECIPE);
        let program = env!("CARGO_BIN_EXE_weft");
        let mut mpirun = Command::new("mpirun");
        mpirun.args([
            "--oversubscribe",
            "--allow-run-as-root",
            "-n",
            "1",
            program,
            "train",
            "recipe.toml",
            ":",
            "-n",
            "1",
        ]);
        let output = mpirun.args([program, "train", "recipe.toml", "--set", setting]).current_dir(&folder).output();
        let output = output.expect("it starts");
        let line =
            format!("rank 0: error: rank 1 was started differently from rank 0: {told}; give every rank the same");
        assert!(stderr(&output).contains(&line), "{}", stderr(&output));
        assert!(output.status.code() == Some(2) && !folder.join("run").exists(), "{}", stderr(&output));
    }
}

/// A run on several ranks that has most before it; the ids of its ranks' processes, which name themselves in /proc.
fn at_work(folder: &Path, ranks: usize) -> (Child, Vec<u32>) {
    let child = weft(ranks, folder, &["train", "recipe.toml", "--threads", "1"]).spawn().expect("it starts");
    let began = Instant::now();
    let steps = || fs::read_to_string(folder.join("run/metrics.jsonl")).map_or(0, |lines| lines.lines().count());
    while steps() < 6 {
        assert!(began.elapsed() < Duration::from_secs(120), "the run begins");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut processes: Vec<(usize, u32)> = vec![];
    for id in
        fs::read_dir("/proc").expect("there is /proc").flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
    {
        let environment = fs::read_to_string(format!("/proc/{id}/environ")).unwrap_or_default();
        let is_here =
            fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd == folder.canonicalize().expect("there"));
        let rank = environment.split('\0').find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK="));
        processes.extend(rank.filter(|_| is_here).and_then(|rank| Some((rank.parse().ok()?, id))));
    }
    processes.sort();
    (child, processes.into_iter().map(|(_, id)| id).collect())
}

fn send(signal: &str, to: u32) {
    assert!(Command::new("kill").args([signal, &to.to_string()]).status().expect("kill starts").success());
}

/// Waits for an end that must come soon.
fn ends_within(seconds: u64, mut child: Child) -> Output {
    let began = Instant::now();
    while child.try_wait().expect("it can be asked").is_none() {
        if began.elapsed() > Duration::from_secs(seconds) {
            let _ = child.kill();
            panic!("it goes on after {seconds} seconds");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().expect("it has ended")
}

fn long_recipe() -> String {
    RECIPE.replace("epochs = 2", "epochs = 200\ncheckpoint_every = 2")
}

#[test]
fn a_killed_rank_ends_all_within_seconds_and_the_checkpoint_is_whole() {
    needs_mpirun!();
    for victim in [1, 0] {
        let folder = start("killed", &long_recipe());
        let (child, ranks) = at_work(&folder, 2);
        assert_eq!(ranks.len(), 2);
        send("-KILL", ranks[victim]);
        let output = ends_within(20, child);
        assert!(!output.status.success());
        assert!(ranks.iter().all(|id| !Path::new(&format!("/proc/{id}/exe")).exists()), "a rank is left");
        let checkpoints = scratch::names(&folder.join("run/checkpoints"));
        let newest = checkpoints.iter().rfind(|name| !name.contains('.')).expect("there is a checkpoint");
        let step: u64 = newest.trim_start_matches("step-").parse().expect("a number");
        let rest = format!("train.max_steps={}", step + 2);
        let args = ["train", "recipe.toml", "--threads", "1", "--resume", "--set", &rest];
        let output = weft(2, &folder, &args).output().expect("it starts");
        // Its recipe differs by the end alone, which the checkpoint notices.
        assert!(stderr(&output).contains("train.max_steps was null and is"), "{}", stderr(&output));
        let (mut child, _) = resumed_at_work(&folder);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The same run, going on.
fn resumed_at_work(folder: &Path) -> (Child, u64) {
    let before = steps(folder).last().map_or(0, |line| line["step"].as_u64().expect("a number"));
    let args = ["train", "recipe.toml", "--threads", "1", "--resume"];
    let child = weft(2, folder, &args).spawn().expect("it starts");
    let began = Instant::now();
    let step = || {
        let text = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap_or_default();
        let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        last.and_then(|line| line["step"].as_u64()).unwrap_or(0)
    };
    while step() < before + 3 {
        assert!(began.elapsed() < Duration::from_secs(120), "the run goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, before)
}

#[test]
fn a_rank_that_fails_says_why_on_one_line_and_ends_all() {
    needs_mpirun!();
    // Only the second rank's own log can't be made.
    let folder = start("fails", &long_recipe());
    fs::create_dir_all(folder.join("run/ranks/rank-1.jsonl")).expect("it is made");
    let child =
        weft(2, &folder, &["train", "recipe.toml", "--threads", "1", "--rank-logs"]).spawn().expect("it starts");
    let output = ends_within(30, child);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let told = "rank 1: error: cannot write run/ranks/rank-1.jsonl: Is a directory";
    assert_eq!(stderr(&output).matches(told).count(), 1, "{}", stderr(&output));
    assert!(!stderr(&output).contains("rank 0:"), "{}", stderr(&output));
}

#[test]
fn a_signal_stops_all_after_the_same_step() {
    needs_mpirun!();
    // One rank is asked, mpirun's whole job, or one rank by the signal that schedulers send.
    for (signal, whom) in [("-TERM", 1), ("-INT", 0), ("-USR1", 1)] {
        let folder = start("signal", &long_recipe());
        let (child, ranks) = at_work(&folder, 2);
        send(signal, ranks[whom]);
        let output = ends_within(30, child);
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        let told = stderr(&output);
        let line = told.lines().find(|line| line.starts_with("stopped at step ")).unwrap_or_else(|| panic!("{told}"));
        let step: u64 =
            line["stopped at step ".len()..].split(',').next().and_then(|s| s.parse().ok()).expect("a step");
        assert!(folder.join(format!("run/checkpoints/step-{step:08}")).is_dir(), "{told}");
        assert_eq!(steps(&folder).last().expect("there are steps")["step"], step);
    }
}

/// A recipe of so many rows in micro-batches of one, of which one row makes every number of its forward none.
fn poisoned(folder: &Path, rows: usize, wrong: usize) {
    let row = |i: usize| {
        let what = if i == wrong { "~" } else { "" };
        format!("{{\"prompt\": \"What is {i}{what} + 1?\", \"response\": \"{}\"}}\n", i + 1)
    };
    fs::write(folder.join("rows.jsonl"), (0..rows).map(row).collect::<String>()).expect("the rows are written");
    let base = fixtures::poisoned_base("~").display().to_string();
    let recipe = format!(
        "[model]\npath = {base:?}\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmicro_batch_size = 1\n\
         epochs = 2\nlr = 1e-3\ncheckpoint_every = 1\n"
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
}

/// Each step of a run: its number, whether it was passed over, and the examples that were.
fn passed_over(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines
        .map(|line| ["step", "skipped", "skipped_steps", "grad_norm"].map(|key| line[key].to_string()).join(" "))
        .collect()
}

#[test]
fn a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_the_row() {
    needs_mpirun!();
    // Each rank has one of two rows: the wrong one is the first's once and the second's once.
    for wrong in [0, 1] {
        let folder = start("not-finite", RECIPE);
        poisoned(&folder, 2, wrong);
        let child =
            weft(2, &folder, &["train", "recipe.toml", "--threads", "1", "--quiet"]).spawn().expect("it starts");
        let output = ends_within(30, child);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let place = format!("; 1 of its 2 examples is at fault, example {wrong} (rows.jsonl:{}, t 0.", wrong + 1);
        assert!(told.contains("rank 0: error: step 1: loss ") && told.contains(&place), "{told}");
        assert_eq!(told.matches("error: step 1").count(), 1, "one rank tells: {told}");
        assert!(!folder.join("run/adapter").exists());
    }
}

#[test]
fn a_step_that_is_not_finite_on_one_rank_is_passed_over_by_all() {
    needs_mpirun!();
    let run = |ranks: usize, accum: &str| {
        let folder = start(&format!("passed-over-{ranks}"), RECIPE);
        poisoned(&folder, 8, 6);
        let output = trained(ranks, &folder, &["train.on_non_finite=skip", accum]);
        assert!(stderr(&output).contains("skipped step ") && stderr(&output).contains("example 6 (t 0."));
        folder
    };
    let one = run(1, "train.grad_accum_steps=2");
    let two = run(2, "train.grad_accum_steps=1");
    assert_eq!(passed_over(&one).iter().filter(|line| line.contains("non_finite")).count(), 2, "once an epoch");
    // A rank that had gone on alone would have had other losses in the steps after it.
    assert_eq!((passed_over(&two), essence(&two)), (passed_over(&one), essence(&one)));
    assert!(adapter(&two) == adapter(&one), "the ranks make other bits");
}
