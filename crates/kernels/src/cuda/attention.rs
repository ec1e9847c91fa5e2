//! Attention on a GPU. A block of threads computes a tile of one head's queries, or in backward of one head's keys,
//! within one sequence. Where queries see only some keys, each tile has a list of the chunks that it has to do with, and
//! the others are skipped. In bf16 the matmuls run on tensor cores; head sizes for which there are no such kernels are
//! computed in f32.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::array::{Array, Memory};
use super::elementwise::{cast, in_format, int, suffix};
use super::fail;
use super::gpu::{Arg, Gpu, Grid};
use crate::attention::{Shape, Visible, seen_chunks};
use crate::precision::Precision;
use crate::weight::Dtype;

/// The rows that a block works on: its own from `start` to `end`, and those that it streams.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Tile {
    start: i32,
    end: i32,
    streamed_start: i32,
    streamed_end: i32,
}

/// The kernels for a format and a largest head size, with the sizes that they are written for.
struct Kernels {
    suffix: String,
    dtype: Dtype,
    threads: u32,
    /// Queries of a block in the forward pass.
    queries: usize,
    /// Rows of a block in the backward pass: keys, or a part of the queries of a forward tile.
    own: usize,
    /// Rows that are streamed past a tile at once: in the forward and in the backward pass.
    streamed: [usize; 2],
    /// Bytes of dynamic shared memory: of the forward and of the backward pass.
    shared: [u32; 2],
}

/// The largest head sizes that kernels are compiled for.
const IN_BF16: [usize; 4] = [32, 64, 96, 128];
const IN_F32: [usize; 3] = [64, 128, 256];

impl Kernels {
    /// The kernels for a shape.
    fn of(shape: &Shape) -> Self {
        let (dim, some) = (shape.head_dim, if shape.visible.is_some() { "some_" } else { "" });
        // Rows are copied 16 bytes at a time.
        let in_bf16 = IN_BF16.into_iter().find(|largest| dim <= *largest && dim.is_multiple_of(8));
        if let Some(largest) = in_bf16.filter(|_| shape.precision == Precision::Bf16) {
            let own = if largest <= 64 { 128 } else { 64 };
            let row = largest as u32 + 8;
            return Self {
                suffix: format!("{some}bf16_{largest}"),
                dtype: Dtype::Bf16,
                threads: 128,
                queries: 128,
                own,
                streamed: [64, 32],
                shared: [512 * row, 4 * (own as u32 + 64) * row + 512],
            };
        }
        let largest = IN_F32.into_iter().find(|largest| dim <= *largest).unwrap_or_else(|| {
            fail(format!(
                "heads of {dim} features are wider than the 256 that the GPU kernels support; use --device cpu"
            ))
        });
        let suffix = format!("{some}f32_{largest}");
        Self { suffix, dtype: Dtype::F32, threads: 256, queries: 64, own: 64, streamed: [64, 64], shared: [0, 0] }
    }

    fn precision(&self) -> Precision {
        if self.dtype == Dtype::F32 { Precision::F32 } else { Precision::Bf16 }
    }

    /// A grid with a block for each tile of each head; in the backward pass of the queries, several blocks share a
    /// tile. `operations` is the operation count of the whole launch.
    fn grid(&self, blocks: [usize; 3], pass: usize, operations: u64) -> Grid {
        let operations = (operations, self.dtype == Dtype::Bf16);
        Grid { blocks, threads: self.threads, shared: self.shared[pass], operations }
    }
}

