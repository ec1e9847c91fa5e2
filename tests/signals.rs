//! SIGINT and SIGTERM end a run after its step, saved, or at once before the first step; two runs don't share a folder.
#![cfg(unix)]

mod scratch;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use scratch::folder;

const ADAPTER: &str = "run/adapter/adapter_model.safetensors";

/// A recipe of 400 short steps, with a checkpoint at the last only.
fn start(folder: &Path) {
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..16).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nlr = 1e-3\n\
                  epochs = 100\nmicro_batch_size = 4\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
}

fn weft(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(["train", "recipe.toml", "--threads", "1"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run that has done some steps and has most before it.
fn at_work(folder: &Path) -> Child {
    let child = weft(folder, &[]).spawn().expect("weft starts");
    let began = Instant::now();
    let steps = || fs::read_to_string(folder.join("run/metrics.jsonl")).map_or(0, |lines| lines.lines().count());
    while steps() < 3 {
        assert!(began.elapsed() < Duration::from_secs(120), "the run begins");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn send(signal: &str, to: &Child) {
    let status = Command::new("kill").args([signal, &to.id().to_string()]).status().expect("kill starts");
    assert!(status.success(), "{signal} is sent");
}

#[test]
fn a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_to_the_same_bits() {
    let whole = folder("whole");
    start(&whole);
    assert!(weft(&whole, &[]).output().expect("weft starts").status.success());
    for signal in ["-INT", "-TERM"] {
        let folder = folder("stopped");
        start(&folder);
        let child = at_work(&folder);
        // Nobody else goes on with it meanwhile.
        let other = weft(&folder, &["--resume"]).output().expect("weft starts");
        assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
        let told = "error: another run is using run; wait until it ends, or set train.output to another folder\n";
        assert!(stderr(&other).ends_with(told), "{}", stderr(&other));
        send(signal, &child);
        let output = child.wait_with_output().expect("the run ends");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{told}");
        assert!(told.contains("stopping after this step, which is saved; a second signal stops at once\n"), "{told}");
        let last = told.lines().last().expect("it says how to go on");
        let step = last.strip_prefix("stopped at step ").and_then(|rest| rest.split(',').next());
        let step: u64 = step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{told}"));
        assert_eq!(last, format!("stopped at step {step}, which is saved in run; add --resume to continue"));
        assert!(folder.join(format!("run/checkpoints/step-{step:08}")).is_dir() && step < 400, "{told}");
        let resumed = weft(&folder, &["--resume"]).output().expect("weft starts");
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        assert!(stderr(&resumed).contains(&format!("resuming at step {step}\n")), "{}", stderr(&resumed));
        let adapter = |folder: &Path| fs::read(folder.join(ADAPTER)).expect("there is an adapter");
        assert!(adapter(&folder) == adapter(&whole), "{signal}: the adapter has other bytes");
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    let folder = folder("twice");
    start(&folder);
    // One step of minutes, which nobody waits for.
    let rows = fs::read_to_string(folder.join("rows.jsonl")).expect("the rows are there");
    fs::write(folder.join("rows.jsonl"), rows.repeat(2000)).expect("the rows are written");
    let mut child = weft(&folder, &["--set", "train.grad_accum_steps=8000"]).spawn().expect("weft starts");
    let began = Instant::now();
    while !folder.join("run/metrics.jsonl").exists() && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // `timeout` sends its signal twice.
    send("-INT", &child);
    send("-INT", &child);
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().expect("it can be asked").is_none(), "two signals at once are one wish");
    send("-INT", &child);
    let output = child.wait_with_output().expect("the run ends");
    assert_eq!(output.status.code(), Some(130));
    let told = "stopped at once; --resume continues from the last checkpoint\n";
    assert!(stderr(&output).ends_with(told), "{}", stderr(&output));
    assert!(!folder.join("run/checkpoints").exists(), "the step isn't done");
}

/// Starts a run whose task is scored after each epoch of one step, and returns it with its standard error once a line of that
/// begins with `line`; what was read so far is in the text.
fn scored_run(folder: &Path, line: &str, more: &[&str]) -> (Child, BufReader<ChildStderr>, String) {
    let recipe = "[model]\nlora_rank = 2\n[data]\ngenerate = \"sudoku\"\ntrain_rows = 8\nheld_out_rows = 12\n[train]\noutput = \"run\"\n\
                  epochs = 2\nmicro_batch_size = 8\n[eval]\ntask = \"sudoku\"\neach_epoch = true\nsamples = 0\n[sampler]\n\
                  gen_length = 32\ndiffusion_steps = 32\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let mut child = weft(folder, more).spawn().expect("weft starts");
    let mut told = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut text = String::new();
    while !text.lines().last().is_some_and(|last| last.starts_with(line)) {
        assert!(told.read_line(&mut text).expect("text") > 0, "{line} is told: {text}");
    }
    (child, told, text)
}

#[test]
fn a_run_without_a_step_stops_at_once_while_its_base_is_scored() {
    let folder = folder("unbegun");
    let (mut child, mut rest, mut text) = scored_run(&folder, "scoring the base on 12 problems of sudoku", &[]);
    send("-INT", &child);
    rest.read_to_string(&mut text).expect("text");
    assert_eq!(child.wait().expect("the run ends").code(), Some(130), "{text}");
    let told = "stopped before the first step; nothing has been trained, so there is nothing to save\n";
    assert!(text.ends_with(told), "{text}");
    // The same command begins the run again.
    let (mut child, ..) = scored_run(&folder, "step 1: sudoku ", &[]);
    child.kill().and_then(|()| child.wait()).expect("it is ended");
}

#[test]
fn a_run_stops_once_its_tasks_are_scored() {
    let folder = folder("scored");
    let (mut child, mut rest, mut text) = scored_run(&folder, "scoring the adapter on 12 problems of sudoku", &[]);
    send("-INT", &child);
    rest.read_to_string(&mut text).expect("text");
    assert_eq!(child.wait().expect("the run ends").code(), Some(130), "{text}");
    let told = "stopping once the tasks are scored, with the last step saved; a second signal stops at once\n";
    assert!(text.contains(told), "{text}");
    assert!(text.ends_with("stopped at step 1, which is saved in run; add --resume to continue\n"), "{text}");
    // The scores are in the log, so that a run that resumes doesn't score again before its next step; the last step is saved
    // before the end is scored.
    let (mut child, mut rest, mut text) = scored_run(&folder, "scoring the adapter on 12 problems", &["--resume"]);
    assert!(text.contains("resuming at step 1\n"), "{text}");
    send("-INT", &child);
    rest.read_to_string(&mut text).expect("text");
    assert_eq!(child.wait().expect("the run ends").code(), Some(0), "{text}");
    assert!(text.contains("the last step is done and saved; the run ends once it is scored"), "{text}");
    let log = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there is a log");
    assert_eq!(log.matches("\"task\":\"sudoku\"").count(), 3, "{log}");
}
