//! Training checkpoints: parameters, moments and the step, from which a run resumes bit for bit. Every draw belongs to
//! (seed, epoch, example), so the only other state is reused entropies and what the guard of steps remembers. A
//! checkpoint is a folder that appears complete by a rename, with checksums of its files, so that a run never trains on
//! from bytes that a disk lost or changed.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_kernels::weight::{Dtype, Weight};

use super::Trainer;
use super::entropy_reuse::KeptEntropy;
use super::guard::Guard;
use super::optimizer::moment_names;
use super::resolved::{Resolved, began_with, same_run};
use crate::error::{Error, Result};
use crate::files::{RECIPE, content_hash, read_text, settle_folder, write_folder_whole, write_whole};
use crate::model::weights::{Checkpoint, Tensor, make_in_order, write_tensors};
use crate::progress::tell;

/// How many checkpoints are kept: if the newest is damaged, another one is left.
const KEPT: usize = 2;

#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    recipe: Value,
    /// The number of ranks that trained.
    #[serde(default = "one")]
    ranks: usize,
    /// Example, epoch and length of each answer's reused entropies, which are concatenated in their tensor.
    #[serde(default)]
    entropies: Vec<(usize, u64, usize)>,
    #[serde(default)]
    guard: Guard,
}

/// A checkpoint of an earlier version, which had one rank.
fn one() -> usize {
    1
}

/// The contents of a checkpoint: the state, reused entropies, and each trained parameter with its moments.
struct Whole {
    step: u64,
    guard: Guard,
    entropies: Vec<(usize, KeptEntropy)>,
    tensors: Vec<[Weight; 3]>,
}

/// The name of the file that holds a checkpoint's state; its tensors are in another file.
const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";
/// The name of the file that holds the checksums, one per line.
const CHECKSUMS: &str = "checksums";

/// The name of the tensor that holds the reused entropies.
const ENTROPIES: &str = "token_entropy";

/// Saves a checkpoint in the run folder and deletes all but the newest two. Every rank calls it; the first writes
/// what a single rank would have written, so that any number of ranks can resume.
///
/// # Errors
/// A file that can't be written; in that case earlier checkpoints are untouched.
pub fn save(output: &Path, trainer: &Trainer, recipe: &Resolved) -> Result<()> {
    let kept = &trainer.entropies.kept;
    let entropies: Vec<f32> = kept.values().flat_map(|k| &k.token_entropy).copied().collect();
    let mut tensors = vec![];
    for (id, param) in trainer.model.params.iter().enumerate().filter(|(_, p)| p.trainable) {
        tensors.push(trainer.optimizer.saved(id, param, Dtype::F32));
        tensors.extend(trainer.optimizer.saved_moments(id, param));
    }
    if !trainer.ranks.is_first() {
        make_in_order(tensors);
        return Ok(());
    }
    if !kept.is_empty() {
        tensors.push(Tensor::f32(ENTROPIES, vec![entropies.len()], &entropies));
    }
    write_folder_whole(&folder_of(output, trainer.step), |partial| {
        write_tensors(&partial.join(TENSORS), tensors)?;
        let entropies = kept.iter().map(|(example, k)| (*example, k.epoch, k.token_entropy.len())).collect();
        let (step, ranks, guard) = (trainer.step, trainer.ranks.size(), trainer.guard.clone());
        let state = State { step, recipe: recipe.recipe.clone(), ranks, entropies, guard };
        let text = serde_json::to_string_pretty(&state).expect("a state is JSON");
        write_whole(&partial.join(STATE), text.as_bytes())?;
        write_whole(&partial.join(CHECKSUMS), checksums(partial)?.as_bytes())
    })?;
    drop_old(output, trainer.step)
}

