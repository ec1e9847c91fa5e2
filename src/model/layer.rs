//! One layer of the transformer: its forward, and a backward that recomputes what the forward did not save.

use std::ops::{Deref, Range};

use weft_kernels::attention::{self, Qkv, Shape, Visible};
use weft_kernels::device::Device;
use weft_kernels::lora_linear::DropoutKeys;
use weft_kernels::precision::Precision;
use weft_kernels::rope::{Rope, Rotation};
use weft_kernels::saved::Saved;
use weft_kernels::tensor::{Into, Tensor};
use weft_kernels::{rms_norm, rows, swiglu};

use super::block::{Block, Config, Gradients, Linear, ParamId, Transformer};

/// Some rows of a batch and the values that depend on them: all rows, or in the last layer those whose output is
/// needed.
pub(super) struct Rows<'a> {
    /// Their indices; `None` for all.
    pub(super) index: Option<&'a [usize]>,
    /// The range of each sequence within these rows.
    pub(super) sequences: Vec<Range<usize>>,
    /// What each row attends to; `None` for its whole sequence.
    pub(super) visible: Option<Vec<Visible>>,
    /// Cosines and sines of the rows' positions.
    pub(super) rope: Rope,
    /// Keys of the adapters' dropout.
    pub(super) dropout_keys: Option<DropoutKeys>,
}

impl Rows<'_> {
    pub(super) fn count(&self) -> usize {
        self.sequences.last().map_or(0, |s| s.end)
    }

    /// Selects these rows of a matrix that has all of them.
    pub(super) fn of<'x>(&self, x: &'x Tensor, width: usize) -> Selected<'x> {
        match self.index {
            None => Selected::All(x),
            Some(index) => Selected::Some(rows::gather(x, index, width)),
        }
    }
}

/// All rows of a matrix, or a copy of some of them.
pub(super) enum Selected<'x> {
    All(&'x Tensor),
    Some(Tensor),
}

impl Deref for Selected<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::All(x) => x,
            Self::Some(x) => x,
        }
    }
}

/// The rows a layer reads and those it writes, and the format of its matmuls' operands.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) from: &'a Rows<'a>,
    pub(super) to: &'a Rows<'a>,
    pub(super) precision: Precision,
}

/// How a linear layer processes some rows.
#[derive(Clone, Copy)]
pub(super) struct Mode<'a> {
    /// Keys of its adapter's dropout.
    pub(super) dropout_keys: Option<&'a DropoutKeys>,
    /// The format of its matmuls' operands.
    pub(super) precision: Precision,
}

impl<'a> Span<'a> {
    fn reads(self) -> Mode<'a> {
        Mode { dropout_keys: self.from.dropout_keys.as_ref(), precision: self.precision }
    }

    fn writes(self) -> Mode<'a> {
        Mode { dropout_keys: self.to.dropout_keys.as_ref(), precision: self.precision }
    }
}

/// What is saved of a layer's forward for its backward. Attention costs more to recompute than to save; the matmuls'
/// results are saved as far as memory is granted.
pub(super) struct SavedLayer {
    input: Tensor,
    attention: [Tensor; 2],
    matmuls: Option<Matmuls>,
}

/// The results of a layer's matmuls that its backward needs.
struct Matmuls {
    /// Queries and keys after RoPE, or before their norm in families that have one.
    qkv: [Saved; 3],
    middle: Tensor,
    gate_up: [Saved; 2],
}

/// What a layer's backward needs of its forward.
struct Activations {
    qkv: [Tensor; 3],
    /// Queries and keys before their norm, if they have one and backward follows.
    unnormed: Option<[Tensor; 2]>,
    /// Attention's output and log-sum-exp.
    attention: [Tensor; 2],
    middle: Tensor,
    ff_normed: Tensor,
    gate_up: [Tensor; 2],
}

/// What of a layer's activations is there already, and what is wanted beside them.
#[derive(Default)]
struct Given {
    /// Attention's output and log-sum-exp.
    attention: Option<[Tensor; 2]>,
    matmuls: Option<Matmuls>,
    /// Whether queries and keys are wanted before their norm, too.
    wants_unnormed: bool,
}

impl Transformer {
    /// A layer's output, with nothing saved for backward.
    pub(super) fn layer_output(&self, block: &Block, x: &Tensor, span: Span) -> Tensor {
        let Activations { middle, gate_up, .. } = self.activations(block, x, span, Given::default());
        self.output(block, &middle, &gate_up, span)
    }

