//! Recipes: one flat TOML file per experiment. Its tables are named after the folders that read them, where they are
//! defined. All problems are reported at once, before a file is opened; the error for an unknown key suggests the
//! nearest known one.

mod idle;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::packing::Padding;
use crate::data::settings::DataTable;
use crate::error::Result;
use crate::eval::settings::EvalTable;
use crate::model::block::Config;
use crate::model::settings::ModelTable;
use crate::objective::{Blocks, Objective};
use crate::sampler::generate::{Attention, Sampling};
use crate::sampler::settings::check_threshold;
use crate::settings::{parse, recipe_file};
use crate::train::best::BestBy;
use crate::train::resolved::Resolved;
use crate::train::settings::TrainTable;
pub use idle::RunSize;

/// A fine-tuning experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// The base and its adapter.
    pub model: ModelTable,
    /// The examples.
    pub data: DataTable,
    /// The training objective.
    pub objective: Objective,
    /// How it is trained.
    pub train: TrainTable,
    /// How answers are generated for `eval`.
    pub sampler: Sampling,
    /// A task that base and adapter are scored on.
    pub eval: EvalTable,
}

impl Recipe {
    /// Reads a recipe, and applies the settings that replace parts of it (`table.key=value`).
    ///
    /// # Errors
    /// All problems of the recipe at once.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        Self::parse(&recipe_file::read_for::<Self>(path, settings)?, path, settings)
    }

    /// Reads a recipe like [`Recipe::read`], from text. The table of a comparison, `[reproduce]`, is left out.
    ///
    /// # Errors
    /// All problems of the recipe at once.
    pub fn parse(text: &str, path: &Path, settings: &[String]) -> Result<Self> {
        parse(&recipe_file::without_comparison(text), path, settings, Self::problems)
    }

    /// The sampler's settings for a model that the recipe trains. If they name no attention or blocks, they get those that the
    /// model is trained with, or those of its checkpoint, and blocks that divide the answer ([`Sampling::fitted`]).
    pub fn sampling(&self, config: &Config) -> Sampling {
        let mut sampling = self.sampler.clone();
        let is_default = sampling.block_length == Sampling::default().block_length;
        if self.objective.blocks == Blocks::Bd3lm && sampling.attention.is_none() {
            sampling.attention = Some(Attention::BlockCausal);
            sampling.block_length = if is_default { self.objective.block_length } else { sampling.block_length };
        } else if let (true, Some(own)) = (is_default && sampling.is_block_causal(), config.block_length) {
            sampling.block_length = own;
        }
        sampling.for_model(config).fitted()
    }

    /// The recipe as it is saved in a run folder, together with the defaults.
    pub fn resolved(&self) -> Resolved {
        let [recipe, defaults] = [self, &Self::default()].map(|r| serde_json::to_value(r).expect("a recipe is JSON"));
        Resolved { recipe, defaults }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems =
            [self.train.problems(), self.data.problems(), self.model.problems(), self.eval.problems()].concat();
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        let (data, objective) = (&self.data, &self.objective);
        let floor = objective.rate_floor;
        refuse(!(0.0..1.0).contains(&floor), format!("objective.rate_floor = {floor} lies outside [0, 1)"));
        let geo_p = objective.geo_p;
        refuse(!(geo_p > 0.0 && geo_p <= 1.0), format!("objective.geo_p = {geo_p} lies outside (0, 1]"));
        let every = objective.entropy_every;
        refuse(every == 0, "objective.entropy_every = 0; 1 computes the entropies in every epoch".to_owned());
        let padded = "objective.entropy_every above 1 needs data.padding = \"none\": the entropies of padding change with \
                      the micro-batch";
        refuse(every > 1 && data.padding == Padding::Eos, padded.to_owned());
        refuse(objective.block_length == 0, "objective.block_length = 0; give at least 1".to_owned());
        let changing = "objective.entropy_every above 1 needs objective.blocks = \"none\" or \"bd3lm\": with \"blockwise\" every \
                        epoch draws another block, which has entropies of its own";
        refuse(every > 1 && objective.blocks == Blocks::Blockwise, changing.to_owned());
        let t_min = objective.t_min;
        refuse(!(t_min > 0.0 && t_min < 1.0), format!("objective.t_min = {t_min} lies outside (0, 1)"));
        let by_task = self.train.best_by == BestBy::Task && !self.eval.is_each_epoch();
        let how = "train.best_by = \"task\" needs the first task's score after each epoch; set eval.tasks, or eval.task and \
                   eval.each_epoch = true";
        if by_task || (self.train.best_by == BestBy::Task && !self.eval.has_tasks()) {
            problems.push(how.to_owned());
        }
        if self.eval.generates() {
            let threshold = self.sampler.confidence_threshold.map_or(Ok(()), check_threshold).err();
            let others = || self.sampler.clone().fitted().check().err().map(|e| e.to_string());
            problems.extend(threshold.or_else(others).map(|e| format!("sampler: {e}")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{other_names::SYNONYMS, own_place};

    #[test]
    fn every_synonym_leads_to_a_key() {
        let known = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
        for (name, place, take) in SYNONYMS {
            let (table, key) = place.split_once('.').expect("a place is table.key");
            assert!(known[table].get(key).is_some(), "{name} leads to {place}, which is no key");
            let found = own_place(name, table, known.as_object().expect("a table")).expect("it has a place");
            assert_eq!((&found.keys[..], found.take), (&[(*place).to_owned()][..], *take));
        }
    }

    #[test]
    fn a_value_of_another_type_is_told_in_plain_words() {
        let problems = |setting: &str| {
            let settings = ["data.train=a.jsonl".to_owned(), setting.to_owned()];
            let error = Recipe::parse("", Path::new("r.toml"), &settings).expect_err(setting);
            error.to_string()
        };
        for (setting, expected) in [
            ("train.lr=fast", "--set train.lr = \"fast\": give a number"),
            ("train.epochs=-1", "--set train.epochs = -1: give a whole number, 0 or above"),
            ("train.epochs=1.5", "--set train.epochs = 1.5: give a whole number, 0 or above"),
            ("model.use_rslora=1", "--set model.use_rslora = 1: give true or false"),
            ("model.lora_targets=1", "--set model.lora_targets = 1: give a list in [ ], such as [\"a\", \"b\"]"),
            ("model.lora_targets=\"a\"", "--set model.lora_targets = \"a\": give a list, [\"a\"]"),
            ("epohcs=3", "--set \"epohcs=3\" is not table.key=value; the nearest known one is train.epochs"),
            ("train.output=1", "--set train.output = 1: give a string in quotes"),
            ("model.trainable=all", "--set model.trainable = \"all\": the known values are lora, full"),
            ("model.trainable=1", "--set model.trainable = 1: give one of its names, in quotes"),
            ("lr=1e-4", "--set \"lr=1e-4\" is not table.key=value; write train.lr=1e-4"),
            ("learning_rate=1e-4", "--set \"learning_rate=1e-4\" is not table.key=value; write train.lr=1e-4"),
            ("train.learning_rate=1e-4", "--set: unknown key train.learning_rate; set train.lr"),
            ("train.lora_rank=4", "--set: unknown key train.lora_rank; set model.lora_rank"),
            ("train.epoch=4", "--set: unknown key train.epoch; the nearest known one is train.epochs"),
        ] {
            assert_eq!(problems(setting), expected);
        }
        for (setting, expected) in [
            ("model.lora_targets=q_proj, v_proj", &["q_proj", "v_proj"][..]),
            ("model.lora_targets=[q_proj,v_proj]", &["q_proj", "v_proj"]),
            ("model.lora_targets=all-linear", &["all-linear"]),
        ] {
            let settings = ["data.train=[a.jsonl,b.jsonl]".to_owned(), setting.to_owned()];
            let recipe = Recipe::parse("", Path::new("r.toml"), &settings).expect(setting);
            assert_eq!(recipe.model.lora_targets, expected);
            assert_eq!(
                serde_json::to_value(&recipe.data.train).expect("JSON"),
                serde_json::json!(["a.jsonl", "b.jsonl"])
            );
        }
        let error = Recipe::parse("lr = 1e-4", Path::new("r.toml"), &["data.train=a.jsonl".to_owned()]);
        assert_eq!(error.expect_err("no table").to_string(), "r.toml: lr is outside of every table; set train.lr");
    }
}
