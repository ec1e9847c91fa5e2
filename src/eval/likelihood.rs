//! An upper bound of the negative log-likelihood of given answers, by LLaDA's Monte Carlo estimator. Nothing is
//! generated. During training, `train::held_out` uses a cheaper bound.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use crate::data::Example;
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::progress::{Progress, Unit};
use crate::rng::{Draws, Stream};

/// The epoch in the key of the draw that starts the sequence of mask counts.
pub(super) const START: u64 = u64::MAX;

/// The settings of the estimator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonteCarlo {
    /// Masks drawn for each answer.
    pub mc_samples: usize,
    /// The seed of the draws.
    pub seed: u64,
    /// The largest number of tokens per forward, unless one sequence has more; it doesn't change any draw.
    pub batch_tokens: usize,
}

impl Default for MonteCarlo {
    fn default() -> Self {
        Self { mc_samples: 128, seed: 1, batch_tokens: 4096 }
    }
}

/// The bound of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NllBound {
    /// An estimate of an upper bound of the answer's negative log-likelihood, in nats.
    pub nll_bound: f64,
    /// The estimate's Monte Carlo standard error, in nats.
    pub standard_error: f64,
    /// The number of tokens in the answer, its end token included.
    pub answer_tokens: usize,
}

/// Bounds `-ln p(answer | prompt)` of each example from above. The bound is the mean over samples of `L / l sum nll_i`
/// over the masked tokens i, where L is the answer's length: a sample masks l tokens, every choice of l tokens is
/// equally likely, and l is uniform in 1..=L. The samples' l are equally spaced from a random start. Draws are keyed by
/// example and sample.
///
/// Of a model that was trained in blocks, the bound is the sum of those of the answer's blocks, each given what precedes it,
/// with as many samples for each block.
///
/// The standard error is computed from successive differences, with the samples in the order of their l. The spacing
/// removes the variance due to the loss's dependence on l, which the samples' plain standard deviation would include.
///
/// # Errors
/// Fewer than two samples, or an empty answer.
///
/// # Source
/// LLaDA, arXiv 2502.09992, equation 6, and its public `get_log_likelihood`. Wolter, Introduction to Variance Estimation
/// (2007), chapter 8, for the standard error.
pub fn nll_bounds(
    model: &Transformer,
    examples: &[Example],
    settings: MonteCarlo,
    progress: &Progress,
) -> Result<Vec<NllBound>> {
    check(settings.mc_samples, examples)?;
    let keyed: Vec<(u64, &Example)> = (0..).zip(examples).collect();
    Ok(keyed_bounds(model, &keyed, settings, progress).into_iter().map(|sampled| sampled.bound).collect())
}

/// Refuses what has no bound or no standard error.
pub(super) fn check<'a>(mc_samples: usize, examples: impl IntoIterator<Item = &'a Example>) -> Result<()> {
    if mc_samples < 2 {
        return Err(Error::Usage(format!("mc_samples {mc_samples} gives no standard error; give at least 2")));
    }
    match examples.into_iter().position(|e| e.answer_ids.is_empty()) {
        Some(index) => Err(Error::Usage(format!("example {index} has an empty answer; give it at least one token"))),
        None => Ok(()),
    }
}

/// A bound with the estimates that it is the mean of.
pub(super) struct Sampled {
    /// The bound.
    pub bound: NllBound,
    /// The estimate of each sample, in the order of the samples' numbers. Samples of one number and one key have the same
    /// share of masked tokens and the same order of positions, whatever the answers' lengths.
    pub estimates: Vec<f64>,
}

