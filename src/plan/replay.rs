//! The buffers that the network takes, without a number in them: each function takes and gives back what its namesake in
//! `model::layer`, `model::block` and the kernels does, in the same order. `tests/plan_buffers.rs` holds both together.
//!
//! Shape letters: `N` tokens of a packed batch, `M` its rows that the last layer writes, `D` width, `F` MLP width,
//! `V` rows of the head, `R` LoRA rank.

use weft_kernels::cpu::{frozen_head, head_loss, matrix};
use weft_kernels::precision::{Kept, Precision};

use super::ledger::{Held, Ledger, Use};
use crate::model::block::{Block, Linear, ParamId, Transformer};

/// A model's outline and the pool it computes in.
pub(super) struct Replay<'a> {
    pub(super) model: &'a Transformer,
    pub(super) threads: usize,
    pub(super) ledger: Ledger,
}

/// The rows that a layer reads and those it writes, and how it computes.
#[derive(Clone, Copy)]
struct Span {
    from: usize,
    to: usize,
    is_last: bool,
    precision: Precision,
    has_dropout: bool,
}

/// What is kept of a layer until its backward.
struct KeptLayer {
    input: Held,
    attention: [Held; 2],
    products: Option<Products>,
}

struct Products {
    qkv: [Held; 3],
    middle: Held,
    gate_up: [Held; 2],
}

struct Activations {
    qkv: [Held; 3],
    attention: [Held; 2],
    middle: Held,
    ff_normed: Held,
    gate_up: [Held; 2],
}

