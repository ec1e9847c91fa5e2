//! The bidirectional transformer that every supported family is: parameters in one table, forward, and a
//! backward that recomputes each layer's activations. Names and configurations are the families' own business.

use std::time::Instant;

use weft_kernels::attention::{self, Qkv};
use weft_kernels::head_loss::{Head, HeadGrad};
use weft_kernels::lora_linear::{Dropout, Lora, LoraGrad};
use weft_kernels::rope::{Rope, Turn};
use weft_kernels::weight::Weight;
use weft_kernels::{embedding, linear, lora_linear, matrix, rms_norm, swiglu};

use super::batch::{Batch, Targets};

/// The index of a parameter in the model's table.
pub type ParamId = usize;

/// A named tensor.
#[derive(Clone, Debug)]
pub struct Param {
    /// The name it has on disk.
    pub name: String,
    /// The shape it has on disk: one or two sizes.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub weight: Weight,
    /// Whether a gradient is wanted.
    pub trainable: bool,
}

/// A linear layer's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `lora_a` `[R, in]` and `lora_b` `[out, R]`.
    pub lora: Option<[ParamId; 2]>,
}

/// One layer's parameters.
#[derive(Clone, Debug)]
pub struct Block {
    /// RMSNorm before attention.
    pub attn_norm: ParamId,
    /// Queries, keys, values.
    pub qkv: [Linear; 3],
    /// Attention's output projection.
    pub attn_out: Linear,
    /// RMSNorm before the MLP.
    pub ff_norm: ParamId,
    /// The MLP's gate and up projections.
    pub gate_up: [Linear; 2],
    /// The MLP's down projection.
    pub down: Linear,
}

/// The sizes and constants that change the numbers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Width.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// RoPE's base.
    pub rope_theta: f64,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// The id of the mask token.
    pub mask_token_id: u32,
    /// The adapters' scale.
    pub lora_scale: f32,
    /// The adapters' dropout in training.
    pub lora_dropout: f32,
}

/// What a backward pass gives beside the gradients.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Each target's `nll` in nats.
    pub nll: Vec<f32>,
    /// Seconds of the layers' forward, of the head, and of the layers' backward with its recomputation.
    pub seconds: [f64; 3],
}

/// A gradient for each trainable parameter of the table, `None` for a frozen one.
pub type Gradients = Vec<Option<Vec<f32>>>;

/// The network.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Sizes and constants.
    pub config: Config,
    /// Every tensor.
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

/// What is kept of a layer's forward until its backward. Attention costs more to compute again than to keep.
struct Kept {
    input: Vec<f32>,
    attended: Vec<f32>,
    lse: Vec<f32>,
}

/// What a layer's backward needs of its forward.
struct Activations {
    normed: Vec<f32>,
    qkv: [Vec<f32>; 3],
    attended: Vec<f32>,
    lse: Vec<f32>,
    middle: Vec<f32>,
    ff_normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
}

impl Transformer {
    /// Zero gradients of everything that is trained.
    pub fn zero_gradients(&self) -> Gradients {
        let zeros = |p: &Param| p.trainable.then(|| vec![0.0; p.weight.rows() * p.weight.cols()]);
        self.params.iter().map(zeros).collect()
    }

    /// Token entropies in nats at some rows, without gradients or dropout.
    pub fn entropy(&self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        self.head(None).entropy(&self.head_inputs(batch, rows))
    }

    /// The `nll` in nats of `ids` at some rows, without gradients or dropout.
    pub fn nll(&self, batch: &Batch, rows: &[usize], ids: &[u32]) -> Vec<f32> {
        self.head(None).nll(&self.head_inputs(batch, rows), ids)
    }

    /// Calls `f(first row, logits [rows, V])` for chunk after chunk of the logits at some rows.
    pub fn for_each_logits(&self, batch: &Batch, rows: &[usize], f: impl FnMut(usize, &mut [f32])) {
        self.head(None).for_each_chunk(&self.head_inputs(batch, rows), f);
    }

