//! What commands print: traces, JSON for machines, nothing more than asked for.

mod scratch;

use std::process::{Command, Output};

use scratch::folder;
use serde_json::Value;

fn weft(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).args(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Settings of the quick start that lie within a run of two steps, so that nothing is warned of.
const WITHIN_TWO_STEPS: [&str; 6] =
    ["--set", "train.warmup_steps=1", "--set", "train.eval_every=1", "--set", "train.checkpoint_every=2"];

#[test]
fn a_trace_tells_every_step_and_leaves_the_answer_alone() {
    let ask =
        ["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?", "--gen-length", "12", "--diffusion-steps"];
    for sampler in [&["6", "--block-length", "6"][..], &["5", "--remasking", "entropy"]] {
        let arguments = [&ask[..], sampler].concat();
        let plain = weft(&arguments);
        let traced = weft(&[&arguments[..], &["--trace"]].concat());
        assert_eq!(text(&plain.stdout), text(&traced.stdout));
        assert_eq!(text(&plain.stderr), "");
        let trace = text(&traced.stderr);
        let lines: Vec<&str> = trace.lines().collect();
        assert_eq!(lines.len(), if sampler[0] == "6" { 6 } else { 5 }, "{trace}");
        assert!(!trace.contains('\u{1b}'), "no colours in a pipe: {trace:?}");
        let masked: Vec<usize> = lines.iter().map(|line| line.matches('\u{2591}').count()).collect();
        assert!(masked.is_sorted_by(|a, b| a >= b) && masked[0] > 0, "{masked:?}");
        if sampler[0] == "6" {
            assert_eq!(masked, [10, 8, 6, 4, 2, 0]);
            assert!(lines[1].starts_with("step 2, 8 masked: "), "{trace}");
        }
    }
}

#[test]
fn accuracies_are_json_for_machines() {
    let folder = folder("output-json");
    let row = r#"{"question": "4000001003020000", "generation": "<answer>4132321413422321</answer>", "ground_truth": "4132321413422321"}"#;
    let file = folder.join("rows.jsonl");
    std::fs::write(&file, format!("{row}\n")).expect("rows can be written");
    let output = weft(&["score", "--task", "sudoku", file.to_str().expect("a name"), "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!((&line["task"], &line["problems"], &line["correct"]), (&"sudoku".into(), &1.into(), &12.into()));
    assert_eq!(line["accuracy"], 1.0);
}

#[test]
fn a_quiet_run_prints_its_results_only() {
    let folder = folder("output-quiet");
    let out = format!("train.output={}", folder.join("run").display());
    let small = ["--set", "train.max_steps=2", "--set", "eval.limit=2", "--set", "data.train_rows=64", "--quiet"];
    let output = weft(&[&["train", "--set", &out][..], &WITHIN_TWO_STEPS, &small].concat());
    assert_eq!(text(&output.stderr), "");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("trained 2 steps in ") && !shown.contains("objective"), "{shown}");
}

#[test]
fn results_are_json_for_machines() {
    let folder = folder("results");
    let json = |arguments: &[&str]| -> Value {
        let output = weft(arguments);
        assert_eq!(text(&output.stderr), "");
        serde_json::from_slice(&output.stdout).expect("one object")
    };
    let out = format!("train.output={}", folder.join("run").display());
    let small = ["--set", "train.max_steps=2", "--set", "eval.limit=2", "--set", "data.train_rows=64", "--json"];
    let run = json(&[&["train", "--set", &out][..], &WITHIN_TWO_STEPS, &small].concat());
    assert_eq!((&run["steps"], &run["task"], &run["problems"]), (&2.into(), &"sudoku".into(), &2.into()));
    for name in ["before", "after"] {
        assert!(run["held_out_loss"][name].as_f64().is_some_and(|loss| loss > 0.0), "{run}");
    }
    assert_eq!(run["accuracy"]["base"]["total"], run["accuracy"]["adapter"]["total"]);
    assert!(run["planned_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{run}");
    for matmul in ["adapter", "report"] {
        assert!(std::path::Path::new(run[matmul].as_str().expect("a path")).exists(), "{run}");
    }

    let rows = folder.join("rows.jsonl");
    std::fs::write(&rows, "{\"prompt\": \"7 + 5?\", \"response\": \"12\"}\n").expect("rows can be written");
    let rows = rows.to_str().expect("a name");
    let bound = json(&["likelihood", "--model", "tiny-base", "--data", rows, "--mc-samples", "8", "--json"]);
    assert_eq!((&bound["answers"], &bound["mc_samples"]), (&1.into(), &8.into()));
    let number = |value: &Value| value.as_f64().expect("a number");
    let (whole, tokens) = (number(&bound["per_answer"]["nats"]), number(&bound["answer_tokens"]));
    assert!((number(&bound["per_token"]["nats"]) - whole / tokens).abs() < 1e-9 * whole, "{bound}");

    let golden = |file: &str| format!("{}/tests/golden/llada/{file}", env!("CARGO_MANIFEST_DIR"));
    let (model, reference) = (golden(""), golden("objectives.safetensors"));
    let parity = json(&["parity", "--model", &model, "--reference", &reference, "--json"]);
    assert_eq!(parity["past"], 0);
    let rows = parity["rows"].as_array().expect("a list");
    assert!(rows.iter().any(|row| row["name"] == "weft_sqrt.loss_masked"), "{parity}");
}

#[test]
#[cfg(target_os = "linux")]
fn results_that_nobody_can_take_are_told_of() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let output = command.args(["data", "--examples", "0"]).stdout(full).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert_eq!(
        told,
        "error: cannot write to standard output: No space left on device (os error 28); redirect it elsewhere\n"
    );
}

/// Results that can't be printed are told of after everything is saved.
#[test]
#[cfg(target_os = "linux")]
fn a_run_whose_results_nobody_can_take_is_whole() {
    let folder = folder("full");
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    std::fs::write(folder.join("rows.jsonl"), (0..4).map(row).collect::<String>()).expect("the rows are written");
    let recipe =
        "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmicro_batch_size = 4\n";
    std::fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let run = |arguments: &[&str], stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.current_dir(&folder).env("WEFT_CACHE", "cache").args(["train", "recipe.toml"]).args(arguments);
        let output =
            command.stdout(stdout).stderr(std::process::Stdio::piped()).spawn().and_then(|run| run.wait_with_output());
        output.expect("the program starts")
    };
    let whole = folder.join("run/adapter/adapter_model.safetensors");
    for arguments in [&["--quiet"][..], &["--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
        let output = run(arguments, full.into());
        assert_eq!(output.status.code(), Some(1));
        let sentence =
            "error: cannot write to standard output: No space left on device (os error 28); redirect it elsewhere\n";
        assert_eq!(text(&output.stderr), sentence, "{arguments:?}");
        for file in ["run/report.html", "run/metrics.jsonl", "run/checkpoints/step-00000001/state.json"] {
            assert!(folder.join(file).exists(), "{arguments:?}: {file} is there");
        }
        let adapter = std::fs::read(&whole).expect("the adapter is saved");
        assert!(adapter.len() > 100);
        std::fs::remove_dir_all(folder.join("run")).expect("it can be removed");
    }
    // Progress that nobody can take is lost, and nothing else.
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(&folder).env("WEFT_CACHE", "cache").args(["train", "recipe.toml"]);
    command.args(["--set", "data.held_out=rows.jsonl"]).stdout(std::process::Stdio::null()).stderr(full);
    assert!(command.status().expect("the program starts").success() && whole.exists());
    std::fs::remove_dir_all(folder.join("run")).expect("it can be removed");
    // A reader that has gone away ends the program quietly, as it ends others (SIGPIPE); what was saved stays.
    let (reader, writer) = std::io::pipe().expect("there are pipes");
    drop(reader);
    let output = run(&["--quiet"], writer.into());
    assert!(output.status.code().is_none() && text(&output.stderr).is_empty(), "{output:?}");
    assert!(whole.exists() && folder.join("run/report.html").exists());
}

#[test]
fn a_short_answer_is_one_block() {
    let ask = ["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?", "--gen-length", "12"];
    let whole = weft(&[&ask[..], &["--block-length", "12"]].concat());
    assert_eq!(text(&weft(&ask).stdout), text(&whole.stdout));
}

#[test]
fn the_version_tells_build_and_processor() {
    let version = text(&weft(&["--version"]).stdout);
    assert!(version.starts_with(&format!("weft {}\nfeatures: ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains("\nprocessor: ") && version.contains("\nprecision: bf16 is "), "{version}");
    assert_eq!(text(&weft(&["-V"]).stdout).lines().count(), 1);
}

#[test]
fn the_help_of_generate_is_grouped() {
    let help = text(&weft(&["generate", "--help"]).stdout);
    let option = |name: &str| help.find(&format!("      --{name}")).unwrap_or_else(|| panic!("{name}: {help}"));
    let heading = |name: &str| help.find(&format!("\n{name}:\n")).unwrap_or_else(|| panic!("{name}: {help}"));
    for (name, options) in [
        ("Model", ["model", "special-tokens"]),
        ("Prompt", ["prompt", "infill"]),
        ("Sampling", ["gen-length", "seed"]),
        ("Output", ["trace", "keep-special-tokens"]),
        ("Machine", ["device", "threads"]),
    ] {
        // Headings stand at the beginning of a line, and what belongs to them is indented.
        let start = heading(name) + 1;
        let is_heading = |(at, _): &(usize, &str)| help[at + 1..].starts_with(|c: char| c.is_ascii_uppercase());
        let next = help[start..].match_indices('\n').map(|(at, line)| (start + at, line)).find(is_heading);
        let own = start..next.map_or(help.len(), |(at, _)| at);
        assert!(options.iter().all(|of| own.contains(&option(of))), "{name}: {help}");
    }
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&weft(&["completions", shell]).stdout);
        assert!(script.contains("reproduce") && script.contains("diffusion-steps"), "{shell}");
    }
}