/// The bounds of answers, each with the key of its draws.
pub(super) fn keyed_bounds(
    model: &Transformer,
    examples: &[(u64, &Example)],
    settings: MonteCarlo,
    progress: &Progress,
) -> Vec<Sampled> {
    let Some(block_length) = model.config.block_length else {
        return bounds(model, AttentionKind::Bidirectional, examples, settings, progress);
    };
    let of_example =
        |(index, (key, example)): (usize, &(u64, &Example))| in_blocks((index, *key), example, block_length);
    let blocks: Vec<(usize, u64, Example)> = examples.iter().enumerate().flat_map(of_example).collect();
    let keyed: Vec<(u64, &Example)> = blocks.iter().map(|(_, key, block)| (*key, block)).collect();
    let of_blocks = bounds(model, AttentionKind::BlockCausal { block_length }, &keyed, settings, progress);
    let none = || Sampled {
        bound: NllBound { nll_bound: 0.0, standard_error: 0.0, answer_tokens: 0 },
        estimates: vec![0.0; settings.mc_samples],
    };
    let mut whole: Vec<Sampled> = examples.iter().map(|_| none()).collect();
    for ((example, ..), block) in blocks.iter().zip(of_blocks) {
        let Sampled { bound: sum, estimates } = &mut whole[*example];
        sum.nll_bound += block.bound.nll_bound;
        sum.standard_error = sum.standard_error.hypot(block.bound.standard_error);
        sum.answer_tokens += block.bound.answer_tokens;
        estimates.iter_mut().zip(block.estimates).for_each(|(sum, estimate)| *sum += estimate);
    }
    whole
}

/// The blocks of an answer, each as the answer to what precedes it, with the index of the answer and the key of the block's
/// draws. Blocks are counted from the start of the sequence.
fn in_blocks((index, key): (usize, u64), example: &Example, block_length: usize) -> Vec<(usize, u64, Example)> {
    let (start, ids) = (example.prompt_ids.len(), [example.prompt_ids.as_slice(), &example.answer_ids].concat());
    let firsts = (start - start % block_length..ids.len()).step_by(block_length);
    let block = |(number, first): (u64, usize)| {
        let (from, to) = (first.max(start), first.saturating_add(block_length).min(ids.len()));
        let example = Example { prompt_ids: ids[..from].to_vec(), answer_ids: ids[from..to].to_vec() };
        (index, key << 32 | number, example)
    };
    (0..).zip(firsts).map(block).collect()
}

/// The bounds of answers under an attention, each with the key of its draws.
fn bounds(
    model: &Transformer,
    kind: AttentionKind,
    examples: &[(u64, &Example)],
    settings: MonteCarlo,
    progress: &Progress,
) -> Vec<Sampled> {
    let batch_tokens = settings.batch_tokens;
    progress.begin(Unit::Answers, Some(examples.len() as u64));
    let (mut samples, mut values, mut waiting, mut masks) = (vec![], vec![], Noised::default(), 0);
    for (index, (key, example)) in examples.iter().enumerate() {
        let drawn = DrawnMasks::new(example.answer_ids.len(), *key, &settings);
        for masked in &drawn.masks {
            let len = example.prompt_ids.len() + example.answer_ids.len();
            if waiting.tokens > 0 && waiting.tokens + len > batch_tokens {
                values.extend(std::mem::take(&mut waiting).estimates(model, kind));
                progress.set_position(index as u64);
            }
            waiting.push(example, masked, model.config.mask_token_id);
        }
        samples.push(drawn.of_sample.into_iter().map(|(sample, mask)| (sample, masks + mask)).collect::<Vec<_>>());
        masks += drawn.masks.len();
    }
    values.extend(waiting.estimates(model, kind));
    progress.finish();
    let bound = |((_, example), samples): (&(u64, &Example), &Vec<(usize, usize)>)| {
        let by_count: Vec<f64> = samples.iter().map(|(_, mask)| values[*mask]).collect();
        let answer_tokens = example.answer_ids.len();
        let nll_bound = by_count.iter().sum::<f64>() / by_count.len() as f64;
        let bound = NllBound { nll_bound, standard_error: standard_error(&by_count), answer_tokens };
        let mut estimates = vec![0.0; samples.len()];
        samples.iter().zip(by_count).for_each(|((sample, _), estimate)| estimates[*sample] = estimate);
        Sampled { bound, estimates }
    };
    examples.iter().zip(&samples).map(bound).collect()
}

