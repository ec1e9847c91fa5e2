//! The parts of a comparison: its arms, the settings they are compared under, its seeds, and the runs that follow from
//! them. A run's recipe is the recipe of the file, changed by its setting and its arm.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::recipe::Recipe;
use crate::settings::{self, recipe_file};
use crate::train::resolved::Resolved;

/// The known arms: a name, and what it sets. All arms except `sft-answer` and `weft-answer` divide by the masked
/// tokens, so that only the method differs.
pub const ARMS: [(&str, &[&str]); 10] = [
    ("sft-masked", &["objective.kind=sft", "objective.normalizer=masked"]),
    ("sft-answer", &["objective.kind=sft", "objective.normalizer=answer"]),
    ("weft-masked", &["objective.kind=weft", "objective.normalizer=masked"]),
    ("weft-answer", &["objective.kind=weft", "objective.normalizer=answer"]),
    ("token_weight", &["objective.kind=token_weight", "objective.normalizer=masked"]),
    ("cart", &["objective.kind=cart", "objective.normalizer=masked"]),
    ("weft-identity", &["objective.kind=weft", "objective.normalizer=masked", "objective.transform=identity"]),
    ("weft-cbrt", &["objective.kind=weft", "objective.normalizer=masked", "objective.transform=cbrt"]),
    ("weft-log1p", &["objective.kind=weft", "objective.normalizer=masked", "objective.transform=log1p"]),
    ("weft-elbo", &["objective.kind=weft", "objective.normalizer=masked", "objective.weighting=elbo"]),
];

/// The number of arms that a comparison has by default: those of the paper.
const DEFAULT_ARMS: usize = 9;

/// The `[reproduce]` table: the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReproduceTable {
    /// The number of runs of each arm under each setting; their seeds count up from `train.seed`.
    pub seeds: u64,
    /// The arms, named as in [`ARMS`].
    pub arms: Vec<String>,
    /// The settings that the arms are compared under; by default the recipe as it is.
    pub settings: Vec<Setting>,
    /// The number of evaluations of a run, equally spaced, the last one at its end.
    pub evaluations: u64,
    /// The number of simultaneous runs, each with its share of the threads. Small models make better use of the cores
    /// this way; results don't depend on it.
    pub parallel_runs: usize,
    /// The number of timed steps per arm, with the arms taking turns; 0 measures no times.
    pub timing_rounds: usize,
}

/// A setting: changes to the recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The name, which is also the name of a folder.
    pub name: String,
    /// The changes, as `table.key=value` like those of `--set`.
    #[serde(default)]
    pub set: Vec<String>,
}

impl Default for ReproduceTable {
    fn default() -> Self {
        Self {
            seeds: 10,
            arms: ARMS[..DEFAULT_ARMS].iter().map(|(name, _)| (*name).to_owned()).collect(),
            settings: vec![],
            evaluations: 3,
            parallel_runs: 1,
            timing_rounds: 15,
        }
    }
}

/// The contents of a recipe file with a comparison.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StudyFile {
    #[serde(flatten)]
    recipe: Recipe,
    reproduce: ReproduceTable,
}

/// A comparison with all its recipes resolved.
pub struct Study {
    /// The comparison.
    pub table: ReproduceTable,
    /// The folder that everything is written to.
    pub output: PathBuf,
    /// Every run, grouped by seed, so that a study that is stopped has complete seeds.
    pub runs: Vec<PlannedRun>,
    /// The recipe of each setting, for scoring its base and measuring its times.
    pub bases: Vec<Recipe>,
    /// Warnings of settings in the file that a comparison doesn't use, one sentence each.
    pub warnings: Vec<String>,
}

/// Keys of a run that a comparison doesn't use, and why.
const IDLE: [(&str, &[&str], &str); 2] = [
    (
        "train",
        &["eval_every", "keep_best", "patience"],
        "every run is scored at the steps that reproduce.evaluations gives, and none ends early",
    ),
    ("eval", &["samples"], "a comparison reports scores, not answers"),
];

/// A run of a comparison.
#[derive(Clone)]
pub struct PlannedRun {
    /// The index of its setting in the table.
    pub setting: usize,
    /// The index of its arm in the table.
    pub arm: usize,
    /// The seed.
    pub seed: u64,
    /// The recipe, whose `train.output` is the run's own folder.
    pub recipe: Recipe,
}

