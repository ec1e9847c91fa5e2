//! The settings by which a run is made, and whether a resumed run is the one that began: the same recipe, rows and
//! global batch, on any number of ranks.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::counted::counted;
use crate::error::{Error, Result};
use crate::files::{read_text, shell_word};
use crate::settings::recipe_file::ROWS;

/// The settings of a run with every default filled in, as its folder and its checkpoints store them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolved {
    /// The settings by table and key, and the names and keys of the rows under `rows`.
    pub recipe: Value,
    /// The default of each setting: its value in a run of an earlier version that didn't have it.
    pub defaults: Value,
}

impl From<Value> for Resolved {
    /// Settings whose defaults aren't known.
    fn from(recipe: Value) -> Self {
        Self { recipe, defaults: Value::Null }
    }
}

/// Settings that change what is trained, and still may be changed when a run resumes: a run that stopped because of a
/// step's numbers resumes by changing them.
const CHANGEABLE: [(&str, &str); 2] = [("train", "on_non_finite"), ("train", "spike_factor")];

/// Returns an error if this recipe on these ranks can't resume the run that began. `path` is the file that describes
/// that run.
///
/// # Errors
/// Every setting that differs; rows that have changed; a global batch of another size.
pub(super) fn same_run(path: PathBuf, began: (&Value, usize), now: (&Resolved, usize)) -> Result<()> {
    let ((began_with, began_ranks), (resolved, ranks)) = (began, now);
    let mut was = began_with.clone();
    if began_ranks != ranks {
        if let Some(reason) = other_batch(began, (&resolved.recipe, ranks)) {
            return Err(Error::Config { path, reason });
        }
        for key in BATCH {
            was["train"][key] = resolved.recipe["train"][key].clone();
        }
    }
    same_recipe(path, &was, resolved)
}

/// Returns an error if a run without checkpoints is resumed with a recipe other than the one it began with.
pub(super) fn began_with(path: &Path, resolved: &Resolved) -> Result<()> {
    // A file that a crash left half written says nothing.
    match read_text(path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
        Some(saved) => same_recipe(path.to_owned(), &saved["recipe"], resolved),
        None => Ok(()),
    }
}

fn same_recipe(path: PathBuf, was: &Value, resolved: &Resolved) -> Result<()> {
    let longer = if is_only_longer(was, &resolved.recipe) { LENGTH.as_slice() } else { &[] };
    let differing = resolved.differing(was, &[FREE.as_slice(), &CHANGEABLE, longer].concat());
    if !differing.is_empty() {
        let list = differing.join("; ");
        let further = further(&differing, &resolved.recipe);
        let reason =
            format!("the run to resume was started with another recipe: {list}; undo that or start over{further}");
        return Err(Error::Config { path, reason });
    }
    if let Some(name) = changed_rows(was, &resolved.recipe) {
        let reason =
            format!("the rows of {name} have changed since the run to resume was started; put them back or start over");
        return Err(Error::Config { path, reason });
    }
    Ok(())
}

/// The settings that decide a run's length.
const LENGTH: [(&str, &str); 2] = [("train", "epochs"), ("train", "max_steps")];

/// Whether the new length of a run is not shorter than the old one and the learning rate doesn't depend on the length. Every
/// step is then the same as in a run that had the new length from the start.
fn is_only_longer(was: &Value, is: &Value) -> bool {
    let constant = |recipe: &Value| recipe["train"]["lr_schedule"] == "constant";
    let [epochs, steps] = LENGTH.map(|(_, key)| {
        let [was, is] = [was, is].map(|recipe| recipe["train"][key].as_u64());
        // Without train.max_steps, a run has all steps of its epochs.
        is.is_none() || was.is_some_and(|was| is.is_some_and(|is| is >= was))
    });
    constant(was) && constant(is) && epochs && steps
}

