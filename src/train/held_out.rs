//! The loss on held-out rows, with the same times and masks at every evaluation, so that its curve depends on the model
//! alone. Whatever the objective, it is the bound of SFT's loss, so that runs can be compared. A run in blocks is evaluated
//! under the view that it trains: the bound is then that of the blocks one after the other.

use super::view::View;
use crate::data::Example;
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::parallel::collective::Collective;
use crate::rng::{Draws, Stream};

/// The times of an evaluation: the midpoints of four equal parts of (0, 1).
pub const TIMES: [f64; 4] = [0.125, 0.375, 0.625, 0.875];

/// The most tokens of a forward, except for a single longer sequence.
pub const PACKED_TOKENS: usize = 2048;

/// An upper bound on the negative log-likelihood per answer token, in nats: the mean over [`TIMES`] of the sum over
/// masked tokens of `nll / t`, divided by the answer tokens. Ranks share the forwards; each gets the whole bound.
///
/// # Source
/// LLaDA, arXiv 2502.09992, equation 5, with fixed times.
pub fn nll_bound(ranks: &dyn Collective, model: &Transformer, examples: &[Example]) -> f64 {
    nll_bound_seen(ranks, model, examples, &View::WHOLE)
}

/// Like [`nll_bound`], under a view.
///
/// An answer's likelihood is that of its blocks one after the other, so its bound is the sum of their bounds. Where one
/// block is noised by itself, a case evaluates one drawn block, whose share is weighted by the number of blocks. End
/// tokens that fill a last block are predicted like the answer's own, but aren't counted in the divisor: the likelihood
/// of an answer is no less than that of the answer and what follows it.
pub fn nll_bound_seen(ranks: &dyn Collective, model: &Transformer, examples: &[Example], view: &View) -> f64 {
    let own = batches(examples, view).into_iter().skip(ranks.rank()).step_by(ranks.size());
    let sums: Vec<f64> = own.map(|cases| weighted_nll(model, (examples, view), &cases)).collect();
    let total: f64 = ranks.all_gather_dealt(&sums).iter().sum();
    let answer_tokens: usize = examples.iter().map(|e| e.answer_ids.len()).sum();
    total / (TIMES.len() * answer_tokens.max(1)) as f64
}

/// The pairs of example and time that are packed into each forward.
fn batches(examples: &[Example], view: &View) -> Vec<Vec<(usize, usize)>> {
    let (mut batches, mut tokens) = (vec![], 0);
    for (i, example) in examples.iter().enumerate() {
        let len = view.rows_of(example.prompt_ids.len() + example.answer_ids.len());
        for k in 0..TIMES.len() {
            tokens += len;
            match batches.last_mut() {
                Some(last) if tokens <= PACKED_TOKENS => Vec::push(last, (i, k)),
                _ => {
                    tokens = len;
                    batches.push(vec![(i, k)]);
                }
            }
        }
    }
    batches
}

/// The sum of `nll / t` over the masked tokens of some examples at some times.
fn weighted_nll(model: &Transformer, (examples, view): (&[Example], &View), cases: &[(usize, usize)]) -> f64 {
    let mask = model.config.mask_token_id;
    let (mut halves, mut targets, mut weights) = (vec![], vec![], vec![]);
    for &(i, k) in cases {
        let Example { prompt_ids, answer_ids } = &examples[i];
        // The recipe's seed isn't used, so that runs with different seeds are evaluated on the same masks.
        let draws = |stream| Draws::new(0, stream, u64::MAX - k as u64, i as u64);
        let u = || draws(Stream::Block).unit_f64(0);
        let clean = view.sequence([prompt_ids, answer_ids], answer_ids.len(), u, mask);
        let (of_masks, mut noised) = (draws(Stream::Mask), clean.ids.clone());
        for position in clean.answer.clone().filter(|position| of_masks.unit_f64(*position as u64) < TIMES[k]) {
            targets.push((halves.len(), position, std::mem::replace(&mut noised[position], mask)));
            weights.push(clean.drawn_of as f64 / TIMES[k]);
        }
        halves.push([noised, clean.ids]);
    }
    let kind = AttentionKind::of_blocks(view.blocks, view.block_length);
    let batch = Batch::pack_as(kind, halves.iter().map(|halves| halves.each_ref().map(Vec::as_slice)));
    let rows: Vec<usize> =
        targets.iter().map(|(sequence, position, _)| batch.sequences[*sequence].start + position).collect();
    let ids: Vec<u32> = targets.iter().map(|(.., id)| *id).collect();
    let nll = model.nll(&batch, &rows, &ids);
    nll.iter().zip(&weights).map(|(nll, weight)| f64::from(*nll) * weight).sum()
}
