//! The program, run on the embedded base or a small checkpoint, with a recipe of a few rows.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::fixtures::weft;
use crate::scratch::folder;

/// A row of the table: the report's id, and the input with its outcome.
pub type Case = (&'static str, fn());

pub const GENERATE: [&str; 7] = ["generate", "--model", "tiny-base", "--gen-length", "8", "--diffusion-steps", "4"];

/// A folder with rows and a recipe `recipe.toml` that trains on them.
pub fn recipe(name: &str, rows: &[Value]) -> PathBuf {
    let folder = folder(name);
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(folder.join("rows.jsonl"), lines).expect("the rows are written");
    recipe_of(&folder, "rows.jsonl");
    folder
}

/// Writes a recipe that trains on some files.
pub fn recipe_of(folder: &Path, files: &str) {
    let recipe = format!(
        "[model]\nlora_rank = 2\n[data]\ntrain = \"{files}\"\n[train]\noutput = \"run\"\nlr = 1e-3\nmicro_batch_size = 2\n"
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
}

/// Rows that nothing is wrong with.
pub fn pairs(count: usize) -> Vec<Value> {
    (0..count).map(|i| json!({ "prompt": format!("What is {i} + 1?"), "response": (i + 1).to_string() })).collect()
}

pub fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

pub fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

/// Everything that a command which works prints.
#[track_caller]
pub fn works(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    let [out, told] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{args:?}: {told}");
    told + &out
}

/// A command is refused as its user's mistake, by one sentence with these parts.
#[track_caller]
pub fn refused(folder: &Path, args: &[&str], parts: &[&str]) {
    let output = weft(folder, args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one sentence: {told}");
    parts.iter().for_each(|part| assert!(told.contains(part), "{part:?} is missing: {told}"));
}

/// `weft data` shows these parts.
#[track_caller]
pub fn shows(folder: &Path, more: &[&str], parts: &[&str]) {
    let shown = works(folder, &[&["data", "recipe.toml"], more].concat());
    parts.iter().for_each(|part| assert!(shown.contains(part), "{part:?} is missing: {shown}"));
}

/// Runs training for a step.
#[track_caller]
pub fn trains(folder: &Path, more: &[&str]) -> String {
    works(folder, &[&["train", "recipe.toml", "--quiet", "--set", "train.max_steps=1"], more].concat())
}