/// Computes `out = softmax(q k^T / sqrt(head_dim)) v` and returns each query's log-sum-exp `[H, M]`.
pub(crate) fn forward(out: &mut Array, qkv: [&Array; 3], shape: &Shape) -> Array {
    let (kernels, gpu) = (Kernels::of(shape), out.gpu().clone());
    let lse = Array::unset(&gpu, shape.heads * shape.rows(), Dtype::F32);
    check(shape, qkv, out);
    let [q, k, v] = qkv.map(|x| in_format(x, kernels.precision()));
    let tiles = Tiles::of_queries(shape, kernels.queries, kernels.streamed[0]);
    let computed = Array::unset(&gpu, if out.dtype() == kernels.dtype { 0 } else { out.len() }, kernels.dtype);
    let to = if computed.is_empty() { &*out } else { &computed };
    let on_gpu = tiles.put_on(&gpu);
    let listed = on_gpu.each_ref().map(Memory::arg);
    let args = [&[to.arg(), lse.arg(), q.arg(), k.arg(), v.arg()][..], &listed, &sizes(shape)].concat();
    let name = format!("attention_forward_{}", kernels.suffix);
    // SAFETY: the tiles' rows are rows of the arrays, whose lengths `check` has compared.
    unsafe { gpu.launch(&name, kernels.grid([tiles.len(), shape.heads, 1], 0, 2 * matmul(shape)), &args) };
    if !computed.is_empty() {
        *out = cast(&computed, out.dtype());
    }
    lse
}

/// Computes the gradients of queries, keys and values, in the format of `dout`.
pub(crate) fn backward(dout: &Array, out: &Array, lse: &Array, qkv: [&Array; 3], shape: &Shape) -> [Array; 3] {
    let (kernels, gpu, format) = (Kernels::of(shape), dout.gpu().clone(), dout.dtype());
    check(shape, qkv, out);
    assert_eq!((dout.len(), lse.len()), (out.len(), shape.heads * shape.rows()), "an output's gradient");
    let lens = qkv.map(Array::len);
    let precision = kernels.precision();
    let [q, k, v] = qkv.map(|x| in_format(x, precision));
    let [dout, out] = [dout, out].map(|x| in_format(x, precision));
    let [dq, dk, dv] = lens.map(|len| Array::unset(&gpu, len, kernels.dtype));
    let delta = Array::unset(&gpu, lse.len(), Dtype::F32);
    let of_rows = [int(shape.heads), int(shape.head_dim), int(shape.rows())];
    let args = [&[delta.arg(), dout.arg(), out.arg()][..], &of_rows].concat();
    let grid =
        Grid { blocks: [shape.rows().div_ceil(4), shape.heads, 1], threads: 128, shared: 0, operations: (0, false) };
    let suffix = suffix(kernels.dtype);
    // SAFETY: there is a delta for each query of each head.
    unsafe { gpu.launch(&format!("attention_delta_{suffix}"), grid, &args) };
    let saved = [q.arg(), k.arg(), v.arg(), dout.arg(), lse.arg(), delta.arg()];
    let launch = |kernel: &str, to: &[Arg], tiles: Tiles, [heads, parts]: [usize; 2], matmuls: u64| {
        let on_gpu = tiles.put_on(&gpu);
        let args = [to, &saved, &on_gpu.each_ref().map(Memory::arg), &sizes(shape)].concat();
        let grid = kernels.grid([tiles.len(), heads, parts], 1, matmuls * matmul(shape));
        // SAFETY: as in `forward`.
        unsafe { gpu.launch(&format!("{kernel}_{}", kernels.suffix), grid, &args) };
    };
    let keys = Tiles::of_keys(shape, kernels.own, kernels.streamed[1]);
    launch("attention_backward_keys", &[dk.arg(), dv.arg()], keys, [shape.kv_heads, 1], 4);
    let queries = Tiles::of_queries(shape, kernels.queries, kernels.streamed[1]);
    launch("attention_backward_queries", &[dq.arg()], queries, [shape.heads, kernels.queries / kernels.own], 3);
    [dq, dk, dv].map(|grad| if grad.dtype() == format { grad } else { cast(&grad, format) })
}

/// Operations of one matmul of attention: queries by the keys that they see, over all heads.
fn matmul(shape: &Shape) -> u64 {
    let seen = |visible: &Visible| visible.ranges.iter().map(|[start, end]| (end - start) as usize).sum::<usize>();
    let pairs: usize = match shape.visible {
        None => shape.queries.iter().zip(shape.sequences).map(|(q, k)| q.len() * k.len()).sum(),
        Some(visible) => visible.iter().map(seen).sum(),
    };
    (2 * shape.heads * shape.head_dim * pairs) as u64
}

/// The tiles of a launch, and where queries see only some keys, the chunks that each tile streams.
struct Tiles<'a> {
    tiles: Vec<Tile>,
    /// The first rows of each tile's chunks; empty where queries see their whole sequences.
    chunks: Vec<Vec<i32>>,
    visible: &'a [Visible],
}

