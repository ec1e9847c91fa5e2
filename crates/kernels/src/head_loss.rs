//! The LM head with softmax statistics: negative log-likelihood, entropy and the gradient of a weighted sum of
//! the former. Logits exist only for a chunk of rows at a time, never as `[N, V]`.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::exp::{self, exp, vectorised};
use crate::linear;
use crate::lora_linear::{self, Dropout, Lora, LoraGrad};
use crate::matrix::Into;
use crate::weight::Weight;

/// Most logits held at once.
const CHUNK_LOGITS: usize = 1 << 22;
/// The distance from the largest logit below which a token is as good as impossible.
const LOWEST: f32 = -1e4;
/// Logits whose exponentials are summed in f32.
const STRETCH: usize = 1 << 10;

/// The head: its weight `[V, D]` and, where `target_modules` names it, its adapter.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, D]`.
    pub weight: &'a Weight,
    /// The adapter.
    pub lora: Option<Lora<'a>>,
}

/// Where the head's gradients are added; `None` for what is frozen.
#[derive(Default)]
pub struct HeadGrad<'a> {
    /// `[V, D]`.
    pub weight: Option<&'a mut [f32]>,
    /// The adapter's.
    pub lora: Option<LoraGrad<'a>>,
}

impl Head<'_> {
    /// Calls `f(first row, logits [rows, V])` for chunk after chunk of `x` `[N, D]`.
    pub fn for_each_chunk(&self, x: &[f32], mut f: impl FnMut(usize, &mut [f32])) {
        let (vocab, width) = (self.weight.rows(), self.weight.cols());
        let rows = (CHUNK_LOGITS / vocab).clamp(16, 512);
        let mut logits = Buffer::unset(rows.min(x.len() / width) * vocab);
        for (i, x) in x.chunks(rows * width).enumerate() {
            let first = i * rows;
            let logits = &mut logits[..x.len() / width * vocab];
            match self.lora_rows(first, x.len() / width) {
                None => linear::forward(logits, x, self.weight),
                Some(lora) => lora_linear::forward(logits, x, self.weight, &lora),
            }
            f(first, logits);
        }
    }

    /// Shannon entropy of each row's distribution, in nats.
    pub fn entropy(&self, x: &[f32]) -> Vec<f32> {
        let mut entropies = Vec::with_capacity(x.len() / self.weight.cols());
        self.for_each_chunk(x, |_, logits| {
            entropies.par_extend(logits.par_chunks(self.weight.rows()).map(entropy));
        });
        entropies
    }

    /// Negative log-likelihood of each row's target, in nats.
    pub fn nll(&self, x: &[f32], targets: &[u32]) -> Vec<f32> {
        let mut nll = Vec::with_capacity(targets.len());
        self.for_each_chunk(x, |first, logits| {
            let rows = logits.par_chunks(self.weight.rows()).zip(&targets[first..]);
            nll.par_extend(rows.map(|(row, target)| (log_sum_exp(row) - f64::from(row[*target as usize])) as f32));
        });
        nll
    }

    /// Negative log-likelihood of each row's target, in nats, and the gradient of `sum over rows of weight * nll`:
    /// `dx` `[N, D]` is overwritten, `grad` added to.
    pub fn loss(
        &self,
        x: &[f32],
        targets: &[u32],
        row_weights: &[f32],
        dx: &mut [f32],
        mut grad: HeadGrad,
    ) -> Vec<f32> {
        let (vocab, width) = (self.weight.rows(), self.weight.cols());
        let mut nll = vec![0.0; targets.len()];
        self.for_each_chunk(x, |first, logits| {
            let rows = logits.len() / vocab;
            let range = first..first + rows;
            logits
                .par_chunks_mut(vocab)
                .zip(nll[range.clone()].par_iter_mut())
                .zip(&targets[range.clone()])
                .zip(&row_weights[range.clone()])
                .for_each(|(((row, nll), &target), &weight)| {
                    let lse = log_sum_exp(row);
                    *nll = (lse - f64::from(row[target as usize])) as f32;
                    let lse = lse as f32;
                    vectorised(|| row.iter_mut().for_each(|z| *z = weight * exp(*z - lse)));
                    row[target as usize] -= weight;
                });
            let x = &x[range.start * width..range.end * width];
            let dx = &mut dx[range.start * width..range.end * width];
            if let Some(dw) = grad.weight.as_deref_mut() {
                linear::backward_weight(dw, logits, x, rows);
            }
            match (self.lora_rows(first, rows), &mut grad.lora) {
                (Some(lora), Some(g)) => {
                    let grad = LoraGrad { a: &mut *g.a, b: &mut *g.b };
                    lora_linear::backward(Some((dx, Into::Set)), grad, logits, x, self.weight, &lora);
                }
                _ => linear::backward_input(dx, logits, self.weight, Into::Set),
            }
        });
        nll
    }

    /// The adapter with the dropout keys of some rows.
    fn lora_rows(&self, first: usize, rows: usize) -> Option<Lora<'_>> {
        self.lora.map(|lora| Lora {
            dropout: lora.dropout.map(|d| Dropout { token_keys: &d.token_keys[first..first + rows], ..d }),
            ..lora
        })
    }
}

/// `ln sum exp z`, in f64 from f32 exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    vectorised(|| {
        let max = exp::max(logits);
        f64::from(max) + exp::sum(logits, |z| exp(z - max)).ln()
    })
}

/// `H = ln Z - sum e_v (z_v - max) / Z`, in nats; never below 0. Sums are f32 within a stretch of logits, f64 over them.
fn entropy(logits: &[f32]) -> f32 {
    vectorised(|| {
        let max = exp::max(logits);
        let (mut z, mut dot) = (0.0f64, 0.0f64);
        for stretch in logits.chunks(STRETCH) {
            let [mut z_lanes, mut dot_lanes] = [[0.0f32; exp::LANES]; 2];
            for chunk in stretch.chunks(exp::LANES) {
                for ((z, dot), logit) in z_lanes.iter_mut().zip(&mut dot_lanes).zip(chunk) {
                    // An impossible token's distance is cut off, for 0 * -inf is no number.
                    let distance = if logit - max < LOWEST { LOWEST } else { logit - max };
                    let e = exp(distance);
                    *z += e;
                    *dot += e * distance;
                }
            }
            z += f64::from(z_lanes.iter().sum::<f32>());
            dot += f64::from(dot_lanes.iter().sum::<f32>());
        }
        let entropy = z.ln() - dot / z;
        // Written so that a number gone wrong stays visible.
        if entropy < 0.0 { 0.0 } else { entropy as f32 }
    })
}
