//! The loss on held-out rows: the same times and masks at every evaluation, so that its curve moves with the model
//! alone. It is the bound of SFT's loss whatever the objective, so that runs compare.

use crate::data::Example;
use crate::model::batch::Batch;
use crate::model::block::Transformer;
use crate::rng::{Draws, Stream};

/// The times of an evaluation: the middles of four equal parts of (0, 1).
pub const TIMES: [f64; 4] = [0.125, 0.375, 0.625, 0.875];

/// Most tokens of a forward.
pub const PACKED_TOKENS: usize = 2048;

/// An upper bound of the negative log-likelihood per answer token, in nats: the mean over [`TIMES`] of the sum over
/// masked tokens of `nll / t`, divided by the answer tokens.
///
/// # Source
/// LLaDA, arXiv 2502.09992, equation 5, with times that are fixed.
pub fn nll_bound(model: &Transformer, examples: &[Example]) -> f64 {
    let cases: Vec<(usize, usize)> = (0..examples.len()).flat_map(|i| (0..TIMES.len()).map(move |k| (i, k))).collect();
    let (mut total, mut next) = (0.0, 0);
    while next < cases.len() {
        let (mut sequences, mut rows, mut ids, mut weights, mut tokens) = (vec![], vec![], vec![], vec![], 0);
        while let Some(&(i, k)) = cases.get(next) {
            let example = &examples[i];
            let len = example.prompt_ids.len() + example.answer_ids.len();
            if tokens > 0 && tokens + len > PACKED_TOKENS {
                break;
            }
            // The recipe's seed has no part in it: runs with other seeds are evaluated alike.
            let draws = Draws::new(0, Stream::Mask, u64::MAX - k as u64, i as u64);
            let mut noised = [example.prompt_ids.as_slice(), &example.answer_ids].concat();
            for (position, id) in noised.iter_mut().enumerate().skip(example.prompt_ids.len()) {
                if draws.unit_f64(position as u64) < TIMES[k] {
                    rows.push(tokens + position);
                    ids.push(std::mem::replace(id, model.config.mask_token_id));
                    weights.push(1.0 / TIMES[k]);
                }
            }
            sequences.push(noised);
            tokens += len;
            next += 1;
        }
        let nll = model.nll(&Batch::pack(sequences.iter().map(Vec::as_slice)), &rows, &ids);
        total += nll.iter().zip(&weights).map(|(nll, weight)| f64::from(*nll) * weight).sum::<f64>();
    }
    let answer_tokens: usize = examples.iter().map(|e| e.answer_ids.len()).sum();
    total / (TIMES.len() * answer_tokens.max(1)) as f64
}
