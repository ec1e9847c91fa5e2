//! The micro-batches of a run, without their tokens: the order of examples and the times are functions of the seed, so
//! the largest micro-batches are known before the run begins.

use crate::data::Example;
use crate::data::mixing::{Mixture, Occurrence};
use crate::data::packing::Padding;
use crate::noising::schedule::diffusion_time;
use crate::objective::Objective;
use crate::objective::blocks::{AnswerBlocks, Blocks};
use crate::recipe::Recipe;
use crate::rng::{Draws, Stream};
use crate::train::settings::TrainTable;
use crate::train::view::View;

/// The lengths of an example in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer.
    pub answer: usize,
}

impl Lengths {
    /// The lengths of an example, whose answer is cut if prompt and answer together are longer than `max_seq_len`.
    pub fn of(example: &Example, max_seq_len: usize) -> Self {
        let (prompt, answer) = (example.prompt_ids.len(), example.answer_ids.len());
        Self { prompt, answer: answer.min(max_seq_len.saturating_sub(prompt)) }
    }

    /// Tokens of prompt and answer together.
    pub fn total(self) -> usize {
        self.prompt + self.answer
    }
}

/// The most occurrences that are examined; the rest of a longer run is assumed to be like them.
const MAX_OCCURRENCES: u64 = 1 << 17;

/// The sizes of a packed batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// The rows that the network reads in one view: tokens, and with `bd3lm` their clean copies.
    pub tokens: usize,
    /// Rows of the longest sequence.
    pub longest: usize,
    /// The sum of the sequences' squared lengths; with `bd3lm` the number of pairs of rows of which one sees the other.
    pub squares: f64,
    /// Tokens of the answers that may be masked.
    pub answers: usize,
    /// Answer tokens that will be masked: each answer's share is its time `t`, which WeFT's mean rate never exceeds (`1
    /// - (1 - t)^r` is concave in `r`, whose mean is 1).
    pub masked: usize,
}

/// The views of each example that a step of an objective trains.
pub fn views(objective: &Objective) -> usize {
    1 + usize::from(objective.complementary)
}

impl MicroBatch {
    /// The batch of pass 2 with this many views of each example: a mask and its complement together mask every answer token.
    pub(crate) fn of_views(&self, views: usize) -> Self {
        match views {
            1 => *self,
            _ => Self {
                tokens: views * self.tokens,
                squares: views as f64 * self.squares,
                masked: self.answers,
                answers: views * self.answers,
                ..*self
            },
        }
    }
}

/// A run's steps.
#[derive(Clone, Debug, Default)]
pub struct Batches {
    /// Optimizer steps of the run.
    pub steps: u64,
    /// The micro-batches of five steps: the first one, and those with the longest sequence, the most tokens, the most
    /// masked tokens, and the most tokens again.
    pub largest_steps: Vec<Vec<MicroBatch>>,
    /// The mean per rank and step of tokens, squared lengths, answer tokens and masked tokens.
    pub mean: [f64; 4],
    /// Tokens of each step's most loaded rank divided by the mean over ranks, over all steps; 1 for one rank.
    pub imbalance: f64,
}

impl Batches {
    /// The steps that a recipe makes from examples of these lengths, on one rank.
    pub fn of(recipe: &Recipe, mixture: &Mixture, lengths: &[Lengths]) -> Self {
        Self::of_ranks(recipe, mixture, lengths, 1)
    }

