//! What the sum of weighted losses is divided by. It is always explicit, because the choice affects results as much as
//! the method does.

use serde::{Deserialize, Serialize};

use super::NoisedAnswer;

/// The divisor of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// The batch's masked tokens, as in the paper's algorithm.
    Masked,
    /// All answer tokens of the batch, as in d1.
    Answer,
    /// Each answer's own length, then the mean over answers, as in LLaDA.
    Sequence,
}

impl Normalizer {
    /// What the divisor counts, as words for a sentence.
    pub fn divides_by(self) -> &'static str {
        match self {
            Self::Masked => "batch's masked",
            Self::Answer => "batch's answer",
            Self::Sequence => "answer's own (then the mean over answers)",
        }
    }

    /// The divisors of the losses of some answers of a batch; each is at least 1, so that a batch in which nothing is
    /// masked has loss 0.
    pub fn divisors(self, answers: &[NoisedAnswer], batch: Counts) -> Vec<f64> {
        let shared = match self {
            Self::Masked => batch.masked,
            Self::Answer => batch.answer_tokens,
            Self::Sequence => {
                return answers.iter().map(|a| (a.masked.len().max(1) * batch.answers) as f64).collect();
            }
        };
        vec![shared.max(1) as f64; answers.len()]
    }
}

/// The counts of a batch from which its divisor is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of answers.
    pub answers: usize,
    /// The number of answer tokens.
    pub answer_tokens: usize,
    /// The number of masked answer tokens.
    pub masked: usize,
}

impl Counts {
    /// Counts some answers.
    pub fn of(answers: &[NoisedAnswer]) -> Self {
        let masked = |a: &NoisedAnswer| a.masked.iter().filter(|m| **m).count();
        Self {
            answers: answers.len(),
            answer_tokens: answers.iter().map(|a| a.masked.len()).sum(),
            masked: answers.iter().map(masked).sum(),
        }
    }
}
