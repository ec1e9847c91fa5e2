//! Settings without effect are told: a combination for every key of a recipe in which nothing reads it, or the statement that
//! there is none.

mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use scratch::folder;
use serde_json::json;
use weft::data::{Dataset, Example, Mixed};
use weft::recipe::{Recipe, RunSize};
use weft::sampler::generate::Sampling;
use weft::sampler::remasking::Remasking;

const FILE: &str = "[data]\ntrain = \"a.jsonl\"\n";
const SOURCES: &str =
    "[[data.sources]]\npath = \"a.jsonl\"\nformat = \"messages\"\ntrain_on = \"last\"\nsplit = \"x\"\n";
const GENERATED: &str = "[data]\ngenerate = \"sudoku\"\n";

/// Keys, the recipe and the settings under which each has no effect, and the reason that is told.
const IDLE: &[(&str, &str, &[&str], &str)] = &[
    ("model.double_quant", FILE, &["model.double_quant=false"], "model.quantize is not set"),
    ("model.save_dtype", FILE, &["model.save_dtype=f32"], "model.trainable is lora, and adapters are saved in f32"),
    ("model.lora_rank", FILE, &["model.lora_rank=4", "model.trainable=full"], FULL),
    ("model.lora_alpha", FILE, &["model.lora_alpha=4", "model.trainable=full"], FULL),
    ("model.lora_dropout", FILE, &["model.lora_dropout=0.5", "model.trainable=full"], FULL),
    ("model.lora_targets", FILE, &["model.lora_targets=[\"x\"]", "model.trainable=full"], FULL),
    ("model.use_rslora", FILE, &["model.use_rslora=true", "model.trainable=full"], FULL),
    ("data.split", FILE, &["data.split=x"], "data.train is a file"),
    ("data.split", SOURCES, &["data.split=x"], "each of data.sources is a file or has its own"),
    ("data.sources[0].split", SOURCES, &[], "its path is a file"),
    ("data.held_out", GENERATED, &["data.held_out=b.jsonl"], "data.generate makes the rows"),
    ("data.held_out_split", FILE, &["data.held_out_split=dev"], NO_HELD_OUT),
    ("data.held_out_split", FILE, &["data.held_out_split=dev", "data.held_out=b.jsonl"], "data.held_out is a file"),
    (
        "data.held_out_split",
        FILE,
        &["data.held_out_split=dev", "data.held_out=10%"],
        "data.held_out is a part of the training rows",
    ),
    ("data.held_out_rows", FILE, &["data.held_out_rows=5"], NO_HELD_OUT),
    ("data.format", SOURCES, &["data.format=text"], "each of data.sources has its own"),
    ("data.train_on", SOURCES, &["data.train_on=all"], "each of data.sources has its own"),
    ("data.on_bad_row", GENERATED, &["data.on_bad_row=skip"], "data.generate makes the rows"),
    (
        "data.padding",
        FILE,
        &["data.padding=eos"],
        "train.micro_batch_size is 1, and an answer is padded to the longest one of its micro-batch",
    ),
    ("objective.transform", FILE, &["objective.kind=sft", "objective.transform=cbrt"], SFT),
    ("objective.reference", FILE, &["objective.kind=sft", "objective.reference=batch"], SFT),
    (
        "objective.reference",
        FILE,
        &["objective.reference=batch"],
        "train.micro_batch_size is 1, and the mean is that of a micro-batch",
    ),
    (
        "objective.weighting",
        FILE,
        &["objective.kind=sft", "objective.weighting=elbo"],
        "objective.kind is sft, not weft",
    ),
    ("objective.geo_p", FILE, &["objective.geo_p=0.5"], "objective.kind is weft, not cart"),
    (
        "objective.rate_floor",
        FILE,
        &["objective.kind=sft", "objective.rate_floor=0.001"],
        "objective.kind is sft, whose rate is t, and objective.t_min = 0.001 is its least value",
    ),
    ("objective.entropy_every", FILE, &["objective.kind=sft", "objective.entropy_every=2"], SFT),
    (
        "objective.entropy_precision",
        FILE,
        &["objective.kind=sft", "objective.entropy_precision=bf16"],
        "objective.kind is sft, which has one pass only",
    ),
    ("objective.lift_policy", FILE, &["objective.lift_policy=time"], "objective.kind is weft, not lift"),
    ("objective.block_length", FILE, &["objective.block_length=8"], "objective.blocks is none"),
    ("train.eval_every", FILE, &["train.eval_every=5"], NO_HELD_OUT),
    ("train.keep_best", FILE, &["train.keep_best=true"], NO_HELD_OUT),
    ("train.patience", FILE, &["train.patience=2"], NO_HELD_OUT),
    (
        "train.keep_best",
        FILE,
        &["train.keep_best=true", "data.held_out=b.jsonl"],
        "the held-out rows are evaluated at the end only; set train.eval_every",
    ),
    ("eval.task", FILE, &["eval.task=gsm8k"], NO_HELD_OUT),
    ("eval.tasks", FILE, &["eval.tasks=[\"gsm8k\"]"], NO_HELD_OUT),
    ("train.best_by", FILE, &["train.best_by=task", "eval.tasks=[\"gsm8k\"]"], NO_HELD_OUT),
    ("train.patience", FILE, &["train.best_by=task", "eval.tasks=[\"gsm8k\"]", "train.patience=2"], NO_HELD_OUT),
    ("eval.limit", FILE, &["eval.limit=5", "data.held_out=b.jsonl"], NO_TASK),
    ("eval.limit", FILE, &["eval.limit=5", "eval.task=gsm8k"], NO_HELD_OUT),
    (
        "eval.limit",
        FILE,
        &["eval.limit=5", "eval.tasks=[{ task = \"arc\", limit = 2 }]"],
        "each of eval.tasks has its own",
    ),
    ("eval.mc_samples", FILE, &["eval.mc_samples=32"], NO_TASK),
    ("eval.mc_samples", FILE, &["eval.mc_samples=32", "eval.tasks=[\"mbpp\"]"], "no task chooses among given answers"),
    ("eval.each_epoch", FILE, &["eval.each_epoch=true"], NO_TASK),
    ("eval.run_code", FILE, &["eval.run_code=true"], NO_TASK),
    ("eval.run_code", FILE, &["eval.run_code=true", "eval.tasks=[\"arc\"]"], "no task's answers are programs"),
];

