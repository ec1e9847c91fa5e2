//! Which files of a folder, or of a repository of the hub, are those of a split.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::counted::verb;
use crate::error::{Error, Result};
use crate::files::rows_file::{kind_of_name, saved_to_disk, stem_and_extension};
use crate::files::{RECIPE, is_named_as_rows, read_text};

/// Finds the files of a split in a folder or in its `data` folder, or the texts of a folder without splits.
pub(super) fn files_of_split(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let mut names = vec![];
    for prefix in ["", DATA].into_iter().filter(|prefix| folder.join(prefix).is_dir()) {
        let path = folder.join(prefix);
        let entries = fs::read_dir(&path).map_err(|source| Error::Read { path, source })?;
        let files = entries.flatten().filter(|entry| entry.path().is_file());
        names.extend(files.map(|entry| format!("{prefix}{}", entry.file_name().to_string_lossy())));
    }
    let found = names_of_split(&names, split).or_else(|reason| texts(&names).ok_or(reason));
    let found = found.map_err(|reason| {
        let reason = of_run(folder).or_else(|| saved_to_disk(folder)).unwrap_or(reason);
        Error::Config { path: folder.to_owned(), reason }
    })?;
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

/// For a run folder: where the rows of its run are.
fn of_run(folder: &Path) -> Option<String> {
    let saved: Value = serde_json::from_str(&read_text(&folder.join(RECIPE)).ok()?).ok()?;
    let data = &saved.get("recipe")?["data"];
    let generated = [folder.join("data/held-out.jsonl"), folder.join("data/train.jsonl")];
    let path = |paths: &Value| paths.as_str().filter(|path| Path::new(path).exists()).map(str::to_owned);
    let named = || path(&data["held_out"]).or_else(|| path(&data["train"]));
    let rows = generated.iter().find(|path| path.exists()).map(|path| path.display().to_string()).or_else(named);
    Some(match rows {
        Some(rows) => format!("it is a run folder; the rows of its run are in {rows}"),
        None => format!("it is a run folder, and its {RECIPE} names the rows of its run; name those"),
    })
}

/// The names that splits have; a text file of such a name isn't taken for a document of a folder.
const SPLITS: [&str; 6] = ["train", "test", "validation", "valid", "val", "dev"];

/// The texts of a folder, in the order of their names, if it has no other rows and none of them is named as a split.
fn texts(names: &[String]) -> Option<Vec<String>> {
    let is_split = |name: &str| SPLITS.iter().any(|split| name.strip_prefix(split).is_some_and(is_end_of_stem));
    let mut found: Vec<String> = names.iter().filter(|name| !name.contains('/')).cloned().collect();
    found.retain(|name| is_named_as_rows(Path::new(name)));
    found.sort();
    let is_document = |name: &String| is_text(name) && !is_split(name);
    (!found.is_empty() && found.iter().all(is_document)).then_some(found)
}

fn is_end_of_stem(rest: &str) -> bool {
    rest.starts_with(['.', '-'])
}

/// Whether a file is plain text by its name.
fn is_text(name: &str) -> bool {
    kind_of_name(Path::new(name)) == Some("txt")
}

/// The subfolder of a data set that may contain its files.
const DATA: &str = "data/";

/// Finds the files of a split in a repository of the hub; the error says what is missing and lists other folders with
/// rows.
pub(super) fn names_needed(names: &[String], split: &str) -> std::result::Result<Vec<String>, String> {
    names_of_split(names, split).map_err(|reason| {
        let others = names.iter().filter(|name| is_named_as_rows(Path::new(name)) && !is_text(name));
        let folders = others.filter_map(|name| name.rsplit_once('/')).map(|(folder, _)| folder);
        let folders: Vec<&str> = folders.collect::<BTreeSet<_>>().into_iter().collect();
        match folders.is_empty() {
            true => reason,
            false => format!("{reason}; or name a folder (hf://datasets/ORG/NAME/FOLDER): {}", folders.join(", ")),
        }
    })
}

/// Finds the files of a split in a folder or in its `data` folder: `train.jsonl`, or all shards such as
/// `train-00000-of-00002.parquet`.
fn names_of_split(names: &[String], split: &str) -> std::result::Result<Vec<String>, String> {
    let mut splits = vec![];
    for prefix in ["", DATA] {
        let mut found: Vec<(&str, &str, &String)> = vec![];
        for name in names {
            let Some(own) = name.strip_prefix(prefix).filter(|own| !own.contains('/')) else { continue };
            let Some((stem, extension)) = stem_and_extension(own) else { continue };
            match stem == split || stem.starts_with(&format!("{split}-")) {
                true => found.push((stem, extension, name)),
                // Data sets often have other texts, such as a licence.
                false if is_text(own) => {}
                false => splits.push(stem.split('-').next().unwrap_or_default()),
            }
        }
        if found.iter().any(|(.., name)| !is_text(name)) {
            found.retain(|(.., name)| !is_text(name));
        }
        found.sort();
        if found.iter().any(|(_, extension, _)| *extension != found[0].1) {
            return Err(format!("the split {split:?} has files of several kinds; name one of them as the path"));
        }
        if let Some(shards) = found.iter().find_map(|(stem, ..)| num_shards(stem, split)).filter(|n| *n != found.len())
        {
            let (there, are) = (found.len(), verb(found.len(), ["is", "are"]));
            return Err(format!("{there} of the {shards} files of the split {split:?} {are} present; fetch the rest"));
        }
        if !found.is_empty() {
            return Ok(found.into_iter().map(|(.., name)| name.clone()).collect());
        }
    }
    splits.sort();
    splits.dedup();
    let has = if splits.is_empty() { "no files of rows".to_owned() } else { splits.join(", ") };
    Err(format!("it has no {split}-*.parquet, .jsonl or .json, nor has its data folder; it has {has}; set the split"))
}

/// The number of shards of a split, by the name of one: 2 in `train-00000-of-00002`.
fn num_shards(stem: &str, split: &str) -> Option<usize> {
    let mut parts = stem.strip_prefix(split)?.strip_prefix('-')?.split('-');
    parts.next()?.parse::<usize>().ok()?;
    (parts.next()? == "of").then(|| parts.next()?.parse().ok())?
}
