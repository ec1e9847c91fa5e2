//! The parts of a comparison: its arms, the settings they are compared under, its seeds, and the runs that follow from
//! them. A run's recipe is the recipe of the file, changed by its setting and its arm.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arms::{ARMS, Arm, DEFAULT_ARMS};
use super::domains::{Domain, PlannedDomain};
use super::rows::is_split_by_seed;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::objective::Blocks;
use crate::objective::blocks::BLOCK_LENGTH;
use crate::recipe::Recipe;
use crate::sampler::generate::Sampling;
use crate::sampler::remasking::{Loop, Remasking};
use crate::settings::{self, recipe_file};
use crate::train::resolved::Resolved;

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
    /// The tokens per block of the arms that train and sample in blocks.
    pub block_length: usize,
    /// Rows of other kinds, on which the base and the final model of every run are scored; default: none.
    pub also_score: Vec<Domain>,
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
    /// Whether it is the recipe as it is, which stands for a missing list of settings; its name is that of a folder only.
    #[serde(skip)]
    pub is_only: bool,
}

impl Setting {
    /// The recipe as it is.
    fn only() -> Self {
        Self { name: "all".to_owned(), set: vec![], is_only: true }
    }

    /// What a message about the setting begins with.
    fn named(&self) -> String {
        if self.is_only { "the recipe".to_owned() } else { format!("setting {:?}", self.name) }
    }
}

impl Default for ReproduceTable {
    fn default() -> Self {
        Self {
            seeds: 10,
            arms: ARMS[..DEFAULT_ARMS].iter().map(|arm| arm.name.to_owned()).collect(),
            settings: vec![],
            block_length: BLOCK_LENGTH,
            also_score: vec![],
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
    /// The base under each setting, to be scored, and to measure times on.
    pub bases: Vec<PlannedBase>,
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

/// The base under a setting.
#[derive(Clone)]
pub struct PlannedBase {
    /// The recipe, whose `train.output` is the base's own folder.
    pub recipe: Recipe,
    /// The rows of other kinds that it is scored on.
    pub also: Vec<PlannedDomain>,
    /// The recipes of the seeds after the first, if each seed holds out rows of its own.
    pub others: Vec<Recipe>,
}

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
    /// The rows of other kinds that the run is scored on at its end.
    pub also: Vec<PlannedDomain>,
}

impl Study {
    /// Reads a comparison and the settings that replace some of it (`table.key=value`), and resolves every run.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        let text = recipe_file::read_for::<Recipe>(path, settings)?;
        let check = |file: &StudyFile| file.reproduce.problems(&file.recipe);
        let StudyFile { recipe, reproduce: mut table } = settings::parse(&text, path, settings, check)?;
        if table.settings.is_empty() {
            table.settings.push(Setting::only());
        }
        let is_runs = |setting: &&String| !setting.trim_start().starts_with("reproduce.");
        let given = settings.iter().filter(is_runs).cloned().collect();
        let file = Resolver { text: &text, path, given, table: &table };
        let (output, first_seed) = (recipe.train.output.clone(), recipe.train.seed);
        let mut runs = vec![];
        for seed in first_seed..first_seed + table.seeds {
            for (s, setting) in table.settings.iter().enumerate() {
                for (a, name) in table.arms.iter().enumerate() {
                    let folder = output.join(&setting.name).join(name).join(format!("seed-{seed}"));
                    let (recipe, also) = file.resolve(setting, Arm::named(name), (&folder, seed))?;
                    runs.push(PlannedRun { setting: s, arm: a, seed, recipe, also });
                }
            }
        }
        let base = |setting: &Setting| {
            let folder = output.join(&setting.name).join("base");
            let (recipe, also) = file.resolve(setting, None, (&folder, first_seed))?;
            let of_seed = |seed| Ok(file.resolve(setting, None, (&folder.join(format!("seed-{seed}")), seed))?.0);
            let others = first_seed + 1..first_seed + if is_split_by_seed(&recipe) { table.seeds } else { 1 };
            Ok(PlannedBase { recipe, also, others: others.map(of_seed).collect::<Result<_>>()? })
        };
        let bases: Vec<PlannedBase> = table.settings.iter().map(base).collect::<Result<_>>()?;
        let mut problems: Vec<String> = table
            .settings
            .iter()
            .zip(&bases)
            .filter(|(_, base)| !base.recipe.data.has_held_out())
            .map(|(setting, _)| {
                let named = setting.named();
                format!(
                    "{named} has no held-out rows, so there is nothing to compare; set data.held_out (docs/data.md)"
                )
            })
            .collect();
        let of_first_seed = runs.iter().take_while(|run| run.seed == first_seed);
        problems.extend(of_first_seed.flat_map(|run| run.problems(&table)));
        if !problems.is_empty() {
            return Err(Error::Recipe { path: path.to_owned(), problems });
        }
        let warnings = [warnings(&recipe, &bases), table.warnings(&runs)].concat();
        Ok(Self { warnings, table, output, runs, bases })
    }
}

/// A recipe's text, from which the recipe of each run is resolved.
struct Resolver<'a> {
    text: &'a str,
    path: &'a Path,
    /// The command line's settings that apply to runs.
    given: Vec<String>,
    table: &'a ReproduceTable,
}

