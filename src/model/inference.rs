//! What the network computes outside training: entropies, negative log-likelihoods, logits and predictions at some rows of a
//! batch, without gradients or dropout. Training's forward and backward are `block`'s, a sampler's cache is `cached`'s.

use weft_kernels::precision::Precision;
use weft_kernels::predict::{Guidance, Prediction, RowDraw, Rule};
use weft_kernels::tensor::Tensor;

use super::batch::Batch;
use super::block::Transformer;
use super::layer::Mode;

impl Transformer {
    /// Token entropies in nats for some tokens, without gradients or dropout.
    pub fn entropy(&self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        let precision = self.config.entropy_precision;
        self.head(Mode { dropout_keys: None, precision }).entropy(&self.head_inputs(batch, rows, precision))
    }

    /// The log-probabilities in nats of `ids` at some tokens, without gradients or dropout, computed in the precision of
    /// entropies.
    pub fn log_probability(&self, batch: &Batch, rows: &[usize], ids: &[u32]) -> Vec<f32> {
        let precision = self.config.entropy_precision;
        let head = self.head(Mode { dropout_keys: None, precision });
        head.nll(&self.head_inputs(batch, rows, precision), ids).into_iter().map(|nll| -nll).collect()
    }

    /// The `nll` in nats of `ids` at some tokens, without gradients or dropout.
    pub fn nll(&self, batch: &Batch, rows: &[usize], ids: &[u32]) -> Vec<f32> {
        let mode = Mode { dropout_keys: None, precision: self.config.precision };
        self.head(mode).nll(&self.head_inputs(batch, rows, mode.precision), ids)
    }

    /// Calls `f(first row, logits [rows, V])` for each chunk of the logits at some rows.
    pub fn for_each_logits(&self, batch: &Batch, rows: &[usize], f: impl FnMut(usize, &mut [f32])) {
        self.for_each_logits_of(&self.predicting_inputs(batch, rows), f);
    }

    /// Calls `f(first row, logits [rows, V])` for each chunk of the logits of the head's inputs `[N, D]`.
    pub fn for_each_logits_of(&self, x: &Tensor, f: impl FnMut(usize, &mut [f32])) {
        self.head(Mode { dropout_keys: None, precision: self.config.precision }).for_each_chunk(x, f);
    }

    /// The head's inputs `[N, D]` at the rows that predict some tokens, without gradients or dropout.
    pub fn predicting_inputs(&self, batch: &Batch, rows: &[usize]) -> Tensor {
        self.head_inputs(batch, rows, self.config.precision)
    }

    /// Predicts a token for each row of the head's inputs `[N, D]` by `rule`; the logits stay on the device.
    pub fn predict(&self, x: &Tensor, guidance: Option<Guidance>, draws: &[RowDraw], rule: &Rule) -> Vec<Prediction> {
        let mode = Mode { dropout_keys: None, precision: self.config.precision };
        self.head(mode).predict(x, guidance, draws, rule)
    }

    /// The head's input at some rows, without gradients or dropout.
    fn head_inputs(&self, batch: &Batch, rows: &[usize], precision: Precision) -> Tensor {
        let predicting = self.predicting(batch, rows);
        let (all, wanted) = (self.all_rows(batch), self.some_rows(batch, &predicting));
        let mut x = self.embed(batch);
        for (index, block) in self.blocks.iter().enumerate() {
            x = self.layer_output(block, &x, self.span(index, &all, &wanted, precision));
        }
        self.norm(&x, self.final_norm, precision)
    }
}