    /// A layer's output and what is saved of it; this includes the matmuls' results if `save_matmuls`.
    pub(super) fn layer_forward(
        &self,
        block: &Block,
        x: Tensor,
        span: Span,
        save_matmuls: bool,
    ) -> (Tensor, SavedLayer) {
        let a = self.activations(block, &x, span, Given { wants_unnormed: save_matmuls, ..Given::default() });
        let Activations { qkv: [q, k, v], unnormed, attention, middle, gate_up, .. } = a;
        let output = self.output(block, &middle, &gate_up, span);
        let matmuls = save_matmuls.then(|| {
            let save = |numbers| Saved::new(numbers, span.precision);
            let of_qk = self.precision_of_saved_qk(block, span.precision);
            let [q, k] = unnormed.unwrap_or([q, k]).map(|numbers| Saved::new(numbers, of_qk));
            Matmuls { qkv: [q, k, save(v)], middle, gate_up: gate_up.map(save) }
        });
        (output, SavedLayer { input: x, attention, matmuls })
    }

    /// The bytes that a layer's matmuls save for backward, for this many rows read and written.
    pub(super) fn matmul_bytes(&self, block: &Block, [read, written]: [usize; 2], precision: Precision) -> usize {
        let outputs = |layer: &Linear| self.params[layer.weight].weight.rows();
        let ([q, k, v], [gate, up]) = (&block.qkv, &block.gate_up);
        let of_qk =
            Saved::bytes(read * outputs(k) + written * outputs(q), self.precision_of_saved_qk(block, precision));
        let numbers = read * outputs(v) + written * (outputs(gate) + outputs(up));
        of_qk + Saved::bytes(numbers, precision) + Saved::bytes(written * self.config.width, Precision::F32)
    }

    /// Bytes of all matmul results that a forward of `tokens` tokens, `predicted` of which are predicted, saves for
    /// backward.
    pub(crate) fn saved_matmul_bytes(&self, tokens: usize, predicted: usize) -> usize {
        let written = |index: usize| if index + 1 == self.blocks.len() { predicted } else { tokens };
        let of = |index| self.matmul_bytes(&self.blocks[index], [tokens, written(index)], self.config.precision);
        (self.first_saved_layer(tokens, predicted)..self.blocks.len()).map(of).sum()
    }

