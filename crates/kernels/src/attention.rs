//! Attention over packed sequences with grouped-query heads: forward and backward. A query attends to its whole sequence
//! or, by a visibility rule, to two ranges of it; tiles of scores that nobody sees are skipped, and there is no mask of
//! `[L, L]`. The queries may belong to only some of a sequence's tokens (`M` rows), where the other tokens' outputs are
//! not needed. The `[L, L]` scores of all heads never exist at once; backward recomputes the scores from the saved
//! log-sum-exp.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

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
    /// The keys that each query row attends to `[M]`; `None` for its whole sequence.
    pub visible: Option<&'a [Visible]>,
    /// Precision of the matmuls.
    pub precision: Precision,
}

/// The keys that a query attends to: the rows of two ranges `[start, end)` of its sequence, the first of which ends where
/// the second starts or before. Either may be empty, but not both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Visible {
    /// The two ranges.
    pub ranges: [[u32; 2]; 2],
}

impl Visible {
    /// Two ranges of rows in either order.
    pub fn new(a: Range<usize>, b: Range<usize>) -> Self {
        let [first, second] = if a.start <= b.start { [a, b] } else { [b, a] };
        assert!(first.is_empty() || second.is_empty() || first.end <= second.start, "ranges that don't overlap");
        Self { ranges: [first, second].map(|range| [range.start as u32, range.end as u32]) }
    }

    /// The rows of `rows` that aren't seen, as up to three ranges, some of which may be empty.
    pub(crate) fn hidden(&self, rows: &Range<usize>) -> [Range<usize>; 3] {
        let [[a, b], [c, d]] = self.ranges.map(|range| range.map(|row| row as usize));
        let (a, b) = if a < b { (a, b) } else { (rows.start, rows.start) };
        let (c, d) = if c < d { (c, d) } else { (rows.end, rows.end) };
        let within = |row: usize| row.clamp(rows.start, rows.end);
        [rows.start..within(a), within(b)..within(c).max(within(b)), within(d)..rows.end]
    }
}

/// The chunks of `size` rows of a sequence, by index, that hold a key which some of the queries see.
pub(crate) fn seen_chunks(sequence: &Range<usize>, size: usize, queries: &[Visible]) -> Vec<usize> {
    // The number of ranges that begin in a chunk, less those that ended before it.
    let mut changes = vec![0i32; sequence.len().div_ceil(size) + 1];
    for [start, end] in queries.iter().flat_map(|query| query.ranges).filter(|[start, end]| start < end) {
        changes[(start as usize - sequence.start) / size] += 1;
        changes[(end as usize - sequence.start).div_ceil(size)] -= 1;
    }
    let mut open = 0;
    let is_seen = changes.iter().map(|change| {
        open += change;
        open > 0
    });
    is_seen.enumerate().filter(|(_, is_seen)| *is_seen).map(|(chunk, _)| chunk).collect()
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

    /// The keys of a sequence that some of its queries see, in chunks of `size` rows counted from the sequence's start;
    /// neighbouring chunks form one range.
    pub(crate) fn seen(&self, sequence: &Range<usize>, queries: &Range<usize>, size: usize) -> Vec<Range<usize>> {
        let Some(visible) = self.visible else { return vec![sequence.clone()] };
        let mut ranges: Vec<Range<usize>> = vec![];
        for chunk in seen_chunks(sequence, size, &visible[queries.clone()]) {
            let start = sequence.start + chunk * size;
            let end = (start + size).min(sequence.end);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
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
