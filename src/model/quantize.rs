//! A frozen base in 4 bits: which weights are quantized, and when. A weight is quantized while it is read from the mapped
//! file, so the whole base is never in memory in its own format. The format is `weft_kernels::nf4`'s;
//! `quantized_cache` stores the result for the next start.

use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_kernels::weight::{Encoding, Weight};

use super::block::{ParamId, Transformer};
use super::checkpoint::{assemble, assemble_quantized};
use super::config::ModelConfig;
use super::quantized_cache::QuantizedCache;
use super::weights::Checkpoint;
use crate::error::Result;

/// The 4-bit formats of a frozen base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// QLoRA's NF4 in blocks of 64.
    Nf4,
}

/// How a base is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Whether the blocks' scales are quantized to 8 bits.
    pub double_quant: bool,
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(if self.double_quant { "nf4 with double quantization" } else { "nf4" })
    }
}

impl Transformer {
    /// Quantizes the linear layers of the blocks. Embedding, head, norms and biases stay as they are, and so do layers
    /// that are quantized already.
    pub fn quantize(&mut self, quantization: Quantization) {
        for id in self.quantizable() {
            let weight = &mut self.params[id].weight;
            if !weight.is_quantized() {
                *weight = weight.quantized(quantization.double_quant);
            }
        }
    }

    /// How the linear layers of the blocks are quantized; `None` if none is.
    pub fn quantization(&self) -> Option<Quantization> {
        let double_quant = |weight: &Weight| match weight.encoding() {
            Encoding::Nf4 { is_nested, .. } => Some(is_nested),
            Encoding::Plain(_) => None,
        };
        let found = self.quantizable().into_iter().find_map(|id| double_quant(&self.params[id].weight));
        found.map(|double_quant| Quantization { double_quant })
    }

    /// The weights of the blocks' linear layers.
    pub(super) fn quantizable(&self) -> Vec<ParamId> {
        let blocks = self.blocks.iter();
        blocks
            .flat_map(|b| b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]))
            .map(|linear| linear.weight)
            .collect()
    }
}

/// Builds the quantized model of a checkpoint's folder, from the cache if it is there.
///
/// # Errors
/// Those of [`assemble`].
pub(super) fn load(
    config: &ModelConfig,
    (folder, mut checkpoint): (&Path, Checkpoint),
    quantization: Quantization,
    cache: Option<&QuantizedCache>,
) -> Result<Transformer> {
    // A checkpoint that bitsandbytes quantized can't get smaller.
    let entry = cache.filter(|_| !checkpoint.has_quantized()).and_then(|cache| cache.entry(folder, quantization));
    if let Some(kept) = entry.as_ref().and_then(|entry| entry.read())
        && checkpoint.replace(kept)
    {
        return assemble(config, checkpoint);
    }
    let model = assemble_quantized(config, checkpoint, Some(quantization))?;
    if let Some(entry) = entry {
        entry.keep(&model);
    }
    Ok(model)
}
