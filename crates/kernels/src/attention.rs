//! Bidirectional attention over packed sequences with grouped-query heads: forward and backward. The queries may belong
//! to only some of a sequence's tokens (`M` rows), where the other tokens' outputs are not needed. The `[L, L]` scores
//! of all heads never exist at once; backward recomputes the scores from the saved log-sum-exp.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::cpu;
use crate::cuda;
use crate::precision::Precision;
use crate::tensor::Tensor;

/// The shape of an attention layer over one packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Each sequence's tokens. The sequences cover the batch in order, and attention never crosses their borders.
    pub sequences: &'a [Range<usize>],
    /// Each sequence's rows among the queries: equal to `sequences` where every token is a query.
    pub queries: &'a [Range<usize>],
    /// Precision of the matmuls.
    pub precision: Precision,
}

/// Queries, keys and values after RoPE: `q` `[M, H * head_dim]`, `k` and `v` `[N, K * head_dim]`.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

/// Gradients of queries, keys and values, with the same shapes as their tensors.
pub struct QkvGrad {
    /// Gradient of the queries.
    pub q: Tensor,
    /// Gradient of the keys.
    pub k: Tensor,
    /// Gradient of the values.
    pub v: Tensor,
}

impl Shape<'_> {
    /// The number of query rows.
    pub(crate) fn rows(&self) -> usize {
        self.queries.last().map_or(0, |s| s.end)
    }

    /// The factor that the scores are multiplied by.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Computes `out = softmax(q k^T / sqrt(head_dim)) v` and returns each query's log-sum-exp `[H, M]` for backward.
///
/// # Shapes
/// `out` `[M, H * head_dim]`.
pub fn forward(out: &mut Tensor, qkv: Qkv, shape: &Shape) -> Tensor {
    match out {
        Tensor::Host(out) => {
            let qkv = cpu::attention::Qkv { q: qkv.q.host(), k: qkv.k.host(), v: qkv.v.host() };
            Tensor::Host(cpu::attention::forward(out, qkv, shape))
        }
        Tensor::Gpu(out) => Tensor::Gpu(cuda::attention::forward(out, [qkv.q, qkv.k, qkv.v].map(Tensor::array), shape)),
    }
}

/// Computes the gradients of queries, keys and values from the output, its gradient and the saved log-sum-exp.
pub fn backward(dout: &Tensor, out: &Tensor, lse: &Tensor, qkv: Qkv, shape: &Shape) -> QkvGrad {
    match dout {
        Tensor::Host(dout) => {
            let host = cpu::attention::Qkv { q: qkv.q.host(), k: qkv.k.host(), v: qkv.v.host() };
            let [q, k, v]: [Buffer; 3] = cpu::attention::backward(dout, out.host(), lse.host(), host, shape);
            QkvGrad { q: Tensor::Host(q), k: Tensor::Host(k), v: Tensor::Host(v) }
        }
        Tensor::Gpu(dout) => {
            let qkv = [qkv.q, qkv.k, qkv.v].map(Tensor::array);
            let [q, k, v] = cuda::attention::backward(dout, out.array(), lse.array(), qkv, shape).map(Tensor::Gpu);
            QkvGrad { q, k, v }
        }
    }
}
