//! The loss on held-out rows, with the same times and masks at every evaluation, so that its curve depends on the model
//! alone. Whatever the objective, it is the bound of SFT's loss, so that runs can be compared.

use crate::data::Example;
use crate::model::batch::Batch;
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
    let own = batches(examples).into_iter().skip(ranks.rank()).step_by(ranks.size());
    let sums: Vec<f64> = own.map(|cases| weighted_nll(model, examples, &cases)).collect();
    let total: f64 = ranks.all_gather_dealt(&sums).iter().sum();
    let answer_tokens: usize = examples.iter().map(|e| e.answer_ids.len()).sum();
    total / (TIMES.len() * answer_tokens.max(1)) as f64
}

/// The pairs of example and time that are packed into each forward.
fn batches(examples: &[Example]) -> Vec<Vec<(usize, usize)>> {
    let (mut batches, mut tokens) = (vec![], 0);
    for (i, example) in examples.iter().enumerate() {
        let len = example.prompt_ids.len() + example.answer_ids.len();
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
fn weighted_nll(model: &Transformer, examples: &[Example], cases: &[(usize, usize)]) -> f64 {
    let (mut sequences, mut rows, mut ids, mut weights, mut tokens) = (vec![], vec![], vec![], vec![], 0);
    for &(i, k) in cases {
        let example = &examples[i];
        // The recipe's seed isn't used, so that runs with different seeds are evaluated on the same masks.
        let draws = Draws::new(0, Stream::Mask, u64::MAX - k as u64, i as u64);
        let mut noised = [example.prompt_ids.as_slice(), &example.answer_ids].concat();
        for (position, id) in noised.iter_mut().enumerate().skip(example.prompt_ids.len()) {
            if draws.unit_f64(position as u64) < TIMES[k] {
                rows.push(tokens + position);
                ids.push(std::mem::replace(id, model.config.mask_token_id));
                weights.push(1.0 / TIMES[k]);
            }
        }
        tokens += noised.len();
        sequences.push(noised);
    }
    let nll = model.nll(&Batch::pack(sequences.iter().map(Vec::as_slice)), &rows, &ids);
    nll.iter().zip(&weights).map(|(nll, weight)| f64::from(*nll) * weight).sum()
}
