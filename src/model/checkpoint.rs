//! Whole models as folders: config.json and safetensors files become a network, on a device or on the meta device, and
//! a network becomes such a folder.

use std::path::Path;

use weft_kernels::weight::{Dtype, Weight};

use super::block::Transformer;
use super::config::ModelConfig;
use super::facts::Overrides;
use super::foreign;
use super::layout::{self, Layout};
use super::quantize::{self, Quantization};
use super::quantized_cache::QuantizedCache;
use super::weights::{Checkpoint, Halves, INDEX, SINGLE, Tensor, write_tensors};
use crate::error::Result;
use crate::files::{make_folder, write_whole};

/// Opens a checkpoint's folder.
///
/// # Errors
/// The name of a config field that Weft doesn't support; a file or tensor that is missing or damaged.
pub fn load(folder: &Path) -> Result<Transformer> {
    load_with(folder, Overrides::default()).map(|(model, _)| model)
}

/// Opens a checkpoint's folder, with what the user says of it.
///
/// # Errors
/// Those of [`load`].
pub fn load_with(folder: &Path, overrides: Overrides) -> Result<(Transformer, ModelConfig)> {
    load_cached(folder, overrides, QuantizedCache::of_user().as_ref())
}

/// Opens a checkpoint's folder like [`load_with`]; if it is quantized, the result is stored in the given cache.
///
/// # Errors
/// Those of [`load`].
pub fn load_cached(
    folder: &Path,
    overrides: Overrides,
    cache: Option<&QuantizedCache>,
) -> Result<(Transformer, ModelConfig)> {
    let config = ModelConfig::open(folder, overrides)?;
    let halves = if overrides.rounds_halves { Halves::Rounded } else { Halves::Widened };
    let checkpoint = Checkpoint::open(folder)?.with_halves(halves);
    let model = match overrides.quantize {
        Some(quantization) => quantize::load(&config, (folder, checkpoint), quantization, cache)?,
        None => assemble(&config, checkpoint)?,
    };
    Ok((model, config))
}

/// A checkpoint's model on the meta device: its shapes and dtypes, without reading a tensor but to see whether the head is
/// the embedding. If the weights aren't there yet, the dtype is what config.json says, or bf16.
///
/// # Errors
/// Those of [`load`].
pub fn load_meta(folder: &Path, overrides: Overrides) -> Result<(Transformer, ModelConfig)> {
    let config = ModelConfig::open(folder, overrides)?;
    // Weights that aren't there may still be fetched, but pickles stay what they are.
    if let Some(error) = foreign::pickled(&folder.join(SINGLE)).filter(|_| !folder.join(INDEX).exists()) {
        return Err(error);
    }
    let mut model = match Checkpoint::is_in(folder) {
        true => {
            let halves = if overrides.rounds_halves { Halves::RoundedMeta } else { Halves::Meta };
            assemble(&config, Checkpoint::open(folder)?.with_halves(halves))?.to_meta()
        }
        false => meta_with(&config, overrides.rounds_halves),
    };
    overrides.quantize.into_iter().for_each(|quantization| model.quantize(quantization));
    Ok((model, config))
}

/// A configuration's model on the meta device, in the dtype in which weights of the named dtype are held.
pub(crate) fn meta_of(config: &ModelConfig) -> Transformer {
    meta_with(config, false)
}

/// The dtype that a configuration names.
pub(crate) fn named_dtype(config: &ModelConfig) -> Option<&str> {
    ["dtype", "torch_dtype"].into_iter().find_map(|key| config.field(key)?.as_str())
}

fn meta_with(config: &ModelConfig, rounds_halves: bool) -> Transformer {
    let dtype = match named_dtype(config) {
        Some("float32") => Dtype::F32,
        Some("float16") if !rounds_halves => Dtype::F32,
        _ => Dtype::Bf16,
    };
    let meta = build(config, |_, shape| {
        let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
        Ok(Weight::meta(rows, cols, dtype))
    });
    meta.expect("a shape can't fail")
}

/// Builds the model from a configuration and its tensors. Where the configuration ties the head to the embedding but the
/// tensors hold a head of other numbers, the tensors count: the head is untied.
///
/// # Errors
/// A tensor that is missing or has another shape.
pub(crate) fn assemble(config: &ModelConfig, checkpoint: Checkpoint) -> Result<Transformer> {
    assemble_quantized(config, checkpoint, None)
}

/// Builds the model like [`assemble`], and quantizes the linear layers of its blocks one by one as they are read.
///
/// # Errors
/// Those of [`assemble`].
pub(super) fn assemble_quantized(
    config: &ModelConfig,
    mut checkpoint: Checkpoint,
    quantization: Option<Quantization>,
) -> Result<Transformer> {
    let names = config.layout.config.family.names;
    let [embedding, head] = [names.embedding, names.head].map(|module| format!("{module}.weight"));
    let tied = config.layout.tied && checkpoint.are_equal(&embedding, &head).unwrap_or(true);
    let layout = Layout { tied, ..config.layout.clone() };
    let layers = format!("{}.", names.blocks);
    layout::build(&layout, |name, shape| {
        // The vectors of the blocks are norms and biases.
        let own = quantization.filter(|_| shape.len() == 2 && name.starts_with(&layers));
        let weight = match own {
            // Rounding before would only lose more.
            Some(_) => checkpoint.take_as(name, shape, Halves::Widened)?,
            None => checkpoint.take(name, shape)?,
        };
        match (own, weight.is_quantized()) {
            (_, true) if name == embedding => {
                Err(checkpoint.wrong(name, "it is quantized, and embeddings are read in f32, bf16 or f16 only"))
            }
            (Some(Quantization { double_quant }), false) => Ok(weight.quantized(double_quant)),
            _ => Ok(weight),
        }
    })
}

/// Builds the model whose tensors are `take(name, shape)`.
pub(crate) fn build(config: &ModelConfig, take: impl FnMut(&str, &[usize]) -> Result<Weight>) -> Result<Transformer> {
    layout::build(&config.layout, take)
}

/// A model with random weights, to be trained from scratch.
pub fn fresh(config: &ModelConfig, seed: u64) -> Transformer {
    layout::fresh(&config.layout, seed)
}

/// Writes a whole model as a Hugging Face folder, without a tokenizer.
///
/// # Errors
/// A file that can't be written.
pub fn save(folder: &Path, model: &Transformer, config: &ModelConfig, dtype: Dtype) -> Result<()> {
    make_folder(folder)?;
    write_tensors(&folder.join("model.safetensors"), model.params.iter().map(|p| Tensor::of(p, dtype)).collect())?;
    write_whole(&folder.join("config.json"), config.to_json().as_bytes())
}