impl<'a> Tiles<'a> {
    /// Tiles of `size` queries, past which keys are streamed in chunks.
    fn of_queries(shape: &Shape<'a>, size: usize, chunk: usize) -> Self {
        let tiles = tiles(shape.queries, shape.sequences, size);
        let Some(visible) = shape.visible else { return Self { tiles, chunks: vec![], visible: &[] } };
        let of_tile = |tile: &Tile| {
            let sequence = tile.streamed_start as usize..tile.streamed_end as usize;
            let queries = tile.start as usize..(tile.start as usize + size).min(tile.end as usize);
            let seen = seen_chunks(&sequence, chunk, &visible[queries]);
            seen.into_iter().map(|index| (sequence.start + index * chunk) as i32).collect()
        };
        Self { chunks: tiles.iter().map(of_tile).collect(), tiles, visible }
    }

    /// Tiles of `size` keys, past which queries are streamed in chunks.
    fn of_keys(shape: &Shape<'a>, size: usize, chunk: usize) -> Self {
        let tiles = tiles(shape.sequences, shape.queries, size);
        let Some(visible) = shape.visible else { return Self { tiles, chunks: vec![], visible: &[] } };
        let (mut chunks, mut first) = (vec![vec![]; tiles.len()], 0);
        for (sequence, queries) in shape.sequences.iter().zip(shape.queries) {
            for start in queries.clone().step_by(chunk) {
                let seen = seen_chunks(sequence, size, &visible[start..(start + chunk).min(queries.end)]);
                seen.into_iter().for_each(|index| chunks[first + index].push(start as i32));
            }
            first += sequence.len().div_ceil(size);
        }
        Self { tiles, chunks, visible }
    }

    fn len(&self) -> usize {
        self.tiles.len()
    }

    /// The tiles, where each one's chunks begin in the list of all, that list, and what each query sees.
    fn put_on(&self, gpu: &Arc<Gpu>) -> [Memory; 4] {
        let mut offsets = vec![];
        if !self.visible.is_empty() {
            offsets.push(0i32);
            self.chunks.iter().for_each(|chunks| offsets.push(offsets[offsets.len() - 1] + chunks.len() as i32));
        }
        let (tiles, visible) = (Memory::of(gpu, &self.tiles), Memory::of(gpu, self.visible));
        [tiles, Memory::of(gpu, &offsets), Memory::of(gpu, &self.chunks.concat()), visible]
    }
}

/// Cuts every sequence's rows into tiles of `size` rows, each with the rows that it streams.
fn tiles(own: &[Range<usize>], streamed: &[Range<usize>], size: usize) -> Vec<Tile> {
    let of_sequence = |(own, streamed): (&Range<usize>, &Range<usize>)| {
        let [end, streamed_start, streamed_end] = [own.end, streamed.start, streamed.end].map(|row| row as i32);
        let tile = move |start: usize| Tile { start: start as i32, end, streamed_start, streamed_end };
        own.clone().step_by(size).map(tile)
    };
    own.iter().zip(streamed).flat_map(of_sequence).collect()
}

fn sizes(shape: &Shape) -> [Arg; 4] {
    [int(shape.heads), int(shape.kv_heads), int(shape.head_dim), int(shape.rows())]
}

fn check(shape: &Shape, [q, k, v]: [&Array; 3], out: &Array) {
    let keys = shape.sequences.last().map_or(0, |s| s.end);
    let wanted = [shape.rows() * shape.heads, keys * shape.kv_heads].map(|heads| heads * shape.head_dim);
    assert_eq!([q.len(), out.len()], [wanted[0]; 2], "queries and outputs");
    assert!(k.len() >= wanted[1] && k.len() == v.len(), "keys and values");
    if let Some(visible) = shape.visible {
        assert_eq!(visible.len(), shape.rows(), "what each query sees");
        let last = visible.iter().flat_map(|visible| visible.ranges).map(|[_, end]| end).max().unwrap_or(0);
        assert!(last as usize <= keys, "what a query sees lies within the keys");
    }
}
