//! The bidirectional transformer that all supported families share: one table of parameters, the forward through the
//! layers, and the backward. Names and configurations belong to the families.

use std::borrow::Cow;

use weft_kernels::device::Device;
use weft_kernels::head_loss::{Head, HeadGrad};
use weft_kernels::lora_linear::{Dropout, Lora, LoraGrad};
use weft_kernels::precision::Precision;
use weft_kernels::rope::Rope;
use weft_kernels::tensor::{Into, Tensor};
use weft_kernels::weight::Weight;
use weft_kernels::{embedding, linear, lora_linear, rms_norm};

use super::batch::{Batch, Targets};
use super::family::Family;
use super::layer::{Mode, Rows, Span};

/// The index of a parameter in the model's table.
pub type ParamId = usize;

/// A named tensor.
#[derive(Clone, Debug)]
pub struct Param {
    /// The tensor's name on disk.
    pub name: String,
    /// The tensor's shape on disk: one or two sizes.
    pub shape: Vec<usize>,
    /// The tensor's numbers.
    pub weight: Weight,
    /// Whether it is trained and so has a gradient.
    pub trainable: bool,
}

impl Param {
    /// Whether the parameter belongs to an adapter rather than to the base.
    pub fn is_adapters(&self) -> bool {
        self.name.starts_with("base_model.")
    }
}

/// A linear layer's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// `lora_a` `[R, in]` and `lora_b` `[out, R]`.
    pub lora: Option<[ParamId; 2]>,
    /// The scale of this layer's adapter where it isn't [`Config::lora_scale`].
    pub lora_scale: Option<f32>,
}

/// One layer's parameters.
#[derive(Clone, Debug)]
pub struct Block {
    /// RMSNorm before attention.
    pub attn_norm: ParamId,
    /// Queries, keys, values.
    pub qkv: [Linear; 3],
    /// RMSNorm of each head of queries and of keys, in families that have it.
    pub qk_norm: Option<[ParamId; 2]>,
    /// Attention's output projection.
    pub attn_out: Linear,
    /// RMSNorm before the MLP.
    pub ff_norm: ParamId,
    /// The MLP's gate and up projections.
    pub gate_up: [Linear; 2],
    /// The MLP's down projection.
    pub down: Linear,
}

/// The sizes and constants on which the results depend.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The family of the checkpoint.
    pub family: &'static Family,
    /// Width.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// RoPE's base.
    pub rope_theta: f64,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// The id of the mask token.
    pub mask_token_id: u32,
    /// Whether the logits that predict position i sit at position i-1. The logits of position 0 then predict both 0 and
    /// 1.
    pub logits_shifted: bool,
    /// Tokens per block of a model that was trained by block diffusion, where config.json says so.
    pub block_length: Option<usize>,
    /// The adapters' scale: `lora_alpha / R`, or `lora_alpha / sqrt(R)` with RSLoRA.
    pub lora_scale: f32,
    /// The adapters' dropout in training.
    pub lora_dropout: f32,
    /// Bytes for activations saved for backward beyond each layer's input and attention.
    pub activation_bytes: usize,
    /// The format of matmuls' operands.
    pub precision: Precision,
    /// The format of matmuls' operands in the pass for entropies.
    pub entropy_precision: Precision,
}

/// What a backward pass returns besides the gradients.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Each target's `nll` in nats.
    pub nll: Vec<f32>,
    /// Seconds of the layers' forward, of the head, and of the layers' backward with its recomputation.
    pub seconds: [f64; 3],
}

/// A gradient for each trainable parameter of the table, `None` for a frozen one.
pub type Gradients = Vec<Option<Tensor>>;

/// The network.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Sizes and constants.
    pub config: Config,
    /// Where its weights are and where it computes.
    pub device: Device,
    /// The table of all parameters.
    pub params: Vec<Param>,
    /// The token embedding.
    pub embedding: ParamId,
    /// The layers.
    pub blocks: Vec<Block>,
    /// RMSNorm before the head.
    pub final_norm: ParamId,
    /// The LM head.
    pub head: Linear,
}