/// The standard error of the mean of equally spaced samples, in the order of their places, from successive differences.
pub(super) fn standard_error(ordered: &[f64]) -> f64 {
    let n = ordered.len() as f64;
    let squares: f64 = ordered.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum();
    (squares / (2.0 * (n - 1.0)) / n).sqrt()
}

/// Writes one row per answer (JSONL): its line number, its bound and the bound's details.
///
/// # Errors
/// A file that can't be written.
pub fn save(path: &Path, lines: &[usize], bounds: &[NllBound]) -> Result<()> {
    #[derive(Serialize)]
    struct Row {
        line: usize,
        #[serde(flatten)]
        bound: NllBound,
    }
    let row = |(line, bound): (&usize, &NllBound)| {
        let row = serde_json::to_string(&Row { line: *line, bound: *bound });
        format!("{}\n", row.expect("numbers are JSON"))
    };
    let rows: String = lines.iter().zip(bounds).map(row).collect();
    write_whole(path, rows.as_bytes())
}

/// The masks of an answer.
struct DrawnMasks {
    /// The distinct masks: the indices of the masked tokens in rising order. In a short answer many samples share a
    /// mask.
    masks: Vec<Vec<usize>>,
    /// Each sample's number and the index of its mask, with the samples in the order of their number of masked tokens.
    of_sample: Vec<(usize, usize)>,
}

impl DrawnMasks {
    fn new(answer_tokens: usize, example: u64, settings: &MonteCarlo) -> Self {
        let MonteCarlo { mc_samples, seed, .. } = *settings;
        let draws = |epoch| Draws::new(seed, Stream::Likelihood, epoch, example);
        let start = (draws(START).unit_f64(0) * answer_tokens as f64) as usize;
        let spaced = |sample: usize| (sample * answer_tokens + mc_samples / 2) / mc_samples;
        let mut counts: Vec<(usize, usize)> =
            (0..mc_samples).map(|sample| ((start + spaced(sample)) % answer_tokens + 1, sample)).collect();
        counts.sort_unstable();
        let mut masks: Vec<Vec<usize>> = vec![];
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mask_of = |(count, sample): (usize, usize)| {
            let draws = draws(sample as u64);
            let mut order: Vec<usize> = (0..answer_tokens).collect();
            order.sort_by(|a, b| draws.unit_f64(*a as u64).total_cmp(&draws.unit_f64(*b as u64)));
            order.truncate(count);
            order.sort_unstable();
            let mask = *known.entry(order).or_insert_with_key(|order| {
                masks.push(order.clone());
                masks.len() - 1
            });
            (sample, mask)
        };
        let of_sample = counts.into_iter().map(mask_of).collect();
        Self { masks, of_sample }
    }
}

/// Noised sequences that are collected for one forward.
#[derive(Default)]
struct Noised {
    sequences: Vec<Vec<u32>>,
    tokens: usize,
    rows: Vec<usize>,
    ids: Vec<u32>,
    /// For each sequence, the number of masked tokens and the weight of their nll.
    masked: Vec<(usize, f64)>,
}

impl Noised {
    fn push(&mut self, example: &Example, masked: &[usize], mask_token_id: u32) {
        let mut ids = [example.prompt_ids.as_slice(), &example.answer_ids].concat();
        for answer_token in masked {
            let position = example.prompt_ids.len() + answer_token;
            self.rows.push(self.tokens + position);
            self.ids.push(std::mem::replace(&mut ids[position], mask_token_id));
        }
        self.masked.push((masked.len(), example.answer_ids.len() as f64 / masked.len() as f64));
        self.tokens += ids.len();
        self.sequences.push(ids);
    }

    /// The estimate of each sequence for the bound of its answer.
    fn estimates(self, model: &Transformer, kind: AttentionKind) -> Vec<f64> {
        let batch = Batch::pack_as(kind, self.sequences.iter().map(|ids| [ids.as_slice(); 2]));
        let nll = model.nll(&batch, &self.rows, &self.ids);
        let mut nll = nll.into_iter().map(f64::from);
        self.masked.iter().map(|(count, weight)| weight * nll.by_ref().take(*count).sum::<f64>()).collect()
    }
}