impl Replay<'_> {
    /// Zero gradients of everything that is trained.
    pub(super) fn zero_gradients(&mut self) -> Vec<Held> {
        let params = self.model.params.iter().filter(|p| p.trainable);
        params.map(|p| self.ledger.take(Use::Gradients, p.weight.rows() * p.weight.cols())).collect()
    }

    /// Pass 1, or a held-out loss: statistics of the head at `M` rows of `N` tokens.
    pub(super) fn statistics(&mut self, tokens: usize, rows: usize, precision: Precision) {
        let normed = self.head_inputs(tokens, rows, precision);
        let [vocab, width] = self.shape(self.model.head.weight);
        let u = self.model.head.lora.map(|ids| self.project_down(rows, width, ids, precision));
        let tile = rows.min(matrix::TILE_ROWS) * matrix::BLOCK[1].min(vocab);
        let copy = self.ledger.take(Use::Head, precision.laid_out_len(rows, width));
        let tiles: Vec<Held> = (0..self.threads).map(|_| self.ledger.take(Use::Head, tile)).collect();
        self.ledger.give(tiles);
        self.ledger.give([copy]);
        self.ledger.give(u);
        self.ledger.give([normed]);
    }

    /// The sampler's logits at `M` rows of `N` tokens, chunk by chunk, beside the keys and values of so many caches.
    /// With guidance two networks have their own.
    pub(super) fn logits(&mut self, tokens: usize, rows: usize, [caches, networks]: [usize; 2]) {
        let model = self.model;
        let keys_values = model.blocks.iter().flat_map(|block| &block.qkv[1..]);
        let lens: Vec<usize> = keys_values.map(|layer| tokens * self.shape(layer.weight)[0]).collect();
        let caches = lens.repeat(caches);
        let caches: Vec<Held> = caches.into_iter().map(|len| self.ledger.take(Use::Cache, len)).collect();
        let precision = self.model.config.precision;
        let normed: Vec<Held> = (0..networks).map(|_| self.head_inputs(tokens, rows, precision)).collect();
        let [vocab, _] = self.shape(self.model.head.weight);
        let at_once = head_loss::rows_at_once(vocab).min(rows);
        let logits: Vec<Held> = (0..networks).map(|_| self.ledger.take(Use::Head, at_once * vocab)).collect();
        self.product(&self.model.head, at_once, precision);
        self.ledger.give(logits);
        self.ledger.give(normed);
        self.ledger.give(caches);
    }

    /// Forward and backward of `N` tokens, `M` of which are predicted.
    pub(super) fn loss_and_gradients(&mut self, tokens: usize, predicted: usize) {
        let model = self.model;
        let (width, last) = (model.config.width, model.blocks.len() - 1);
        let span = |index: usize| Span {
            from: tokens,
            to: if index == last { predicted } else { tokens },
            is_last: index == last,
            precision: model.config.precision,
            has_dropout: model.config.lora_dropout > 0.0,
        };
        // 1. Forward.
        let mut x = self.ledger.take(Use::Kept, tokens * width);
        let keep_from = model.first_kept_layer(tokens, predicted);
        let mut layers = vec![];
        for (index, block) in model.blocks.iter().enumerate() {
            let (output, kept) = self.layer_forward(block, x, span(index), index >= keep_from);
            x = output;
            layers.push(kept);
        }
        // 2. The head.
        let [normed, dnormed] = [(); 2].map(|()| self.ledger.take(Use::Head, predicted * width));
        self.head_loss(predicted, span(last));
        let mut dx = self.ledger.take(Use::Layer, predicted * width);
        self.ledger.give([x, normed, dnormed]);
        // 3. Backward.
        for (index, block) in model.blocks.iter().enumerate().rev() {
            let kept = layers.pop().expect("something was kept of each layer");
            let is_wanted = |id: ParamId| model.params[id].trainable;
            let wants_input = index > 0 || is_wanted(model.embedding) || is_wanted(block.attn_norm);
            dx = self.layer_backward(block, dx, kept, span(index), wants_input);
        }
        self.ledger.give([dx]);
    }

    fn head_inputs(&mut self, tokens: usize, rows: usize, precision: Precision) -> Held {
        let (model, width) = (self.model, self.model.config.width);
        let mut x = self.ledger.take(Use::Layer, tokens * width);
        for (index, block) in model.blocks.iter().enumerate() {
            let is_last = index + 1 == model.blocks.len();
            let to = if is_last { rows } else { tokens };
            let span = Span { from: tokens, to, is_last, precision, has_dropout: false };
            let Activations { qkv, attention, middle, ff_normed, gate_up } = self.activations(block, span, None, None);
            self.ledger.give(qkv);
            self.ledger.give(attention);
            self.ledger.give([ff_normed]);
            let output = self.output(block, span);
            self.ledger.give([middle]);
            self.ledger.give(gate_up);
            self.ledger.give([std::mem::replace(&mut x, output)]);
        }
        let normed = self.ledger.take(Use::Head, rows * width);
        self.ledger.give([x]);
        normed
    }

    /// A frozen head holds sums of each part of the vocabulary and a tile a thread; a trained or adapted one logits.
    fn head_loss(&mut self, rows: usize, span: Span) {
        let head = self.model.head;
        let [vocab, width] = self.shape(head.weight);
        let (is_trained, precision) = (self.model.params[head.weight].trainable, span.precision);
        if !is_trained && head.lora.is_none() {
            let at_once = frozen_head::rows_at_once(width).min(rows);
            let copy = self.ledger.take(Use::Head, precision.laid_out_len(at_once, width));
            let tile = at_once * matrix::BLOCK[1].min(vocab);
            let sums: Vec<Held> =
                (0..frozen_head::PARTS).map(|_| self.ledger.take(Use::Head, at_once * width)).collect();
            let tiles: Vec<Held> = (0..self.threads).map(|_| self.ledger.take(Use::Head, tile)).collect();
            self.ledger.give(tiles);
            self.ledger.give(sums);
            self.ledger.give([copy]);
            return;
        }
        let at_once = head_loss::rows_at_once(vocab).min(rows);
        let logits = self.ledger.take(Use::Head, at_once * vocab);
        self.product(&head, at_once, precision);
        self.apply_backward(&head, at_once, span, true);
        self.ledger.give([logits]);
    }

    fn layer_forward(&mut self, block: &Block, input: Held, span: Span, keep_products: bool) -> (Held, KeptLayer) {
        let a = self.activations(block, span, None, None);
        let output = self.output(block, span);
        let Activations { qkv, attention, middle, ff_normed, gate_up } = a;
        let attention = attention.map(|held| self.ledger.keep(held, Use::Kept));
        let products = match keep_products {
            true => Some(Products {
                qkv: self.keep_all(self.qkv_lens(block, span), qkv, span.precision),
                middle: self.ledger.keep(middle, Use::Products),
                gate_up: self.keep_all(self.gate_up_lens(block, span), gate_up, span.precision),
            }),
            false => {
                self.ledger.give(qkv);
                self.ledger.give([middle]);
                self.ledger.give(gate_up);
                None
            }
        };
        self.ledger.give([ff_normed]);
        let output = self.ledger.keep(output, Use::Kept);
        (output, KeptLayer { input: self.ledger.keep(input, Use::Kept), attention, products })
    }

    /// Products in the format that they are kept in.
    fn keep_all<const S: usize>(&mut self, lens: [usize; S], numbers: [Held; S], precision: Precision) -> [Held; S] {
        let mut lens = lens.into_iter();
        numbers.map(|numbers| {
            let len = lens.next().expect("a length each");
            match precision {
                Precision::F32 => self.ledger.keep(numbers, Use::Products),
                Precision::Bf16 => {
                    let words = self.ledger.take(Use::Products, Kept::bytes(len, precision) / size_of::<f32>());
                    self.ledger.give([numbers]);
                    words
                }
            }
        })
    }

    /// The same as f32 again.
    fn take_all<const S: usize>(&mut self, lens: [usize; S], kept: [Held; S], precision: Precision) -> [Held; S] {
        let mut lens = lens.into_iter();
        kept.map(|words| {
            let len = lens.next().expect("a length each");
            match precision {
                Precision::F32 => self.ledger.keep(words, Use::Layer),
                Precision::Bf16 => {
                    let numbers = self.ledger.take(Use::Layer, len);
                    self.ledger.give([words]);
                    numbers
                }
            }
        })
    }

    fn layer_backward(&mut self, block: &Block, dx: Held, kept: KeptLayer, span: Span, wants_input: bool) -> Held {
        let model = self.model;
        let (width, mlp) = (model.config.width, self.shape(block.gate_up[0].weight)[0]);
        let kv_width = self.shape(block.qkv[1].weight)[0];
        let Span { from, to, is_last, .. } = span;
        let KeptLayer { input, attention, products } = kept;
        let Activations { qkv, attention: [attended, lse], middle, ff_normed, gate_up } =
            self.activations(block, span, Some(attention), products);
        // 1. The MLP.
        let trains_down = block.down.lora.is_some() || model.params[block.down.weight].trainable;
        let hidden = self.ledger.take(Use::Layer, if trains_down { to * mlp } else { 0 });
        let dhidden = self.ledger.take(Use::Layer, to * mlp);
        self.apply_backward(&block.down, to, span, true);
        self.ledger.give([hidden, dhidden]);
        let dnormed = self.ledger.take(Use::Layer, to * width);
        for (layer, dy) in block.gate_up.iter().zip(gate_up) {
            self.apply_backward(layer, to, span, true);
            self.ledger.give([dy]);
        }
        self.ledger.give([middle, ff_normed, dnormed]);
        // 2. Attention.
        let dattended = self.ledger.take(Use::Layer, to * width);
        self.apply_backward(&block.attn_out, to, span, true);
        let d = [to * width, from * kv_width, from * kv_width].map(|len| self.ledger.take(Use::Layer, len));
        self.ledger.give([dattended, attended]);
        self.ledger.give(qkv);
        // 3. Keys, values and queries.
        let normed = self.ledger.take(Use::Layer, from * width);
        let dnormed = self.ledger.take(Use::Layer, if wants_input { from * width } else { 0 });
        let [q, k, v] = &block.qkv;
        self.apply_backward(k, from, span, wants_input);
        self.apply_backward(v, from, span, wants_input);
        let dx = match is_last {
            false => {
                self.apply_backward(q, from, span, wants_input);
                dx
            }
            true => {
                let dq_normed = self.ledger.take(Use::Layer, if wants_input { to * width } else { 0 });
                self.apply_backward(q, to, span, wants_input);
                let of_all = self.ledger.take(Use::Layer, if wants_input { from * width } else { 0 });
                self.ledger.give([dq_normed, dx]);
                of_all
            }
        };
        self.ledger.give([dnormed, normed]);
        self.ledger.give(d);
        self.ledger.give([lse, input]);
        dx
    }

    fn activations(
        &mut self,
        block: &Block,
        span: Span,
        attention: Option<[Held; 2]>,
        products: Option<Products>,
    ) -> Activations {
        let (width, heads) = (self.model.config.width, self.model.config.heads);
        let (qkv, mlp) = match products {
            Some(Products { qkv, middle, gate_up }) => {
                let qkv = self.take_all(self.qkv_lens(block, span), qkv, span.precision);
                let middle = self.ledger.keep(middle, Use::Layer);
                (qkv, Some((middle, self.take_all(self.gate_up_lens(block, span), gate_up, span.precision))))
            }
            None => {
                let normed = self.ledger.take(Use::Layer, span.from * width);
                let [q, k, v] = &block.qkv;
                let q = self.apply(q, span.to, span);
                let qkv = [q, self.apply(k, span.from, span), self.apply(v, span.from, span)];
                self.ledger.give([normed]);
                (qkv, None)
            }
        };
        let attention = attention
            .unwrap_or_else(|| [span.to * width, heads * span.to].map(|len| self.ledger.take(Use::Layer, len)));
        let (middle, ff_normed, gate_up) = match mlp {
            Some((middle, gate_up)) => (middle, self.ledger.take(Use::Layer, span.to * width), gate_up),
            None => {
                let middle = self.apply(&block.attn_out, span.to, span);
                let ff_normed = self.ledger.take(Use::Layer, span.to * width);
                (middle, ff_normed, block.gate_up.each_ref().map(|layer| self.apply(layer, span.to, span)))
            }
        };
        Activations { qkv, attention, middle, ff_normed, gate_up }
    }

    fn output(&mut self, block: &Block, span: Span) -> Held {
        let hidden = self.ledger.take(Use::Layer, span.to * self.shape(block.down.weight)[1]);
        let y = self.apply(&block.down, span.to, span);
        self.ledger.give([hidden]);
        y
    }

    /// A linear layer's output.
    fn apply(&mut self, layer: &Linear, rows: usize, span: Span) -> Held {
        let y = self.ledger.take(Use::Layer, rows * self.shape(layer.weight)[0]);
        self.product(layer, rows, span.precision);
        y
    }

    /// What a linear layer takes beside its output.
    fn product(&mut self, layer: &Linear, rows: usize, precision: Precision) {
        let inputs = self.shape(layer.weight)[1];
        match layer.lora {
            None => self.lay_out(&[[rows, inputs]], precision),
            Some(ids) => {
                let u = self.project_down(rows, inputs, ids, precision);
                self.lay_out(&[[rows, inputs], [rows, self.shape(ids[0])[0]]], precision);
                self.ledger.give([u]);
            }
        }
    }

    fn project_down(&mut self, rows: usize, inputs: usize, [a, _]: [ParamId; 2], precision: Precision) -> Held {
        let u = self.ledger.take(Use::Layer, rows * self.shape(a)[0]);
        self.lay_out(&[[rows, inputs]], precision);
        u
    }

    fn apply_backward(&mut self, layer: &Linear, rows: usize, span: Span, wants_input: bool) {
        let ([outputs, inputs], precision) = (self.shape(layer.weight), span.precision);
        if self.model.params[layer.weight].trainable {
            self.lay_out(&[[outputs, rows]], precision);
        }
        let Some(ids) = layer.lora else {
            if wants_input {
                self.lay_out(&[[rows, outputs]], precision);
            }
            return;
        };
        let rank = self.shape(ids[0])[0];
        let u = self.project_down(rows, inputs, ids, precision);
        self.lay_out(&[[outputs, rows]], precision);
        let du = self.ledger.take(Use::Layer, rows * rank);
        self.lay_out(&[[rows, outputs]], precision);
        self.lay_out(&[[rank, rows]], precision);
        match (wants_input, span.has_dropout) {
            (false, _) => {}
            (true, false) => self.lay_out(&[[rows, outputs], [rows, rank]], precision),
            (true, true) => {
                self.lay_out(&[[rows, outputs]], precision);
                let through = self.ledger.take(Use::Layer, rows * inputs);
                self.lay_out(&[[rows, rank]], precision);
                self.ledger.give([through]);
            }
        }
        self.ledger.give([du, u]);
    }

    /// Copies of left factors `[M, inner]` for the time of one product.
    fn lay_out(&mut self, factors: &[[usize; 2]], precision: Precision) {
        let copy = |&[rows, inner]: &[usize; 2]| self.ledger.take(Use::Layer, precision.laid_out_len(rows, inner));
        let copies: Vec<Held> = factors.iter().map(copy).collect();
        self.ledger.give(copies);
    }

    /// Numbers of queries, keys and values: keys and values are of every row, the rest of those that are written.
    fn qkv_lens(&self, block: &Block, span: Span) -> [usize; 3] {
        let [q, k, v] = block.qkv.each_ref().map(|layer| self.shape(layer.weight)[0]);
        [span.to * q, span.from * k, span.from * v]
    }

    /// Numbers of gate and up.
    fn gate_up_lens(&self, block: &Block, span: Span) -> [usize; 2] {
        block.gate_up.each_ref().map(|layer| span.to * self.shape(layer.weight)[0])
    }

    /// `[out, in]`.
    fn shape(&self, id: ParamId) -> [usize; 2] {
        let weight = &self.model.params[id].weight;
        [weight.rows(), weight.cols()]
    }
}
