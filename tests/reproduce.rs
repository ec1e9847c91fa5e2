//! `weft reproduce`: what is done isn't done again, a killed comparison ends as an unbroken one, the report's numbers
//! are those of its runs.

mod killed;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use killed::killed_until_done;
use serde_json::Value;

const RECIPE: &str = r#"
[model]
lora_rank = 4
[data]
train_rows = 64
held_out_rows = 6
[train]
output = "runs/study"
seed = 3
micro_batch_size = 4
lr = 1e-3
max_steps = 6
checkpoint_every = 1
[eval]
limit = 2
[sampler]
gen_length = 8
block_length = 8
diffusion_steps = 2
[reproduce]
seeds = 2
evaluations = 2
timing_rounds = 0
arms = ["sft-masked", "sft-answer", "weft-masked", "weft-answer"]
[[reproduce.settings]]
name = "sudoku"
set = ["data.generate=sudoku", "eval.task=sudoku"]
[[reproduce.settings]]
name = "countdown-full"
set = ["data.generate=countdown_in_order", "eval.task=countdown", "model.trainable=full", "train.max_steps=4"]
"#;

/// What the report of the recipe has among others.
const PARTS: [&str; 12] = [
    ", seeds 3 to 4. A seed's runs",
    "## Rows\n\nBeware: the held-out losses rest on 6 held-out examples; fewer than 30",
    "Beware: the accuracies rest on 2 problems; ",
    "| generated sudoku | training | 64 | 0 | 64 examples | 0 |\n\
     | generated sudoku | held-out evaluation | 6 | 0 | 6 examples | 0 |\n",
    "These are the rows of seed 3; each seed draws its own.",
    "## Accuracy in percent at the end",
    "## Held-out loss in nats per answer token at the end",
    "## Gradient norms",
    "## Times",
    "| weft-answer |",
    "What the differences are due to",
    "- WeFT - SFT, both divided by answer tokens: ",
];

/// An empty folder with the recipe.
fn folder(name: &str) -> PathBuf {
    let folder = scratch::folder(name);
    std::fs::write(folder.join("study.toml"), RECIPE).expect("the recipe can be written");
    folder
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(["reproduce", "study.toml"]).args(arguments);
    command
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the program starts")
}

fn report(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("runs/study/report.json")).expect("there is a report");
    serde_json::from_str(&text).expect("the report is JSON")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_killed_comparison_ends_as_an_unbroken_one() {
    let (whole, broken) = (folder("reproduce-whole"), folder("reproduce-broken"));
    let output = weft(&whole, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    // Killed again and again while it has not ended, each time a little later; runs two at a time.
    let kills = killed_until_done(|| command(&broken, &["--set", "reproduce.parallel_runs=2"]));
    assert!(kills > 0, "it was never killed");
    assert_eq!(report(&broken), report(&whole));
    // Nothing is left to do, and rows and checkpoints are gone.
    let again = stderr(&weft(&broken, &[]));
    assert!(again.contains("16 runs, 16 of them done"), "{again}");
    let run = broken.join("runs/study/sudoku/weft-masked/seed-4");
    let mut files: Vec<String> = std::fs::read_dir(&run)
        .expect("the run has a folder")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, ["events.out.tfevents.weft", "metrics.jsonl", "outcome.json", "points.json", "recipe.json"]);
}

