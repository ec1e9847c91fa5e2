//! Attention over packed sequences with grouped-query heads: forward and backward. The queries may belong to only some of
//! a sequence's tokens (`M` rows), where the other tokens' outputs are not needed. A task holds the scores of one head
//! for a block of queries and the chunks of keys that they see, never the `[L, L]` scores of all heads at once; backward
//! recomputes them from the saved log-sum-exp.

use std::ops::Range;

use rayon::prelude::*;

use crate::attention::{Shape, Visible};
use crate::buffer::{Buffer, Scratch};
use crate::cpu::exp::{self, exp, vectorised};
use crate::cpu::matrix::{BLOCK, Shared, View};
use crate::cpu::microkernel::{Output, multiply, multiply_part};
use crate::cpu::panels::{PANEL, Panels, PanelsPart};
use crate::tensor::Into;

/// How many scores a task holds at once.
const SCORES: usize = 1 << 16;
/// Queries per task of the forward pass.
const QUERIES: usize = 1020;
/// Keys per chunk of those that a block of queries sees: whole panels.
const CHUNK: usize = 2 * PANEL;
/// How many vectors a thread works with at once.
const THREAD_VECTORS: usize = 14;

/// Queries, keys and values after RoPE: `q` `[M, H * head_dim]`, `k` and `v` `[N, K * head_dim]`.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: &'a Buffer,
    /// Keys.
    pub k: &'a Buffer,
    /// Values.
    pub v: &'a Buffer,
}

impl Shape<'_> {
    fn query_heads(&self, kv_head: usize) -> Range<usize> {
        let group = self.heads / self.kv_heads;
        kv_head * group..(kv_head + 1) * group
    }

    /// How many numbers the vectors hold that a thread keeps for its tasks: five blocks of the backward pass, each with
    /// a copy of its layout, and the scores, their gradients, words and strips. The largest vector holds a head's keys,
    /// a block's scores, or a block of another matmul's right operand.
    fn thread_len(&self) -> usize {
        let longest = self.sequences.iter().max_by_key(|s| s.len()).cloned().unwrap_or(0..0);
        let largest = longest.len() * self.head_dim.next_multiple_of(PANEL).max(query_block(&longest));
        THREAD_VECTORS * largest.max(BLOCK[0] * BLOCK[1])
    }

    /// The columns of one head in rows `tokens` of a `[N, heads * head_dim]` matrix.
    fn head<'x>(&self, x: &'x [f32], heads: usize, tokens: &Range<usize>, head: usize) -> View<'x> {
        let width = heads * self.head_dim;
        let rows = &x[tokens.start * width..tokens.end * width];
        View::columns(rows, tokens.len(), width, head * self.head_dim..(head + 1) * self.head_dim)
    }
}

/// Computes `out = softmax(q k^T / sqrt(head_dim)) v` and returns each query's log-sum-exp `[H, M]` for backward.
///
/// # Shapes
/// `out` `[M, H * head_dim]`.
pub fn forward(out: &mut Buffer, qkv: Qkv, shape: &Shape) -> Buffer {
    let (n, dim, width) = (shape.rows(), shape.head_dim, shape.heads * shape.head_dim);
    let layout = shape.precision.layout();
    assert_eq!(out.len(), n * width, "an output of [{n}, {width}]");
    let mut lse = Buffer::unset(out.meta(), shape.heads * n);
    if let Some(meta) = out.meta() {
        meta.note_thread(shape.thread_len());
        return lse;
    }
    let (out, lse_out) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let tasks: Vec<_> = shape
        .sequences
        .iter()
        .zip(shape.queries)
        .flat_map(|(s, queries)| blocks(queries, QUERIES).map(move |queries| (s, queries)))
        .flat_map(|(s, queries)| (0..shape.heads).map(move |head| (s, queries.clone(), head)))
        .collect();
    tasks.into_par_iter().for_each(|(sequence, queries, head)| {
        let [mut keys, mut values] = [(); 2].map(|()| Panels::new());
        let kv_head = head / (shape.heads / shape.kv_heads);
        keys.pack(shape.head(qkv.k, shape.kv_heads, sequence, kv_head).t(), layout);
        values.pack(shape.head(qkv.v, shape.kv_heads, sequence, kv_head), layout);
        let mut words = Scratch::new();
        let mut scores = Scratch::unset(query_block(sequence) * sequence.len());
        for block in blocks(&queries, query_block(sequence)) {
            let seen = Seen::of(shape, sequence, &block);
            let scores = &mut scores[..block.len() * seen.keys];
            let q = layout.of(shape.head(qkv.q, shape.heads, &block, head), &mut words);
            seen.scores(scores, q, &keys, shape.scale());
            seen.hide(scores);
            // SAFETY: no other task has these queries of this head.
            let [o, lse] = unsafe { [out.at(block.start * width + head * dim), lse_out.at(head * n + block.start)] };
            let inverse: Vec<f32> = scores
                .chunks_mut(seen.keys)
                .enumerate()
                .map(|(i, row)| {
                    let (lse_of_row, inverse) = softmax(row);
                    // SAFETY: this is query `i` of the block.
                    unsafe { *lse.add(i) = lse_of_row };
                    inverse
                })
                .collect();
            let mut into = Into::Set;
            for (rows, p) in seen.parts(scores) {
                let p = layout.of(p, &mut words);
                // SAFETY: these are the block's rows of the head's columns.
                unsafe { multiply_part(Output { start: o, stride: width }, p, values.rows(rows), 1.0, into) };
                into = Into::Add;
            }
            // Dividing the outputs is less work than dividing the scores.
            for (i, inverse) in inverse.into_iter().enumerate() {
                // SAFETY: as above.
                let row = unsafe { std::slice::from_raw_parts_mut(o.add(i * width), dim) };
                row.iter_mut().for_each(|x| *x *= inverse);
            }
        }
    });
    lse
}

