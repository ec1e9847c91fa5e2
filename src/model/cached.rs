//! A forward that computes only some rows of a batch and takes the keys and values of the others from earlier forwards.
//! The sampler decides when these are stored and how stale they may get.

use weft_kernels::attention::{self, Qkv, Shape};
use weft_kernels::rows;
use weft_kernels::tensor::Tensor;

use super::batch::Batch;
use super::block::{Block, Linear, Transformer};

/// Keys (with RoPE applied) and values of every row of a batch, for each layer, in f32.
#[derive(Debug)]
pub struct KeysValues {
    layers: Vec<[Tensor; 2]>,
}

impl KeysValues {
    /// Allocates room for a batch's keys and values; a sequence's first forward must compute all of its rows.
    pub fn new(model: &Transformer, batch: &Batch) -> Self {
        let features = |of: &Linear| model.params[of.weight].weight.rows();
        let room = |block: &Block| {
            let [_, k, v] = &block.qkv;
            [k, v].map(|of| model.device.zero_operands(batch.ids.len() * features(of), model.config.precision))
        };
        Self { layers: model.blocks.iter().map(room).collect() }
    }
}

/// What a forward with [`KeysValues`] computes.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The rows that are computed, ascending.
    pub computed: &'a [usize],
    /// The tokens that are predicted, ascending; the rows that predict them must be among the computed ones.
    pub predicted: &'a [usize],
}

impl Transformer {
    /// The head's inputs `[N, D]` at the rows that predict some tokens. Only the computed rows pass through the
    /// network. Their keys and values replace those in `cache`, and they attend to all rows of their sequence. If no
    /// other row's keys and values would have changed, the result equals that of [`Transformer::predicting_inputs`].
    ///
    /// # Source
    /// Fast-dLLM, arXiv 2505.22618, section 3.
    pub fn predicting_inputs_cached(&self, batch: &Batch, cache: &mut KeysValues, part: Part) -> Tensor {
        let precision = self.config.precision;
        let within = |row: &usize| part.computed.binary_search(row).expect("a row that predicts is computed");
        let predicting: Vec<usize> = self.predicting(batch, part.predicted).iter().map(within).collect();
        let small = batch.part(part.computed);
        let (mut all, mut wanted) = (self.all_rows(&small), self.some_rows(&small, &predicting));
        all.visible = batch.visible(part.computed.iter().copied());
        wanted.visible = batch.visible(predicting.iter().map(|row| part.computed[*row]));
        let mut x = self.embed(&small);
        for (index, (block, [keys, values])) in self.blocks.iter().zip(&mut cache.layers).enumerate() {
            let span = self.span(index, &all, &wanted, precision);
            let [q, k, v] = self.qkv(block, &x, span);
            for (kept, fresh) in [(&mut *keys, &k), (&mut *values, &v)] {
                rows::replace(kept, part.computed, fresh, fresh.len() / part.computed.len().max(1));
            }
            let mut attended = self.device.operands(q.len(), precision);
            let shape = Shape { sequences: &batch.sequences, ..self.shape(span) };
            attention::forward(&mut attended, Qkv { q: &q, k: keys, v: values }, &shape);
            let (middle, _, gate_up) = self.mlp_inputs(block, &x, &attended, span);
            x = self.output(block, &middle, &gate_up, span);
        }
        self.norm(&x, self.final_norm, precision)
    }
}
