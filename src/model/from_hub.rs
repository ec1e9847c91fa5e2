//! The folder of a checkpoint or an adapter, which may be an id of the hub: this file says which files of a repository
//! a model needs.

use std::path::{Path, PathBuf};

use super::foreign::{UNPICKLE, is_pickle};
use super::lora::TENSORS;
use super::weights::{INDEX, SINGLE, files};
use crate::error::Result;
use crate::hub::{self, Needs};

/// The endings of files that belong to a checkpoint besides config.json and its weights: tokenizer, chat template,
/// generation settings, and the modelling code that `trust_remote_code` runs.
const COMPANIONS: [&str; 5] = [".json", ".jinja", ".py", ".txt", ".model"];

/// The name of the tensor file in the folder of a step that a run saved to resume from.
const STEP_TENSORS: &str = "state.safetensors";

/// What a checkpoint may be besides a folder or an id.
const OR_EMBEDDED: &str = ", or tiny-base";

/// The error for a model whose weights are in another format.
const NO_WEIGHTS: &str =
    "it has no model.safetensors, the format that Weft reads; name a revision that has it (@REVISION)";

/// The error for a checkpoint that is given as an adapter.
pub(super) const NO_ADAPTER: &str =
    "it is a checkpoint, and not an adapter; give it as the model (--model, or model.path in a recipe)";

/// A checkpoint's folder: the path itself, or that of the hub's files once they have all been fetched.
///
/// # Errors
/// An id of the hub whose files can't be fetched.
pub fn checkpoint(path: &Path) -> Result<PathBuf> {
    hub::model(path, Needs { files: &text_files, behind: Some(&weights), alternative: OR_EMBEDDED })
}

/// Like [`checkpoint`], but the weights need not be there.
///
/// # Errors
/// Those of [`checkpoint`].
pub(crate) fn without_weights(path: &Path) -> Result<PathBuf> {
    hub::model(path, Needs { files: &text_files, behind: None, alternative: OR_EMBEDDED })
}

/// An adapter's folder, found like that of [`checkpoint`].
///
/// # Errors
/// Those of [`checkpoint`].
pub fn adapter(path: &Path) -> Result<PathBuf> {
    let files = |names: &[String]| {
        if all_of(names, &["adapter_config.json"]).is_err() && all_of(names, &["config.json"]).is_ok() {
            return Err(NO_ADAPTER.to_owned());
        }
        all_of(names, &["adapter_config.json", TENSORS]).map_err(|reason| {
            let is_pickled = !names.iter().any(|name| name == TENSORS);
            let pickle = names.iter().any(|name| is_pickled && is_pickle(name, "adapter_model"));
            if pickle { format!("{reason}; {UNPICKLE}") } else { reason }
        })
    };
    hub::model(path, Needs { files: &files, behind: None, alternative: "" })
}

/// For a folder that a run saved to resume from, or the folder of all of these: a sentence that says what the folder is and
/// where the trained model is. `None` for any other folder.
pub(crate) fn to_resume_from(folder: &Path) -> Option<String> {
    let is_step = |folder: &Path| folder.join(STEP_TENSORS).exists();
    let mut within = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let run = match () {
        () if is_step(folder) => folder.parent()?.parent()?,
        () if within.any(|entry| is_step(&entry.path())) => folder.parent()?,
        () => return None,
    };
    let results = ["adapter", "checkpoint"].map(|name| run.join(name));
    Some(match results.iter().find(|result| result.is_dir()) {
        Some(result) => format!("it is for weft train --resume; what its run trained is in {}", result.display()),
        None => format!(
            "it is for weft train --resume, which finishes the run and then writes what was trained into {}",
            if run.as_os_str().is_empty() { "its folder".to_owned() } else { run.display().to_string() }
        ),
    })
}

/// Whether a file of this name belongs to a checkpoint besides its weights.
pub(crate) fn is_companion(name: &str) -> bool {
    COMPANIONS.iter().any(|end| name.ends_with(end))
}

/// A model's files other than its weights, or what the repository lacks.
fn text_files(names: &[String]) -> std::result::Result<Vec<String>, String> {
    all_of(names, &["config.json"]).map_err(|lacks| match all_of(names, &["adapter_config.json"]) {
        Ok(_) => {
            "it is an adapter; give its base as the model, and the adapter as --adapter (model.adapter in a recipe)"
                .to_owned()
        }
        Err(_) => lacks,
    })?;
    all_of(names, &["tokenizer.json"])
        .or_else(|_| all_of(names, &["vocab.json", "merges.txt"]))
        .map_err(|_| "it has no tokenizer.json, nor vocab.json and merges.txt".to_owned())?;
    let is_own = |name: &&String| !name.contains('/') && is_companion(name);
    Ok(names.iter().filter(is_own).cloned().collect())
}

/// The files of a model's weights, listed by the index in `folder` if the repository has one; or what it lacks.
fn weights(names: &[String], folder: &Path) -> Result<std::result::Result<Vec<String>, String>> {
    let has = |file: &str| names.iter().any(|name| name == file);
    match has(INDEX) || has(SINGLE) {
        true => Ok(Ok(files(folder)?.into_iter().collect())),
        false if names.iter().any(|name| is_pickle(name, "pytorch_model")) => {
            Ok(Err(format!("{NO_WEIGHTS}; {UNPICKLE}")))
        }
        false => Ok(Err(NO_WEIGHTS.to_owned())),
    }
}

/// The needed files, or the first of them that the repository lacks.
fn all_of(names: &[String], needed: &[&str]) -> std::result::Result<Vec<String>, String> {
    match needed.iter().find(|needed| names.iter().all(|name| name != *needed)) {
        Some(lacking) => Err(format!("it has no {lacking}")),
        None => Ok(needed.iter().map(|&name| name.to_owned()).collect()),
    }
}
