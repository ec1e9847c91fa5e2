//! From a family's names and sizes to the transformer: every tensor is requested by name and shape.

use weft_kernels::device::Device;
use weft_kernels::precision::Precision;
use weft_kernels::weight::Weight;

use super::block::{Block, Config, Linear, Param, ParamId, Transformer};
use super::family::{Family, Keys};
use crate::error::Result;
use crate::rng::{Draws, Stream};

/// The largest number of layers that is accepted.
const MAX_LAYERS: usize = 1 << 10;
/// The largest width, MLP size and number of heads.
const MAX_WIDTH: usize = 1 << 20;
/// The largest number of rows of an embedding.
const MAX_ROWS: usize = 1 << 24;
/// The largest number of parameters, at which any count of bytes is far below 2^64.
const MAX_PARAMS: usize = 1 << 44;

/// What config.json calls the sizes, for errors.
pub(super) struct SizeFields<'a> {
    pub keys: &'static Keys,
    pub mlp_hidden_size: &'a str,
    pub rows: &'a str,
    /// Whether the features per head have a value of their own.
    pub has_head_dim: bool,
}

/// What a configuration describes.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub layers: usize,
    pub mlp_hidden_size: usize,
    /// Rows of the embedding and the head.
    pub rows: usize,
    /// Whether the head shares the embedding's weight.
    pub tied: bool,
    pub config: Config,
}

impl Layout {
    /// Refuses sizes that no model has, heads that don't divide the width, and a mask token without a row, naming the
    /// fields as the family does. Call this before anything is allocated; afterwards products of the sizes can't
    /// overflow.
    pub(super) fn check(&self, fields: &SizeFields) -> std::result::Result<(), String> {
        let Config { width: d, heads: h, kv_heads: k, head_dim, mask_token_id: id, .. } = self.config;
        let Config { rope_theta, rms_norm_eps, .. } = self.config;
        let keys = fields.keys;
        let bounded = [
            (keys.layers, self.layers, MAX_LAYERS),
            (keys.width, d, MAX_WIDTH),
            (keys.heads, h, MAX_WIDTH),
            (keys.kv_heads, k, MAX_WIDTH),
            (fields.mlp_hidden_size, self.mlp_hidden_size, MAX_WIDTH),
            (fields.rows, self.rows, MAX_ROWS),
        ];
        if let Some((field, size, most)) = bounded.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Err(format!("{field} {size} lies outside 1 to {most}; give the model's own config.json"));
        }
        let divides = if fields.has_head_dim { true } else { d % (2 * h) == 0 };
        if !divides || h % k != 0 {
            let Keys { width, heads, kv_heads, .. } = keys;
            return Err(format!("{width} {d}, {heads} {h} and {kv_heads} {k} do not divide into even heads"));
        }
        if head_dim == 0 || head_dim % 2 != 0 || head_dim.saturating_mul(h) > MAX_WIDTH {
            let (heads, most) = (keys.heads, MAX_WIDTH / h);
            return Err(format!("head_dim {head_dim} with {heads} {h} is not an even number from 2 to {most}"));
        }
        let q = h * head_dim;
        let of_layer = 2 * d * q + 2 * d * (head_dim * k) + 3 * d * self.mlp_hidden_size;
        let params = 2 * self.rows * d + self.layers * of_layer;
        if params > MAX_PARAMS {
            let (layers, width) = (keys.layers, keys.width);
            return Err(format!(
                "{layers} {} and {width} {d} with the other sizes make {params} parameters, more than the {MAX_PARAMS} \
                 that are read; give the model's own config.json",
                self.layers
            ));
        }
        for (field, value) in [("rope_theta", rope_theta), ("rms_norm_eps", f64::from(rms_norm_eps))] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(format!("{field} = {value} is not a positive number; give the model's own config.json"));
            }
        }
        if id as usize >= self.rows {
            return Err(format!("mask_token_id {id} lies outside the vocabulary of {}; set it below", self.rows));
        }
        Ok(())
    }

    /// The constants of a network that hasn't been trained yet.
    pub(super) fn config(family: &'static Family, [width, heads]: [usize; 2], mask_token_id: u32) -> Config {
        Config {
            family,
            width,
            heads,
            kv_heads: heads,
            head_dim: width / heads.max(1),
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            mask_token_id,
            logits_shifted: family.logits_shifted,
            block_length: None,
            lora_scale: 1.0,
            lora_dropout: 0.0,
            activation_bytes: 0,
            precision: Precision::F32,
            entropy_precision: Precision::F32,
        }
    }
}