/// Deletes all but the newest two of the checkpoints up to `step`. Later ones don't count: they are damaged, or the run
/// would have resumed from them, and the last good one must not be deleted in favour of them.
fn drop_old(output: &Path, step: u64) -> Result<()> {
    let up_to = list(output)?.into_iter().rev().filter(|of| *of <= step).map(|of| folder_of(output, of));
    for old in up_to.filter(|folder| folder.exists()).skip(KEPT) {
        fs::remove_dir_all(&old).map_err(|source| Error::Write { path: old, source })?;
    }
    Ok(())
}

/// Loads the newest undamaged checkpoint into the trainer; returns false if there is none yet. A damaged one is
/// reported and the one before it is loaded: the run then only repeats more steps. What a crash left half written is
/// removed. Every rank calls it; the first one reads.
///
/// # Errors
/// A checkpoint of another recipe, with every setting that differs; only damaged checkpoints; a folder that can't be
/// read.
pub fn load_newest(output: &Path, trainer: &mut Trainer, recipe: &Resolved) -> Result<bool> {
    let newest = if trainer.ranks.is_first() { read_newest(output, trainer, recipe)? } else { None };
    let is_there = trainer.ranks.any(newest.is_some());
    if is_there {
        put(trainer, newest.as_ref());
        if trainer.ranks.is_first() {
            drop_old(output, trainer.step)?;
        }
    }
    Ok(is_there)
}

