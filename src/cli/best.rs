//! The best weights of a run (`train.keep_best`), saved like its last ones: an adapter's or a checkpoint's folder.

use std::path::PathBuf;

use weft::base::Base;
use weft::error::Result;
use weft::experiment::Experiment;
use weft::model::lora::{self, LoraConfig};
use weft::train::best;

/// Saves the best weights beside the last ones, which are in the folder named `last`, and returns their folder. The model
/// has them afterwards. `None` if the recipe doesn't ask for them, or no evaluation followed a step.
pub fn save(
    experiment: &Experiment,
    base: &mut Base,
    (adapter, last): (Option<&LoraConfig>, &str),
    best: Option<best::Best>,
) -> Result<Option<PathBuf>> {
    let table = &experiment.recipe.train;
    if !table.keep_best || best.is_none() {
        return Ok(None);
    }
    best::load(&table.output, &mut base.model)?;
    let folder = table.output.join(format!("best-{last}"));
    match adapter {
        Some(config) => lora::save(&folder, &base.model, config, &base.name)?,
        None => base.save(&folder, experiment.recipe.model.save_dtype.map_or(base.dtype, Into::into))?,
    }
    Ok(Some(folder))
}