const FULL: &str = "model.trainable is full, without an adapter";
const SFT: &str = "objective.kind is sft, which uses no entropies";
const NO_HELD_OUT: &str = "there is no data.held_out";
const NO_TASK: &str = "eval.task and eval.tasks are not set";

/// Settings of runs of ten training rows and three held-out ones, and what is told of them.
const OF_RUNS: &[(&str, &[&str], u64, &str)] = &[
    (
        "train.warmup_steps",
        &["train.warmup_steps=10", "train.max_steps=5"],
        5,
        "train.warmup_steps = 10 in a run of 5 steps: the learning rate never reaches train.lr",
    ),
    (
        "train.max_steps",
        &["train.max_steps=11"],
        10,
        "train.max_steps = 11 has no effect: the run has 10 steps; raise train.epochs to train longer",
    ),
    (
        "train.micro_batch_size",
        &["train.micro_batch_size=4", "train.grad_accum_steps=4"],
        1,
        "train.micro_batch_size and train.grad_accum_steps make steps of 16 examples, but an epoch has only 10 examples: \
         each step is an epoch",
    ),
    (
        "train.grad_accum_steps",
        &["train.grad_accum_steps=11"],
        1,
        "train.micro_batch_size and train.grad_accum_steps make",
    ),
    (
        "objective.entropy_every",
        &["objective.entropy_every=2"],
        10,
        "objective.entropy_every = 2 has no effect: the run has one epoch",
    ),
    (
        "train.spike_factor",
        &["train.spike_factor=3"],
        16,
        "train.spike_factor = 3 has no effect: it needs more than 16 steps, and the run has 16 steps",
    ),
    (
        "train.checkpoint_every",
        &["train.checkpoint_every=11"],
        10,
        "train.checkpoint_every = 11 has no effect: the run has 10 steps, and the last one is saved anyway",
    ),
    (
        "train.eval_every",
        &["train.eval_every=2"],
        1,
        "train.eval_every = 2 has no effect: the run has 1 step, and its end is evaluated anyway",
    ),
    (
        "train.keep_best",
        &["train.keep_best=true", "train.eval_every=10"],
        10,
        "train.keep_best has no effect: the only evaluation is at the end; lower train.eval_every",
    ),
    (
        "train.patience",
        &["train.patience=2", "train.eval_every=4"],
        10,
        "train.patience = 2 has no effect: before the end there are 2 evaluations, the first of which has nothing to be \
         compared with",
    ),
    ("eval.samples", &["eval.samples=4"], 10, "eval.samples = 4, but there are only 3 held-out examples"),
    ("eval.limit", &["eval.task=gsm8k", "eval.limit=4"], 10, "eval.limit = 4, but there are only 3 problems"),
    (
        "eval.limit",
        &["eval.tasks=[\"gsm8k\", \"arc\"]", "eval.limit=4"],
        10,
        "eval.limit = 4, but no task has more than 3 problems",
    ),
    (
        "data.train_on",
        &["data.train_on=all"],
        10,
        "data.train_on has no effect: no chat has more than one assistant turn",
    ),
];