/// Names each tensor and takes it from `take(name, shape)`.
pub(crate) fn build(layout: &Layout, take: impl FnMut(&str, &[usize]) -> Result<Weight>) -> Result<Transformer> {
    let Layout { layers, mlp_hidden_size: mlp, rows, tied, config } = *layout;
    let Config { family, width: d, heads, kv_heads, head_dim, .. } = config;
    let (names, bias) = (family.names, family.qkv_bias);
    let mut table = Table { source: take, params: vec![] };
    let [q_width, kv_width] = [heads, kv_heads].map(|heads| heads * head_dim);
    let embedding = table.take(names.embedding, "weight", &[rows, d])?;
    let mut blocks = vec![];
    for i in 0..layers {
        let name = |part: &str| format!("{}.{i}.{part}", names.blocks);
        let ([q, k, v], [gate, up]) = (names.qkv, names.gate_up);
        let mut linear = |part: &str, outputs, inputs, bias| table.linear(&name(part), outputs, inputs, bias);
        let qkv = [linear(q, q_width, d, bias)?, linear(k, kv_width, d, bias)?, linear(v, kv_width, d, bias)?];
        let gate_up = [linear(gate, mlp, d, false)?, linear(up, mlp, d, false)?];
        let attn_out = linear(names.attn_out, d, q_width, false)?;
        let down = linear(names.down, d, mlp, false)?;
        let attn_norm = table.take(&name(names.attn_norm), "weight", &[d])?;
        let ff_norm = table.take(&name(names.ff_norm), "weight", &[d])?;
        let mut gain = |part: &str| table.take(&name(part), "weight", &[head_dim]);
        let [q_norm, k_norm] = names.qk_norm;
        let qk_norm = if family.qk_norm { Some([gain(q_norm)?, gain(k_norm)?]) } else { None };
        blocks.push(Block { attn_norm, qkv, qk_norm, attn_out, ff_norm, gate_up, down });
    }
    let final_norm = table.take(names.final_norm, "weight", &[d])?;
    let head = match tied {
        true => Linear { weight: embedding, bias: None, lora: None, lora_scale: None },
        false => table.linear(names.head, rows, d, false)?,
    };
    Ok(Transformer { config, device: Device::Cpu, params: table.params, embedding, blocks, final_norm, head })
}

/// A model with random weights: matrices are normal with standard deviation 0.02, divided by `sqrt(2 layers)` for those
/// that write to the residual stream; gains are 1 and biases 0; everything is trainable.
///
/// # Source
/// GPT-2's initialisation (Radford et al., 2019), which LLaDA's `init_std` 0.02 follows.
pub(super) fn fresh(layout: &Layout, seed: u64) -> Transformer {
    let residual = 1.0 / (2.0 * layout.layers as f64).sqrt();
    let names = layout.config.family.names;
    let is_residual = |name: &str| {
        let of_block = |part: &str| name.ends_with(&format!(".{part}.weight"));
        name.starts_with(names.blocks) && (of_block(names.attn_out) || of_block(names.down))
    };
    let mut index = 0;
    let draw = |name: &str, shape: &[usize]| {
        let draws = Draws::new(seed, Stream::Init, 0, index);
        index += 1;
        let deviation = 0.02 * if is_residual(name) { residual } else { 1.0 };
        Ok(match *shape {
            [rows, cols] => {
                let numbers = (0..(rows * cols) as u64).map(|i| (draws.normal(i) * deviation) as f32).collect();
                Weight::from_f32(rows, cols, numbers)
            }
            _ => {
                let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
                Weight::from_f32(1, shape[0], vec![value; shape[0]])
            }
        })
    };
    let mut model = build(layout, draw).expect("drawing cannot fail");
    model.params.iter_mut().for_each(|p| p.trainable = true);
    model
}

/// The parameter table while it is being filled.
struct Table<F> {
    source: F,
    params: Vec<Param>,
}

impl<F: FnMut(&str, &[usize]) -> Result<Weight>> Table<F> {
    fn take(&mut self, module: &str, part: &str, shape: &[usize]) -> Result<ParamId> {
        let name = format!("{module}.{part}");
        let weight = (self.source)(&name, shape)?;
        self.params.push(Param { name, shape: shape.to_vec(), weight, trainable: false });
        Ok(self.params.len() - 1)
    }

    fn linear(&mut self, module: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.take(module, "weight", &[outputs, inputs])?;
        let bias = bias.then(|| self.take(module, "bias", &[outputs])).transpose()?;
        Ok(Linear { weight, bias, lora: None, lora_scale: None })
    }
}
