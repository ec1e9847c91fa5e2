//! `weft reproduce` with LIFT and in blocks, and what training on one task costs elsewhere: the report's numbers are those of
//! `weft train` and `weft eval`, and a killed comparison ends as an unbroken one.

mod killed;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use killed::killed_until_done;
use serde_json::{Value, json};
use weft::base::Base;
use weft::data::row_range::RowRange;
use weft::data::sources::Source;
use weft::data::{self, Example, Reading};
use weft::model::lora;
use weft::objective::Objective;
use weft::train::held_out::nll_bound_seen;
use weft::train::view::View;

const ARMS: [&str; 8] = [
    "sft-masked",
    "weft-masked",
    "lift-random",
    "lift-time",
    "sft-blockwise",
    "weft-blockwise",
    "sft-bd3lm",
    "weft-bd3lm",
];

const RECIPE: &str = r#"
[model]
lora_rank = 4
[train]
output = "runs/study"
seed = 3
micro_batch_size = 4
lr = 5e-3
max_steps = 4
checkpoint_every = 1
[data]
generate = "sudoku"
train_rows = 32
held_out_rows = 4
[eval]
task = "sudoku"
[sampler]
gen_length = 32
block_length = 32
diffusion_steps = 8
[reproduce]
seeds = 2
evaluations = 2
timing_rounds = 0
block_length = 8
arms = ["sft-masked", "weft-masked", "lift-random", "lift-time", "sft-blockwise", "weft-blockwise", "sft-bd3lm", "weft-bd3lm"]
[[reproduce.also_score]]
name = "sums"
held_out = "sums.jsonl"
rows = 12
task = "gsm8k"
set = ["sampler.gen_length=16", "sampler.block_length=16", "sampler.diffusion_steps=16"]
[[reproduce.also_score]]
name = "text"
held_out = "texts.jsonl"
set = ["data.max_seq_len=12"]
"#;

/// Sums in the form of the chats that the embedded base was pretrained on. To most it answers 0, which is the truth of some.
fn sums() -> String {
    let row = |i: u64| {
        let (a, b) = (i * 7 % 10 + 1, i * 3 % 9 + 1);
        let question = format!("What is {a} + {b}");
        let answer = format!("<answer>\n{}\n</answer>", a + b);
        let messages = json!([{ "role": "user", "content": question }, { "role": "assistant", "content": answer }]);
        format!(
            "{}\n",
            json!({ "messages": messages, "question": question, "ground_truth": if i.is_multiple_of(2) { 0 } else { a + b } })
        )
    };
    (0..20).map(row).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = scratch::folder(name);
    fs::write(folder.join("study.toml"), RECIPE).expect("the recipe is written");
    fs::write(folder.join("sums.jsonl"), sums()).expect("the rows are written");
    let text = |i: u64| format!("{}\n", json!({ "text": format!("{i} + 5 = {}\n{i} * 2 = {}", i + 5, 2 * i) }));
    fs::write(folder.join("texts.jsonl"), (20..60).map(text).collect::<String>()).expect("the texts are written");
    folder
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).env("WEFT_CACHE", "").stdin(Stdio::null());
    command
}

