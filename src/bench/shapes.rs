//! The models that steps are measured on: named shapes with random weights, or a checkpoint.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::{Dtype, View};
use weft_kernels::cuda::Gpu;
use weft_kernels::precision::Precision;
use weft_kernels::weight::{Weight, to_bf16_bytes};

use super::Plan;
use crate::device;
use crate::error::{Error, Result};
use crate::files::{make_folder, write_whole};
use crate::machine::available_bytes;
use crate::model::block::Transformer;
use crate::model::checkpoint;
use crate::model::config::ModelConfig;
use crate::model::lora::{self, LoraConfig};
use crate::model::new_config::{LLADA_8B, Sizes, new_llada, qwen3_0_6b};
use crate::plan::Stored;
use crate::train::optimizer::train_everything;

/// The standard deviation of random weights.
const DEVIATION: f32 = 0.02;
/// How many numbers one task draws.
const CHUNK: usize = 1 << 20;

/// A named shape, and the LoRA rank that it is measured with.
struct Shape {
    name: &'static str,
    config: fn() -> ModelConfig,
    lora_rank: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "P", config: || llada(P), lora_rank: 32 },
    Shape { name: "qwen3-0.6b", config: qwen3_0_6b, lora_rank: 32 },
    Shape { name: "llada-8b", config: || llada(LLADA_8B), lora_rank: 128 },
];

/// The sizes of shape P.
const P: Sizes = Sizes {
    width: 512,
    layers: 8,
    heads: 8,
    mlp_hidden_size: 1536,
    vocab_size: 32_000,
    max_seq_len: 512,
    mask_token_id: 31_999,
    eos_token_id: 31_998,
};

fn llada(sizes: Sizes) -> ModelConfig {
    new_llada(sizes).expect("the shapes above are models")
}

/// A plan's model with its trainable parameters, and where its weights are.
pub(super) fn model(plan: &Plan) -> Result<(Transformer, Stored)> {
    let named = SHAPES.iter().find(|shape| shape.name == plan.shape);
    let stored = if named.is_some() && plan.precision != Precision::Bf16 { Stored::Owned } else { Stored::Mapped };
    let mut model = match named {
        Some(shape) if let (Precision::Bf16, Some(gpu)) = (plan.precision, device::gpu()) => on_gpu(shape, &gpu)?,
        Some(shape) if plan.precision == Precision::Bf16 => {
            // The weights go through a file, as a checkpoint's do; the mapping stays readable after the file is gone.
            let folder = Scratch::new()?;
            write_random(&folder.0, &(shape.config)())?;
            checkpoint::load(&folder.0)?
        }
        Some(shape) => {
            let config = (shape.config)();
            let needed = 2 * tensors(&config)?.iter().map(|(_, tensor)| tensor.data_len() as u64).sum::<u64>();
            if let Some(free) = available_bytes().filter(|free| needed > *free) {
                let [needed, free] = [needed, free].map(|bytes| bytes as f64 / 1e9);
                return Err(Error::Usage(format!(
                    "--shape {}: its f32 weights take {needed:.0} GB, and {free:.0} GB are free; use --dtype bf16, which maps \
                     them from disk",
                    shape.name
                )));
            }
            checkpoint::fresh(&config, 1)
        }
        None if Path::new(&plan.shape).is_dir() => checkpoint::load_with(Path::new(&plan.shape), plan.overrides)?.0,
        None => {
            let shape = &plan.shape;
            return Err(Error::Usage(format!(
                "--shape {shape} is neither P, qwen3-0.6b, llada-8b nor a checkpoint's folder"
            )));
        }
    };
    model.config.precision = plan.precision;
    if let Some(quantization) = plan.overrides.quantize {
        if plan.full {
            let reason =
                "--quantize doesn't go with --trainable full, because a base in 4 bits stays frozen; leave one out";
            return Err(Error::Usage(reason.to_owned()));
        }
        model.quantize(quantization);
    }
    model.put_on(&device::current());
    model.params.iter_mut().for_each(|p| p.trainable = plan.full);
    if plan.full && device::gpu().is_some() {
        train_everything(&mut model);
    }
    if !plan.full {
        let rank = named.map_or(32, |shape| shape.lora_rank);
        let targets = ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec();
        let config = LoraConfig::new(rank, 2.0 * rank as f64, 0.0, targets, false);
        lora::attach_fresh(&mut model, &config, 1)?;
    }
    Ok((model, stored))
}

/// A named shape's model with random bf16 weights that are made on a GPU.
fn on_gpu(shape: &Shape, gpu: &Arc<Gpu>) -> Result<Transformer> {
    let mut seed = 0;
    checkpoint::build(&(shape.config)(), |_, shape| {
        seed += 1;
        Ok(match *shape {
            [rows, cols] => Weight::normal_on(gpu, rows, cols, seed, DEVIATION),
            _ => Weight::from_f32(1, shape[0], vec![1.0; shape[0]]),
        })
    })
}

/// Writes a checkpoint of random bf16 weights tensor by tensor, because it may be larger than memory.
fn write_random(folder: &Path, config: &ModelConfig) -> Result<()> {
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors(config)?, None, &path)
        .map_err(|e| Error::Write { path, source: std::io::Error::other(e.to_string()) })?;
    write_whole(&folder.join("config.json"), config.to_json().as_bytes())
}

/// The tensors of a configuration, in bf16.
fn tensors(config: &ModelConfig) -> Result<Vec<(String, Random)>> {
    let mut tensors = vec![];
    let mut note = |name: &str, shape: &[usize]| {
        tensors.push((name.to_owned(), Random { shape: shape.to_vec(), seed: tensors.len() as u64 }));
        Ok(Weight::from_f32(0, 0, vec![]))
    };
    checkpoint::build(config, &mut note)?;
    Ok(tensors)
}

/// A tensor that is drawn while it is written.
struct Random {
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0u8; self.data_len()];
        let vector = self.shape.len() == 1;
        bytes.par_chunks_mut(2 * CHUNK).enumerate().for_each(|(chunk, bytes)| {
            let first = (self.seed << 32) + (chunk * CHUNK) as u64;
            let number = |i| if vector { 1.0 } else { uniform(first + i) * DEVIATION };
            let numbers: Vec<f32> = (0..bytes.len() as u64 / 2).map(number).collect();
            bytes.copy_from_slice(&to_bf16_bytes(&numbers));
        });
        bytes.into()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// A number with mean 0 and standard deviation 1 for each index: the finalizer of SplitMix64, cheap enough for 8
/// billion.
fn uniform(index: u64) -> f32 {
    let x = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
}

/// A temporary folder that is removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
        make_folder(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that is left behind among the system's temporary files harms nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