impl Transformer {
    /// Every linear layer in a fixed order: the blocks', then the head.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.blocks.iter();
        let blocks = blocks.flat_map(|b| b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]));
        blocks.chain([&self.head])
    }

    /// Like [`Transformer::linears`], but mutable.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.blocks.iter_mut();
        let blocks =
            blocks.flat_map(|b| b.qkv.iter_mut().chain([&mut b.attn_out]).chain(&mut b.gate_up).chain([&mut b.down]));
        blocks.chain([&mut self.head])
    }

    /// A layer's adapter without dropout, as it computes outside training.
    pub fn adapter(&self, layer: &Linear) -> Option<Lora<'_>> {
        self.lora(layer, Mode { dropout_keys: None, precision: Precision::F32 })
    }

    /// Whether the head shares the embedding's weight.
    pub fn has_tied_head(&self) -> bool {
        self.head.weight == self.embedding
    }

    /// Zero gradients for every trainable parameter.
    pub fn zero_gradients(&self) -> Gradients {
        let zeros = |p: &Param| p.trainable.then(|| self.device.zeros(p.weight.rows() * p.weight.cols()));
        self.params.iter().map(zeros).collect()
    }

    /// Each target's `nll`; adds the gradient of `sum of weight * nll` to `grads`.
    pub fn loss_and_gradients(&self, batch: &Batch, targets: Targets, grads: &mut Gradients) -> Pass {
        self.loss_and_finished_gradients(batch, targets, grads, &mut |_, _| {})
    }

    /// Like [`Transformer::loss_and_gradients`], and calls `finished(bucket, grads)` once a bucket's gradients are
    /// final, if every weight is trained; the callback may take them.
    pub(crate) fn loss_and_finished_gradients(
        &self,
        batch: &Batch,
        targets: Targets,
        grads: &mut Gradients,
        finished: &mut dyn FnMut(usize, &mut Gradients),
    ) -> Pass {
        let started = self.device.mark();
        let (eps, precision) = (self.config.rms_norm_eps, self.config.precision);
        let predicting = self.predicting(batch, targets.rows);
        let (all, wanted) = (self.all_rows(batch), self.some_rows(batch, &predicting));
        // 1. Forward: save each layer's input and attention, and the matmuls of the last layers.
        let (mut x, save_from) = (self.embed(batch), self.first_saved_layer(all.count(), wanted.count()));
        let mut layers = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let span = self.span(index, &all, &wanted, precision);
            let (output, saved) = self.layer_forward(block, x, span, index >= save_from);
            x = output;
            layers.push(saved);
        }
        // 2. The head at the target rows.
        let forward_end = self.device.mark();
        let normed = self.norm(&x, self.final_norm, precision);
        let mut dnormed = self.device.unset(x.len());
        let (mut dweight, mut dlora) =
            (grads[self.head.weight].take(), self.head.lora.map(|ids| take_pair(grads, ids)));
        let grad = HeadGrad { weight: dweight.as_mut(), lora: dlora.as_mut().map(|[a, b]| LoraGrad { a, b }) };
        let head = self.head(Mode { dropout_keys: wanted.dropout_keys.as_ref(), precision });
        let nll = head.loss(&normed, targets.ids, targets.weights, &mut dnormed, grad);
        grads[self.head.weight] = dweight;
        give_back(grads, self.head.lora, dlora);
        let (mut dx, gain) = (self.device.zeros(x.len()), &self.params[self.final_norm].weight);
        rms_norm::backward(&mut dx, grads[self.final_norm].as_mut(), &dnormed, &x, gain, eps);
        drop((x, normed, dnormed));
        finished(0, grads);
        // 3. Backward, layer by layer; below the first layer only the embedding is left to train.
        let head_end = self.device.mark();
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let saved = layers.pop().expect("something was saved of each layer");
            let wants_input = index > 0 || grads[self.embedding].is_some() || grads[block.attn_norm].is_some();
            dx = self.layer_backward(block, dx, saved, self.span(index, &all, &wanted, precision), grads, wants_input);
            finished(self.bucket_of_layer(index), grads);
        }
        if let Some(dweight) = &mut grads[self.embedding] {
            embedding::backward(dweight, &batch.ids, &dx);
        }
        finished(self.blocks.len() + 1, grads);
        // This is the only place that waits for a GPU.
        let (end, nll) = (self.device.mark(), nll.to_host().into_owned());
        let seconds = [(&started, &forward_end), (&forward_end, &head_end), (&head_end, &end)];
        Pass { nll, seconds: seconds.map(|(from, to)| to.seconds_since(from)) }
    }

    /// The first of the last layers whose matmuls fit into the granted memory, for a batch of `tokens` of which
    /// `predicted` are predicted. The last layers' activations are held for the shortest time.
    pub(crate) fn first_saved_layer(&self, tokens: usize, predicted: usize) -> usize {
        let mut left = self.config.activation_bytes;
        let fits = |index: &usize| {
            let written = if index + 1 == self.blocks.len() { predicted } else { tokens };
            let bytes = self.matmul_bytes(&self.blocks[*index], [tokens, written], self.config.precision);
            left = left.saturating_sub(bytes);
            left > 0
        };
        (0..self.blocks.len()).rev().take_while(fits).last().unwrap_or(self.blocks.len())
    }

    pub(super) fn embed(&self, batch: &Batch) -> Tensor {
        let mut x = self.device.unset(batch.ids.len() * self.config.width);
        embedding::forward(&mut x, &batch.ids, &self.params[self.embedding].weight);
        x
    }

    pub(super) fn all_rows(&self, batch: &Batch) -> Rows<'static> {
        Rows {
            index: None,
            sequences: batch.sequences.clone(),
            visible: batch.visible(0..batch.ids.len()),
            rope: self.rope(&batch.positions),
            dropout_keys: batch.dropout_keys.clone().map(|keys| self.device.dropout_keys(keys)),
        }
    }

    /// The rows whose outputs predict some tokens: the tokens' own rows, or the rows before them if logits are shifted
    /// ([`Batch::row_before`]); the first row of a sequence then predicts its first token as well as the second.
    pub(super) fn predicting<'a>(&self, batch: &Batch, tokens: &'a [usize]) -> Cow<'a, [usize]> {
        assert!(tokens.is_sorted_by(|a, b| a < b), "the rows rise");
        match self.config.logits_shifted {
            false => tokens.into(),
            true => tokens.iter().map(|n| batch.row_before(*n)).collect(),
        }
    }

    /// The rows at which the last layer's output is needed, sequence after sequence; a row may occur twice.
    pub(super) fn some_rows<'a>(&self, batch: &Batch, rows: &'a [usize]) -> Rows<'a> {
        let before = |token: usize| rows.partition_point(|row| *row < token);
        let positions: Vec<u32> = rows.iter().map(|row| batch.positions[*row]).collect();
        Rows {
            index: Some(rows),
            sequences: batch.sequences.iter().map(|s| before(s.start)..before(s.end)).collect(),
            visible: batch.visible(rows.iter().copied()),
            rope: self.rope(&positions),
            dropout_keys: (batch.dropout_keys.as_ref())
                .map(|keys| self.device.dropout_keys(rows.iter().map(|row| keys[*row]).collect())),
        }
    }

    /// Only the last layer writes fewer rows than it reads.
    pub(super) fn span<'a>(
        &self,
        index: usize,
        all: &'a Rows<'a>,
        wanted: &'a Rows<'a>,
        precision: Precision,
    ) -> Span<'a> {
        Span { from: all, to: if index + 1 == self.blocks.len() { wanted } else { all }, precision }
    }

    fn rope(&self, positions: &[u32]) -> Rope {
        Rope::new(&self.device, positions, self.config.head_dim, self.config.rope_theta)
    }

    fn lora<'a>(&'a self, layer: &Linear, mode: Mode<'a>) -> Option<Lora<'a>> {
        let [a, b] = layer.lora?;
        let probability = self.config.lora_dropout;
        let dropout = mode.dropout_keys.filter(|_| probability > 0.0).map(|token_keys| Dropout {
            probability,
            token_keys: token_keys.from(0),
            module: layer.weight as u32,
        });
        let [a, b] = [a, b].map(|id| &self.params[id].weight);
        let scale = layer.lora_scale.unwrap_or(self.config.lora_scale);
        Some(Lora { a, b, scale, dropout, precision: mode.precision })
    }

    pub(super) fn head<'a>(&'a self, mode: Mode<'a>) -> Head<'a> {
        let (weight, lora) = (&self.params[self.head.weight].weight, self.lora(&self.head, mode));
        Head { weight, lora, precision: mode.precision }
    }

    /// A linear layer's output with its adapter's, in the format of matmuls' operands.
    pub(super) fn apply(&self, layer: &Linear, x: &Tensor, mode: Mode) -> Tensor {
        let weight = &self.params[layer.weight].weight;
        let mut y = self.device.operands(x.len() / weight.cols() * weight.rows(), mode.precision);
        match self.lora(layer, mode) {
            None => linear::forward(&mut y, x, weight, mode.precision),
            Some(lora) => lora_linear::forward(&mut y, x, weight, &lora),
        }
        if let Some(bias) = layer.bias {
            linear::add_bias(&mut y, &self.params[bias].weight);
        }
        y
    }

    /// The sum of `before` and the output of a linear layer without bias, in f32.
    pub(super) fn apply_onto(&self, before: &Tensor, layer: &Linear, x: &Tensor, mode: Mode) -> Tensor {
        let (weight, mut y) = (&self.params[layer.weight].weight, self.device.unset(before.len()));
        match self.lora(layer, mode) {
            None => linear::forward_onto(&mut y, x, weight, before, mode.precision),
            Some(lora) => lora_linear::forward_onto(&mut y, x, weight, &lora, before),
        }
        y
    }

    /// Returns the gradient of a linear layer's input if it is wanted, and adds the gradients of its parameters.
    pub(super) fn apply_backward(
        &self,
        layer: &Linear,
        dx: Option<(&mut Tensor, Into)>,
        dy: &Tensor,
        x: &Tensor,
        mode: Mode,
        grads: &mut Gradients,
    ) {
        let weight = &self.params[layer.weight].weight;
        if let Some(db) = layer.bias.and_then(|bias| grads[bias].as_mut()) {
            linear::backward_bias(db, dy);
        }
        if let Some(dw) = &mut grads[layer.weight] {
            linear::backward_weight(dw, dy, x, x.len() / weight.cols(), mode.precision);
        }
        match (self.lora(layer, mode), layer.lora) {
            (Some(lora), Some(ids)) => {
                let [mut a, mut b] = take_pair(grads, ids);
                let grad = LoraGrad { a: &mut a, b: &mut b };
                lora_linear::backward(dx, grad, dy, x, weight, &lora);
                give_back(grads, layer.lora, Some([a, b]));
            }
            _ => {
                if let Some((dx, into)) = dx {
                    linear::backward_input(dx, dy, weight, into, mode.precision);
                }
            }
        }
    }
}

/// Takes an adapter's two gradients out of the table so that both can be written at once.
fn take_pair(grads: &mut Gradients, ids: [ParamId; 2]) -> [Tensor; 2] {
    ids.map(|id| grads[id].take().expect("an adapter is trainable wherever gradients are asked for"))
}

fn give_back(grads: &mut Gradients, ids: Option<[ParamId; 2]>, pair: Option<[Tensor; 2]>) {
    for (id, grad) in ids.into_iter().flatten().zip(pair.into_iter().flatten()) {
        grads[id] = Some(grad);
    }
}