    /// Like [`Batches::of`], for several ranks: a step is larger, and `largest_steps` holds the largest part of one
    /// rank.
    pub fn of_ranks(recipe: &Recipe, mixture: &Mixture, lengths: &[Lengths], ranks: usize) -> Self {
        let settings = &recipe.train;
        let global = settings.global_batch_size().saturating_mul(ranks);
        let steps_per_epoch = mixture.epoch_len(lengths.len()).div_ceil(global) as u64;
        let all = settings.epochs.saturating_mul(steps_per_epoch);
        let steps = settings.max_steps.map_or(all, |max| max.min(all));
        let seen = steps.min((MAX_OCCURRENCES / global as u64).max(steps_per_epoch.max(1)));
        let (mut first, mut sums, mut most_of_ranks) = (None, [0.0; 4], 0.0);
        let mut largest: [(usize, Vec<MicroBatch>); 3] = Default::default();
        for epoch in 0..seen.div_ceil(steps_per_epoch.max(1)) {
            let order = mixture.epoch(settings.seed, epoch, lengths.len());
            let left = (seen - epoch * steps_per_epoch).min(steps_per_epoch) as usize;
            for occurrences in order.chunks(global).take(left) {
                let all = micro_batches(occurrences, epoch, recipe, lengths);
                for b in &all {
                    let own = [b.tokens as f64, b.squares, b.answers as f64, b.masked as f64];
                    sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                }
                let of_rank = |rank: usize| all.iter().skip(rank).step_by(ranks);
                let tokens = (0..ranks).map(|rank| of_rank(rank).map(size).sum::<usize>());
                most_of_ranks += tokens.max().unwrap_or(0) as f64;
                for ((most, of), key) in largest.iter_mut().zip([longest, size, masked]) {
                    let (index, own) = all.iter().map(key).enumerate().max_by_key(|(_, own)| *own).unwrap_or((0, 0));
                    if own > *most {
                        (*most, *of) = (own, of_rank(index % ranks).copied().collect());
                    }
                }
                first.get_or_insert_with(|| of_rank(0).copied().collect());
            }
        }
        let [longest, most_tokens, most_masked] = largest.map(|(_, step)| step);
        let largest_steps = [first.unwrap_or_default(), longest, most_tokens.clone(), most_masked, most_tokens];
        let mean = sums.map(|sum| sum / (seen.max(1) * ranks as u64) as f64);
        let imbalance = if sums[0] > 0.0 { most_of_ranks * ranks as f64 / sums[0] } else { 1.0 };
        Self { steps, largest_steps: largest_steps.to_vec(), mean, imbalance }
    }
}

fn size(batch: &MicroBatch) -> usize {
    batch.tokens
}

fn longest(batch: &MicroBatch) -> usize {
    batch.longest
}

fn masked(batch: &MicroBatch) -> usize {
    batch.masked
}

fn micro_batches(occurrences: &[Occurrence], epoch: u64, recipe: &Recipe, lengths: &[Lengths]) -> Vec<MicroBatch> {
    let TrainTable { seed, micro_batch_size, .. } = recipe.train;
    let pads = recipe.data.padding == Padding::Eos;
    let view = View::of(&recipe.objective, 0);
    let of_occurrences = |occurrences: &[Occurrence]| {
        let longest = occurrences.iter().map(|occurrence| lengths[occurrence.example].total()).max().unwrap_or(0);
        let mut batch = MicroBatch { longest: view.rows_of(longest), ..MicroBatch::default() };
        let mut masked = 0.0;
        for occurrence in occurrences {
            let Lengths { prompt, answer } = lengths[occurrence.example];
            let padded = if pads { longest - prompt } else { answer };
            let draw = |stream| Draws::new(seed, stream, epoch, occurrence.draw).unit_f64(0);
            let rows = view.rows_of(prompt + padded);
            let (noised, squares) = match view.blocks {
                Blocks::None => (padded, (rows as f64).powi(2)),
                Blocks::Blockwise => {
                    let blocks = AnswerBlocks { own: answer, padded, block_length: view.block_length };
                    (blocks.drawn(draw(Stream::Block)).len(), (rows as f64).powi(2))
                }
                Blocks::Bd3lm => (rows / 2 - prompt, (rows / 2) as f64 * (rows / 2 + view.block_length) as f64),
            };
            masked += diffusion_time(draw(Stream::Time), recipe.objective.t_min) * noised as f64;
            batch.tokens += rows;
            batch.squares += squares;
            batch.answers += noised;
        }
        MicroBatch { masked: (masked.ceil() as usize).min(batch.answers), ..batch }
    };
    occurrences.chunks(micro_batch_size).map(of_occurrences).collect()
}
