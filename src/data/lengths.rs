//! Statistics of the lengths of examples, which decide a recipe's memory and time.

use serde::Serialize;

use super::Example;

/// Lengths in tokens. `median` and `p95` are lengths that occur (nearest rank).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest length.
    pub min: usize,
    /// Half of the examples are at most this long.
    pub median: usize,
    /// The mean length.
    pub mean: f64,
    /// 95 of 100 examples are at most this long.
    pub p95: usize,
    /// The longest length.
    pub max: usize,
}

impl Lengths {
    /// The statistics of some lengths; all 0 if there are none.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable();
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or(0);
        let mean = sorted.iter().sum::<usize>() as f64 / sorted.len().max(1) as f64;
        Self { min: rank(0), median: rank(50), mean, p95: rank(95), max: rank(100) }
    }

    /// The statistics of prompts, of answers with their end tokens, and of both together.
    pub fn of_examples(examples: &[Example]) -> [Self; 3] {
        let prompt = |e: &Example| e.prompt_ids.len();
        let answer = |e: &Example| e.answer_ids.len();
        [
            Self::of(examples.iter().map(prompt)),
            Self::of(examples.iter().map(answer)),
            Self::of(examples.iter().map(|e| prompt(e) + answer(e))),
        ]
    }
}
