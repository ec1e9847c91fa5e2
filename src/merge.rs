//! A base and its adapter as one checkpoint: each `scale B A` is added to its weight, and every weight keeps its dtype.
//! Weights in 4 bits are dequantized.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs;
use std::path::Path;

use weft_kernels::lora_linear::{Lora, merged};
use weft_kernels::weight::Weight;

use crate::base::Base;
use crate::error::{Error, Result};
use crate::files::{write_folder_whole, write_whole};
use crate::model::block::Transformer;
use crate::model::halves::are_in_range;
use crate::model::weights::{Checkpoint, Format, Held, Tensor, write_tensors};

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
/// A folder that isn't empty; a file that can't be read or written; a sum that is too large for the base's f16.
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
        let is_beyond = Cell::new(false);
        let tensors = tensors(&base.model, &checkpoint, (head.as_deref(), &is_beyond));
        write_tensors(&partial.join("model.safetensors"), tensors)?;
        if is_beyond.get() {
            let reason = "the merged weights have numbers beyond 65504, the largest of F16, in which the base is stored; \
                          save the base in bf16 first (torch_dtype=torch.bfloat16), or keep the adapter apart";
            return Err(Error::Usage(format!("{}: {reason}", base.name)));
        }
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
/// `is_beyond` is set if a number is too large for f16.
fn tensors<'a>(
    model: &'a Transformer,
    checkpoint: &'a Checkpoint,
    (head, is_beyond): (Option<&'a str>, &'a Cell<bool>),
) -> Vec<Tensor<'a>> {
    let (stored, embedding) = (checkpoint.tensors(), &model.params[model.embedding]);
    let layer_of = |name: &str| {
        let is_its = |weight: usize| model.params[weight].name == *name;
        model.linears().find(|layer| is_its(layer.weight)).filter(|_| name != embedding.name)
    };
    let kept = stored.iter().filter(|(name, ..)| Some(*name) != head);
    let mut tensors: Vec<Tensor> = kept
        .map(|&(name, shape, held)| {
            let layer = layer_of(name);
            let lora = layer.and_then(|layer| model.adapter(layer));
            // If the weight was quantized when it was loaded, this is the dequantized one that the network computes with.
            let own = layer.map(|layer| &model.params[layer.weight].weight).filter(|own| own.is_quantized());
            match (own, held) {
                (own, Held::Weight(weight)) => Tensor::merged(name, shape, own.unwrap_or(weight), lora, weight.dtype()),
                (Some(own), _) => of_half((name, shape), || Cow::Borrowed(own), lora, is_beyond),
                (None, half) => of_half((name, shape), || half.to_weight(), lora, is_beyond),
            }
        })
        .collect();
    if let Some(head) = head {
        let stored = stored.iter().find(|(name, ..)| *name == embedding.name);
        let lora = model.adapter(&model.head);
        tensors.push(match stored {
            Some(&(_, shape, half @ Held::Half { .. })) => of_half((head, shape), || half.to_weight(), lora, is_beyond),
            Some((_, _, held)) => Tensor::merged(head, &embedding.shape, &embedding.weight, lora, held.format()),
            None => Tensor::merged(head, &embedding.shape, &embedding.weight, lora, Format::F32),
        });
    }
    tensors
}

/// An f16 tensor, merged with its adapter if it has one.
fn of_half<'a>(
    (name, shape): (&'a str, &[usize]),
    half: impl Fn() -> Cow<'a, Weight> + 'a,
    lora: Option<Lora<'a>>,
    is_beyond: &'a Cell<bool>,
) -> Tensor<'a> {
    let make = move || {
        let weight = half();
        let numbers = match &lora {
            Some(lora) => merged(&weight, lora),
            None => weight.to_f32().into_owned(),
        };
        is_beyond.set(is_beyond.get() || !are_in_range(&numbers));
        Cow::Owned(numbers)
    };
    Tensor::made(name.into(), shape, Format::F16, Box::new(make))
}