    /// Each target's `nll`; adds the gradient of `sum of weight * nll` to `grads`.
    pub fn loss_and_gradients(&self, batch: &Batch, targets: Targets, grads: &mut Gradients) -> Pass {
        let started = Instant::now();
        let (d, eps) = (self.config.width, self.config.rms_norm_eps);
        let rope = self.rope(batch);
        // 1. Forward, keeping each layer's input and attention.
        let mut x = self.embed(batch);
        let mut layers = Vec::with_capacity(self.blocks.len());
        for index in 0..self.blocks.len() {
            let (output, [attended, lse]) = self.layer_output(index, &x, batch, &rope);
            layers.push(Kept { input: std::mem::replace(&mut x, output), attended, lse });
        }
        // 2. The head at the target rows.
        let forward_end = started.elapsed().as_secs_f64();
        let rows = gather(&x, targets.rows, d);
        let gain = self.params[self.final_norm].weight.to_f32();
        let mut normed = vec![0.0; rows.len()];
        rms_norm::forward(&mut normed, &rows, &gain, eps);
        let keys = batch.dropout_keys.as_ref().map(|k| targets.rows.iter().map(|r| k[*r]).collect::<Vec<_>>());
        let mut dnormed = vec![0.0; rows.len()];
        let mut dweight = grads[self.head.weight].take();
        let mut dlora = self.head.lora.map(|ids| take_pair(grads, ids));
        let grad = HeadGrad { weight: dweight.as_deref_mut(), lora: dlora.as_mut().map(|[a, b]| LoraGrad { a, b }) };
        let nll = self.head(keys.as_deref()).loss(&normed, targets.ids, targets.weights, &mut dnormed, grad);
        grads[self.head.weight] = dweight;
        give_back(grads, self.head.lora, dlora);
        let mut drows = vec![0.0; rows.len()];
        rms_norm::backward(&mut drows, grads[self.final_norm].as_deref_mut(), &dnormed, &rows, &gain, eps);
        // 3. Backward, layer by layer.
        let head_end = started.elapsed().as_secs_f64();
        x.fill(0.0);
        scatter(&mut x, &drows, targets.rows, d);
        for index in (0..self.blocks.len()).rev() {
            let kept = layers.pop().expect("something was kept of each layer");
            self.layer_backward(index, &mut x, kept, batch, &rope, grads);
        }
        if let Some(dweight) = &mut grads[self.embedding] {
            embedding::backward(dweight, &batch.ids, &x);
        }
        let end = started.elapsed().as_secs_f64();
        Pass { nll, seconds: [forward_end, head_end - forward_end, end - head_end] }
    }

    fn head_inputs(&self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        let rope = self.rope(batch);
        let mut x = self.embed(batch);
        for index in 0..self.blocks.len() {
            x = self.layer_output(index, &x, batch, &rope).0;
        }
        let rows = gather(&x, rows, self.config.width);
        let mut normed = vec![0.0; rows.len()];
        rms_norm::forward(&mut normed, &rows, &self.params[self.final_norm].weight.to_f32(), self.config.rms_norm_eps);
        normed
    }

    fn embed(&self, batch: &Batch) -> Vec<f32> {
        let mut x = vec![0.0; batch.ids.len() * self.config.width];
        embedding::forward(&mut x, &batch.ids, &self.params[self.embedding].weight);
        x
    }

    fn rope(&self, batch: &Batch) -> Rope {
        Rope::new(&batch.positions, self.config.width / self.config.heads, self.config.rope_theta)
    }

