//! From token entropies to relative uncertainties `r_i = beta_i / beta_ref`.

use serde::{Deserialize, Serialize};

/// How an entropy becomes `beta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// `sqrt(H)`, the paper's choice.
    #[default]
    Sqrt,
    /// `H`: known to explode (the paper's Table 4).
    Identity,
    /// `H^(1/3)`.
    Cbrt,
    /// `ln(1 + H)`.
    Log1p,
}

/// Which supervised answer tokens `beta_ref` is the mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The tokens of the token's own sequence.
    #[default]
    Sequence,
    /// The tokens of the whole micro-batch.
    Batch,
}

impl Transform {
    /// `beta` of an entropy in nats.
    pub fn beta(self, token_entropy: f32) -> f32 {
        match self {
            Self::Sqrt => token_entropy.sqrt(),
            Self::Identity => token_entropy,
            Self::Cbrt => token_entropy.cbrt(),
            Self::Log1p => token_entropy.ln_1p(),
        }
    }
}

/// The token entropies of one answer.
#[derive(Clone, Copy, Debug)]
pub struct AnswerEntropy<'a> {
    /// `H_i` of each token, in nats.
    pub token_entropy: &'a [f32],
    /// How many of the tokens are the answer's own; the rest is padding and doesn't count in `beta_ref`.
    pub num_supervised: usize,
}

/// `r_i` for every answer token of every sequence of a batch. If `beta_ref` is 0 or there is no token, every `r_i` is
/// 1: WeFT falls back to SFT's uniform rate.
pub fn relative_uncertainty(answers: &[AnswerEntropy], transform: Transform, reference: Reference) -> Vec<Vec<f32>> {
    let beta = |a: &AnswerEntropy| a.token_entropy.iter().map(|h| transform.beta(*h)).collect();
    let betas: Vec<Vec<f32>> = answers.iter().map(beta).collect();
    let supervised = |i: usize| &betas[i][..answers[i].num_supervised];
    let batch_mean = mean((0..betas.len()).flat_map(supervised));
    let relative = |(i, sequence): (usize, &Vec<f32>)| {
        let beta_ref = match reference {
            Reference::Sequence => mean(supervised(i).iter()),
            Reference::Batch => batch_mean,
        };
        sequence.iter().map(|beta| if beta_ref > 0.0 { (f64::from(*beta) / beta_ref) as f32 } else { 1.0 }).collect()
    };
    betas.iter().enumerate().map(relative).collect()
}

fn mean<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + f64::from(*v), count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}
