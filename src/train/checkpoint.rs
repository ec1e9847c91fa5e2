//! Training checkpoints: parameters, moments and the step, from which a run goes on bit for bit. Every draw belongs
//! to (seed, epoch, example), so there is no other state but what the guard of steps remembers. A checkpoint is a folder that appears whole by a rename, with
//! its files' checksums, so that bytes which a disk lost or changed are never trained on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_kernels::weight::Dtype;

use super::Trainer;
use super::entropy_reuse::KeptEntropy;
use super::guard::Guard;
use super::metrics::tell;
use super::run::RECIPE;
use crate::error::{Error, Result};
use crate::files::{content_hash, read_text, settle_folder, write_folder_whole, write_whole};
use crate::model::weights::{Checkpoint, Tensor, write_tensors};
use crate::recipe::Recipe;

/// Checkpoints that are kept: should the newest be damaged, one is left.
const KEPT: usize = 2;

#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    recipe: Value,
    /// Example, epoch and length of each answer's reused entropies, which lie one after the other in their tensor.
    #[serde(default)]
    entropies: Vec<(usize, u64, usize)>,
    #[serde(default)]
    guard: Guard,
}

/// The file of a checkpoint's state, and that of its tensors.
const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";
/// The file of their checksums, a line each.
const CHECKSUMS: &str = "checksums";

/// Where a resolved recipe has the names of its sources and their examples' keys.
const ROWS: &str = "rows";

/// Settings that change what is trained, and may change all the same when a run goes on.
const CHANGEABLE: [&str; 2] = ["train.on_non_finite was", "train.spike_factor was"];

/// The tensor of reused entropies.
const ENTROPIES: &str = "token_entropy";

/// Saves a checkpoint below the run's folder and drops all but the newest two.
///
/// # Errors
/// A file that can't be written; earlier checkpoints are untouched then.
pub fn save(output: &Path, trainer: &Trainer, recipe: &Value) -> Result<()> {
    write_folder_whole(&folder_of(output, trainer.step), |partial| {
        let kept = &trainer.entropies.kept;
        let entropies: Vec<f32> = kept.values().flat_map(|k| &k.token_entropy).copied().collect();
        let names = |i: usize| ["m.", "v."].map(|prefix| format!("{prefix}{}", trainer.model.params[i].name));
        let trained = trainer.model.params.iter().enumerate().filter(|(_, p)| p.trainable);
        let named: Vec<_> = trained.map(|(i, param)| (i, param, names(i))).collect();
        let mut tensors = vec![];
        for (i, param, [m, v]) in &named {
            tensors.push(Tensor::of(param, Dtype::F32));
            tensors.push(Tensor::f32(m, param.shape.clone(), &trainer.optimizer.m[*i]));
            tensors.push(Tensor::f32(v, param.shape.clone(), &trainer.optimizer.v[*i]));
        }
        if !kept.is_empty() {
            tensors.push(Tensor::f32(ENTROPIES, vec![entropies.len()], &entropies));
        }
        write_tensors(&partial.join(TENSORS), tensors)?;
        let entropies = kept.iter().map(|(example, k)| (*example, k.epoch, k.token_entropy.len())).collect();
        let guard = trainer.guard.clone();
        let state = State { step: trainer.step, recipe: recipe.clone(), entropies, guard };
        let text = serde_json::to_string_pretty(&state).expect("a state is JSON");
        write_whole(&partial.join(STATE), text.as_bytes())?;
        write_whole(&partial.join(CHECKSUMS), checksums(partial)?.as_bytes())
    })?;
    drop_old(output, trainer.step)
}

/// Drops all but the newest two of the checkpoints up to `step`. Later ones are damaged, or the run would go on from
/// them: they aren't counted, lest the last good one be dropped for them.
fn drop_old(output: &Path, step: u64) -> Result<()> {
    let up_to = list(output)?.into_iter().rev().filter(|of| *of <= step).map(|of| folder_of(output, of));
    for old in up_to.filter(|folder| folder.exists()).skip(KEPT) {
        fs::remove_dir_all(&old).map_err(|source| Error::Write { path: old, source })?;
    }
    Ok(())
}

