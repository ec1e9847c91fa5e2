//! The folders that a comparison reads: the runs among those that are given, and why the others hold none.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::RECIPE;

/// What to give instead of a folder without a run.
const FIX: &str = "give the folders of two or more runs (the train.output of weft train)";

/// The runs in the given folders, and a sentence on each folder that is left out.
pub(super) struct Found {
    pub runs: Vec<PathBuf>,
    pub left_out: Vec<String>,
}

impl Found {
    /// Looks for runs. A folder of runs stands for all runs in it, in the order of their names.
    ///
    /// # Errors
    /// A path that doesn't exist, the same folder twice, fewer than two runs.
    pub fn among(given: &[PathBuf]) -> Result<Self> {
        if let Some(missing) = given.iter().find(|path| !path.exists()) {
            return Err(Error::Usage(format!("{} doesn't exist; {FIX}", missing.display())));
        }
        once(given)?;
        let (mut runs, mut without) = (vec![], vec![]);
        for path in given {
            let (own, others) = if is_run(path) { (vec![path.clone()], vec![]) } else { inside(path) };
            // A folder without any runs is told as a whole.
            without.extend(if own.is_empty() { vec![path.clone()] } else { others });
            runs.extend(own);
        }
        once(&runs)?;
        let reasons: Vec<String> = without.iter().map(|path| reason(path)).collect();
        match (runs.len(), &runs[..], reasons.is_empty()) {
            (2.., ..) => {
                let left_out = without.iter().zip(&reasons);
                let left_out = left_out.map(|(path, reason)| format!("{} is left out: it {reason}", path.display()));
                Ok(Self { left_out: left_out.collect(), runs })
            }
            (_, [only], true) => Err(Error::Usage(format!("{} is the only run; {FIX}", only.display()))),
            _ => {
                let told = without.iter().zip(&reasons).map(|(path, reason)| format!("{} {reason}", path.display()));
                Err(Error::Usage(format!("{}; {FIX}", told.collect::<Vec<_>>().join(", "))))
            }
        }
    }
}

/// Refuses a folder that is given twice.
fn once(folders: &[PathBuf]) -> Result<()> {
    let mut seen = HashSet::new();
    let mut is_new = |folder: &PathBuf| seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone()));
    match folders.iter().find(|folder| !is_new(folder)) {
        Some(twice) => Err(Error::Usage(format!("{} is given twice; give each run once", twice.display()))),
        None => Ok(()),
    }
}

fn is_run(folder: &Path) -> bool {
    folder.join(RECIPE).is_file()
}

/// The runs in a folder, and its other folders.
fn inside(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.into_iter().partition(|path| is_run(path))
}

/// Why a path holds no run, as the rest of a sentence that begins with the path.
fn reason(path: &Path) -> String {
    let has = |name: &str| path.join(name).is_file();
    let is_study = |folder: &Path| inside(folder).1.iter().any(|setting| setting.join("base").is_dir());
    let of_study = |folder: &Path| format!("whose {} compares them", folder.join("report.md").display());
    if path.is_file() {
        "is a file".to_owned()
    } else if has("report.json") || is_study(path) {
        format!("holds the runs of weft reproduce, {}", of_study(path))
    } else if path.join("base").is_dir() {
        format!("holds the runs of one setting of weft reproduce, {}", of_study(path.parent().unwrap_or(path)))
    } else if has("outcome.json") {
        "holds the scores of the base of weft reproduce, which its report.md compares".to_owned()
    } else if has("adapter_config.json") || has("model.safetensors") {
        "holds an adapter or a checkpoint, whose run is the folder above it".to_owned()
    } else {
        format!("holds no run ({RECIPE} is missing)")
    }
}
