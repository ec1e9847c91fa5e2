//! The command as its users meet it: errors with place and fix and their exit status, parity that can fail, and a run
//! that is killed and resumed.

mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use scratch::folder;

fn weft(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).stdin(Stdio::null());
    command
}

fn output(folder: &Path, args: &[&str]) -> Output {
    weft(folder, args).output().expect("weft starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error's one line, after exit status 2.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = output(folder, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    let [line] = lines[..] else { panic!("{args:?} takes more than a line: {text}") };
    line.to_owned()
}

fn golden(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada").join(file).display().to_string()
}

/// A recipe of a short run on the embedded base, and its rows.
fn small_run(folder: &Path, more: &str) {
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..64).map(row).collect::<String>()).expect("the rows are written");
    let recipe = format!(
        "[model]\nlora_rank = 4\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\nheld_out_rows = 4\n\
         [train]\noutput = \"run\"\nepochs = 4\nmicro_batch_size = 4\nlr = 1e-3\ncheckpoint_every = 4\n{more}"
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
}

/// Each process would train the same into one folder.
#[cfg(not(feature = "mpi"))]
#[test]
fn processes_that_were_started_together_need_the_feature_mpi() {
    let folder = folder("together");
    for (variable, size) in [("OMPI_COMM_WORLD_SIZE", "2"), ("PMI_SIZE", "4")] {
        let output = weft(&folder, &["train"]).env(variable, size).output().expect("weft starts");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let expected =
            format!("error: {size} processes were started together, and this weft is built without the feature mpi");
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
        assert!(!folder.join("runs").exists());
        let alone = weft(&folder, &["recipe"]).env(variable, "1").output().expect("weft starts");
        assert!(alone.status.success(), "{}", stderr(&alone));
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "train",
        "data",
        "plan",
        "eval",
        "score",
        "generate",
        "serve",
        "likelihood",
        "merge",
        "convert",
        "parity",
        "pretrain",
        "bench",
    ] {
        let output = output(Path::new("."), &[command, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("\n  weft {command}")) && text.contains("Example"), "{text}");
    }
}

