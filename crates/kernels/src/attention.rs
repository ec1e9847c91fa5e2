//! Bidirectional attention over packed sequences, with grouped heads: forward and backward.
//! A task holds the scores of one head for a block of queries, never all heads' `[L, L]` at once;
//! backward recomputes them from the saved log-sum-exp.

use std::ops::Range;

use rayon::prelude::*;

use crate::exp::{self, exp, vectorised};
use crate::matrix::{self, Into, View};

/// Queries per block of scores.
const QUERY_BLOCK: usize = 128;

/// The shape of an attention layer over one packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Each sequence's tokens; they cover the batch in order, and no attention crosses them.
    pub sequences: &'a [Range<usize>],
}

/// Queries, keys and values after RoPE: `q` `[N, H * head_dim]`, `k` and `v` `[N, K * head_dim]`.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// Gradients of queries, keys and values, shaped as they are.
pub struct QkvGrad {
    /// Of the queries.
    pub q: Vec<f32>,
    /// Of the keys.
    pub k: Vec<f32>,
    /// Of the values.
    pub v: Vec<f32>,
}

impl Shape<'_> {
    fn tokens(&self) -> usize {
        self.sequences.last().map_or(0, |s| s.end)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// One task for each sequence and key/value head: its query heads' gradients meet in the same keys.
    fn tasks(&self) -> Vec<(Range<usize>, usize)> {
        self.sequences.iter().flat_map(|s| (0..self.kv_heads).map(move |k| (s.clone(), k))).collect()
    }

    fn query_heads(&self, kv_head: usize) -> Range<usize> {
        let group = self.heads / self.kv_heads;
        kv_head * group..(kv_head + 1) * group
    }

    /// Columns of one head in rows `tokens` of a `[N, heads * head_dim]` matrix.
    fn head<'x>(&self, x: &'x [f32], heads: usize, tokens: &Range<usize>, head: usize) -> View<'x> {
        let width = heads * self.head_dim;
        let rows = &x[tokens.start * width..tokens.end * width];
        View::columns(rows, tokens.len(), width, head * self.head_dim..(head + 1) * self.head_dim)
    }

    fn query_blocks(&self, tokens: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let end = tokens.end;
        tokens.clone().step_by(QUERY_BLOCK).map(move |s| s..(s + QUERY_BLOCK).min(end))
    }
}

/// `out = softmax(q k^T / sqrt(head_dim)) v`; returns each query's log-sum-exp `[H, N]` for backward.
///
/// # Shapes
/// `out` `[N, H * head_dim]`.
pub fn forward(out: &mut [f32], qkv: Qkv, shape: &Shape) -> Vec<f32> {
    let (n, dim) = (shape.tokens(), shape.head_dim);
    let blocks: Vec<(Range<usize>, Range<usize>, usize)> = shape
        .sequences
        .iter()
        .flat_map(|s| shape.query_blocks(s).map(move |block| (s.clone(), block)))
        .flat_map(|(s, block)| (0..shape.heads).map(move |h| (s.clone(), block.clone(), h)))
        .collect();
    let results: Vec<(Vec<f32>, Vec<f32>)> = blocks
        .par_iter()
        .map(|(sequence, block, head)| {
            let kv_head = head / (shape.heads / shape.kv_heads);
            let (keys, width) = (sequence.len(), block.len());
            let mut scores = vec![0.0; width * keys];
            let q = shape.head(qkv.q, shape.heads, block, *head);
            let k = shape.head(qkv.k, shape.kv_heads, sequence, kv_head);
            matrix::product(&mut scores, keys, q, k.t(), shape.scale(), Into::Set);
            let (lse, inverse): (Vec<f32>, Vec<f32>) = scores.chunks_mut(keys).map(softmax).unzip();
            let mut o = vec![0.0; width * dim];
            let v = shape.head(qkv.v, shape.kv_heads, sequence, kv_head);
            matrix::product(&mut o, dim, View::new(&scores, width, keys), v, 1.0, Into::Set);
            // Dividing the outputs is less work than dividing the scores.
            for (row, inverse) in o.chunks_mut(dim).zip(inverse) {
                row.iter_mut().for_each(|x| *x *= inverse);
            }
            (o, lse)
        })
        .collect();
    let mut lse = vec![0.0; shape.heads * n];
    for ((_, block, head), (o, l)) in blocks.iter().zip(results) {
        write_head(out, &o, shape.heads, block, *head, dim);
        lse[head * n..][block.clone()].copy_from_slice(&l);
    }
    lse
}

