//! What the sum of weighted losses is divided by. Never implicit: the choice moves results as much as the method.

use serde::{Deserialize, Serialize};

use super::NoisedAnswer;

/// The divisor of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// The batch's masked tokens, as the paper's algorithm has it.
    Masked,
    /// All answer tokens of the batch, as d1 divides.
    Answer,
    /// Each answer's own length, then the mean over answers, as LLaDA divides.
    Sequence,
}

impl Normalizer {
    /// What it counts, in a word for a sentence.
    pub fn divides_by(self) -> &'static str {
        match self {
            Self::Masked => "batch's masked",
            Self::Answer => "batch's answer",
            Self::Sequence => "answer's own (then the mean over answers)",
        }
    }

    /// The divisor of each answer's losses; at least 1, so that a batch in which nothing is masked has loss 0.
    pub fn divisors(self, batch: &[NoisedAnswer]) -> Vec<f64> {
        let count = |per_answer: fn(&NoisedAnswer) -> usize| batch.iter().map(per_answer).sum::<usize>().max(1) as f64;
        let shared = match self {
            Self::Masked => count(|a| a.masked.iter().filter(|m| **m).count()),
            Self::Answer => count(|a| a.masked.len()),
            Self::Sequence => {
                return batch.iter().map(|a| (a.masked.len().max(1) * batch.len()) as f64).collect();
            }
        };
        vec![shared; batch.len()]
    }
}