fn read_newest(output: &Path, trainer: &Trainer, recipe: &Resolved) -> Result<Option<Whole>> {
    let mut damaged = None;
    for step in list(output)?.into_iter().rev() {
        let folder = folder_of(output, step);
        settle_folder(&folder)?;
        if !folder.exists() {
            continue;
        }
        match read(&folder, trainer, recipe) {
            Ok(whole) => return Ok(Some(whole)),
            Err(error @ Error::Config { .. }) => return Err(error),
            Err(error) => {
                tell(&format!("warning: {error}; trying the checkpoint before it"));
                damaged = damaged.or(Some(error));
            }
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// The step of the newest checkpoint in a run folder, whether damaged or not; `None` if there is none.
pub(crate) fn newest(output: &Path) -> Option<u64> {
    list(output).ok()?.into_iter().next_back()
}

/// The step of a run's newest checkpoint, from which this number of ranks resumes; `None` if there is none yet, or if
/// it is damaged and [`load_newest`] has to look further.
///
/// # Errors
/// A checkpoint of another recipe; a folder that can't be read.
pub fn newest_step(output: &Path, recipe: &Resolved, ranks: usize) -> Result<Option<u64>> {
    let Some(newest) = list(output)?.into_iter().next_back().map(|step| folder_of(output, step)) else {
        return began_with(&output.join(RECIPE), recipe).map(|()| None);
    };
    match read_state(&newest, recipe, ranks) {
        Ok(state) => Ok(Some(state.step)),
        Err(error @ Error::Config { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Reads a checkpoint's state, which must be of the same recipe.
fn read_state(folder: &Path, recipe: &Resolved, ranks: usize) -> Result<State> {
    let path = folder.join(STATE);
    let state: State = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    same_run(path, (&state.recipe, state.ranks), (recipe, ranks))?;
    Ok(state)
}

fn read(folder: &Path, trainer: &Trainer, recipe: &Resolved) -> Result<Whole> {
    verify(folder)?;
    let state = read_state(folder, recipe, trainer.ranks.size())?;
    let total = check_state(&state, trainer).map_err(|reason| Error::Format { path: folder.join(STATE), reason })?;
    let mut tensors = Checkpoint::open_file(folder, TENSORS)?;
    let mut entropies = vec![];
    if !state.entropies.is_empty() {
        let numbers = tensors.take(ENTROPIES, &[total])?;
        let numbers = numbers.to_f32();
        let mut rest = &*numbers;
        for (example, epoch, len) in state.entropies {
            let own;
            (own, rest) = rest.split_at(len);
            entropies.push((example, KeptEntropy { epoch, token_entropy: own.to_vec() }));
        }
    }
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    let tensors = trained.map(|param| {
        let [m, v] = moment_names(param);
        let mut read = |name: &str| tensors.take(name, &param.shape);
        Ok([read(&param.name)?, read(&m)?, read(&v)?])
    });
    let (step, guard) = (state.step, state.guard);
    Ok(Whole { step, guard, entropies, tensors: tensors.collect::<Result<_>>()? })
}

/// The step, reused entropies by their bits, and what the guard remembers.
type Small = (u64, Vec<(usize, u64, Vec<u32>)>, Guard);

/// Puts what the first rank read into every rank's trainer.
fn put(trainer: &mut Trainer, whole: Option<&Whole>) {
    let Trainer { ranks, model, optimizer, entropies, .. } = trainer;
    let is_solo = ranks.size() == 1;
    // 1. Small values, with entropies by their bits.
    let bits = |k: &KeptEntropy| -> Vec<u32> { k.token_entropy.iter().map(|x| x.to_bits()).collect() };
    let small = whole.map(|whole| {
        let kept: Vec<_> = whole.entropies.iter().map(|(example, k)| (example, k.epoch, bits(k))).collect();
        serde_json::to_vec(&(whole.step, kept, &whole.guard)).expect("numbers are JSON")
    });
    let small = ranks.bytes_of_first(&small.unwrap_or_default());
    let (step, kept, guard): Small = serde_json::from_slice(&small).expect("the first wrote it");
    (trainer.step, trainer.guard) = (step, guard);
    // Entropies of a later epoch can't be reused, in case the trainer had gone further.
    entropies.kept.clear();
    for (example, epoch, bits) in kept {
        let token_entropy = bits.into_iter().map(f32::from_bits).collect();
        entropies.kept.insert(example, KeptEntropy { epoch, token_entropy });
    }
    // 2. Parameters, and each rank's part of the moments.
    let trained = model.params.iter_mut().enumerate().filter(|(_, p)| p.trainable);
    for (index, (i, param)) in trained.enumerate() {
        let len = param.weight.rows() * param.weight.cols();
        let numbers = |part: usize| match whole.map(|whole| whole.tensors[index][part].to_f32()) {
            Some(numbers) if is_solo => numbers,
            numbers => {
                let mut numbers = numbers.map_or_else(|| vec![0.0; len], Cow::into_owned);
                ranks.broadcast(&mut numbers);
                numbers.into()
            }
        };
        optimizer.put_weight(i, &mut param.weight, &numbers(0));
        let m = numbers(1);
        optimizer.put_moments(i, [&m, &numbers(2)]);
    }
}

/// Refuses a checkpoint whose bytes aren't those that were written. A checkpoint of an earlier version has no
/// checksums.
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
    let reason = format!("its bytes don't match {CHECKSUMS}");
    Err(Error::Format { path: folder.join(file), reason })
}

/// One line per file, with its hash and its name.
fn checksums(folder: &Path) -> Result<String> {
    let line = |file: &str| {
        let path = folder.join(file);
        let hash = content_hash(&path).map_err(|source| Error::Read { path, source })?;
        Ok(format!("{hash:032x}  {file}\n"))
    };
    [TENSORS, STATE].into_iter().map(line).collect()
}

/// What is wrong with a state for this run, or else how many entropies it holds.
fn check_state(state: &State, trainer: &Trainer) -> std::result::Result<usize, String> {
    let (step, steps) = (state.step, trainer.num_steps());
    if step > steps {
        return Err(format!("its step {step} lies past the run's last, {steps}"));
    }
    let (examples, epoch) = (&trainer.job.examples, step.checked_div(trainer.steps_per_epoch()).unwrap_or(0));
    let mut total = 0;
    for &(example, of, len) in &state.entropies {
        let answer = examples.get(example).map(|e| trainer.view().answer_len(e));
        if answer != Some(len) || of > epoch {
            return Err(format!("the entropies of example {example}, {len} of epoch {of}, don't belong to the run"));
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

/// The steps of all checkpoints in ascending order, including those that a crash left half written.
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