impl Resolver<'_> {
    /// The recipe of a run, and the recipes of the rows that it is also scored on; without an arm, the recipes of the base.
    /// A setting's changes replace what is given on the command line, and an arm's changes replace both.
    fn resolve(
        &self,
        setting: &Setting,
        arm: Option<&Arm>,
        (folder, seed): (&Path, u64),
    ) -> Result<(Recipe, Vec<PlannedDomain>)> {
        let output = toml::Value::from(folder.display().to_string());
        let own = [format!("train.output={output}"), format!("train.seed={seed}"), "train.eval_every=0".to_owned()];
        let of_arm = arm.map(|arm| arm.sets(self.table.block_length)).unwrap_or_default();
        let parse = |of: &str, set: &[String]| -> Result<Recipe> {
            let all = [&self.given[..], &setting.set[..], set, &of_arm[..], &own[..]].concat();
            // Recipe::parse leaves out [reproduce].
            let mut recipe =
                Recipe::parse(self.text, self.path, &all).map_err(|error| of_table(error, of, &self.given))?;
            if arm.is_some_and(Arm::is_in_blocks) && recipe.objective.blocks == Blocks::Blockwise {
                // Dream's own loop has no blocks.
                recipe.sampler.remasking.get_or_insert(Remasking::LowConfidence);
            }
            Ok(recipe)
        };
        let recipe = parse(&format!("reproduce.settings {:?}", setting.name), &[])?;
        let planned = |domain: &Domain| {
            let mut recipe = parse(&format!("reproduce.also_score {:?}", domain.name), &domain.set)?;
            recipe.eval.task.clone_from(&domain.task);
            Ok(PlannedDomain { domain: domain.clone(), recipe })
        };
        let also = self.table.also_score.iter().map(planned).collect::<Result<_>>()?;
        Ok((recipe, also))
    }
}

impl PlannedRun {
    /// The settings that prevent an arm in blocks from being scored by its own decoding, one sentence each.
    fn problems(&self, table: &ReproduceTable) -> Vec<String> {
        let arm = &table.arms[self.arm];
        if !Arm::named(arm).is_some_and(Arm::is_in_blocks) {
            return vec![];
        }
        let of_own = (table.settings[self.setting].named(), &self.recipe);
        let of_domain = |of: &PlannedDomain| format!("reproduce.also_score {:?}", of.domain.name);
        let all = [of_own].into_iter().chain(self.also.iter().map(|of| (of_domain(of), &of.recipe)));
        let problem = |(of, recipe): (String, &Recipe)| {
            let reason = problem_in_blocks(&recipe.sampler).filter(|_| recipe.eval.task.is_some())?;
            Some(format!("{of}, arm {arm}: sampler: {reason}"))
        };
        all.filter_map(problem).collect()
    }
}

/// The setting that prevents a sampler from decoding block by block.
fn problem_in_blocks(sampler: &Sampling) -> Option<String> {
    let loop_of = |remasking: &Remasking| remasking.sampling_loop();
    match sampler.remasking.as_ref().filter(|remasking| loop_of(remasking) == Loop::Dream) {
        Some(remasking) => Some(format!(
            "remasking {} has no blocks; set sampler.remasking to low_confidence, or leave the arm out",
            remasking.name()
        )),
        None => sampler.check().err().map(|error| error.to_string()),
    }
}

/// Whether a warning is of a key of a run that a comparison doesn't use.
pub(super) fn is_idle(warning: &str) -> bool {
    let named = |(table, keys, _): &(&str, &[&str], &str)| {
        keys.iter().any(|key| warning.starts_with(&format!("{table}.{key} ")))
    };
    IDLE.iter().any(named)
}

/// Warnings of the recipe's settings that a comparison doesn't use, or that have no effect under any of its settings tables.
/// Settings that the recipe's own objective doesn't use aren't among them, because an arm may use them.
fn warnings(recipe: &Recipe, bases: &[PlannedBase]) -> Vec<String> {
    let (first, others) = bases.split_first().expect("a comparison has a setting");
    let mut of_runs = first.recipe.warnings();
    others.iter().for_each(|base| {
        let of_base = base.recipe.warnings();
        of_runs.retain(|warning| of_base.contains(warning));
    });
    of_runs.retain(|warning| !warning.starts_with("objective.") && !is_idle(warning));
    let Resolved { recipe, defaults } = recipe.resolved();
    let of_table = |(table, keys, reason): &(&str, &[&str], &str)| -> Vec<String> {
        let set = keys.iter().filter(|key| recipe[table][key] != defaults[table][key]);
        set.map(|key| format!("{table}.{key} has no effect in a comparison: {reason}")).collect()
    };
    IDLE.iter().flat_map(of_table).chain(of_runs).collect()
}