/// Gradients of queries, keys and values, from the output, its gradient and the saved log-sum-exp.
pub fn backward(dout: &[f32], out: &[f32], lse: &[f32], qkv: Qkv, shape: &Shape) -> QkvGrad {
    let dim = shape.head_dim;
    let tasks = shape.tasks();
    let parts: Vec<_> = tasks
        .par_iter()
        .map(|(sequence, kv_head)| backward_group(dout, out, lse, qkv, shape, (sequence, *kv_head)))
        .collect();
    let mut grad = QkvGrad { q: vec![0.0; qkv.q.len()], k: vec![0.0; qkv.k.len()], v: vec![0.0; qkv.v.len()] };
    for ((sequence, kv_head), part) in tasks.iter().zip(parts) {
        write_head(&mut grad.k, &part.k, shape.kv_heads, sequence, *kv_head, dim);
        write_head(&mut grad.v, &part.v, shape.kv_heads, sequence, *kv_head, dim);
        let per_head = sequence.len() * dim;
        for (head, dq) in shape.query_heads(*kv_head).zip(part.q.chunks(per_head.max(1))) {
            write_head(&mut grad.q, dq, shape.heads, sequence, head, dim);
        }
    }
    grad
}

/// One key/value head of one sequence, with all query heads that read it.
fn backward_group(
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    qkv: Qkv,
    shape: &Shape,
    (sequence, kv_head): (&Range<usize>, usize),
) -> QkvGrad {
    let (n, dim, keys) = (shape.tokens(), shape.head_dim, sequence.len());
    let k = shape.head(qkv.k, shape.kv_heads, sequence, kv_head);
    let v = shape.head(qkv.v, shape.kv_heads, sequence, kv_head);
    let heads = shape.query_heads(kv_head);
    let mut grad =
        QkvGrad { q: vec![0.0; heads.len() * keys * dim], k: vec![0.0; keys * dim], v: vec![0.0; keys * dim] };
    for (g, head) in heads.enumerate() {
        for block in shape.query_blocks(sequence) {
            let width = block.len();
            let q = shape.head(qkv.q, shape.heads, &block, head);
            let d_o = shape.head(dout, shape.heads, &block, head);
            let mut p = vec![0.0; width * keys];
            matrix::product(&mut p, keys, q, k.t(), shape.scale(), Into::Set);
            for (row, lse) in p.chunks_mut(keys).zip(&lse[head * n..][block.clone()]) {
                vectorised(|| row.iter_mut().for_each(|s| *s = exp(*s - lse)));
            }
            matrix::product(&mut grad.v, dim, View::new(&p, width, keys).t(), d_o, 1.0, Into::Add);
            let mut dp = vec![0.0; width * keys];
            matrix::product(&mut dp, keys, d_o, v.t(), 1.0, Into::Set);
            for (i, (dp, p)) in dp.chunks_mut(keys).zip(p.chunks(keys)).enumerate() {
                let at = (block.start + i) * shape.heads * dim + head * dim;
                let dot: f32 = dout[at..at + dim].iter().zip(&out[at..at + dim]).map(|(a, b)| a * b).sum();
                dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot));
            }
            let ds = View::new(&dp, width, keys);
            let at = (g * keys + block.start - sequence.start) * dim;
            matrix::product(&mut grad.q[at..at + width * dim], dim, ds, k, shape.scale(), Into::Set);
            matrix::product(&mut grad.k, dim, ds.t(), q, shape.scale(), Into::Add);
        }
    }
    grad
}

/// Turns scores into exponentials of their distance to the largest; returns their log-sum-exp and one over their sum.
fn softmax(row: &mut [f32]) -> (f32, f32) {
    vectorised(|| {
        let max = exp::max(row);
        let mut lanes = [0.0f32; exp::LANES];
        let (chunks, rest) = row.as_chunks_mut::<{ exp::LANES }>();
        for chunk in chunks {
            for (lane, s) in lanes.iter_mut().zip(chunk) {
                *s = exp(*s - max);
                *lane += *s;
            }
        }
        let mut sum = lanes.iter().sum::<f32>();
        for s in rest {
            *s = exp(*s - max);
            sum += *s;
        }
        (max + sum.ln(), 1.0 / sum)
    })
}

fn write_head(to: &mut [f32], from: &[f32], heads: usize, tokens: &Range<usize>, head: usize, dim: usize) {
    for (row, token) in from.chunks(dim).zip(tokens.clone()) {
        to[token * heads * dim + head * dim..][..dim].copy_from_slice(row);
    }
}
