//! LoRA adapters by PEFT's semantics and in PEFT's format: which layers `target_modules` names, and loading.

use std::path::Path;

use serde::Deserialize;

use super::block::{Linear, Param, Transformer};
use super::weights::{Checkpoint, read_text};
use crate::error::{Error, Result};

/// What of adapter_config.json changes the numbers.
#[derive(Clone, Debug, Deserialize)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f32,
    /// Dropout of the adapter's input in training.
    #[serde(default)]
    pub lora_dropout: f32,
    /// The layers' names, or ends of them after a dot.
    pub target_modules: Vec<String>,
    /// `lora_alpha / sqrt(r)` instead of `lora_alpha / r`.
    #[serde(default)]
    pub use_rslora: bool,
}

impl LoraConfig {
    /// Whether PEFT would adapt the module: a target equals its name or the end of it after a dot.
    pub fn targets(&self, module: &str) -> bool {
        self.target_modules
            .iter()
            .any(|t| module.strip_suffix(t).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    }

    /// The factor of `B A x`.
    pub fn scale(&self) -> f32 {
        let r = self.r as f32;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

/// Attaches a PEFT adapter's folder to its base; its tensors become the trainable parameters.
///
/// # Errors
/// A file or tensor that is missing or damaged, or targets that name no layer.
pub fn load(folder: &Path, model: &mut Transformer) -> Result<LoraConfig> {
    let path = folder.join("adapter_config.json");
    let config: LoraConfig = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    if config.r == 0 {
        return Err(Error::Config { path, reason: "r = 0 is no rank; give at least 1".to_owned() });
    }
    let mut tensors = Checkpoint::open_file(folder, "adapter_model.safetensors")?;
    let Transformer { params, blocks, head, .. } = model;
    let linears = blocks
        .iter_mut()
        .flat_map(|b| b.qkv.iter_mut().chain([&mut b.attn_out]).chain(b.gate_up.iter_mut()).chain([&mut b.down]));
    let mut attached = 0;
    for layer in linears.chain([head]) {
        let module = params[layer.weight].name.trim_end_matches(".weight").to_owned();
        if config.targets(&module) {
            attach(layer, params, &module, config.r, &mut tensors)?;
            attached += 1;
        }
    }
    if attached == 0 {
        let reason = format!("target_modules {:?} name no layer of the model", config.target_modules);
        return Err(Error::Config { path, reason });
    }
    model.config.lora_scale = config.scale();
    model.config.lora_dropout = config.lora_dropout;
    Ok(config)
}

fn attach(layer: &mut Linear, params: &mut Vec<Param>, module: &str, r: usize, from: &mut Checkpoint) -> Result<()> {
    let weight = &params[layer.weight].weight;
    let shapes = [("lora_A", [r, weight.cols()]), ("lora_B", [weight.rows(), r])];
    let first = params.len();
    for (part, shape) in shapes {
        let name = format!("base_model.model.{module}.{part}.weight");
        let weight = from.take(&name, &shape)?;
        params.push(Param { name, weight, trainable: true });
    }
    layer.lora = Some([first, first + 1]);
    Ok(())
}