/// An error of a run's recipe. A problem that comes from the changes of the comparison's table `of`, and not from `--set`,
/// names that table.
fn of_table(error: Error, of: &str, given: &[String]) -> Error {
    let Error::Recipe { path, problems } = error else { return error };
    let key = |change: &String| change.split('=').next().unwrap_or_default().trim().to_owned();
    let is_given = |problem: &str| given.iter().any(|change| problem.contains(&key(change)));
    let named = |problem: String| match problem.strip_prefix("--set").filter(|rest| !is_given(rest)) {
        Some(rest) => format!("{of}: {}", rest.trim_start_matches([':', ' '])),
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

/// The arms that an unknown name may mean, as the end of a sentence: `sft` means `sft-masked` or another of SFT's.
fn near(arm: &str, known: &[&str]) -> String {
    let normal = arm.to_lowercase().replace('_', "-");
    let is_meant =
        |name: &&&str| **name == normal || name.strip_prefix(&normal).is_some_and(|rest| rest.starts_with('-'));
    let meant: Vec<&str> = known.iter().filter(is_meant).copied().collect();
    if meant.is_empty() { String::new() } else { format!("; instead of {arm:?} write {}", meant.join(" or ")) }
}

impl ReproduceTable {
    fn problems(&self, recipe: &Recipe) -> Vec<String> {
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        for (key, value) in [("seeds", self.seeds), ("evaluations", self.evaluations)] {
            refuse(value == 0, format!("reproduce.{key} = 0; give at least 1"));
        }
        refuse(self.parallel_runs == 0, "reproduce.parallel_runs = 0; give at least 1".to_owned());
        refuse(self.block_length == 0, "reproduce.block_length = 0; give at least 1".to_owned());
        refuse(self.arms.is_empty(), "reproduce.arms is empty; leave it out for the paper's".to_owned());
        let known = ARMS.map(|arm| arm.name);
        for (i, arm) in self.arms.iter().enumerate() {
            let list = known.join(", ");
            let near = near(arm, &known);
            refuse(!known.contains(&&**arm), format!("reproduce.arms has {arm:?}; the known ones are {list}{near}"));
            refuse(self.arms[..i].contains(arm), format!("reproduce.arms has {arm:?} twice"));
        }
        for (i, Setting { name, .. }) in self.settings.iter().enumerate() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let is_folder = !name.is_empty() && name.chars().all(is_name);
            refuse(!is_folder, format!("reproduce.settings has the name {name:?}; use letters, digits, - and _"));
            let is_twice = self.settings[..i].iter().any(|other| other.name == *name);
            refuse(is_twice, format!("reproduce.settings has the name {name:?} twice"));
        }
        for (i, domain) in self.also_score.iter().enumerate() {
            let is_twice = self.also_score[..i].iter().any(|other| other.name == domain.name);
            refuse(is_twice, format!("reproduce.also_score has the name {:?} twice", domain.name));
            domain.problems().into_iter().for_each(|problem| refuse(true, problem));
        }
        let steps = recipe.train.max_steps.unwrap_or(u64::MAX);
        refuse(
            self.evaluations > steps,
            format!("reproduce.evaluations = {} is more than train.max_steps = {steps}", self.evaluations),
        );
        problems
    }

    /// Warnings of settings without effect, and of runs that are the same.
    fn warnings(&self, runs: &[PlannedRun]) -> Vec<String> {
        let is_in_blocks = |name: &String| Arm::named(name).is_some_and(Arm::is_in_blocks);
        let is_idle = self.block_length != BLOCK_LENGTH && !self.arms.iter().any(is_in_blocks);
        let mut warnings = vec![];
        if is_idle {
            warnings.push("reproduce.block_length has no effect: no arm trains in blocks".to_owned());
        }
        let of_setting: Vec<&PlannedRun> = runs.iter().take(self.arms.len()).collect();
        for (i, run) in of_setting.iter().enumerate() {
            let is_same = |other: &&&PlannedRun| {
                let mut other = other.recipe.clone();
                other.train.output.clone_from(&run.recipe.train.output);
                other == run.recipe
            };
            if let Some(other) = of_setting[..i].iter().find(is_same) {
                let [arm, other] = [run.arm, other.arm].map(|arm| &self.arms[arm]);
                warnings.push(format!("the arms {other} and {arm} do the same in this recipe; leave one of them out"));
            }
        }
        warnings
    }
}
