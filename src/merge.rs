//! A base and its adapter as one checkpoint: each `scale B A` is added to its weight, and every weight keeps its dtype.
//! Weights in 4 bits are dequantised.

use std::fs;
use std::path::Path;

use weft_kernels::weight::Dtype;

use crate::base::Base;
use crate::error::{Error, Result};
use crate::files::{write_folder_whole, write_whole};
use crate::model::block::Transformer;
use crate::model::weights::{Checkpoint, Tensor, write_tensors};

/// Refuses a folder that isn't empty, before any work is done.
///
/// # Errors
/// A folder that isn't empty, with what to do about it.
pub fn check_out(out: &Path) -> Result<()> {
    let is_free = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !out.exists(),
    };
    match is_free {
        true => Ok(()),
        false => Err(Error::Usage(format!("{} is not empty; name a new folder", out.display()))),
    }
}

/// Writes the base's checkpoint with its adapter merged: `model.safetensors` with every tensor of the base, and the
/// files beside it unchanged. The folder appears under its name complete or not at all.
///
/// # Errors
/// A folder that isn't empty; a file that can't be read or written.
pub fn write(base: &Base, out: &Path) -> Result<()> {
    check_out(out)?;
    let checkpoint = base.checkpoint()?;
    write_folder_whole(out, |partial| {
        for (name, bytes) in base.companions()? {
            write_whole(&partial.join(name), &bytes)?;
        }
        let head = untied_head(&base.model);
        let config = base.config_json(None, base.model.has_tied_head() && head.is_none())?;
        write_whole(&partial.join("config.json"), config.as_bytes())?;
        let tensors = tensors(&base.model, &checkpoint, head.as_deref());
        write_tensors(&partial.join("model.safetensors"), tensors)?;
        // Another process may have written to the folder in the meantime.
        check_out(out)
    })
}

/// The name of a head that shared the embedding's weight and differs from it once its adapter is merged.
fn untied_head(model: &Transformer) -> Option<String> {
    let is_untied = model.has_tied_head() && model.head.lora.is_some();
    is_untied.then(|| format!("{}.weight", model.config.family.names.head))
}

/// Every tensor of the base's checkpoint, including those that the network doesn't read, with the adapter merged; and
/// the head if it is no longer tied.
fn tensors<'a>(model: &'a Transformer, checkpoint: &'a Checkpoint, head: Option<&'a str>) -> Vec<Tensor<'a>> {
    let (stored, embedding) = (checkpoint.tensors(), &model.params[model.embedding]);
    let layer_of = |name: &str| {
        let is_its = |weight: usize| model.params[weight].name == *name;
        model.linears().find(|layer| is_its(layer.weight)).filter(|_| name != embedding.name)
    };
    let kept = stored.iter().filter(|(name, ..)| Some(*name) != head);
    let mut tensors: Vec<Tensor> = kept
        .map(|&(name, shape, weight)| {
            let layer = layer_of(name);
            let lora = layer.and_then(|layer| model.adapter(layer));
            // The weight that the network computes with, if it was quantised on the way from its file.
            let own = layer.map(|layer| &model.params[layer.weight].weight).filter(|own| own.is_quantized());
            let weight = own.unwrap_or(weight);
            Tensor::merged(name, shape, weight, lora, weight.dtype())
        })
        .collect();
    if let Some(head) = head {
        let stored = stored.iter().find(|(name, ..)| *name == embedding.name);
        let dtype = stored.map_or(Dtype::F32, |(_, _, weight)| weight.dtype());
        tensors.push(Tensor::merged(head, &embedding.shape, &embedding.weight, model.adapter(&model.head), dtype));
    }
    tensors
}