#[test]
fn the_reports_numbers_are_those_of_its_runs() {
    let folder = folder("reproduce-numbers");
    let output = weft(&folder, &["--set", "reproduce.timing_rounds=1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = report(&folder);
    let setting = &report["settings"][0];
    assert_eq!(setting["steps"], serde_json::json!([3, 6]));
    let arm = |name: &str| {
        let arms = setting["arms"].as_array().expect("there are arms");
        arms.iter().find(|arm| arm["name"] == name).expect("the arm is there")
    };
    let loss = |name: &str, seed: usize| {
        let path = folder.join(format!("runs/study/sudoku/{name}/seed-{}/outcome.json", 3 + seed));
        let saved: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("it is done")).expect("JSON");
        saved["outcome"]["points"][1]["nll_bound"].as_f64().expect("a number")
    };
    let mean = |name: &str| (loss(name, 0) + loss(name, 1)) / 2.0;
    let near = |value: &Value, expected: f64| (value.as_f64().expect("a number") - expected).abs() < 1e-12;
    assert!(near(&arm("weft-masked")["nll_bound"][1]["mean"], mean("weft-masked")));
    let is_own = |d: &&Value| {
        d["arm"] == "weft-masked" && d["reference"] == "sft-masked" && d["metric"] == "nll_bound" && d["step"] == 6
    };
    let differences = setting["differences"].as_array().expect("there are differences");
    let difference = &differences.iter().find(is_own).expect("the pair is there")["paired"]["difference"];
    assert!(near(&difference["mean"], mean("weft-masked") - mean("sft-masked")));
    let factors = setting["factors"].as_array().expect("there are factors");
    let is_own = |f: &&Value| f["metric"] == "nll_bound" && f["step"] == 6;
    let normalizer = &factors.iter().find(is_own).expect("they are there")["normalizer"]["difference"]["mean"];
    let masked = mean("sft-masked") + mean("weft-masked");
    assert!(near(normalizer, (masked - mean("sft-answer") - mean("weft-answer")) / 2.0));
    // All seeds share the generated held-out rows, on which the base is scored once.
    assert!(setting["base_by_seed"].is_null() && !folder.join("runs/study/sudoku/base/seed-4").exists());
    // The gradient norms are metrics.jsonl's.
    let metrics = folder.join("runs/study/sudoku/cart/seed-3/metrics.jsonl");
    assert!(!metrics.exists(), "cart is no arm here");
    let metrics = std::fs::read_to_string(folder.join("runs/study/sudoku/weft-masked/seed-3/metrics.jsonl"));
    let lines: Vec<Value> =
        metrics.expect("it is there").lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 6);
    let norm = |l: &Value| l["grad_norm"].as_f64().expect("a number");
    let mean_norm = lines.iter().map(norm).sum::<f64>() / 6.0;
    assert!(near(&arm("weft-masked")["outcomes"][0]["grad_norm"]["mean"], mean_norm));
    assert!(lines[0]["uncertainty_spread"].as_f64().expect("weft has entropies") > 0.0);
    let page = std::fs::read_to_string(folder.join("runs/study/report.md")).expect("there is a page");
    for part in PARTS {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    for chart in ["accuracy-sudoku", "loss-countdown-full", "differences-sudoku"] {
        let svg = std::fs::read_to_string(folder.join(format!("runs/study/{chart}.svg"))).expect("there is a chart");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(page.contains(&format!("{chart}.svg")));
    }
}

#[test]
fn one_sentence_tells_what_is_wrong() {
    let folder = folder("reproduce-wrong");
    let told = |arguments: &[&str]| {
        let output = weft(&folder, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let text = told(&["--set", "reproduce.arms=[\"sft\", \"cart\", \"cart\"]", "--set", "reproduce.seeds=0"]);
    assert!(
        text.contains("reproduce.arms has \"sft\"; the known ones are sft-masked, sft-answer, weft-masked"),
        "{text}"
    );
    assert!(text.contains("; instead of \"sft\" write sft-masked or sft-answer"), "{text}");
    assert!(text.contains("reproduce.arms has \"cart\" twice") && text.contains("reproduce.seeds = 0"), "{text}");
    let text = told(&["--set", "reproduce.settings=[{name=\"a/b\"}]"]);
    assert!(text.contains("reproduce.settings has the name \"a/b\"; use letters, digits, - and _"), "{text}");
    let text = told(&["--set", "reproduce.settings=[{name=\"a\", sets=[]}]"]);
    assert!(text.contains("unknown field `sets`"), "{text}");
    let text = told(&["--set", "reproduce.settings=[{name=\"a\", set=[\"data.train=a.jsonl\"]}]"]);
    assert!(text.contains("setting \"a\" has no held-out rows"), "{text}");
    let text = told(&["--set", "reproduce.seed=1"]);
    assert!(text.contains("unknown key reproduce.seed; the nearest known one is reproduce.seeds"), "{text}");
    assert!(!folder.join("runs").exists(), "nothing was begun");
    let small = ["--set", "reproduce.seeds=1", "--set", "reproduce.arms=[\"sft-masked\"]"];
    assert!(weft(&folder, &small).status.success());
    // A setting that the version of the run didn't know was at its default.
    let outcome = folder.join("runs/study/sudoku/sft-masked/seed-3/outcome.json");
    let text = std::fs::read_to_string(&outcome).expect("the run is done");
    let older = text.replace("\"cache\": \"none\",", "");
    assert_ne!(text, older);
    std::fs::write(&outcome, older).expect("the outcome can be written");
    assert!(weft(&folder, &small).status.success());
    let text = told(&[&small[..], &["--set", "train.lr=2e-3"]].concat());
    assert!(text.contains("the run was made with another recipe: train.lr was 0.001 and is 0.002"), "{text}");
    // What is done already counts, and one seed is one.
    let more = ["--set", "reproduce.seeds=1", "--set", "reproduce.arms=[\"sft-masked\", \"weft-masked\"]"];
    let text = stderr(&weft(&folder, &more));
    for part in ["4 runs, 2 of them done", "\n3/4 sudoku weft-masked seed 3: ", "; less than a minute left\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().any(|line| line.starts_with("4/4 ") && !line.contains("left")), "{text}");
    let page = std::fs::read_to_string(folder.join("runs/study/report.md")).expect("there is a page");
    assert!(page.contains(", seed 3. A seed's runs"), "{page}");
}

#[test]
fn the_base_is_scored_on_the_rows_that_each_seed_holds_out() {
    let folder = folder("reproduce-split");
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    std::fs::write(folder.join("rows.jsonl"), (0..16).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"50%\"\n[train]\noutput = \"runs/study\"\n\
                  seed = 3\nmax_steps = 1\n[reproduce]\nseeds = 2\nevaluations = 1\ntiming_rounds = 0\narms = [\"sft-masked\"]\n";
    std::fs::write(folder.join("study.toml"), recipe).expect("the recipe is written");
    let output = weft(&folder, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = report(&folder);
    let points = report["settings"][0]["base_by_seed"].as_array().expect("each seed has its own rows");
    let losses: Vec<f64> = points.iter().map(|point| point["nll_bound"].as_f64().expect("a number")).collect();
    assert!(losses.len() == 2 && losses[0] != losses[1], "{losses:?}");
    let page = std::fs::read_to_string(folder.join("runs/study/report.md")).expect("there is a page");
    assert!(page.contains(&format!("| base | {:.4} [", (losses[0] + losses[1]) / 2.0)), "{page}");
    assert!(page.contains("each seed draws its own. The base's scores are means over the rows of 2 seeds."), "{page}");
}
