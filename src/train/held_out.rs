//! The loss on held-out rows, with the same times and masks at every evaluation, so that its curve depends on the model
//! alone. Whatever the objective, it is the bound of SFT's loss, so that runs can be compared. A run in blocks is evaluated
//! under the view that it trains: the bound is then that of the blocks one after the other.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::view::View;
use crate::data::Example;
use crate::error::{Error, Result};
use crate::files::{read_if_there, write_whole};
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::parallel::collective::{Collective, Solo};
use crate::rng::{Draws, Stream};

/// The times of an evaluation: the midpoints of four equal parts of (0, 1).
pub(crate) const TIMES: [f64; 4] = [0.125, 0.375, 0.625, 0.875];

/// The most tokens of a forward, except for a single longer sequence.
pub(crate) const PACKED_TOKENS: usize = 2048;

/// The name of the file in a run folder with the rows' losses in the last evaluation.
const ROWS: &str = "held_out.json";

/// What each held-out row contributes to an evaluation; a comparison of runs takes its intervals from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeldOutRows {
    /// The step after which the rows were evaluated.
    pub step: u64,
    /// The number of each row's answer tokens.
    pub answer_tokens: Vec<usize>,
    /// The bound on each row's negative log-likelihood, in nats per answer; null in JSON where it isn't finite.
    pub nll_bound: Vec<Option<f64>>,
}

impl HeldOutRows {
    /// Saves the rows' losses in a run folder, in place of those of an earlier evaluation.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, output: &Path) -> Result<()> {
        write_whole(&output.join(ROWS), &serde_json::to_vec(self).expect("numbers are JSON"))
    }

    /// Each row's bound; `None` if one isn't finite.
    pub fn values(&self) -> Option<Vec<f64>> {
        self.nll_bound.iter().copied().collect()
    }

    /// The rows' losses in a run's last evaluation; `None` in the folder of an earlier version, and if nothing is held out.
    ///
    /// # Errors
    /// A file that can't be read or is damaged.
    pub fn load(output: &Path) -> Result<Option<Self>> {
        let path = output.join(ROWS);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let rows = serde_json::from_str(&text).map_err(|e| Error::Format { path, reason: e.to_string() })?;
        Ok(Some(rows))
    }
}

/// An upper bound on the negative log-likelihood per answer token, in nats: the mean over `TIMES` of the sum over
/// masked tokens of `nll / t`, divided by the answer tokens.
///
/// # Source
/// LLaDA, arXiv 2502.09992, equation 5, with fixed times.
pub fn nll_bound(model: &Transformer, examples: &[Example]) -> f64 {
    nll_bound_seen(model, examples, &View::WHOLE)
}

/// Like [`nll_bound`], with the blocks of a view.
///
/// An answer's likelihood is that of its blocks one after the other, so its bound is the sum of their bounds. Where one
/// block is noised by itself, a case evaluates one drawn block, whose share is weighted by the number of blocks. End
/// tokens that fill a last block are predicted like the answer's own, but aren't counted in the divisor: the likelihood
/// of an answer is no less than that of the answer and what follows it.
pub fn nll_bound_seen(model: &Transformer, examples: &[Example], view: &View) -> f64 {
    evaluate_seen(&Solo, model, examples, view).0
}

/// Like [`nll_bound_seen`], and also returns the bound of each row's answer, in nats per answer. Ranks share the forwards;
/// each gets the whole bound.
pub(crate) fn evaluate_seen(
    ranks: &dyn Collective,
    model: &Transformer,
    examples: &[Example],
    view: &View,
) -> (f64, Vec<f64>) {
    let own = batches(examples, view).into_iter().skip(ranks.rank()).step_by(ranks.size());
    let (mut sums, mut of_cases) = (vec![], vec![0.0; TIMES.len() * examples.len()]);
    for cases in own {
        let weighted = weighted_nll(model, (examples, view), &cases);
        sums.push(weighted.iter().map(|(_, nll)| nll).sum());
        for (case, nll) in weighted {
            of_cases[case] += nll;
        }
    }
    let total: f64 = ranks.all_gather_dealt(&sums).iter().sum();
    let answer_tokens: usize = examples.iter().map(|e| e.answer_ids.len()).sum();
    // Each case belongs to one rank; the others add zeros to it, which change no bit.
    let all = ranks.all_gather_f64(&of_cases);
    let of_case = |case: usize| all.iter().map(|of_rank| of_rank[case]).sum::<f64>();
    let of_row = |row: usize| (0..TIMES.len()).map(|k| of_case(TIMES.len() * row + k)).sum::<f64>();
    let rows = (0..examples.len()).map(|row| of_row(row) / TIMES.len() as f64).collect();
    (total / (TIMES.len() * answer_tokens.max(1)) as f64, rows)
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

/// `nll / t` of each masked token of some examples at some times, with the number of its case: `TIMES.len() * i + k` for
/// example `i` and time `k`.
fn weighted_nll(
    model: &Transformer,
    (examples, view): (&[Example], &View),
    cases: &[(usize, usize)],
) -> Vec<(usize, f64)> {
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
            weights.push((TIMES.len() * i + k, clean.drawn_of as f64 / TIMES[k]));
        }
        halves.push([noised, clean.ids]);
    }
    let kind = AttentionKind::of_blocks(view.blocks, view.block_length);
    let batch = Batch::pack_as(kind, halves.iter().map(|halves| halves.each_ref().map(Vec::as_slice)));
    let rows: Vec<usize> =
        targets.iter().map(|(sequence, position, _)| batch.sequences[*sequence].start + position).collect();
    let ids: Vec<u32> = targets.iter().map(|(.., id)| *id).collect();
    let nll = model.nll(&batch, &rows, &ids);
    nll.iter().zip(weights).map(|(nll, (case, weight))| (case, f64::from(*nll) * weight)).collect()
}