    /// Turns the gradient of a layer's output into that of its input if `wants_input`, and adds the parameters'
    /// gradients.
    pub(super) fn layer_backward(
        &self,
        block: &Block,
        mut dx: Tensor,
        saved: SavedLayer,
        span: Span,
        grads: &mut Gradients,
        wants_input: bool,
    ) -> Tensor {
        let Config { width, heads, kv_heads, rms_norm_eps: eps, .. } = self.config;
        let SavedLayer { input, attention, matmuls } = saved;
        let given = Given { attention: Some(attention), matmuls, wants_unnormed: true };
        let Activations { qkv, unnormed, attention: [attended, lse], middle, ff_normed, gate_up } =
            self.activations(block, &input, span, given);
        let (from, to) = (span.reads(), span.writes());
        // 1. The MLP.
        // The projection's input is needed for the gradient of a trained projection only.
        let trains_down = block.down.lora.is_some() || grads[block.down.weight].is_some();
        let hidden = if trains_down { self.hidden(&gate_up, span) } else { self.device.unset(0) };
        let [mut gate, mut up] = gate_up;
        let mut dhidden = self.device.operands(gate.len(), span.precision);
        self.apply_backward(&block.down, Some((&mut dhidden, Into::Set)), &dx, &hidden, to, grads);
        drop(hidden);
        swiglu::backward(&mut gate, &mut up, &dhidden, span.precision);
        drop(dhidden);
        let mut dnormed = self.device.unset(ff_normed.len());
        for ((layer, dy), into) in block.gate_up.iter().zip([gate, up]).zip([Into::Set, Into::Add]) {
            self.apply_backward(layer, Some((&mut dnormed, into)), &dy, &ff_normed, to, grads);
        }
        let gain = &self.params[block.ff_norm].weight;
        rms_norm::backward(&mut dx, grads[block.ff_norm].as_mut(), &dnormed, &middle, gain, eps);
        drop((middle, ff_normed, dnormed));
        // 2. Attention.
        let mut dattended = self.device.operands(attended.len(), span.precision);
        self.apply_backward(&block.attn_out, Some((&mut dattended, Into::Set)), &dx, &attended, to, grads);
        let mut d = attention::backward(&dattended, &attended, &lse, as_qkv(&qkv), &self.shape(span));
        drop((dattended, attended, qkv));
        span.to.rope.apply(&mut d.q, heads, Rotation::Inverse);
        span.from.rope.apply(&mut d.k, kv_heads, Rotation::Inverse);
        for ((gain, x), dy) in block.qk_norm.iter().flatten().zip(unnormed.iter().flatten()).zip([&mut d.q, &mut d.k]) {
            let (weight, dgain) = (&self.params[*gain].weight, grads[*gain].as_mut());
            rms_norm::backward_in_place(dy, dgain, x, weight, eps);
        }
        drop(unnormed);
        // 3. Every row contributes keys and values, but only the written rows have queries.
        let normed = self.norm(&input, block.attn_norm, span.precision);
        let mut dnormed = self.device.unset(if wants_input { normed.len() } else { 0 });
        let [q, k, v] = &block.qkv;
        fn wanted(wants: bool, dx: &mut Tensor, into: Into) -> Option<(&mut Tensor, Into)> {
            wants.then_some((dx, into))
        }
        self.apply_backward(k, wanted(wants_input, &mut dnormed, Into::Set), &d.k, &normed, from, grads);
        self.apply_backward(v, wanted(wants_input, &mut dnormed, Into::Add), &d.v, &normed, from, grads);
        let Some(index) = span.to.index else {
            self.apply_backward(q, wanted(wants_input, &mut dnormed, Into::Add), &d.q, &normed, from, grads);
            return self.norm_backward(block, dx, &dnormed, &input, grads);
        };
        let normed = span.to.of(&normed, width);
        let mut dq_normed = self.device.unset(if wants_input { normed.len() } else { 0 });
        self.apply_backward(q, wanted(wants_input, &mut dq_normed, Into::Set), &d.q, &normed, to, grads);
        let mut dx_of_all = self.device.zeros(dnormed.len());
        if wants_input {
            rows::scatter_add(&mut dnormed, index, &dq_normed, width);
            rows::scatter_add(&mut dx_of_all, index, &dx, width);
        }
        self.norm_backward(block, dx_of_all, &dnormed, &input, grads)
    }

    /// The backward of the norm before attention; the gradient is empty if the input needs none.
    fn norm_backward(
        &self,
        block: &Block,
        mut dx: Tensor,
        dnormed: &Tensor,
        x: &Tensor,
        grads: &mut Gradients,
    ) -> Tensor {
        if !dnormed.is_empty() {
            let (gain, dgain) = (&self.params[block.attn_norm].weight, grads[block.attn_norm].as_mut());
            rms_norm::backward(&mut dx, dgain, dnormed, x, gain, self.config.rms_norm_eps);
        }
        dx
    }

    /// The layer's output, from the sum after attention and the MLP's gate and up projections.
    pub(super) fn output(&self, block: &Block, middle: &Tensor, gate_up: &[Tensor; 2], span: Span) -> Tensor {
        self.apply_onto(middle, &block.down, &self.hidden(gate_up, span), span.writes())
    }

    /// The input of the MLP's down projection.
    fn hidden(&self, [gate, up]: &[Tensor; 2], span: Span) -> Tensor {
        let mut hidden = self.device.operands(gate.len(), span.precision);
        swiglu::forward(&mut hidden, gate, up, span.precision);
        hidden
    }

    /// The activations of a layer with input `x`; those that are given aren't recomputed.
    fn activations(&self, block: &Block, x: &Tensor, span: Span, given: Given) -> Activations {
        let (projected, mlp) = match given.matmuls {
            Some(Matmuls { qkv, middle, gate_up }) => (qkv.map(Saved::take), Some((middle, gate_up.map(Saved::take)))),
            None => (self.projections(block, x, span), None),
        };
        // What was saved of queries and keys without a norm is rotated already.
        let (qkv, unnormed) = match mlp.is_some() && block.qk_norm.is_none() {
            true => (projected, None),
            false => self.rotated(block, projected, span, given.wants_unnormed),
        };
        let attention = given.attention.unwrap_or_else(|| {
            let mut attended = self.device.operands(qkv[0].len(), span.precision);
            let lse = attention::forward(&mut attended, as_qkv(&qkv), &self.shape(span));
            [attended, lse]
        });
        let (middle, ff_normed, gate_up) = match mlp {
            Some((middle, gate_up)) => {
                let ff_normed = self.norm(&middle, block.ff_norm, span.precision);
                (middle, ff_normed, gate_up)
            }
            None => self.mlp_inputs(block, x, &attention[0], span),
        };
        Activations { qkv, unnormed, attention, middle, ff_normed, gate_up }
    }

