//! Runs that go on from another one.

use std::fs;

use serde_json::Value;

use super::program::{Case, pairs, recipe, refused, set, works};

pub const CASES: &[Case] = &[("R1", an_adapter_to_start_from), ("R2", more_epochs)];

/// A folder with a finished run `run` of two epochs of two steps.
fn finished(name: &str) -> std::path::PathBuf {
    let folder = recipe(name, &pairs(4));
    works(&folder, &["train", "recipe.toml", "--quiet", "--set", "train.epochs=2"]);
    folder
}

fn an_adapter_to_start_from() {
    let folder = finished("start");
    let rows: String = pairs(6)[4..].iter().map(|row| format!("{row}\n")).collect();
    fs::write(folder.join("b.jsonl"), rows).expect("the rows are written");
    let b = set(&["model.adapter=run/adapter", "data.train=b.jsonl", "train.output=b"]);
    let told = works(&folder, &[&["train", "recipe.toml"], &b[..]].concat());
    assert!(told.contains("starts from run/adapter"), "{told}");
    let config = |run: &str| -> Value {
        let text = fs::read(folder.join(run).join("adapter/adapter_config.json")).expect("it is there");
        serde_json::from_slice(&text).expect("it is JSON")
    };
    assert_eq!(config("run"), config("b"), "one adapter of the same form");
    works(
        &folder,
        &[
            "generate",
            "--model",
            "tiny-base",
            "--adapter",
            "b/adapter",
            "--prompt",
            "What is 1 + 1?",
            "--gen-length",
            "4",
        ],
    );
}

fn more_epochs() {
    let folder = finished("resume");
    let resume = |epochs: &'static str| ["train", "recipe.toml", "--resume", "--set", epochs];
    let told = works(&folder, &resume("train.epochs=2"));
    assert_eq!(told, "the run in run is finished (4 steps); there is nothing to resume\n");
    let fix = ["train.epochs was 2 and is 4", "--set model.adapter=run/adapter --set train.output="];
    refused(&folder, &resume("train.epochs=4"), &fix);
    works(
        &folder,
        &["train", "recipe.toml", "--quiet", "--set", "model.adapter=run/adapter", "--set", "train.output=more"],
    );
}