/// Keys without effect on plain texts.
const OF_TEXTS: [&str; 5] = [
    "data.train_on=all",
    "data.on_long_prompt=skip",
    "data.on_long_answer=skip",
    "data.special_tokens=tokens",
    "data.chat_template_kwargs={ add_generation_prompt = true }",
];

/// Keys that every recipe reads, whatever else it says. `data.train_rows` counts rows that may not be there, of which the
/// last test tells.
const ALWAYS: [&str; 28] = [
    "model.path",
    "model.precision",
    "model.quantize",
    "model.mask_token_id",
    "model.logits_shifted",
    "model.trainable",
    "model.adapter",
    "data.train",
    "data.sources",
    "data.generate",
    "data.train_rows",
    "data.max_seq_len",
    "objective.kind",
    "objective.normalizer",
    "objective.t_min",
    "objective.complementary",
    "objective.blocks",
    "train.output",
    "train.seed",
    "train.epochs",
    "train.activation_memory_gb",
    "train.lr",
    "train.lr_schedule",
    "train.weight_decay",
    "train.adam_beta1",
    "train.adam_beta2",
    "train.adam_eps",
    "train.max_grad_norm",
];

fn parse(text: &str, settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    Recipe::parse(text, Path::new("r.toml"), &settings).unwrap_or_else(|e| panic!("{e}"))
}

fn mixed(count: usize) -> Mixed {
    let examples = vec![Example { prompt_ids: vec![1], answer_ids: vec![2] }; count];
    Mixed { dataset: Dataset { examples, ..Dataset::default() }, ..Mixed::default() }
}

#[test]
fn every_key_is_told_where_it_has_no_effect() {
    for (key, text, settings, reason) in IDLE {
        let told = parse(text, settings).warnings();
        assert!(told.contains(&format!("{key} has no effect: {reason}")), "{settings:?}: {told:?}");
    }
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let tables = default.as_object().expect("a recipe is a table").iter();
    let all: BTreeSet<String> = tables
        .flat_map(|(table, keys)| keys.as_object().expect("a table").keys().map(move |key| format!("{table}.{key}")))
        .collect();
    let of_texts = OF_TEXTS.iter().filter_map(|setting| setting.split('=').next());
    let of_runs = OF_RUNS.iter().map(|(key, ..)| *key);
    let known: BTreeSet<String> =
        IDLE.iter().map(|(key, ..)| *key).chain(of_runs).chain(of_texts).chain(ALWAYS).map(str::to_owned).collect();
    let other = ["train.on_non_finite"];
    let untold = all.difference(&known).filter(|key| !key.starts_with("sampler.") && !other.contains(&key.as_str()));
    assert_eq!(untold.collect::<Vec<_>>(), Vec::<&String>::new(), "no combination is known for these keys");
}

#[test]
fn a_runs_size_shows_what_has_no_effect_in_it() {
    let (train, held_out_rows) = (mixed(10), mixed(3));
    let run = |steps| RunSize { train: &train, held_out: Some(&held_out_rows), problems: Some(3), steps, ranks: 1 };
    for (key, settings, steps, expected) in OF_RUNS {
        let recipe = parse("[data]\ntrain = \"a.jsonl\"\nheld_out = \"b.jsonl\"\n", settings);
        let told = recipe.warnings_of_run(&run(*steps));
        assert!(told.iter().any(|line| line.starts_with(expected)), "{key}: {told:?}");
    }
    // Settings that do what they say are not told.
    let useful = [
        "train.warmup_steps=2",
        "train.max_steps=40",
        "train.epochs=4",
        "train.spike_factor=3",
        "train.checkpoint_every=10",
        "train.eval_every=10",
        "train.keep_best=true",
        "train.patience=2",
        "objective.entropy_every=2",
        "eval.samples=3",
        "eval.task=gsm8k",
        "eval.limit=3",
    ];
    // By the score of a task of its own, the best weights need no held-out rows.
    let by_task = [
        "train.best_by=task",
        "train.keep_best=true",
        "train.patience=9",
        "eval.tasks=[\"arc\", \"mbpp\"]",
        "eval.mc_samples=32",
        "eval.run_code=true",
    ];
    for (held_out, useful) in [("held_out = \"b.jsonl\"\n", &useful[..]), ("", &by_task)] {
        let recipe = parse(&format!("[data]\ntrain = \"a.jsonl\"\n{held_out}"), useful);
        let held_out = (!held_out.is_empty()).then_some(&held_out_rows);
        let run = RunSize { held_out, ..run(40) };
        assert_eq!([recipe.warnings(), recipe.warnings_of_run(&run)].concat(), Vec::<String>::new());
    }
}

