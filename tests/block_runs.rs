//! Runs in blocks, of LIFT and with complements: resumed to the same bits, shared among ranks to the same bits, planned in
//! the memory that they take, and sampled by the program as they were trained.

mod fixtures;
#[cfg(feature = "mpi")]
#[macro_use]
mod ranks;
mod scratch;
mod small_run;

use std::fs;
use std::path::Path;

use fixtures::{QWEN3, stdout, weft};
use scratch::folder;
use serde_json::{Value, json};
use small_run::{BEGIN, RESUME, examples, go_on};
use weft::data::packing::Padding;
use weft::objective::{Blocks, Kind, LiftPolicy, Objective};
use weft::train::resolved::Resolved;
use weft::train::settings::TrainTable;
use weft::train::{Trainer, run};

/// Objectives that this file runs.
fn objectives() -> [(&'static str, Objective); 5] {
    let default = Objective { block_length: 3, ..Objective::default() };
    [
        ("blockwise", Objective { blocks: Blocks::Blockwise, ..default }),
        ("bd3lm", Objective { blocks: Blocks::Bd3lm, ..default }),
        ("bd3lm-reused", Objective { blocks: Blocks::Bd3lm, entropy_every: 2, ..default }),
        ("lift-time", Objective { kind: Kind::Lift, lift_policy: LiftPolicy::Time, ..default }),
        ("both", Objective { kind: Kind::Lift, blocks: Blocks::Bd3lm, complementary: true, ..default }),
    ]
}

fn trainer(objective: Objective) -> Trainer {
    let mut model = QWEN3.load();
    small_run::adapt(&mut model, 0.1);
    let settings = TrainTable { eval_every: 2, checkpoint_every: 2, ..small_run::settings() };
    small_run::trainer(model, examples(), settings, (objective, Padding::None))
}

fn weights(trainer: &Trainer) -> Vec<u32> {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    for (name, objective) in objectives() {
        let recipe = Resolved::from(json!({ "name": name }));
        let held_out = &examples()[..3];
        let mut whole = trainer(objective);
        let output = folder(&format!("blocks-{name}-whole"));
        let first = run::train(&mut whole, (held_out, &output), &recipe, BEGIN, go_on).expect("the run works");
        let output = folder(&format!("blocks-{name}-resumed"));
        let mut killed = trainer(objective);
        fs::create_dir_all(&output).expect("the folder is made");
        for step in 1..=5 {
            killed.step().expect("the step works");
            if step % 2 == 0 {
                weft::train::checkpoint::save(&output, &killed, &recipe).expect("the checkpoint is saved");
            }
        }
        let mut resumed = trainer(objective);
        let summary = run::train(&mut resumed, (held_out, &output), &recipe, RESUME, go_on).expect("the run resumes");
        assert_eq!(summary.first_step, 4, "{name}");
        assert_eq!(weights(&resumed), weights(&whole), "{name}");
        assert_eq!(summary.held_out.expect("rows")[1], first.held_out.expect("rows")[1], "{name}");
    }
}

#[cfg(feature = "mpi")]
#[test]
fn adapters_trained_in_blocks_have_the_same_bits_on_1_and_2_ranks() {
    use ranks::{RECIPE, adapter, essence, start, trained};
    needs_mpirun!();
    for (name, objective) in [
        ("ranks-bd3lm", "blocks = \"bd3lm\"\nblock_length = 8\n"),
        ("ranks-blockwise", "blocks = \"blockwise\"\nblock_length = 4\n"),
        ("ranks-lift", "kind = \"lift\"\ncomplementary = true\n"),
    ] {
        let recipe = format!("{RECIPE}[objective]\n{objective}");
        let [one, two] = [(1, "train.grad_accum_steps=4"), (2, "train.grad_accum_steps=2")].map(|(ranks, accum)| {
            let folder = start(&format!("{name}-{ranks}"), &recipe);
            trained(ranks, &folder, &[accum]);
            folder
        });
        assert_eq!(essence(&two), essence(&one), "{name}");
        assert!(adapter(&two) == adapter(&one), "{name}: two ranks make other bits");
    }
}

/// A short run of the embedded base, by the program.
fn trained(name: &str, settings: &[&str]) -> std::path::PathBuf {
    let folder = folder(name);
    let few = [
        "data.generate=sudoku",
        "data.train_rows=16",
        "data.held_out_rows=4",
        "train.output=run",
        "train.micro_batch_size=2",
        "train.max_steps=2",
        "train.lr=1e-4",
        "eval.task=sudoku",
        "eval.limit=2",
        "eval.samples=1",
        "sampler.gen_length=24",
        "sampler.block_length=8",
        "sampler.diffusion_steps=12",
    ];
    let settings = few.iter().chain(settings).flat_map(|setting| ["--set", setting]);
    let args: Vec<&str> = ["train", "--quiet"].into_iter().chain(settings).collect();
    stdout(&folder, &args);
    folder
}

#[test]
fn a_full_run_in_blocks_saves_a_checkpoint_that_is_sampled_so() {
    let blocks = ["objective.blocks=bd3lm", "objective.block_length=8", "model.trainable=full"];
    let folder = trained("blocks-full", &blocks);
    let text = fs::read_to_string(folder.join("run/checkpoint/config.json")).expect("there is a checkpoint");
    let config: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(config["block_length"], 8);
    let results = fs::read_to_string(folder.join("run/results.json")).expect("it ended");
    assert!(results.contains("sudoku"), "{results}");
    let asked = ["--raw", "--prompt", "Sudoku ", "--gen-length", "12", "--diffusion-steps", "12"];
    let of = |more: &[&str]| stdout(&folder, &[&["generate", "--model", "run/checkpoint"][..], &asked, more].concat());
    assert_eq!(of(&[]), of(&["--attention", "block-causal", "--block-length", "8"]));
    let rows = ["--data", "run/data/held-out.jsonl", "--mc-samples", "8", "--json"];
    let bound = stdout(&folder, &[&["likelihood", "--model", "run/checkpoint"][..], &rows].concat());
    let bound: Value = serde_json::from_str(&bound).expect("it is JSON");
    assert!(bound["per_token"]["nats"].as_f64().is_some_and(|nats| nats > 0.0), "{bound}");
    let wrong =
        weft(&folder, &[&["generate", "--model", "run/checkpoint"][..], &asked, &["--remasking", "entropy"]].concat());
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(told.contains("attention block-causal needs blocks"), "{told}");
}

#[test]
fn plans_are_near_what_runs_take() {
    for (name, settings) in [
        ("plan-bd3lm", ["objective.blocks=bd3lm", "objective.block_length=8"]),
        ("plan-lift", ["objective.kind=lift", "objective.complementary=true"]),
        ("plan-blockwise", ["objective.blocks=blockwise", "objective.block_length=8"]),
    ] {
        let folder = trained(name, &settings);
        let text = fs::read_to_string(folder.join("run/results.json")).expect("it ended");
        let results: Value = serde_json::from_str(&text).expect("it is JSON");
        let [used, planned] = ["peak_memory_bytes", "planned_memory_bytes"].map(|key| results[key].as_f64());
        let (used, planned) = (used.expect("bytes"), planned.expect("bytes"));
        assert!((0.7..1.4).contains(&(planned / used)), "{name}: {used} bytes, {planned} planned");
    }
}

#[test]
fn recipes_are_refused_and_warned_of_by_name() {
    let folder = folder("blocks-refused");
    fs::write(folder.join("recipe.toml"), "[data]\ngenerate = \"sudoku\"\n").expect("the recipe is written");
    let told = |settings: &[&str]| {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let args: Vec<&str> = ["train", "recipe.toml"].into_iter().chain(settings).collect();
        let output = weft(&folder, &args);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(told(&["objective.block_length=0"]).contains("objective.block_length = 0; give at least 1"));
    let every = told(&["objective.blocks=blockwise", "objective.entropy_every=2"]);
    assert!(every.contains("every epoch draws another block"), "{every}");
    assert!(told(&["objective.blocks=whole"]).contains("the known values are none, blockwise, bd3lm"));
    assert!(told(&["objective.lift_policy=best"]).contains("the known values are random, time"));
    let recipe = |settings: &[&str]| {
        let settings: Vec<String> =
            ["data.train=a.jsonl"].iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
        weft::recipe::Recipe::parse("", Path::new("r.toml"), &settings).expect("a recipe").warnings()
    };
    assert_eq!(
        recipe(&["objective.block_length=8"]),
        ["objective.block_length has no effect: objective.blocks is none"]
    );
    assert_eq!(
        recipe(&["objective.lift_policy=time"]),
        ["objective.lift_policy has no effect: objective.kind is weft, not lift"]
    );
    assert!(
        recipe(&["objective.kind=lift", "objective.lift_policy=time", "objective.entropy_precision=bf16"]).is_empty()
    );
}