/// The advice for a longer run if the learning rate depends on a run's length: the run can't be resumed, but its adapter can
/// be trained further.
fn further(differing: &[String], recipe: &Value) -> String {
    let is_longer =
        ["train.epochs ", "train.max_steps "].iter().any(|key| differing.iter().any(|d| d.starts_with(key)));
    match (is_longer && recipe["model"]["trainable"] == "lora", recipe["train"]["output"].as_str()) {
        // Only a run that ended has one.
        (true, Some(output)) if Path::new(output).join("adapter").exists() => {
            let adapter = shell_word(&Path::new(output).join("adapter"));
            format!(
                "; to train its adapter further, leave out --resume and add --set model.adapter={adapter} --set \
                 train.output=FOLDER"
            )
        }
        _ => String::new(),
    }
}

/// The settings that determine the global batch, together with the number of ranks.
const BATCH: [&str; 2] = ["micro_batch_size", "grad_accum_steps"];

/// What is wrong with the global batch if a run resumes on another number of ranks: it must have the same size, and be
/// split into the same micro-batches if the objective depends on them.
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
        None => format!("choose a number of ranks that divides {was}"),
    };
    Some(format!(
        "the run to resume has {} in a step (train.micro_batch_size {micro}, train.grad_accum_steps {accum}, \
         ranks {began_ranks}) and now it would have {is} (micro-batches of {new_micro}, {new_accum} of them, ranks {ranks}); {fix}",
        counted(was, "example")
    ))
}

/// The source whose rows have changed. A recipe without keys of its rows has nothing to compare.
fn changed_rows(was: &Value, is: &Value) -> Option<String> {
    let keys = |recipe: &Value| recipe[ROWS].as_array().cloned().unwrap_or_default();
    let changed = keys(was).into_iter().zip(keys(is)).find(|(was, is)| was[1] != is[1]);
    changed.map(|(_, is)| is[0].as_str().unwrap_or_default().to_owned())
}

/// Settings that don't change a bit of what is trained, and may be changed when a run resumes.
const FREE: [(&str, &str); 6] = [
    ("train", "eval_every"),
    ("train", "checkpoint_every"),
    ("train", "activation_memory_gb"),
    ("eval", "task"),
    ("eval", "limit"),
    ("eval", "samples"),
];

impl Resolved {
    /// The settings that another run had differently, as `table.key was X and is Y`, except those that may be changed.
    pub(crate) fn differences(&self, was: &Value) -> Vec<String> {
        self.differing(was, &FREE)
    }

    /// What this rank has that differs from the first rank: settings, except those that say where it writes, and rows.
    pub(crate) fn differs_from_first(&self, first: &Value) -> Option<String> {
        let settings = self.differing(first, &[("train", "output")]);
        let rows = |recipe: &Value| -> Vec<Value> {
            recipe[ROWS].as_array().into_iter().flatten().map(|row| row[1].clone()).collect()
        };
        match settings.is_empty() {
            false => Some(settings.join("; ")),
            true => (rows(first) != rows(&self.recipe)).then(|| "the rows of its data".to_owned()),
        }
    }

    /// The settings that differ and may not. A setting that an earlier version didn't have counts as its default.
    fn differing(&self, was: &Value, may_differ: &[(&str, &str)]) -> Vec<String> {
        let empty = serde_json::Map::new();
        let of_table = |(table, keys): (&String, &Value)| -> Vec<String> {
            let known = |key: &str| was[table].get(key).unwrap_or(&self.defaults[table][key]);
            let keys = keys.as_object().unwrap_or(&empty).iter();
            let may_differ = |key: &str| may_differ.contains(&(table.as_str(), key));
            let differing = keys.filter(|(key, value)| known(key) != *value && !may_differ(key));
            differing.map(|(key, value)| format!("{table}.{key} was {} and is {value}", known(key))).collect()
        };
        self.recipe.as_object().unwrap_or(&empty).iter().flat_map(of_table).collect()
    }
}