#[test]
fn a_recipes_problems_are_told_at_once_with_the_nearest_key() {
    let folder = folder("recipe");
    fs::write(
        folder.join("bad.toml"),
        "[data]\ntrain = \"x\"\n[objectiv]\nkind = 1\n[train]\nlearning_rate = 1\nlr = -1\nepochs = 0\n[objective]\ntransform = \"square\"\n",
    )
    .expect("the recipe is written");
    let refusal = output(&folder, &["train", "bad.toml", "--set", "model.lora_rnak=8"]);
    let error = stderr(&refusal);
    assert_eq!((refusal.status.code(), error.lines().count()), (Some(2), 7), "a line for each: {error}");
    for part in [
        "error: the recipe has 6 problems:\n  bad.toml: ",
        "\n  --set: unknown key model.lora_rnak; the nearest known one is model.lora_rank\n",
        "unknown table objectiv; the nearest known one is objective",
        "unknown key train.learning_rate; set train.lr",
        "unknown key model.lora_rnak; the nearest known one is model.lora_rank",
        "train.epochs = 0; give at least 1",
        "train.lr = -1 is not a positive number",
        "objective.transform = \"square\": the known values are sqrt, identity, cbrt, log1p",
    ] {
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    fs::write(folder.join("syntax.toml"), "[data]\ntrain = \n").expect("the recipe is written");
    assert!(refused(&folder, &["train", "syntax.toml"]).starts_with("error: syntax.toml: line 2 is not TOML: "));
    assert!(!folder.join("runs").exists(), "nothing is written for a recipe that is refused");
}

#[test]
fn bad_input_is_one_sentence_with_its_place() {
    let folder = folder("input");
    small_run(&folder, "");
    let train = |settings: &[&str]| {
        let mut args = vec!["train", "recipe.toml"];
        settings.iter().for_each(|s| args.extend(["--set", s]));
        refused(&folder, &args)
    };
    assert!(refused(&folder, &["train", "absent.toml"]).starts_with("error: cannot read absent.toml: No such file"));
    assert!(train(&["data.train=absent.jsonl"]).starts_with("error: cannot read absent.jsonl: No such file"));
    assert!(
        train(&["model.path=absent"]).starts_with("error: there is no folder absent; give one, or a model of the hub")
    );
    fs::write(folder.join("bad.jsonl"), "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"a\"}\n")
        .expect("written");
    assert_eq!(
        train(&["data.train=bad.jsonl"]),
        "error: bad.jsonl:2: the key \"response\" is missing; a row needs \"prompt\" and \"response\"; data.on_bad_row = \
         \"skip\" skips and counts such rows"
    );
    // Every row is too long: the first ten are reported, a line each.
    let told = stderr(&output(&folder, &["train", "recipe.toml", "--set", "data.max_seq_len=4"]));
    assert!(told.starts_with("error: 64 rows of rows.jsonl can't be used:\n  rows.jsonl:1: the prompt's "), "{told}");
    assert!(told.lines().count() == 12 && told.contains("\nand 54 more; "), "{told}");
    assert!(
        train(&["model.lora_targets=[\"q_prj\"]"])
            .contains("name no layer of the model; it has attn_out, ff_out, ff_proj, k_proj, ")
    );
    let qwen = folder.join("qwen");
    fs::create_dir(&qwen).expect("the folder can be made");
    fs::write(qwen.join("config.json"), "{\"model_type\": \"gpt2\"}").expect("written");
    assert!(train(&["model.path=qwen"]).contains("model_type \"gpt2\" is not supported"));
    assert_eq!(
        refused(&folder, &["bench", "--objective", "sft,dream"]),
        "error: --objective dream: the known objectives are weft, sft, cart, token_weight, lift"
    );
    assert!(refused(&folder, &["train", "recipe.toml", "--device", "cuda"]).contains("use --device cpu"));
    assert!(
        refused(&folder, &["eval", "--model", "tiny-base", "--task", "chess", "--data", "x", "--out", "y"])
            .contains("unknown task \"chess\"; the known ones are sudoku, countdown, gsm8k, math500")
    );
    let ask = ["generate", "--model", "tiny-base", "--prompt", "a"];
    assert!(
        refused(&folder, &[&ask[..], &["--gen-length", "40", "--block-length", "32"]].concat())
            .contains("gen_length 40 is not a multiple of block_length 32; set gen_length 64 or another block_length")
    );
}

#[test]
fn parity_passes_on_pytorchs_numbers_and_fails_on_corrupted_ones() {
    let folder = folder("parity");
    let whole = ["parity", "--model", &golden(""), "--reference", &golden("objectives.safetensors")];
    let sampling = ["--sampling", &golden("sampling.safetensors"), "--cases", &golden("sampling.json")];
    let passed = output(&folder, &[&whole[..], &sampling].concat());
    assert!(passed.status.success(), "{}", String::from_utf8_lossy(&passed.stdout));
    let adapter = golden("lora/adapter");
    let with_adapter = |reference: &str| {
        output(&folder, &["parity", "--model", &golden(""), "--adapter", &adapter, "--reference", reference])
    };
    assert!(with_adapter(&golden("lora/objectives.safetensors")).status.success());

    let bytes = fs::read(golden("lora/objectives.safetensors")).expect("the golden file is there");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("the header is JSON");
    for tensor in [
        "entropy",
        "weft_sqrt.t_i",
        "weft_sqrt.nll",
        "sft.loss_elbo",
        "sft.grad.base_model.model.model.transformer.blocks.1.v_proj.lora_A.weight",
    ] {
        let start = parsed[tensor]["data_offsets"][0].as_u64().expect("the tensor is there") as usize;
        let end = parsed[tensor]["data_offsets"][1].as_u64().expect("the tensor is there") as usize;
        let mut corrupted = bytes.clone();
        // The last number: of an entropy or a rate it is an answer token's.
        let at = 8 + header + end - 4;
        assert!(at >= 8 + header + start);
        let number = f32::from_le_bytes(corrupted[at..at + 4].try_into().expect("four bytes"));
        corrupted[at..at + 4].copy_from_slice(&(number * 1.5 + 0.1).to_le_bytes());
        fs::write(folder.join("corrupted.safetensors"), &corrupted).expect("written");
        let failed = with_adapter("corrupted.safetensors");
        let text = String::from_utf8_lossy(&failed.stdout).into_owned();
        assert_eq!(failed.status.code(), Some(1), "{tensor}: {text}");
        assert!(text.lines().any(|l| l.starts_with(tensor) && l.ends_with("past the tolerance")), "{text}");
    }
    fs::write(folder.join("cut.safetensors"), &bytes[..bytes.len() - 9]).expect("written");
    assert_eq!(with_adapter("cut.safetensors").status.code(), Some(2));
}

#[test]
fn a_killed_run_resumes_to_the_same_adapter() {
    let whole = folder("whole");
    small_run(&whole, "");
    assert!(output(&whole, &["train", "recipe.toml"]).status.success());
    let adapter = |folder: &Path| fs::read(folder.join("run/adapter/adapter_model.safetensors")).expect("an adapter");
    let killed = folder("killed");
    small_run(&killed, "");
    let (mut kills, mut resume) = (0, false);
    // Each attempt lives a little longer, so that kills fall into the start, the steps and the checkpoints.
    for attempt in 1.. {
        let args = if resume { &["train", "recipe.toml", "--resume"][..] } else { &["train", "recipe.toml"] };
        let log = fs::File::create(killed.join("stderr")).expect("the log can be made");
        let mut child = weft(&killed, args).stderr(log).stdout(Stdio::null()).spawn().expect("weft starts");
        let deadline = Instant::now() + Duration::from_millis(60 * attempt);
        let mut status = child.try_wait().expect("the run can be asked");
        while status.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
            status = child.try_wait().expect("the run can be asked");
        }
        if let Some(status) = status {
            let log = fs::read_to_string(killed.join("stderr")).expect("there is a log");
            assert!(status.success(), "attempt {attempt}: {log}");
            break;
        }
        child.kill().expect("SIGKILL is sent");
        child.wait().expect("the run is gone");
        kills += 1;
        resume = killed.join("run/recipe.json").exists();
    }
    assert!(kills > 1, "the run was killed {kills} times");
    assert_eq!(adapter(&killed), adapter(&whole));
    let steps = |folder: &Path| {
        let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("a line is JSON"));
        lines.filter(|l| l["loss"].is_number()).map(|l| (l["step"].clone(), l["loss"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(steps(&killed), steps(&whole));
    assert!(refused(&whole, &["train", "recipe.toml"]).contains("run already holds a run; add --resume"));
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_written() {
    let folder = folder("disk");
    small_run(&folder, "");
    // A limit on the size of files fails a write as a full disk does; bash counts it in 1,024 bytes.
    let command = format!("trap '' XFSZ; ulimit -f 16; exec {} train recipe.toml", env!("CARGO_BIN_EXE_weft"));
    let output = Command::new("bash").args(["-c", &command]).current_dir(&folder).output().expect("bash starts");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let last = text.lines().last().expect("an error is told");
    assert!(last.starts_with("error: cannot write run/checkpoints/"), "{text}");
    assert!(last.ends_with("free some space or choose another output folder"), "{text}");
    let left = fs::read_dir(folder.join("run/checkpoints")).expect("the folder is there").count();
    assert_eq!(left, 0, "a checkpoint that failed leaves nothing");
    let resumed = weft(&folder, &["train", "recipe.toml", "--resume"]).output().expect("weft starts");
    assert!(resumed.status.success(), "{}", stderr(&resumed));
}

#[test]
fn a_run_folder_stands_for_its_recipe_and_not_for_rows() {
    let folder = folder("run-folder");
    small_run(&folder, "max_steps = 1\n");
    let train = output(&folder, &["train", "recipe.toml", "--set", "data.on_bad_row=skip"]);
    let text = String::from_utf8_lossy(&train.stdout).into_owned();
    assert!(train.status.success(), "{}", stderr(&train));
    assert!(text.contains("\nadapter    rank 4, scaled by 16 (model.lora_alpha 64 / rank)\n"), "{text}");
    for recipe in ["run", "run/recipe.json"] {
        assert_eq!(
            refused(&folder, &["train", recipe]),
            "error: run already holds a run; add --resume to continue it, or set train.output to another folder"
        );
        let again = output(&folder, &["train", recipe, "--resume"]);
        assert!(String::from_utf8_lossy(&again.stdout).contains("the run in run is finished"), "{}", stderr(&again));
    }
    let eval = ["eval", "--model", "tiny-base", "--task", "gsm8k", "--out", "out.json", "--data", "run"];
    assert_eq!(refused(&folder, &eval), "error: run: it is a run folder; the rows of its run are in rows.jsonl");
    fs::create_dir(folder.join("run/data")).expect("the folder can be made");
    fs::write(folder.join("run/data/held-out.jsonl"), "").expect("written");
    assert!(refused(&folder, &eval).ends_with("the rows of its run are in run/data/held-out.jsonl"));
    // Rows can be inspected without a recipe.
    let inspect = ["inspect", "--model", "tiny-base", "--data", "rows.jsonl", "--examples", "2"];
    assert!(output(&folder, &inspect).status.success() && folder.join("entropy.html").exists());
    let both = refused(&folder, &["inspect", "recipe.toml", "--data", "rows.jsonl"]);
    assert_eq!(both, "error: --data is for --model; for a recipe write --set data.held_out=rows.jsonl");
}

#[test]
fn more_threads_than_processors_are_told() {
    let folder = folder("threads");
    let output = output(&folder, &["recipe", "--threads", "1000"]);
    assert!(stderr(&output).starts_with("warning: --threads 1000: ") && output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).ends_with(" can be used here; more threads change no result, but take longer\n"));
    assert_eq!(stderr(&self::output(&folder, &["recipe", "--threads", "1"])), "");
}

#[test]
fn generation_writes_an_answer() {
    let args = [
        "generate",
        "--model",
        "tiny-base",
        "--prompt",
        "What is 7 + 5?",
        "--gen-length",
        "32",
        "--diffusion-steps",
        "8",
    ];
    let first = output(Path::new("."), &args);
    assert!(first.status.success(), "{}", stderr(&first));
    assert_eq!(first.stdout, output(Path::new("."), &args).stdout, "a greedy answer is the same every time");
}
