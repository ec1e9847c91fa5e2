//! A sampler's predictions on a GPU: the logits of a chunk of rows stay on the GPU, and tokens and confidences are
//! copied back.

use super::array::{Array, Memory};
use super::elementwise::int;
use super::gpu::{Arg, Grid};
use super::head_loss::{logits_of, rows_at_once};
use crate::head_loss::Head;
use crate::predict::{Confidence, Prediction, RowDraw, Rule};
use crate::weight::Dtype;

/// Threads per block; a block takes one row.
const THREADS: u32 = 512;

/// A prediction for each row of `x`.
pub(crate) fn predict(
    head: &Head,
    x: &Array,
    guidance: Option<(&Array, f32)>,
    draws: &[RowDraw],
    rule: &Rule,
) -> Vec<Prediction> {
    let (vocab, count, gpu) = (head.weight.rows(), draws.len(), x.gpu());
    assert!(rule.forbidden.iter().all(|id| (*id as usize) < vocab), "forbidden tokens of the vocabulary");
    assert_eq!(x.len(), count * head.weight.cols(), "a draw for each row");
    let at_once = rows_at_once(vocab).min(count);
    let logits = |is_needed: bool| Array::unset(gpu, if is_needed { at_once * vocab } else { 0 }, Dtype::F32);
    let (mut guided, mut unguided) = (logits(true), logits(guidance.is_some()));
    let keys: Vec<u64> = draws.iter().map(|draw| draw.key).collect();
    let positions: Vec<u32> = draws.iter().map(|draw| draw.position).collect();
    let (keys, positions) = (Memory::of(gpu, &keys), Memory::of(gpu, &positions));
    let forbidden = Memory::of(gpu, rule.forbidden);
    let (tokens, confidences) = (Memory::unset(gpu, 4 * count), Memory::unset(gpu, 8 * count));
    let at = |memory: &Memory, bytes: usize| Arg::Pointer(memory.pointer() + bytes as u64);
    for first in (0..count).step_by(at_once.max(1)) {
        let rows = at_once.min(count - first);
        logits_of(head, x, (first, rows), &mut guided);
        if let Some((x, _)) = guidance {
            logits_of(head, x, (first, rows), &mut unguided);
        }
        let args = [
            guided.arg(),
            unguided.arg(),
            forbidden.arg(),
            at(&keys, 8 * first),
            at(&positions, 4 * first),
            at(&tokens, 4 * first),
            at(&confidences, 8 * first),
            Arg::F64(rule.top_p),
            Arg::F64(rule.noise),
            Arg::F32(guidance.map_or(0.0, |(_, scale)| scale)),
            Arg::F32(rule.divisor),
            int(rule.forbidden.len()),
            int(rule.top_k.min(vocab)),
            Arg::I32(rule.excluded.map_or(-1, |id| id as i32)),
            Arg::I32(number_of(rule.confidence)),
            int(vocab),
        ];
        // SAFETY: every block has a row of logits and a place in each result; forbidden tokens are in the vocabulary,
        // and an empty array is null.
        unsafe { gpu.launch("predict", Grid::rows(rows, THREADS), &args) };
    }
    let (mut ids, mut rated) = (vec![0u32; count], vec![0f64; count]);
    tokens.read(0, bytemuck::cast_slice_mut(&mut ids));
    confidences.read(0, bytemuck::cast_slice_mut(&mut rated));
    ids.into_iter().zip(rated).map(|(token, confidence)| Prediction { token, confidence }).collect()
}

/// The kernel's number for a measure of confidence.
fn number_of(confidence: Confidence) -> i32 {
    match confidence {
        Confidence::Probability => 0,
        Confidence::Margin => 1,
        Confidence::NegativeEntropy => 2,
    }
}