fn weft(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("the program starts")
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json_of(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("it is JSON")
}

fn near(value: &Value, expected: f64) {
    let value = value.as_f64().expect("a number");
    assert!((value - expected).abs() < 1e-9, "{value} for {expected}");
}

/// The loss of a base, or of an adapter on it, under an objective's view: on the first sums, or on the texts, each a sequence
/// of its own or several where it is longer than 12 tokens.
fn loss(folder: &Path, adapter: Option<&str>, file: &str, view: &Objective) -> f64 {
    let mut base = Base::open("tiny-base".as_ref()).expect("it is part of the program");
    if let Some(adapter) = adapter {
        lora::load(&folder.join(adapter), &mut base.model).expect("the adapter loads");
    }
    let eos_token_id = base.text.eos_token_id();
    let examples: Vec<Example> = match file {
        "sums.jsonl" => {
            let mask_token_id = base.model.config.mask_token_id;
            let reading = Reading { text: &base.text, mask_token_id, max_seq_len: 4096, cache: None };
            let rows = Some(RowRange::first(12));
            let source = Source { path: folder.join(file).into(), rows, ..Source::default() };
            data::load(&source, &reading).expect("the rows are read").examples
        }
        _ => {
            let texts = fs::read_to_string(folder.join(file)).expect("the texts are there");
            let of_text = |line: &str| {
                let row: Value = serde_json::from_str(line).expect("a row is JSON");
                let mut ids = base.text.encode(row["text"].as_str().expect("a text")).expect("it is text");
                ids.push(eos_token_id);
                let parts = ids.chunks(12).map(|part| Example { prompt_ids: vec![], answer_ids: part.to_vec() });
                parts.collect::<Vec<_>>()
            };
            texts.lines().flat_map(of_text).collect()
        }
    };
    let view = View::of(view, eos_token_id);
    nll_bound_seen(&base.model, &examples, &view)
}

#[test]
fn the_tables_numbers_are_those_of_separate_calls() {
    let folder = folder("numbers");
    let told = done(&folder, &["reproduce", "study.toml"]);
    let report = json_of(&folder.join("runs/study/report.json"));
    let setting = &report["settings"][0];
    assert_eq!(report["arms"], json!(ARMS));
    let of = |domain: &str, metric: &str| {
        let all = setting["forgetting"].as_array().expect("there are changes");
        all.iter().find(|of| of["domain"] == domain && of["metric"] == metric).expect("it is scored").clone()
    };
    let (sums, sums_loss, text) = (of("sums", "accuracy"), of("sums", "nll_bound"), of("text", "nll_bound"));
    assert_eq!(setting["forgetting"].as_array().map(Vec::len), Some(3), "texts have no accuracy");
    // 1. The base's scores are those of other commands.
    let sampling = ["--gen-length", "16", "--diffusion-steps", "16"];
    let eval = |model: &[&str], more: &[&str]| {
        let asked = ["eval", "--model", "tiny-base", "--task", "gsm8k", "--data", "sums.jsonl", "--limit", "12"];
        // A file that is there is refused.
        let _ = fs::remove_file(folder.join("out.json"));
        let told = done(&folder, &[&asked[..], &["--out", "out.json", "--json"], &sampling, model, more].concat());
        let accuracy: Value = serde_json::from_str(&told).expect("it is JSON");
        100.0 * accuracy["accuracy"].as_f64().expect("a number")
    };
    let whole = ["--block-length", "16"];
    let of_base = eval(&[], &whole);
    near(&sums["base"], of_base);
    assert!(of_base > 0.0 && of_base < 100.0, "the base gets some sums right: {of_base}");
    let plain = Objective::default();
    near(&sums_loss["base"], loss(&folder, None, "sums.jsonl", &plain));
    near(&text["base"], loss(&folder, None, "texts.jsonl", &plain));
    // 2. And so are those of arms, trained by `weft train`.
    for (arm, sampler) in [
        ("weft-masked", whole),
        ("lift-time", whole),
        ("weft-blockwise", ["--block-length", "8"]),
        ("sft-bd3lm", ["--attention", "block-causal"]),
    ] {
        let saved = json_of(&folder.join(format!("runs/study/all/{arm}/seed-4/outcome.json")));
        let objective: Objective = serde_json::from_value(saved["recipe"]["objective"].clone()).expect("its objective");
        let set = |key: &str| format!("objective.{key}={}", saved["recipe"]["objective"][key]);
        let sets = ["kind", "normalizer", "blocks", "block_length", "lift_policy"].map(set);
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let output = format!("train.output=\"runs/{arm}\"");
        let own = ["train", "study.toml", "--set", &output, "--set", "train.seed=4", "--set", "eval.samples=0"];
        done(&folder, &[&own[..], &sets].concat());
        let adapter = format!("runs/{arm}/adapter");
        let place = ARMS.iter().position(|name| *name == arm).expect("it is an arm");
        let more: Vec<&str> = match arm {
            "sft-bd3lm" => [&sampler[..], &["--block-length", "8"]].concat(),
            _ => sampler.to_vec(),
        };
        near(&sums["arms"][place]["scores"][1], eval(&["--adapter", &adapter], &more));
        let adapter = Some(adapter.as_str());
        near(&sums_loss["arms"][place]["scores"][1], loss(&folder, adapter, "sums.jsonl", &objective));
        near(&text["arms"][place]["scores"][1], loss(&folder, adapter, "texts.jsonl", &objective));
    }
    // 3. Changes and differences are those of the scores, seed by seed.
    for of in [&sums, &sums_loss, &text] {
        let score = |arm: usize, seed: usize| of["arms"][arm]["scores"][seed].as_f64().expect("a score");
        let base = of["base"].as_f64().expect("a score");
        for (i, arm) in ARMS.iter().enumerate() {
            assert_eq!(of["arms"][i]["arm"], **arm);
            let change = (score(i, 0) + score(i, 1)) / 2.0 - base;
            near(&of["arms"][i]["change"]["difference"]["mean"], change);
        }
        let differences = of["differences"].as_array().expect("there are pairs");
        let pair = |arm: &str, reference: &str| {
            differences.iter().find(|d| d["arm"] == arm && d["reference"] == reference).expect("the pair is there")
        };
        let mean = |i: usize, j: usize| (0..2).map(|seed| score(i, seed) - score(j, seed)).sum::<f64>() / 2.0;
        near(&pair("weft-masked", "sft-masked")["paired"]["difference"]["mean"], mean(1, 0));
        near(&pair("lift-time", "weft-masked")["paired"]["difference"]["mean"], mean(3, 1));
        near(&pair("weft-blockwise", "sft-blockwise")["paired"]["difference"]["mean"], mean(5, 4));
        near(&pair("weft-bd3lm", "sft-bd3lm")["paired"]["difference"]["mean"], mean(7, 6));
    }
    // 4. The page says it.
    let page = fs::read_to_string(folder.join("runs/study/report.md")).expect("there is a page");
    for part in [
        "## Forgetting",
        "Change of the accuracy, in percentage points:\n\n|  | sums |\n| --- | --- |\n| base | ",
        "Change of the held-out loss, in nats per answer token:\n\n|  | sums | text |\n",
        "| lift-random - base | ",
        "| weft-bd3lm - sft-bd3lm | ",
        "- on text: WeFT - SFT: ",
        "- on sums: blockwise WeFT - blockwise SFT: ",
        "## LIFT and training in blocks at the end",
        "- `weft-bd3lm` sets `objective.kind=weft objective.normalizer=masked objective.blocks=bd3lm objective.block_length=8 ",
        "- LIFT (time) - SFT: ",
        "![accuracy](accuracy-all.svg) ![accuracy-2](accuracy-2-all.svg) ![accuracy-3](accuracy-3-all.svg) ",
    ] {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    assert!(!page.contains("## Ablations") && !page.contains("What the differences are due to"), "{page}");
    assert!(folder.join("runs/study/loss-3-all.svg").exists());
    assert!(told.contains("on sums: WeFT - SFT: ") && told.contains("on text: WeFT - SFT: "), "{told}");
}

#[test]
fn a_killed_comparison_in_blocks_ends_as_an_unbroken_one() {
    let [whole, broken] = ["whole", "broken"].map(folder);
    let small = "reproduce.arms=[\"lift-time\", \"weft-blockwise\", \"weft-bd3lm\"]";
    let asked = ["reproduce", "study.toml", "--set", small];
    done(&whole, &asked);
    let asked = [&asked[..], &["--resume", "--set", "reproduce.parallel_runs=2"]].concat();
    let kills = killed_until_done(|| command(&broken, &asked));
    assert!(kills > 0, "it was never killed");
    let report = |folder: &Path| json_of(&folder.join("runs/study/report.json"));
    assert_eq!(report(&broken), report(&whole));
    let run = broken.join("runs/study/all/weft-bd3lm/seed-4");
    let files = ["events.out.tfevents.weft", "metrics.jsonl", "outcome.json", "points.json", "recipe.json"];
    assert_eq!(scratch::names(&run), files, "nothing that was generated is left");
    // More arms cost their own runs only; other rows to score cost all of them, so they are refused.
    let more = "reproduce.arms=[\"lift-time\", \"weft-blockwise\", \"weft-bd3lm\", \"sft-masked\"]";
    let output = weft(&broken, &["reproduce", "study.toml", "--set", more]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("8 runs, 6 of them done"));
    let other =
        RECIPE.replace("sampler.diffusion_steps=16", "sampler.diffusion_steps=8").replace("\"text\"", "\"prose\"");
    fs::write(broken.join("other.toml"), other).expect("the recipe is written");
    let output = weft(&broken, &["reproduce", "other.toml", "--set", small]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    for part in [
        "in reproduce.also_score \"sums\", sampler.diffusion_steps was 16 and is 8",
        "it was not scored on reproduce.also_score \"prose\"",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn what_cannot_be_compared_is_told_before_anything_is_done() {
    let folder = folder("wrong");
    let told = |recipe: &str, more: &[&str]| {
        fs::write(folder.join("wrong.toml"), recipe).expect("the recipe is written");
        let output = weft(&folder, &[&["reproduce", "wrong.toml", "--report-only"], more].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (from, to, expected) in [
        ("name = \"sums\"", "name = \"text\"", "reproduce.also_score has the name \"text\" twice"),
        ("held_out = \"sums.jsonl\"\n", "", "reproduce.also_score \"sums\" names its rows in 0 ways; give held_out"),
        ("rows = 12", "generate = \"sudoku\"", "reproduce.also_score \"sums\" names its rows in 2 ways"),
        ("rows = 12", "rows = 0", "reproduce.also_score \"sums\" has rows = 0; give at least 1"),
        ("rows = 12", "row = 12", "unknown field `row`"),
        (
            "data.max_seq_len=12",
            "train.lr=1",
            "reproduce.also_score \"text\" sets \"train.lr=1\"; it can set keys of [sampler] and data.max_seq_len alone",
        ),
        (
            "data.max_seq_len=12",
            "sampler.gen_len=1",
            "reproduce.also_score \"text\": unknown key sampler.gen_len; the nearest known one is sampler.gen_length",
        ),
        (
            "block_length = 8\narms",
            "block_length = 5\narms",
            "the recipe, arm sft-blockwise: sampler: gen_length 32 is not a multiple of block_length 5",
        ),
        (
            "sampler.gen_length=16",
            "sampler.gen_length=20",
            "reproduce.also_score \"sums\", arm weft-blockwise: sampler: gen_length 20 is not a multiple of block_length 8",
        ),
        ("block_length = 8\narms", "block_length = 0\narms", "reproduce.block_length = 0; give at least 1"),
        (
            "diffusion_steps = 8",
            "diffusion_steps = 8\nremasking = \"entropy\"",
            "attention block-causal needs blocks, and remasking entropy has none; set remasking low_confidence",
        ),
    ] {
        assert!(RECIPE.contains(from), "{from}");
        let (code, told) = told(&RECIPE.replace(from, to), &[]);
        assert!(code == Some(2) && told.contains(expected), "{expected}\n{told}");
    }
    let dreams = RECIPE.replace("diffusion_steps = 8", "diffusion_steps = 8\nremasking = \"entropy\"");
    let (_, error) = told(&dreams, &["--set", "reproduce.arms=[\"sft-blockwise\"]"]);
    let expected =
        "arm sft-blockwise: sampler: remasking entropy has no blocks; set sampler.remasking to low_confidence";
    assert!(error.contains(expected), "{error}");
    assert!(!folder.join("runs").exists(), "nothing was begun");
    // What has no effect, or is done twice, is told.
    let plain = ["--set", "reproduce.seeds=1", "--set", "reproduce.arms=[\"weft-masked\", \"weft-clip-1\"]"];
    let (code, told) = told(RECIPE, &plain);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("warning: reproduce.block_length has no effect: no arm trains in blocks\n"), "{told}");
    let twice = "warning: the arms weft-masked and weft-clip-1 do the same in this recipe; leave one of them out\n";
    assert!(told.contains(twice), "{told}");
}