/// Computes the gradients of queries, keys and values from the output, its gradient and the saved log-sum-exp.
pub fn backward(dout: &Buffer, out: &Buffer, lse: &Buffer, qkv: Qkv, shape: &Shape) -> [Buffer; 3] {
    let meta = dout.meta();
    let mut grad =
        [Buffer::unset(meta, qkv.q.len()), Buffer::zeros(meta, qkv.k.len()), Buffer::zeros(meta, qkv.v.len())];
    if let Some(meta) = meta {
        meta.note_thread(shape.thread_len());
        return grad;
    }
    let [dout, out, lse]: [&[f32]; 3] = [dout, out, lse];
    let to = grad.each_mut().map(|x| Shared(x.as_mut_ptr()));
    let tasks: Vec<_> =
        shape.sequences.iter().zip(shape.queries).flat_map(|s| (0..shape.kv_heads).map(move |k| (s, k))).collect();
    // A task is one key/value head of one sequence with all query heads that read it, because the gradients of those
    // heads are added up there.
    tasks.into_par_iter().for_each(|((sequence, queries), kv_head)| {
        let (n, dim, width) = (shape.rows(), shape.head_dim, shape.heads * shape.head_dim);
        let kv_width = shape.kv_heads * dim;
        let k = shape.head(qkv.k, shape.kv_heads, sequence, kv_head);
        let v = shape.head(qkv.v, shape.kv_heads, sequence, kv_head);
        let layout = shape.precision.layout();
        let mut panels = [(); 5].map(|()| Panels::new());
        let [k_t, v_t, k_rows, dout_rows, q_rows] = &mut panels;
        k_t.pack(k.t(), layout);
        v_t.pack(v.t(), layout);
        k_rows.pack(k, layout);
        let mut words = Scratch::new();
        let at = sequence.start * kv_width + kv_head * dim;
        // SAFETY: no other task has the rows of this sequence in the columns of these heads.
        let [dk, dv] = unsafe { [to[1].at(at), to[2].at(at)] }.map(|start| Output { start, stride: kv_width });
        let size = query_block(sequence) * sequence.len();
        let (mut p, mut ds) = (Scratch::unset(size), Scratch::unset(size));
        for head in shape.query_heads(kv_head) {
            for block in blocks(queries, query_block(sequence)) {
                let seen = Seen::of(shape, sequence, &block);
                let (p, ds) = (&mut p[..block.len() * seen.keys], &mut ds[..block.len() * seen.keys]);
                let q = shape.head(qkv.q, shape.heads, &block, head);
                let d_o = shape.head(dout, shape.heads, &block, head);
                seen.scores(p, layout.of(q, &mut words), k_t, shape.scale());
                seen.hide(p);
                seen.scores(ds, layout.of(d_o, &mut words), v_t, 1.0);
                for (i, (p, ds)) in p.chunks_mut(seen.keys).zip(ds.chunks_mut(seen.keys)).enumerate() {
                    let query = block.start + i;
                    let at = query * width + head * dim;
                    softmax_backward(p, ds, lse[head * n + query], [&dout[at..at + dim], &out[at..at + dim]]);
                }
                dout_rows.pack(d_o, layout);
                q_rows.pack(q, layout);
                let mut into = Into::Set;
                for ((rows, p), (_, ds)) in seen.parts(p).zip(seen.parts(ds)) {
                    let first = rows.start;
                    // SAFETY: these are the block's queries, and keys and values of the sequence.
                    unsafe {
                        let of_part = |to: Output| Output { start: to.start.add(first * kv_width), ..to };
                        let dq = Output { start: to[0].at(block.start * width + head * dim), stride: width };
                        multiply_part(dq, layout.of(ds, &mut words), k_rows.rows(rows), shape.scale(), into);
                        multiply(of_part(dv), layout.of(p.t(), &mut words), dout_rows, 1.0, Into::Add);
                        multiply(of_part(dk), layout.of(ds.t(), &mut words), q_rows, shape.scale(), Into::Add);
                    }
                    into = Into::Add;
                }
            }
        }
    });
    grad
}