impl Study {
    /// Reads a comparison and the settings that replace some of it (`table.key=value`), and resolves every run.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        let text = recipe_file::read(path)?;
        let check = |file: &StudyFile| file.reproduce.problems(&file.recipe);
        let StudyFile { recipe, reproduce: mut table } = settings::parse(&text, path, settings, check)?;
        if table.settings.is_empty() {
            table.settings.push(Setting { name: "all".to_owned(), set: vec![] });
        }
        let is_runs = |setting: &&String| !setting.trim_start().starts_with("reproduce.");
        let settings: Vec<String> = settings.iter().filter(is_runs).cloned().collect();
        let resolve = |setting: &Setting, arm: &[&str], own: Vec<String>| {
            let arm = arm.iter().map(|s| (*s).to_owned());
            let all: Vec<String> = settings.iter().chain(&setting.set).cloned().chain(arm).chain(own).collect();
            // Recipe::parse leaves out [reproduce].
            Recipe::parse(&text, path, &all).map_err(|error| of_setting(error, setting, &settings))
        };
        let (output, first_seed) = (recipe.train.output.clone(), recipe.train.seed);
        let own = |folder: PathBuf, seed: u64| {
            let folder = toml::Value::from(folder.display().to_string());
            vec![format!("train.output={folder}"), format!("train.seed={seed}"), "train.eval_every=0".to_owned()]
        };
        let mut runs = vec![];
        for seed in first_seed..first_seed + table.seeds {
            for (s, setting) in table.settings.iter().enumerate() {
                for (a, name) in table.arms.iter().enumerate() {
                    let (_, arm) = ARMS.iter().find(|(known, _)| known == name).expect("checked above");
                    let folder = output.join(&setting.name).join(name).join(format!("seed-{seed}"));
                    let recipe = resolve(setting, arm, own(folder, seed))?;
                    runs.push(PlannedRun { setting: s, arm: a, seed, recipe });
                }
            }
        }
        let base = |setting: &Setting| resolve(setting, &[], own(output.join(&setting.name).join("base"), first_seed));
        let bases: Vec<Recipe> = table.settings.iter().map(base).collect::<Result<_>>()?;
        match table.settings.iter().zip(&bases).find(|(_, recipe)| !recipe.data.has_held_out()) {
            Some((setting, _)) => Err(Error::Recipe {
                path: path.to_owned(),
                problems: vec![format!(
                    "setting {:?} has no held-out rows, so there is nothing to compare; set data.held_out (docs/data.md)",
                    setting.name
                )],
            }),
            None => Ok(Self { warnings: warnings(&recipe), table, output, runs, bases }),
        }
    }
}

/// The settings of the recipe that a comparison doesn't use, and those that no run of it uses. What its objective doesn't use
/// an arm may.
fn warnings(recipe: &Recipe) -> Vec<String> {
    let is_idle_here = |warning: &String| {
        let named = |(table, keys, _): &(&str, &[&str], &str)| {
            keys.iter().any(|key| warning.starts_with(&format!("{table}.{key} ")))
        };
        warning.starts_with("objective.") || IDLE.iter().any(named)
    };
    let of_runs: Vec<String> = recipe.warnings().into_iter().filter(|warning| !is_idle_here(warning)).collect();
    let Resolved { recipe, defaults } = recipe.resolved();
    let of_table = |(table, keys, reason): &(&str, &[&str], &str)| -> Vec<String> {
        let set = keys.iter().filter(|key| recipe[table][key] != defaults[table][key]);
        set.map(|key| format!("{table}.{key} has no effect in a comparison: {reason}")).collect()
    };
    IDLE.iter().flat_map(of_table).chain(of_runs).collect()
}

/// An error of a run's recipe, whose problems name `reproduce.settings` where they come from a setting's own changes
/// and not from `--set`.
fn of_setting(error: Error, setting: &Setting, given: &[String]) -> Error {
    let Error::Recipe { path, problems } = error else { return error };
    let key = |change: &String| change.split('=').next().unwrap_or_default().trim().to_owned();
    let is_given = |problem: &str| given.iter().any(|change| problem.contains(&key(change)));
    let named = |problem: String| match problem.strip_prefix("--set").filter(|rest| !is_given(rest)) {
        Some(rest) => format!("reproduce.settings {:?}: {}", setting.name, rest.trim_start_matches([':', ' '])),
        None => problem,
    };
    Error::Recipe { path, problems: problems.into_iter().map(named).collect() }
}

/// The warning if a command other than `weft reproduce` reads a recipe with a `[reproduce]` table.
pub fn warning(path: &Path) -> Option<String> {
    let mut tables: toml::Table = toml::from_str(&read_text(path).ok()?).ok()?;
    let table: std::result::Result<ReproduceTable, _> = tables.remove("reproduce")?.try_into();
    let is_default = table.is_ok_and(|table| table == ReproduceTable::default());
    (!is_default).then(|| "[reproduce] has no effect here: only weft reproduce reads it".to_owned())
}

impl ReproduceTable {
    fn problems(&self, recipe: &Recipe) -> Vec<String> {
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        for (key, value) in [("seeds", self.seeds), ("evaluations", self.evaluations)] {
            refuse(value == 0, format!("reproduce.{key} = 0; give at least 1"));
        }
        refuse(self.parallel_runs == 0, "reproduce.parallel_runs = 0; give at least 1".to_owned());
        refuse(self.arms.is_empty(), "reproduce.arms is empty; leave it out for the paper's".to_owned());
        let known = ARMS.map(|(name, _)| name);
        for (i, arm) in self.arms.iter().enumerate() {
            let list = known.join(", ");
            refuse(!known.contains(&&**arm), format!("reproduce.arms has {arm:?}; the known ones are {list}"));
            refuse(self.arms[..i].contains(arm), format!("reproduce.arms has {arm:?} twice"));
        }
        for (i, Setting { name, .. }) in self.settings.iter().enumerate() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let is_folder = !name.is_empty() && name.chars().all(is_name);
            refuse(!is_folder, format!("reproduce.settings has the name {name:?}; use letters, digits, - and _"));
            let is_twice = self.settings[..i].iter().any(|other| other.name == *name);
            refuse(is_twice, format!("reproduce.settings has the name {name:?} twice"));
        }
        let steps = recipe.train.max_steps.unwrap_or(u64::MAX);
        refuse(
            self.evaluations > steps,
            format!("reproduce.evaluations = {} is more than train.max_steps = {steps}", self.evaluations),
        );
        problems
    }
}
