//! The LM head on a GPU (a fused linear cross-entropy): logits of a chunk of rows at a time, their statistics, and the
//! gradient.

use super::array::{Array, Memory};
use super::elementwise::{int, suffix};
use super::gpu::{Arg, Gpu, Grid};
use super::{linear, lora_linear};
use crate::head_loss::Head;
use crate::tensor::Into;
use crate::weight::Dtype;

/// The most logits that are held at once: 256 MB of them.
const CHUNK_LOGITS: usize = 1 << 26;
/// Rows of a matmul's tile.
const TILE: usize = 128;
/// Columns that one block of the gradient kernel computes.
const COLUMNS: usize = 1024;

/// How many rows have their logits held at once.
pub(super) fn rows_at_once(vocab: usize) -> usize {
    let rows = (CHUNK_LOGITS / vocab).clamp(16, 4096);
    // Use whole tiles of a matmul.
    if rows > TILE { rows / TILE * TILE } else { rows }
}

/// The rows of a chunk.
struct Chunk<'a> {
    first: usize,
    rows: usize,
    /// The inputs of the rows.
    x: Array,
    logits: &'a mut Array,
}

/// Calls `f` with each chunk of the logits, in order.
fn for_each(head: &Head, x: &Array, mut f: impl FnMut(Chunk)) {
    let (vocab, width) = (head.weight.rows(), head.weight.cols());
    let (all, at_once) = (x.len() / width, rows_at_once(vocab));
    let mut logits = Array::unset(x.gpu(), at_once.min(all) * vocab, Dtype::F32);
    for first in (0..all).step_by(at_once) {
        let rows = at_once.min(all - first);
        let own = logits_of(head, x, (first, rows), &mut logits);
        f(Chunk { first, rows, x: own, logits: &mut logits });
    }
}

/// Writes the logits of some rows; returns the rows' inputs.
pub(super) fn logits_of(head: &Head, x: &Array, (first, rows): (usize, usize), logits: &mut Array) -> Array {
    let width = head.weight.cols();
    let mut own = Array::unset(x.gpu(), rows * width, x.dtype());
    own.copy(0, x, first * width..(first + rows) * width);
    match head.lora_from(first) {
        None => linear::forward(logits, &own, head.weight, None, head.precision),
        Some(lora) => lora_linear::forward(logits, &own, head.weight, &lora, None),
    }
    own
}

/// Calls `f(first row, logits [rows, V])` with each chunk of the logits, copied to the machine's memory.
pub(crate) fn for_each_chunk(head: &Head, x: &Array, mut f: impl FnMut(usize, &mut [f32])) {
    let vocab = head.weight.rows();
    for_each(head, x, |chunk| f(chunk.first, &mut chunk.logits.stretch_to_f32(0..chunk.rows * vocab)));
}

/// The entropy of each row, in nats.
pub(crate) fn entropy(head: &Head, x: &Array) -> Vec<f32> {
    let entropies = Array::unset(x.gpu(), x.len() / head.weight.cols(), Dtype::F32);
    for_each(head, x, |chunk| {
        let to = Results { entropy: Some(entropies.at(chunk.first)), ..Results::default() };
        statistics(x.gpu(), head, &chunk, None, &to);
    });
    entropies.to_f32()
}

/// The negative log-likelihood of each target, in nats.
pub(crate) fn nll(head: &Head, x: &Array, targets: &[u32]) -> Vec<f32> {
    let nll = Array::unset(x.gpu(), targets.len(), Dtype::F32);
    let targets = checked(head, x, targets);
    for_each(head, x, |chunk| {
        let to = Results { nll: Some(nll.at(chunk.first)), ..Results::default() };
        statistics(x.gpu(), head, &chunk, Some(&targets), &to);
    });
    nll.to_f32()
}

/// The negative log-likelihood of each target, and the gradients of their weighted sum.
pub(crate) fn loss(
    head: &Head,
    x: &Array,
    (targets, weights): (&[u32], &[f32]),
    dx: &mut Array,
    (mut dweight, mut dlora): (Option<&mut Array>, Option<[&mut Array; 2]>),
) -> Array {
    let (gpu, width, vocab) = (x.gpu(), head.weight.cols(), head.weight.rows());
    let nll = Array::unset(gpu, targets.len(), Dtype::F32);
    let (targets, weights) = (checked(head, x, targets), Memory::of(gpu, weights));
    for_each(head, x, |chunk| {
        let (max, others) = (Memory::unset(gpu, 4 * chunk.rows), Memory::unset(gpu, 8 * chunk.rows));
        let to = Results {
            nll: Some(nll.at(chunk.first)),
            max: Some(max.pointer()),
            others: Some(others.pointer()),
            ..Results::default()
        };
        statistics(gpu, head, &chunk, Some(&targets), &to);
        let gradient = Array::unset(gpu, chunk.rows * vocab, head.precision.dtype());
        let grid =
            Grid { blocks: [chunk.rows, vocab.div_ceil(COLUMNS), 1], threads: 256, shared: 0, operations: (0, false) };
        let args = [
            gradient.arg(),
            chunk.logits.arg(),
            Arg::Pointer(targets.pointer() + 4 * chunk.first as u64),
            Arg::Pointer(weights.pointer() + 4 * chunk.first as u64),
            max.arg(),
            others.arg(),
            int(vocab),
        ];
        // SAFETY: logits, gradient and statistics hold the chunk's rows; every target is a column.
        unsafe { gpu.launch(&format!("head_gradient_{}", suffix(gradient.dtype())), grid, &args) };
        if let Some(dweight) = dweight.as_deref_mut() {
            linear::backward_weight(dweight, &gradient, &chunk.x, chunk.rows, head.precision);
        }
        let mut own = Array::unset(gpu, chunk.rows * width, dx.dtype());
        match (head.lora_from(chunk.first), &mut dlora) {
            (Some(lora), Some([a, b])) => {
                let grad = [&mut **a, &mut **b];
                lora_linear::backward(Some((&mut own, Into::Set)), grad, &gradient, &chunk.x, head.weight, &lora);
            }
            _ => linear::backward_input(&mut own, &gradient, head.weight, Into::Set, head.precision),
        }
        dx.copy(chunk.first * width, &own, 0..chunk.rows * width);
    });
    nll
}

/// Where the statistics of a chunk's rows are written.
#[derive(Default)]
struct Results {
    entropy: Option<u64>,
    nll: Option<u64>,
    max: Option<u64>,
    others: Option<u64>,
}

fn statistics(gpu: &Gpu, head: &Head, chunk: &Chunk, targets: Option<&Memory>, to: &Results) {
    let or_null = |pointer: Option<u64>| Arg::Pointer(pointer.unwrap_or(0));
    let args = [
        chunk.logits.arg(),
        or_null(targets.map(|targets| targets.pointer() + 4 * chunk.first as u64)),
        or_null(to.entropy),
        or_null(to.nll),
        or_null(to.max),
        or_null(to.others),
        int(head.weight.rows()),
    ];
    // SAFETY: every block has a row of logits and a place in each result; the kernel doesn't touch null results.
    unsafe { gpu.launch("head_statistics", Grid::rows(chunk.rows, 512), &args) };
}

/// Uploads the targets, after checking that there is one per row and that each is a row of the head.
fn checked(head: &Head, x: &Array, targets: &[u32]) -> Memory {
    let is_row = |target: &u32| (*target as usize) < head.weight.rows();
    assert!(targets.len() * head.weight.cols() == x.len() && targets.iter().all(is_row), "a target for each row");
    Memory::of(x.gpu(), targets)
}
