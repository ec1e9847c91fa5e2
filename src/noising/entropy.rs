//! From token entropies to relative uncertainties `r_i = beta_i / beta_ref`.

/// How an entropy becomes `beta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reference {
    /// Those of the token's own sequence.
    #[default]
    Sequence,
    /// Those of the whole micro-batch.
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

/// `r_i` for every answer token of every sequence of a batch, from entropies in nats.
/// Where `beta_ref` is 0 (or there is no token) every `r_i` is 1: WeFT falls back to SFT's uniform rate.
pub fn relative_uncertainty(answers: &[&[f32]], transform: Transform, reference: Reference) -> Vec<Vec<f32>> {
    let betas: Vec<Vec<f32>> = answers.iter().map(|a| a.iter().map(|h| transform.beta(*h)).collect()).collect();
    let batch_mean = mean(betas.iter().flatten());
    let relative = |sequence: Vec<f32>| {
        let beta_ref = match reference {
            Reference::Sequence => mean(sequence.iter()),
            Reference::Batch => batch_mean,
        };
        sequence.iter().map(|beta| if beta_ref > 0.0 { (f64::from(*beta) / beta_ref) as f32 } else { 1.0 }).collect()
    };
    betas.into_iter().map(relative).collect()
}

fn mean<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + f64::from(*v), count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}
