//! Ranks under a real `mpirun`, over the program: as many as share a step, so many bits are the same; unequal ends,
//! resuming with other numbers of ranks, and ranks that fail. It skips loudly where there is no `mpirun`.
#![cfg(feature = "mpi")]

mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use scratch::folder;
use serde_json::Value;

/// Ends the test where `mpirun` is missing.
macro_rules! needs_mpirun {
    () => {
        if Command::new("mpirun").arg("--version").output().is_err() {
            eprintln!("SKIPPED: mpirun is not installed; apt-get install openmpi-bin");
            return;
        }
    };
}

/// A recipe of few steps, the last one smaller: 26 rows in global batches of 8.
const RECIPE: &str = "[data]\ngenerate = \"sudoku\"\ntrain_rows = 26\nheld_out_rows = 6\n[train]\noutput = \"run\"\n\
                      lr = 1e-3\nepochs = 2\nmicro_batch_size = 2\n[model]\nlora_dropout = 0.1\n";

fn start(name: &str, recipe: &str) -> std::path::PathBuf {
    let folder = folder(name);
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

/// `mpirun -n ranks weft`, or one process without it.
fn weft(ranks: usize, folder: &Path, args: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_weft");
    let mut command = match ranks {
        1 => Command::new(program),
        _ => {
            let mut command = Command::new("mpirun");
            command.args(["--oversubscribe", "--allow-run-as-root", "-n", &ranks.to_string(), program]);
            command
        }
    };
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn train(ranks: usize, folder: &Path, settings: &[&str]) -> Output {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let args: Vec<&str> = ["train", "recipe.toml", "--threads", "1"].into_iter().chain(settings).collect();
    weft(ranks, folder, &args).output().expect("it starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn trained(ranks: usize, folder: &Path, settings: &[&str]) -> Output {
    let output = train(ranks, folder, settings);
    assert!(output.status.success(), "{ranks} ranks: {}", stderr(&output));
    output
}

/// The run's steps as metrics.jsonl has them.
fn steps(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter(|line| line["loss"].is_f64()).collect()
}

/// What must be the same however many ranks there are.
fn essence(folder: &Path) -> Vec<String> {
    let keys = ["loss", "grad_norm", "masked_share", "mean_entropy", "entropy_quantiles", "entropy_drift", "tokens"];
    steps(folder).iter().map(|step| keys.map(|key| step[key].to_string()).join(" ")).collect()
}

fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("run/adapter/adapter_model.safetensors")).expect("there is an adapter")
}

fn checkpoint(folder: &Path) -> std::collections::HashMap<String, Vec<u32>> {
    let bytes = fs::read(folder.join("run/checkpoint/model.safetensors")).expect("there is a checkpoint");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is whole");
    let bits = |data: &[u8]| data.chunks(4).map(|x| u32::from_le_bytes(x.try_into().expect("four"))).collect();
    file.tensors().into_iter().map(|(name, t)| (name, bits(t.data()))).collect()
}

#[test]
fn adapters_have_the_same_bits_on_1_2_and_4_ranks() {
    needs_mpirun!();
    for (name, objective) in
        [("weft", ""), ("reused", "[objective]\nentropy_every = 2\n"), ("sft", "[objective]\nkind = \"sft\"\n")]
    {
        let recipe = format!("{RECIPE}{objective}");
        let run = |ranks: usize, accum: &str| {
            let folder = start(&format!("{name}-{ranks}"), &recipe);
            trained(ranks, &folder, &[accum]);
            folder
        };
        let one = run(1, "train.grad_accum_steps=4");
        assert_eq!(steps(&one).len(), 8, "the last step of an epoch is smaller");
        for (ranks, accum) in [(2, "train.grad_accum_steps=2"), (4, "train.grad_accum_steps=1")] {
            let several = run(ranks, accum);
            assert_eq!(essence(&several), essence(&one), "{name}, {ranks} ranks");
            assert!(adapter(&several) == adapter(&one), "{name}: {ranks} ranks make other bits");
        }
    }
}

#[test]
fn three_ranks_equal_one_though_some_have_nothing_in_the_last_step() {
    needs_mpirun!();
    let recipe = RECIPE.replace("train_rows = 26", "train_rows = 8");
    let [one, three] = [(1, "train.grad_accum_steps=3"), (3, "train.grad_accum_steps=1")].map(|(ranks, accum)| {
        let folder = start(&format!("three-{ranks}"), &recipe);
        trained(ranks, &folder, &[accum]);
        folder
    });
    // Steps of 6 and of 2 examples: in the second two ranks have none.
    assert_eq!(steps(&one).len(), 4);
    assert_eq!(essence(&three), essence(&one));
    assert!(adapter(&three) == adapter(&one));
}

#[test]
fn full_training_with_sharded_moments_equals_one_rank() {
    needs_mpirun!();
    let recipe = format!("{RECIPE}trainable = \"full\"\nsave_dtype = \"f32\"\n").replace("lora_dropout = 0.1\n", "");
    let run = |ranks: usize, accum: usize| {
        let folder = start(&format!("full-{ranks}"), &recipe);
        trained(ranks, &folder, &[&format!("train.grad_accum_steps={accum}"), "train.weight_decay=0.1"]);
        folder
    };
    let one = run(1, 4);
    for ranks in [2, 4] {
        let several = run(ranks, 4 / ranks);
        // A rank adds its products one to the other where ranks add finished gradients: the last bits differ.
        for (a, b) in steps(&one).iter().zip(steps(&several)) {
            assert_eq!(a["masked_share"], b["masked_share"]);
            let [a, b] = [a["loss"].as_f64(), b["loss"].as_f64()].map(|x| x.expect("a number"));
            assert!((a - b).abs() <= 2e-3 * a, "{a} and {b}");
        }
        let (expected, got) = (checkpoint(&one), checkpoint(&several));
        for (name, bits) in expected {
            let far = bits.iter().zip(&got[&name]).map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
            assert!(far.fold(0.0, f32::max) < 5e-3, "{name}");
        }
    }
}

#[test]
fn full_training_has_the_same_bits_where_each_rank_has_one_micro_batch() {
    needs_mpirun!();
    // One micro-batch a step: of four ranks three hand over zeros.
    let recipe = RECIPE.replace("lora_dropout = 0.1", "trainable = \"full\"\nsave_dtype = \"f32\"");
    let recipe = recipe.replace("train_rows = 26", "train_rows = 2").replace("epochs = 2", "epochs = 4");
    let [one, four] = [1, 4].map(|ranks| {
        let folder = start(&format!("full-alone-{ranks}"), &recipe);
        trained(ranks, &folder, &[]);
        folder
    });
    assert_eq!(essence(&four), essence(&one));
    assert!(checkpoint(&four) == checkpoint(&one));
}

#[test]
fn a_checkpoint_of_four_ranks_goes_on_with_two_and_with_one() {
    needs_mpirun!();
    let recipe =
        format!("{RECIPE}[objective]\nentropy_every = 2\n").replace("epochs = 2", "epochs = 2\ncheckpoint_every = 2");
    let whole = start("whole", &recipe);
    trained(1, &whole, &["train.grad_accum_steps=4"]);
    let resumed = start("resumed", &recipe);
    trained(4, &resumed, &[]);
    let drop_newest = || {
        let folder = resumed.join("run/checkpoints");
        let newest = scratch::names(&folder).pop().expect("there are checkpoints");
        fs::remove_dir_all(folder.join(newest)).expect("it goes");
        let _ = fs::remove_dir_all(resumed.join("run/adapter"));
    };
    for (ranks, accum) in
        [(2, "train.grad_accum_steps=2"), (1, "train.grad_accum_steps=4"), (4, "train.grad_accum_steps=1")]
    {
        drop_newest();
        let args = ["train", "recipe.toml", "--threads", "1", "--resume", "--set", accum];
        let output = weft(ranks, &resumed, &args).output().expect("it starts");
        assert!(output.status.success() && stderr(&output).contains("resuming at step 6"), "{}", stderr(&output));
        assert!(adapter(&resumed) == adapter(&whole), "{ranks} ranks go on to other bits");
        assert_eq!(essence(&resumed), essence(&whole));
    }
    // Another global batch is another run.
    drop_newest();
    let output = weft(2, &resumed, &["train", "recipe.toml", "--resume"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let told = "rank 0: error: run/checkpoints/step-00000006/state.json: the run to resume has 8 examples in a step \
                (train.micro_batch_size 2, train.grad_accum_steps 1, ranks 4) and now it would have 4 (micro-batches of 2, \
                1 of them, ranks 2); set train.micro_batch_size=2 and train.grad_accum_steps=2\n";
    assert!(stderr(&output).contains(told), "{}", stderr(&output));
}

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
fn the_first_rank_alone_prints_and_ranks_log_on_request() {
    needs_mpirun!();
    let folder = start("quiet", RECIPE);
    let output = weft(2, &folder, &["train", "recipe.toml", "--rank-logs"]).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    for once in ["base       tiny-base", "ranks      2", "trained 14 steps", "the adapter lies in run/adapter"] {
        assert_eq!(told.matches(once).count(), 1, "{once}: {told}");
    }
    for rank in 0..2 {
        let log = fs::read_to_string(folder.join(format!("run/ranks/rank-{rank}.jsonl"))).expect("there is a log");
        assert_eq!(log.lines().count(), 14);
        assert!(log.lines().all(|line| line.contains(&format!("\"rank\":{rank}"))));
    }
}

#[test]
fn what_is_sent_is_what_was_planned() {
    needs_mpirun!();
    let folder = start("sent", &RECIPE.replace("train_rows = 26", "train_rows = 32"));
    trained(4, &folder, &[]);
    let sent = steps(&folder).iter().map(|step| step["sent_bytes"].as_f64().expect("a number")).sum::<f64>() / 8.0;
    let output = weft(1, &folder, &["plan", "recipe.toml", "--ranks", "4", "--json"]).output().expect("it starts");
    let plan: Value = serde_json::from_slice(&output.stdout).expect("a plan is JSON");
    assert_eq!(plan["steps"], 8, "{plan}");
    let parts = ["gradient_bytes", "update_bytes", "told_bytes"].map(|key| plan["communication"][key].as_f64());
    let planned: f64 = parts.into_iter().map(|part| part.expect("a number")).sum();
    assert!((sent / planned - 1.0).abs() < 0.01, "{sent} bytes a step were sent, {planned} planned");
    assert!(plan["communication"]["imbalance"].as_f64().is_some_and(|x| (1.0..4.0).contains(&x)), "{plan}");
}

#[test]
fn an_evaluation_is_shared() {
    needs_mpirun!();
    let folder = start("eval", RECIPE);
    trained(1, &folder, &["train.max_steps=1"]);
    let eval = |ranks: usize| {
        let out = format!("{ranks}.json");
        let args =
            ["eval", "--model", "tiny-base", "--task", "sudoku", "--data", "run/data/held-out.jsonl", "--gen-length"];
        let more = ["32", "--diffusion-steps", "8", "--json", "--threads", "1", "--out", &out];
        // Prompts are repeated so that there are several batches.
        let output = weft(ranks, &folder, &[&args[..], &more[..]].concat()).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        (output.stdout, fs::read_to_string(folder.join(&out)).expect("there are generations"))
    };
    let rows = fs::read_to_string(folder.join("run/data/held-out.jsonl")).expect("there are rows");
    fs::write(folder.join("run/data/held-out.jsonl"), rows.repeat(20)).expect("they are written");
    assert_eq!(eval(3), eval(1));
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

#[test]
fn a_comparison_is_dealt_and_comes_to_the_same_report() {
    needs_mpirun!();
    const STUDY: &str = "[model]\nlora_rank = 4\n[data]\ntrain_rows = 32\nheld_out_rows = 6\ngenerate = \"sudoku\"\n\
                         [train]\noutput = \"study\"\nseed = 3\nmicro_batch_size = 4\nlr = 1e-3\nmax_steps = 3\n\
                         [eval]\nlimit = 2\ntask = \"sudoku\"\n[sampler]\ngen_length = 8\nblock_length = 8\n\
                         diffusion_steps = 2\n[reproduce]\nseeds = 2\nevaluations = 1\ntiming_rounds = 0\n\
                         arms = [\"sft-masked\", \"weft-masked\"]\n";
    let report = |ranks: usize| {
        let folder = start(&format!("study-{ranks}"), STUDY);
        let output = weft(ranks, &folder, &["reproduce", "recipe.toml", "--threads", "1"]).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "one rank tells where the report lies");
        fs::read_to_string(folder.join("study/report.json")).expect("there is a report")
    };
    assert_eq!(report(3), report(1));
}