    fn shape<'a>(&self, batch: &'a Batch) -> attention::Shape<'a> {
        let Config { width, heads, kv_heads, .. } = self.config;
        attention::Shape { heads, kv_heads, head_dim: width / heads, sequences: &batch.sequences }
    }

    fn norm(&self, x: &[f32], gain: ParamId) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        rms_norm::forward(&mut y, x, &self.params[gain].weight.to_f32(), self.config.rms_norm_eps);
        y
    }

    /// The activations of a layer with input `x`; attention is computed unless its output and log-sum-exp were kept.
    fn activations(
        &self,
        block: &Block,
        x: &[f32],
        batch: &Batch,
        rope: &Rope,
        kept: Option<[Vec<f32>; 2]>,
    ) -> Activations {
        let Config { heads, kv_heads, .. } = self.config;
        let keys = batch.dropout_keys.as_deref();
        let normed = self.norm(x, block.attn_norm);
        let mut qkv = block.qkv.each_ref().map(|layer| self.apply(layer, &normed, keys));
        rope.apply(&mut qkv[0], heads, Turn::Position);
        rope.apply(&mut qkv[1], kv_heads, Turn::Position);
        let [attended, lse] = kept.unwrap_or_else(|| {
            let mut attended = vec![0.0; qkv[0].len()];
            let lse = attention::forward(&mut attended, as_qkv(&qkv), &self.shape(batch));
            [attended, lse]
        });
        let mut middle = self.apply(&block.attn_out, &attended, keys);
        matrix::add(&mut middle, x);
        let ff_normed = self.norm(&middle, block.ff_norm);
        let [gate, up] = block.gate_up.each_ref().map(|layer| self.apply(layer, &ff_normed, keys));
        let mut hidden = vec![0.0; gate.len()];
        swiglu::forward(&mut hidden, &gate, &up);
        Activations { normed, qkv, attended, lse, middle, ff_normed, gate, up, hidden }
    }

    /// A layer's output, and its attention's output and log-sum-exp.
    fn layer_output(&self, index: usize, x: &[f32], batch: &Batch, rope: &Rope) -> (Vec<f32>, [Vec<f32>; 2]) {
        let block = &self.blocks[index];
        let a = self.activations(block, x, batch, rope, None);
        let mut y = self.apply(&block.down, &a.hidden, batch.dropout_keys.as_deref());
        matrix::add(&mut y, &a.middle);
        (y, [a.attended, a.lse])
    }

    /// Turns the gradient of a layer's output into that of its input, in place.
    fn layer_backward(
        &self,
        index: usize,
        dx: &mut [f32],
        kept: Kept,
        batch: &Batch,
        rope: &Rope,
        grads: &mut Gradients,
    ) {
        let Kept { input, attended, lse } = kept;
        let Config { heads, kv_heads, rms_norm_eps: eps, .. } = self.config;
        let block = &self.blocks[index];
        let keys = batch.dropout_keys.as_deref();
        let mut a = self.activations(block, &input, batch, rope, Some([attended, lse]));
        let mut dhidden = vec![0.0; a.hidden.len()];
        self.apply_backward(&block.down, &mut dhidden, dx, &a.hidden, keys, grads);
        swiglu::backward(&mut a.gate, &mut a.up, &dhidden);
        let mut dnormed = vec![0.0; a.ff_normed.len()];
        for (layer, dy) in block.gate_up.iter().zip([&a.gate, &a.up]) {
            self.apply_backward(layer, &mut dnormed, dy, &a.ff_normed, keys, grads);
        }
        let gain = self.params[block.ff_norm].weight.to_f32();
        rms_norm::backward(dx, grads[block.ff_norm].as_deref_mut(), &dnormed, &a.middle, &gain, eps);
        let mut dattended = vec![0.0; a.attended.len()];
        self.apply_backward(&block.attn_out, &mut dattended, dx, &a.attended, keys, grads);
        let mut d = attention::backward(&dattended, &a.attended, &a.lse, as_qkv(&a.qkv), &self.shape(batch));
        rope.apply(&mut d.q, heads, Turn::Inverse);
        rope.apply(&mut d.k, kv_heads, Turn::Inverse);
        dnormed.fill(0.0);
        for (layer, dy) in block.qkv.iter().zip([&d.q, &d.k, &d.v]) {
            self.apply_backward(layer, &mut dnormed, dy, &a.normed, keys, grads);
        }
        let gain = self.params[block.attn_norm].weight.to_f32();
        rms_norm::backward(dx, grads[block.attn_norm].as_deref_mut(), &dnormed, &input, &gain, eps);
    }

    fn lora<'a>(&'a self, layer: &Linear, keys: Option<&'a [u64]>) -> Option<Lora<'a>> {
        let [a, b] = layer.lora?;
        let probability = self.config.lora_dropout;
        let dropout = keys.filter(|_| probability > 0.0).map(|token_keys| Dropout {
            probability,
            token_keys,
            module: layer.weight as u32,
        });
        Some(Lora { a: &self.params[a].weight, b: &self.params[b].weight, scale: self.config.lora_scale, dropout })
    }

    fn head<'a>(&'a self, keys: Option<&'a [u64]>) -> Head<'a> {
        Head { weight: &self.params[self.head.weight].weight, lora: self.lora(&self.head, keys) }
    }

    fn apply(&self, layer: &Linear, x: &[f32], keys: Option<&[u64]>) -> Vec<f32> {
        let weight = &self.params[layer.weight].weight;
        let mut y = vec![0.0; x.len() / weight.cols() * weight.rows()];
        match self.lora(layer, keys) {
            None => linear::forward(&mut y, x, weight),
            Some(lora) => lora_linear::forward(&mut y, x, weight, &lora),
        }
        y
    }

    fn apply_backward(
        &self,
        layer: &Linear,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        keys: Option<&[u64]>,
        grads: &mut Gradients,
    ) {
        let weight = &self.params[layer.weight].weight;
        if let Some(dw) = &mut grads[layer.weight] {
            linear::backward_weight(dw, dy, x, x.len() / weight.cols());
        }
        match (self.lora(layer, keys), layer.lora) {
            (Some(lora), Some(ids)) => {
                let [mut a, mut b] = take_pair(grads, ids);
                let grad = LoraGrad { a: &mut a, b: &mut b };
                lora_linear::backward(Some(dx), grad, dy, x, weight, &lora);
                give_back(grads, layer.lora, Some([a, b]));
            }
            _ => linear::backward_input(dx, dy, weight),
        }
    }
}

/// Takes an adapter's two gradients out of the table, so that both can be written at once.
fn take_pair(grads: &mut Gradients, ids: [ParamId; 2]) -> [Vec<f32>; 2] {
    ids.map(|id| grads[id].take().expect("an adapter is trainable wherever gradients are asked for"))
}

fn give_back(grads: &mut Gradients, ids: Option<[ParamId; 2]>, pair: Option<[Vec<f32>; 2]>) {
    for (id, grad) in ids.into_iter().flatten().zip(pair.into_iter().flatten()) {
        grads[id] = Some(grad);
    }
}

fn as_qkv([q, k, v]: &[Vec<f32>; 3]) -> Qkv<'_> {
    Qkv { q, k, v }
}

fn gather(x: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|r| &x[r * width..(r + 1) * width]).copied().collect()
}

fn scatter(to: &mut [f32], from: &[f32], rows: &[usize], width: usize) {
    for (row, from) in rows.iter().zip(from.chunks(width)) {
        to[row * width..(row + 1) * width].copy_from_slice(from);
    }
}
