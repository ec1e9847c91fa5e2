//! `model.adapter`: a run that starts from an existing adapter goes on from what base and adapter compute, and leaves one
//! adapter.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::folder;
use serde_json::Value;

/// A folder with rows, the recipe `recipe.toml`, and the finished run `a` of it.
fn finished(name: &str) -> PathBuf {
    let folder = folder(name);
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    for (file, rows) in [("rows.jsonl", 0..8), ("more.jsonl", 12..20), ("held-out.jsonl", 8..12)] {
        fs::write(folder.join(file), rows.map(row).collect::<String>()).expect("the rows are written");
    }
    let recipe = "[data]\ntrain = \"rows.jsonl\"\nheld_out = \"held-out.jsonl\"\n[train]\noutput = \"a\"\nlr = 1e-3\n\
                  micro_batch_size = 2\ncheckpoint_every = 2\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let a = ["model.lora_rank=4", "model.lora_alpha=6", "model.use_rslora=true"];
    train(&folder, &[&set(&a)[..], &["--set", "model.lora_targets=[\"all-linear\"]"]].concat());
    folder
}

fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(folder).args(arguments).output();
    output.expect("weft starts")
}

fn train(folder: &Path, more: &[&str]) -> String {
    let output = weft(folder, &[&["train", "recipe.toml"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = weft(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("the file is there")).expect("it is JSON")
}

/// The settings of a run on other rows that starts from run `a`'s adapter.
const B: [&str; 3] = ["model.adapter=a/adapter", "data.train=more.jsonl", "train.output=b"];

#[test]
fn a_run_starts_where_base_and_adapter_are_and_leaves_one_adapter() {
    let folder = finished("adapter-start");
    let told = train(&folder, &set(&B));
    assert!(told.contains("adapter    starts from a/adapter: rank 4, alpha 6 (rsLoRA), on all-linear\n"), "{told}");
    let [a, b] = ["a", "b"].map(|run| json(&folder.join(run).join("results.json"))["held_out_loss"].clone());
    assert_eq!(a["after"], b["before"], "the first loss is that of base and adapter, to the last bit");
    assert_ne!(a["after"], a["before"], "the adapter does something");
    assert_ne!(b["after"], b["before"], "it is trained further");
    let [a, b] = ["a", "b"].map(|run| json(&folder.join(run).join("adapter/adapter_config.json")));
    assert_eq!(a, b, "one adapter of the same form");
    // A run of one step at a learning rate of almost nothing leaves what it started from.
    let still = ["model.adapter=a/adapter", "train.output=c", "train.lr=1e-30", "train.max_steps=1"];
    train(&folder, &set(&still));
    let [a, b, c] = ["a", "b", "c"]
        .map(|run| fs::read(folder.join(run).join("adapter/adapter_model.safetensors")).expect("an adapter is saved"));
    assert!(a == c && a != b, "only training changes the adapter");
}

/// The card's recipe repeats the run to the last bit.
#[test]
fn an_adapter_has_a_card_whose_recipe_repeats_it() {
    let folder = finished("adapter-card");
    train(&folder, &set(&B));
    let card = fs::read_to_string(folder.join("b/adapter/README.md")).expect("there is a card");
    assert!(card.starts_with("---\nbase_model: \"tiny-base\"\nlibrary_name: peft\n"), "{card}");
    for part in [
        "It started from the adapter a/adapter.",
        "- more.jsonl: 8 examples\n- held-out.jsonl: 4 examples, held out\n",
        "| held-out loss, before and after | ",
        "weft generate --model tiny-base --adapter b/adapter --gen-length ",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let (_, recipe) = card.split_once("```toml\n").expect("it has a recipe");
    let (recipe, _) = recipe.split_once("```").expect("which ends");
    let defaults = ["path = ", "kind = ", "seed = ", "epochs = "];
    assert!(!defaults.iter().any(|key| recipe.contains(key)), "it has what differs from the defaults alone: {recipe}");
    fs::write(folder.join("card.toml"), recipe).expect("it is written");
    let again = weft(&folder, &["train", "card.toml", "--quiet", "--set", "train.output=again"]);
    assert!(again.status.success(), "{recipe}{}", String::from_utf8_lossy(&again.stderr));
    let [b, again] = ["b", "again"]
        .map(|run| fs::read(folder.join(run).join("adapter/adapter_model.safetensors")).expect("an adapter is saved"));
    assert!(b == again, "{recipe}");
}

#[test]
fn such_a_run_resumes_and_is_planned() {
    let folder = finished("adapter-resume");
    train(&folder, &set(&B));
    let adapter = || fs::read(folder.join("b/adapter/adapter_model.safetensors")).expect("an adapter is saved");
    let whole = adapter();
    for left in ["b/checkpoints/step-00000004", "b/adapter"] {
        fs::remove_dir_all(folder.join(left)).expect("it was there");
    }
    let told = refused(&folder, &[&["train", "recipe.toml", "--resume"], &set(&B[1..])[..]].concat());
    assert!(told.contains("model.adapter was \"a/adapter\" and is null"), "{told}");
    train(&folder, &[&["--resume"], &set(&B)[..]].concat());
    assert!(adapter() == whole, "a resumed run ends at the same bits");
    let plan = |more: &[&str]| -> Value {
        let output = weft(&folder, &[&["plan", "recipe.toml", "--json"], more].concat());
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    let bytes = |plan: &Value| plan["parts"].clone();
    let adapter_bytes = |plan: &Value| -> Value {
        let parts = bytes(plan);
        let parts = parts.as_array().expect("a plan has parts");
        parts.iter().find(|part| part["name"].as_str().is_some_and(|n| n.contains("adapter"))).cloned().into()
    };
    let fresh = plan(&set(&["model.lora_rank=4", "model.lora_targets=[\"all-linear\"]"]));
    let from_a = plan(&set(&B[..1]));
    assert_eq!(adapter_bytes(&from_a), adapter_bytes(&fresh), "{from_a}");
    assert_eq!(from_a["adapter"], "rank 4, alpha 6 (rsLoRA), on all-linear");
    assert!(fresh.get("adapter").is_none());
}

#[test]
fn settings_that_contradict_the_adapter_are_refused() {
    let folder = finished("adapter-refused");
    fn run<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["train", "recipe.toml"], &set(&B)[..], &set(more)].concat()
    }
    let told = refused(&folder, &run(&["model.lora_rank=8", "model.lora_targets=[\"q_proj\"]"]));
    let expected = "a/adapter/adapter_config.json: the recipe starts from this adapter with model.lora_rank = 8, but it has \
                    4; model.lora_targets = [\"q_proj\"], but it has [\"all-linear\"]; leave out model.lora_rank and \
                    model.lora_targets, because the adapter brings its own\n";
    assert!(told.ends_with(expected), "{told}");
    assert!(!folder.join("b").exists(), "a refused run leaves nothing behind");
    let told = refused(&folder, &run(&["model.trainable=full"]));
    let fix =
        "merge it first: weft merge --model tiny-base --adapter a/adapter --out merged, then set model.path=merged";
    assert!(told.contains(fix), "{told}");
    // The fix, followed.
    let merged = ["merge", "--model", "tiny-base", "--adapter", "a/adapter", "--out", "merged"];
    assert!(weft(&folder, &merged).status.success());
    train(&folder, &set(&["model.path=merged", "model.trainable=full", "train.output=d", "train.max_steps=1"]));
    assert!(refused(&folder, &run(&["model.adapter=''"])).contains("model.adapter is empty; name an adapter's folder"));
    let told = refused(&folder, &run(&["model.adapter=a"]));
    assert!(told.contains("it is a run folder; its adapter is in a/adapter"), "{told}");
    // A setting that agrees is no contradiction, and the dropout is the new run's own.
    train(&folder, &set(&[&B[..], &["model.lora_rank=4", "model.lora_dropout=0.1", "train.max_steps=1"]].concat()));
    let config = json(&folder.join("b/adapter/adapter_config.json"));
    assert_eq!((&config["lora_dropout"], &config["r"]), (&0.1.into(), &4.into()));
}
