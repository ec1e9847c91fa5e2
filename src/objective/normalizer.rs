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

    /// The divisor of the losses of some answers of a batch; at least 1, so that a batch in which nothing is masked has
    /// loss 0.
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

/// What of a batch its divisor is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answers.
    pub answers: usize,
    /// Their tokens.
    pub answer_tokens: usize,
    /// Those that are masked.
    pub masked: usize,
}

impl Counts {
    /// Of some answers.
    pub fn of(answers: &[NoisedAnswer]) -> Self {
        let masked = |a: &NoisedAnswer| a.masked.iter().filter(|m| **m).count();
        Self {
            answers: answers.len(),
            answer_tokens: answers.iter().map(|a| a.masked.len()).sum(),
            masked: answers.iter().map(masked).sum(),
        }
    }
}