    /// Queries of the written rows, and keys and values of the read rows, as attention reads them.
    pub(super) fn qkv(&self, block: &Block, x: &Tensor, span: Span) -> [Tensor; 3] {
        self.rotated(block, self.projections(block, x, span), span, false).0
    }

    /// The projections to queries of the written rows, and to keys and values of the read rows.
    fn projections(&self, block: &Block, x: &Tensor, span: Span) -> [Tensor; 3] {
        let Span { to, .. } = span;
        let normed = self.norm(x, block.attn_norm, span.precision);
        let [q, k, v] = &block.qkv;
        let q = self.apply(q, &to.of(&normed, self.config.width), span.writes());
        let [k, v] = [k, v].map(|layer| self.apply(layer, &normed, span.reads()));
        [q, k, v]
    }

    /// Applies the norm of each head, in families that have one, and RoPE to queries and keys. Also returns queries and
    /// keys before the norm, if they are wanted.
    fn rotated(
        &self,
        block: &Block,
        [q, k, v]: [Tensor; 3],
        Span { from, to, precision }: Span,
        wants_unnormed: bool,
    ) -> ([Tensor; 3], Option<[Tensor; 2]>) {
        let ([mut q, mut k], unnormed) = match block.qk_norm {
            None => ([q, k], None),
            Some([q_gain, k_gain]) => {
                let [normed_q, normed_k] = [(&q, q_gain), (&k, k_gain)].map(|(x, gain)| self.norm(x, gain, precision));
                ([normed_q, normed_k], wants_unnormed.then_some([q, k]))
            }
        };
        to.rope.apply(&mut q, self.config.heads, Rotation::Forward);
        from.rope.apply(&mut k, self.config.kv_heads, Rotation::Forward);
        ([q, k, v], unnormed)
    }

    /// The format in which queries and keys are saved for backward. A norm would carry the CPU's rounding into the numbers
    /// that attention reads, so the CPU saves those before a norm in f32. On a GPU they are in the operands' format anyway.
    fn precision_of_saved_qk(&self, block: &Block, precision: Precision) -> Precision {
        match self.device {
            Device::Cpu | Device::Meta(_) if block.qk_norm.is_some() => Precision::F32,
            _ => precision,
        }
    }

    /// The sum of a layer's input and its attention, the norm of that sum, and the MLP's gate and up projections of the
    /// norm.
    pub(super) fn mlp_inputs(
        &self,
        block: &Block,
        x: &Tensor,
        attended: &Tensor,
        span: Span,
    ) -> (Tensor, Tensor, [Tensor; 2]) {
        let middle = self.apply_onto(&span.to.of(x, self.config.width), &block.attn_out, attended, span.writes());
        let ff_normed = self.norm(&middle, block.ff_norm, span.precision);
        let gate_up = block.gate_up.each_ref().map(|layer| self.apply(layer, &ff_normed, span.writes()));
        (middle, ff_normed, gate_up)
    }

    pub(super) fn shape<'a>(&self, span: Span<'a>) -> Shape<'a> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let (sequences, queries) = (&span.from.sequences, &span.to.sequences);
        let visible = span.to.visible.as_deref();
        Shape { heads, kv_heads, head_dim, sequences, queries, visible, precision: span.precision }
    }

    pub(super) fn norm(&self, x: &Tensor, gain: ParamId, precision: Precision) -> Tensor {
        let mut y = self.device.operands(x.len(), precision);
        rms_norm::forward(&mut y, x, &self.params[gain].weight, self.config.rms_norm_eps);
        y
    }
}

fn as_qkv([q, k, v]: &[Tensor; 3]) -> Qkv<'_> {
    Qkv { q, k, v }
}
