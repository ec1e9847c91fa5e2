//! Whether a run that goes on is the one that began: its recipe, its rows and its global batch, on however many ranks.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::recipe::Recipe;

/// Where a resolved recipe has the names of its sources and their examples' keys.
const ROWS: &str = "rows";

/// Settings that change what is trained, and may change all the same when a run goes on.
/// A run that stopped over a step's numbers goes on by saying how.
const CHANGEABLE: [(&str, &str); 2] = [("train", "on_non_finite"), ("train", "spike_factor")];

/// Refuses to go on, by this recipe and on so many ranks, with a run that began otherwise. `path` is the file that says how.
///
/// # Errors
/// Every setting that differs; rows that have changed; a global batch of another size.
pub(super) fn same_run(path: PathBuf, began: (&Value, usize), now: (&Value, usize)) -> Result<()> {
    let ((began_with, began_ranks), (recipe, ranks)) = (began, now);
    let mut was = began_with.clone();
    if began_ranks != ranks {
        if let Some(reason) = other_batch(began, now) {
            return Err(Error::Config { path, reason });
        }
        for key in BATCH {
            was["train"][key] = recipe["train"][key].clone();
        }
    }
    same_recipe(path, &was, recipe)
}

/// Refuses to go on with a run that has no checkpoint yet by another recipe than it began with.
pub(super) fn began_with(path: &Path, recipe: &Value) -> Result<()> {
    // What a crash left of the file says nothing.
    match read_text(path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
        Some(saved) => same_recipe(path.to_owned(), &saved["recipe"], recipe),
        None => Ok(()),
    }
}

fn same_recipe(path: PathBuf, was: &Value, recipe: &Value) -> Result<()> {
    let differing = differing(was, recipe, &[FREE.as_slice(), &CHANGEABLE].concat());
    if !differing.is_empty() {
        let list = differing.join("; ");
        let reason = format!("the run to resume was started with another recipe: {list}; undo that or start anew");
        return Err(Error::Config { path, reason });
    }
    if let Some(name) = changed_rows(was, recipe) {
        let reason = format!(
            "the rows of {name} are others than when the run to resume was started; put them back or start anew"
        );
        return Err(Error::Config { path, reason });
    }
    Ok(())
}

/// The settings that make a global batch, together with the number of ranks.
const BATCH: [&str; 2] = ["micro_batch_size", "grad_accum_steps"];

/// What is wrong with the global batch of a run that other ranks began: it has to be as large, and to be cut into
/// micro-batches alike where these mean something.
fn other_batch((began, began_ranks): (&Value, usize), (recipe, ranks): (&Value, usize)) -> Option<String> {
    let sizes = |of: &Value| BATCH.map(|key| of["train"][key].as_u64().unwrap_or(1));
    let [micro, accum] = sizes(began);
    let [new_micro, new_accum] = sizes(recipe);
    let (was, is) = (micro * accum * began_ranks as u64, new_micro * new_accum * ranks as u64);
    let by_micro_batch = recipe["data"]["padding"] == "eos" || recipe["objective"]["reference"] == "batch";
    if was == is && !(by_micro_batch && micro != new_micro) {
        return None;
    }
    let fits = [micro, new_micro, 1].into_iter().find(|m| was.is_multiple_of(m * ranks as u64));
    let fix = match fits.filter(|m| !by_micro_batch || *m == micro) {
        Some(m) => format!("set train.micro_batch_size={m} and train.grad_accum_steps={}", was / (m * ranks as u64)),
        None => format!("start a number of ranks of which {was} examples are a multiple"),
    };
    Some(format!(
        "the run to resume has {was} examples in a step (train.micro_batch_size {micro}, train.grad_accum_steps {accum}, \
         ranks {}) and now it would have {is} (micro-batches of {new_micro}, {new_accum} of them, ranks {ranks}); {fix}",
        began_ranks
    ))
}

/// The source whose rows have other tokens. A recipe without its rows' keys says nothing.
fn changed_rows(was: &Value, is: &Value) -> Option<String> {
    let keys = |recipe: &Value| recipe[ROWS].as_array().cloned().unwrap_or_default();
    let changed = keys(was).into_iter().zip(keys(is)).find(|(was, is)| was[1] != is[1]);
    changed.map(|(_, is)| is[0].as_str().unwrap_or_default().to_owned())
}

/// Settings that change no bit of what is trained, and may be others when a run goes on.
const FREE: [(&str, &str); 3] =
    [("train", "eval_every"), ("train", "checkpoint_every"), ("train", "activation_memory_gb")];

/// The settings that differ, `table.key was X and is Y`, but for those that change nothing.
pub(crate) fn differences(was: &Value, is: &Value) -> Vec<String> {
    differing(was, is, &FREE)
}

/// What ranks don't have alike of their resolved recipes: settings, but for where they write, and rows.
pub(crate) fn differs_among_ranks(of_first: &Value, own: &Value) -> Option<String> {
    let settings = differing(of_first, own, &[("train", "output")]);
    let rows = |recipe: &Value| -> Vec<Value> {
        recipe[ROWS].as_array().into_iter().flatten().map(|row| row[1].clone()).collect()
    };
    match settings.is_empty() {
        false => Some(settings.join("; ")),
        true => (rows(of_first) != rows(own)).then(|| "the rows of its data".to_owned()),
    }
}

/// The settings that differ and may not. One that an earlier version didn't know was at its default.
fn differing(was: &Value, is: &Value, may_differ: &[(&str, &str)]) -> Vec<String> {
    let empty = serde_json::Map::new();
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let of_table = |(table, keys): (&String, &Value)| -> Vec<String> {
        let known = |key: &str| was[table].get(key).unwrap_or(&default[table][key]);
        let keys = keys.as_object().unwrap_or(&empty).iter();
        let may_differ = |key: &str| may_differ.contains(&(table.as_str(), key));
        let differing = keys.filter(|(key, value)| known(key) != *value && !may_differ(key));
        differing.map(|(key, value)| format!("{table}.{key} was {} and is {value}", known(key))).collect()
    };
    is.as_object().unwrap_or(&empty).iter().flat_map(of_table).collect()
}
