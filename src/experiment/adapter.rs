//! An existing adapter that a recipe trains further (`model.adapter`): it is loaded onto the base, and its rank, scale and
//! layers replace the recipe's, which must not differ. Fresh adapters are in `model::lora`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::block::Transformer;
use crate::model::lora::{self, LoraConfig, TargetModules};
use crate::model::lora_config::{BASE_QUANTIZATION, BLOCK_LENGTH};
use crate::model::settings::ModelTable;

/// Fields of adapter_config.json that describe how and on what an earlier run trained; a later run writes its own.
const OF_EARLIER_RUN: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    BASE_QUANTIZATION,
    BLOCK_LENGTH,
    "inference_mode",
    "init_lora_weights",
    "peft_version",
    "revision",
    "task_type",
];

/// Attaches the adapter that the recipe starts from; `None` if it names none. The dropout in training is the recipe's: it
/// doesn't change what a trained adapter computes.
///
/// # Errors
/// An adapter that can't be loaded onto the base; settings of the recipe that differ from the adapter's.
pub fn load(table: &ModelTable, model: &mut Transformer) -> Result<Option<LoraConfig>> {
    let Some(folder) = &table.adapter else { return Ok(None) };
    let mut config = lora::load(folder, model)?;
    check(table, folder, &config)?;
    config.lora_dropout = table.lora_dropout;
    model.config.lora_dropout = table.lora_dropout as f32;
    let mut fields = serde_json::to_value(&config).expect("a LoRA configuration is JSON");
    let map = fields.as_object_mut().expect("a struct is an object");
    map.retain(|field, _| !OF_EARLIER_RUN.contains(&field.as_str()));
    Ok(Some(serde_json::from_value(fields).expect("the configuration was read from such fields")))
}

/// The line that a run prints about the adapter that it starts from.
pub fn told(config: &LoraConfig) -> String {
    let targets = match &config.target_modules {
        TargetModules::Names(names) => names.join(", "),
        TargetModules::Pattern(pattern) => pattern.clone(),
    };
    let rslora = if config.use_rslora { " (rsLoRA)" } else { "" };
    format!("rank {}, alpha {}{rslora}, on {targets}", config.r, config.lora_alpha)
}

/// Refuses settings that differ from the adapter's. A setting with its default value doesn't count: the recipe may not
/// have named it.
fn check(table: &ModelTable, folder: &Path, config: &LoraConfig) -> Result<()> {
    let default = ModelTable::default();
    let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let targets = match &config.target_modules {
        TargetModules::Names(names) => json!(sorted(names)),
        TargetModules::Pattern(pattern) => json!([pattern]),
    };
    let settings: [(&str, [Value; 3]); 4] = [
        ("lora_rank", [json!(table.lora_rank), json!(default.lora_rank), json!(config.r)]),
        ("lora_alpha", [json!(table.lora_alpha), json!(default.lora_alpha), json!(config.lora_alpha)]),
        ("lora_targets", [json!(sorted(&table.lora_targets)), json!(sorted(&default.lora_targets)), targets]),
        ("use_rslora", [json!(table.use_rslora), json!(default.use_rslora), json!(config.use_rslora)]),
    ];
    let differing = settings.iter().filter(|(_, [own, default, loaded])| own != default && own != loaded);
    let (mut sentences, mut keys) = (vec![], vec![]);
    for (key, [own, _, loaded]) in differing {
        sentences.push(format!("model.{key} = {own}, but it has {loaded}"));
        keys.push(format!("model.{key}"));
    }
    match sentences.is_empty() {
        true => Ok(()),
        false => Err(Error::Config {
            path: folder.join("adapter_config.json"),
            reason: format!(
                "the recipe starts from this adapter with {}; leave out {}, because the adapter brings its own",
                sentences.join("; "),
                keys.join(" and ")
            ),
        }),
    }
}