#[test]
fn a_sampler_that_generates_nothing_is_told() {
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let other = |key: &str| match key {
        "attention" => json!("bidirectional"),
        "cache" => json!("prefix"),
        "remasking" => json!("low_confidence"),
        "whole_canvas" | "forbid_eos" | "defer_eos" => json!(true),
        "top_p" | "confidence_threshold" => json!(0.5),
        _ => json!(64),
    };
    for key in default["sampler"].as_object().expect("a table").keys() {
        let value = if key == "diffusion_steps" { json!(32) } else { other(key) };
        let told = parse(FILE, &[&format!("sampler.{key}={value}")]).warnings();
        let [line] = &told[..] else { panic!("{key}: {told:?}") };
        assert!(
            line.starts_with(&format!("sampler.{key} has no effect on the run, which generates no answers")),
            "{line}"
        );
        let told = parse(FILE, &[&format!("sampler.{key}={value}"), "eval.samples=1"]).warnings();
        assert_eq!(told.len(), usize::from(key == "seed"), "{key}: {told:?}");
    }
}

#[test]
fn sampler_settings_that_others_make_idle_are_told() {
    let told = |sampling: Sampling, remasking| sampling.warnings(remasking);
    let own = || Sampling { seed: 7, ..Sampling::default() };
    let low = Remasking::LowConfidence;
    assert_eq!(told(own(), low), ["seed has no effect: nothing is drawn at temperature 0"]);
    for drawn in [Sampling { temperature: 0.5, ..own() }, own()] {
        let remasking = if drawn.temperature > 0.0 { low } else { Remasking::Random };
        assert!(told(drawn, remasking).is_empty());
    }
    assert_eq!(
        told(Sampling { forbid_eos: true, defer_eos: true, whole_canvas: true, ..Sampling::default() }, low),
        ["defer_eos has no effect with forbid_eos", "whole_canvas has no effect with forbid_eos"]
    );
    assert_eq!(
        told(Sampling { diffusion_steps: 256, ..Sampling::default() }, low),
        ["diffusion_steps 256 is more than the 128 tokens of the answer: each has one step"]
    );
}

fn weft(folder: &Path, args: &[&str]) -> [String; 2] {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let output = command.current_dir(folder).args(args).env("WEFT_CACHE", "").output().expect("weft starts");
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{args:?}: {}", text[1]);
    text
}

#[test]
fn data_plan_and_train_tell_what_the_rows_show() {
    let folder = folder("no-effect");
    let row = |i: usize| json!({ "prompt": format!("{i} + 1?"), "response": "1" }).to_string() + "\n";
    fs::write(folder.join("a.jsonl"), (0..3).map(row).collect::<String>()).expect("it is written");
    fs::write(folder.join("b.jsonl"), row(7)).expect("it is written");
    fs::write(folder.join("t.jsonl"), "{\"text\": \"Once upon a time.\"}\n").expect("it is written");
    let recipe = "[model]\nlora_rank = 1\n[data]\ntrain = \"a.jsonl\"\nheld_out = \"b.jsonl\"\ntrain_rows = 5\n[train]\n\
                  output = \"run\"\nwarmup_steps = 8\neval_every = 9\n[eval]\nsamples = 2\n[sampler]\ngen_length = 16\n";
    fs::write(folder.join("r.toml"), recipe).expect("it is written");
    let expected = [
        "train.warmup_steps = 8 in a run of 3 steps: the learning rate never reaches train.lr",
        "train.eval_every = 9 has no effect: the run has 3 steps, and its end is evaluated anyway",
        "eval.samples = 2, but there is only 1 held-out example",
        "data.train_rows = 5, but there are only 3 rows",
    ];
    for command in ["data", "plan", "train"] {
        let [shown, told] = weft(&folder, &[command, "r.toml"]);
        for line in expected {
            let is_told = told.contains(&format!("warning: {line}\n"));
            assert!(
                is_told || command == "data" && shown.contains(&format!("note: {line}\n")),
                "{command}: {told}{shown}"
            );
        }
        if command == "train" {
            let line = "answers    16 tokens in blocks of 16, because 32 don't divide them; 64 steps\n";
            assert!(shown.contains(line), "{shown}");
        }
    }
    let texts: Vec<&str> = OF_TEXTS.iter().flat_map(|setting| ["--set", setting]).collect();
    let of_texts =
        [&["data", "r.toml", "--set", "data.train=t.jsonl", "--set", "data.held_out=t.jsonl"][..], &texts[..8]];
    let [_, told] = weft(&folder, &of_texts.concat());
    for key in ["train_on", "on_long_prompt", "on_long_answer", "special_tokens"] {
        assert!(told.contains(&format!("warning: data.{key} has no effect: the rows are plain texts\n")), "{told}");
    }
}
