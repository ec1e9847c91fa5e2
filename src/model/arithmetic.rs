//! What a step computes, in multiply-adds: from these its time on any machine is estimated.

use super::block::{Block, Transformer};

/// The size of a step's work.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Tokens, prompts included.
    pub tokens: f64,
    /// The sum of the sequences' squared lengths.
    pub squares: f64,
    /// Tokens of the answers, whose rows pass through the head in pass 1.
    pub answers: f64,
    /// Masked tokens, whose rows pass through the head in pass 2.
    pub masked: f64,
}

/// Multiply-adds of one forward by part. A backward to the inputs costs as much as the forward, and one to the weights
/// costs the same again; attention's backward costs twice its forward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MultiplyAdds {
    /// The layers' matrices: `tokens * weights`.
    pub matrices: f64,
    /// Attention's scores and weighted sums: `2 * layers * heads * head_dim * sum of L^2`.
    pub attention: f64,
    /// The head at the answers' rows: `answers * V * D`.
    pub head_of_answers: f64,
    /// The head at the masked rows.
    pub head_of_masked: f64,
}

impl MultiplyAdds {
    /// The multiply-adds of one forward over `work`.
    pub fn of(model: &Transformer, work: Work) -> Self {
        let [matrices, head] = matmuls(model).map(|n| n as f64);
        Self {
            matrices: work.tokens * matrices,
            attention: 2.0 * (model.blocks.len() * model.config.heads * model.config.head_dim) as f64 * work.squares,
            head_of_answers: work.answers * head,
            head_of_masked: work.masked * head,
        }
    }
}

/// The numbers of weights in the layers' matrices and in the head.
fn matmuls(model: &Transformer) -> [usize; 2] {
    let of = |id: usize| model.params[id].weight.rows() * model.params[id].weight.cols();
    let block = |b: &Block| {
        b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]).map(|l| of(l.weight)).sum::<usize>()
    };
    [model.blocks.iter().map(block).sum(), of(model.head.weight)]
}