/// Puts the newest whole checkpoint into the trainer; false where there is none yet. A damaged one is told of and the
/// one before it taken: the run then only has more steps to do again. What a crash left half done is removed.
///
/// # Errors
/// A checkpoint of another recipe, with every setting that differs; damaged ones only; a folder that can't be read.
pub fn load_newest(output: &Path, trainer: &mut Trainer, recipe: &Value) -> Result<bool> {
    let mut damaged = None;
    for step in list(output)?.into_iter().rev() {
        let folder = folder_of(output, step);
        settle_folder(&folder)?;
        if !folder.exists() {
            continue;
        }
        match load(&folder, trainer, recipe) {
            Ok(()) => return drop_old(output, trainer.step).map(|()| true),
            Err(error @ Error::Config { .. }) => return Err(error),
            Err(error) => {
                tell(&format!("warning: {error}; trying the checkpoint before it"));
                damaged = damaged.or(Some(error));
            }
        }
    }
    damaged.map_or(Ok(false), Err)
}

/// The step of a run's newest checkpoint; none where there is none yet, or where it is damaged and
/// [`load_newest`] has to look further.
///
/// # Errors
/// A checkpoint of another recipe; a folder that can't be read.
pub fn newest_step(output: &Path, recipe: &Value) -> Result<Option<u64>> {
    let Some(newest) = list(output)?.into_iter().next_back().map(|step| folder_of(output, step)) else {
        return began_with(&output.join(RECIPE), recipe).map(|()| None);
    };
    match read_state(&newest, recipe) {
        Ok(state) => Ok(Some(state.step)),
        Err(error @ Error::Config { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

/// A checkpoint's state, of the same recipe.
fn read_state(folder: &Path, recipe: &Value) -> Result<State> {
    let path = folder.join(STATE);
    let state: State = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    same_recipe(path, &state.recipe, recipe)?;
    Ok(state)
}

/// Refuses to go on with a run that has no checkpoint yet by another recipe than it began with.
fn began_with(path: &Path, recipe: &Value) -> Result<()> {
    // What a crash left of the file says nothing.
    match read_text(path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
        Some(saved) => same_recipe(path.to_owned(), &saved["recipe"], recipe),
        None => Ok(()),
    }
}

fn same_recipe(path: PathBuf, was: &Value, recipe: &Value) -> Result<()> {
    let mut differing = differences(was, recipe);
    // A run that stopped over a step's numbers goes on by saying how.
    differing.retain(|setting| !CHANGEABLE.iter().any(|key| setting.starts_with(key)));
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

fn load(folder: &Path, trainer: &mut Trainer, recipe: &Value) -> Result<()> {
    verify(folder)?;
    let state = read_state(folder, recipe)?;
    let total = check_state(&state, trainer).map_err(|reason| Error::Format { path: folder.join(STATE), reason })?;
    let mut tensors = Checkpoint::open_file(folder, TENSORS)?;
    let Trainer { model, optimizer, .. } = trainer;
    for (i, param) in model.params.iter_mut().enumerate().filter(|(_, p)| p.trainable) {
        let mut read = |prefix: &str| tensors.take(&format!("{prefix}{}", param.name), &param.shape);
        let (weight, m, v) = (read("")?, read("m.")?, read("v.")?);
        param.weight.make_trainable().copy_from_slice(&weight.to_f32());
        optimizer.m[i].copy_from_slice(&m.to_f32());
        optimizer.v[i].copy_from_slice(&v.to_f32());
    }
    // Those of a later epoch aren't reusable, should the trainer have been further.
    trainer.entropies.kept.clear();
    if !state.entropies.is_empty() {
        let numbers = tensors.take(ENTROPIES, &[total])?;
        let numbers = numbers.to_f32();
        let mut rest = &*numbers;
        for (example, epoch, len) in state.entropies {
            let own;
            (own, rest) = rest.split_at(len);
            trainer.entropies.kept.insert(example, KeptEntropy { epoch, token_entropy: own.to_vec() });
        }
    }
    trainer.step = state.step;
    trainer.guard = state.guard;
    Ok(())
}

/// Refuses a checkpoint whose bytes aren't those that were written. One of an earlier version has no checksums.
fn verify(folder: &Path) -> Result<()> {
    let path = folder.join(CHECKSUMS);
    if !path.exists() {
        return Ok(());
    }
    let written = fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let written = String::from_utf8_lossy(&written);
    let now = checksums(folder)?;
    if now == written {
        return Ok(());
    }
    let changed = now.lines().find(|line| !written.lines().any(|other| other == *line));
    let file = changed.and_then(|line| line.split_whitespace().last()).unwrap_or(CHECKSUMS);
    let reason = format!("its bytes are others than those that {CHECKSUMS} was made of");
    Err(Error::Format { path: folder.join(file), reason })
}

/// A line per file: its hash and its name.
fn checksums(folder: &Path) -> Result<String> {
    let line = |file: &str| {
        let path = folder.join(file);
        let hash = content_hash(&path).map_err(|source| Error::Read { path, source })?;
        Ok(format!("{hash:032x}  {file}\n"))
    };
    [TENSORS, STATE].into_iter().map(line).collect()
}

/// What is wrong with a state for a run; where nothing is, how many entropies it keeps.
fn check_state(state: &State, trainer: &Trainer) -> std::result::Result<usize, String> {
    let (step, steps) = (state.step, trainer.num_steps());
    if step > steps {
        return Err(format!("its step {step} lies past the run's last, {steps}"));
    }
    let (examples, epoch) = (&trainer.job.examples, step.checked_div(trainer.steps_per_epoch()).unwrap_or(0));
    let mut total = 0;
    for &(example, of, len) in &state.entropies {
        let answer = examples.get(example).map(|e| e.answer_ids.len());
        if answer != Some(len) || of > epoch {
            return Err(format!("the entropies of example {example}, {len} of epoch {of}, are none of the run's"));
        }
        total += len;
    }
    Ok(total)
}

fn folder(output: &Path) -> PathBuf {
    output.join("checkpoints")
}

fn folder_of(output: &Path, step: u64) -> PathBuf {
    folder(output).join(format!("step-{step:08}"))
}

/// The steps of the checkpoints, the first one first; those included that a crash left half written.
fn list(output: &Path) -> Result<Vec<u64>> {
    let folder = folder(output);
    let read_error = |source| Error::Read { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(read_error)?,
    };
    let step = |entry: io::Result<fs::DirEntry>| -> io::Result<Option<u64>> {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("step-").map(|n| n.split('.').next().unwrap_or_default());
        Ok(number.and_then(|n| n.parse().ok()))
    };
    let steps: io::Result<BTreeSet<Option<u64>>> = entries.map(step).collect();
    Ok(steps.map_err(read_error)?.into_iter().flatten().collect())
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

/// The settings that differ, `table.key was X and is Y`, but for those that change nothing. A setting that an earlier
/// version didn't know was at its default.
pub(crate) fn differences(was: &Value, is: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let of_table = |(table, keys): (&String, &Value)| -> Vec<String> {
        let known = |key: &str| was[table].get(key).unwrap_or(&default[table][key]);
        let keys = keys.as_object().unwrap_or(&empty).iter();
        let is_free = |key: &str| FREE.contains(&(table.as_str(), key));
        let differing = keys.filter(|(key, value)| known(key) != *value && !is_free(key));
        differing.map(|(key, value)| format!("{table}.{key} was {} and is {value}", known(key))).collect()
    };
    is.as_object().unwrap_or(&empty).iter().flat_map(of_table).collect()
}