/// The keys that a block of queries sees. Their scores form a matrix `[queries, keys]` without the others.
struct Seen<'a> {
    /// Ranges of keys, counted from the sequence's start.
    ranges: Vec<Range<usize>>,
    /// The number of keys.
    keys: usize,
    /// What each query sees of them, and the row that the ranges are counted from; `None` if that is everything.
    visible: Option<(&'a [Visible], usize)>,
}

impl<'a> Seen<'a> {
    fn of(shape: &Shape<'a>, sequence: &Range<usize>, queries: &Range<usize>) -> Self {
        let start = sequence.start;
        let ranges = shape.seen(sequence, queries, CHUNK).into_iter().map(|seen| seen.start - start..seen.end - start);
        let ranges: Vec<Range<usize>> = ranges.collect();
        let visible = shape.visible.map(|visible| (&visible[queries.clone()], start));
        Self { keys: ranges.iter().map(Range::len).sum(), ranges, visible }
    }

    /// `scores = scale * a b` at the columns of the keys, with `a` in words of the same layout as `b`.
    fn scores(&self, scores: &mut [f32], a: View, b: &Panels, scale: f32) {
        assert_eq!(scores.len(), a.rows() * self.keys, "a result of [{}, {}]", a.rows(), self.keys);
        let mut column = 0;
        for range in &self.ranges {
            let part: PanelsPart = b.columns(range.clone());
            // SAFETY: the assertion above bounds every element, and `scores` is borrowed mutably.
            unsafe {
                let out = Output { start: scores.as_mut_ptr().add(column), stride: self.keys };
                multiply_part(out, a, part, scale, Into::Set);
            }
            column += range.len();
        }
    }

    /// Sets the scores of the keys that a query doesn't see to negative infinity.
    fn hide(&self, scores: &mut [f32]) {
        let Some((visible, start)) = self.visible else { return };
        for (row, visible) in scores.chunks_mut(self.keys.max(1)).zip(visible) {
            let mut column = 0;
            for range in &self.ranges {
                let rows = start + range.start..start + range.end;
                for hidden in visible.hidden(&rows) {
                    row[column + hidden.start - rows.start..column + hidden.end - rows.start].fill(f32::NEG_INFINITY);
                }
                column += range.len();
            }
        }
    }

    /// Each range of keys with its columns of a matrix `[queries, keys]`.
    fn parts<'x>(&'x self, x: &'x [f32]) -> impl Iterator<Item = (Range<usize>, View<'x>)> {
        let (rows, mut column) = (x.len() / self.keys.max(1), 0);
        self.ranges.iter().map(move |range| {
            let cols = column..column + range.len();
            column = cols.end;
            (range.clone(), View::columns(x, rows, self.keys, cols))
        })
    }
}

/// Overwrites scores with probabilities, and the probabilities' gradients `ds` with the scores' gradients.
fn softmax_backward(p: &mut [f32], ds: &mut [f32], lse: f32, [dout, out]: [&[f32]; 2]) {
    vectorised(
        #[inline(always)]
        || {
            let dot = exp::dot(dout, out);
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = exp(*p - lse);
                *ds = *p * (*ds - dot);
            }
        },
    );
}

/// How many queries have their scores held at once; more scores of a long sequence would not fit in the L2 cache.
fn query_block(sequence: &Range<usize>) -> usize {
    (SCORES / sequence.len().max(1)).clamp(24, 96) / 12 * 12
}

fn blocks(tokens: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = tokens.end;
    tokens.clone().step_by(size).map(move |start| start..(start + size).min(end))
}

/// Overwrites scores with the exponentials of their differences from the largest; returns their log-sum-exp and the
/// reciprocal of their sum.
fn softmax(row: &mut [f32]) -> (f32, f32) {
    vectorised(
        #[inline(always)]
        || {
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
        },
    )
}
