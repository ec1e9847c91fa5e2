//! Rotary position embedding, half-split (feature `i` turns with `i + D/2`), in f32. Backward is the inverse turn.

use rayon::prelude::*;

/// Cosines and sines of every position of a batch.
pub struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The direction of the turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Forward.
    Position,
    /// Backward: the transpose of a rotation is its inverse.
    Inverse,
}

impl Rope {
    /// Angles `position * theta^(-2i/head_dim)` for each token.
    pub fn new(positions: &[u32], head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        // f32 throughout, as the checkpoints' own modelling code computes them.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32)).collect();
        let angle = |p: &u32| frequencies.iter().map(|f| *p as f32 * f).collect::<Vec<_>>();
        let angles: Vec<f32> = positions.iter().flat_map(angle).collect();
        Self { half, cos: angles.iter().map(|a| a.cos()).collect(), sin: angles.iter().map(|a| a.sin()).collect() }
    }

    /// Turns every head of every token in place.
    ///
    /// # Shapes
    /// `x` `[N, heads * head_dim]`.
    pub fn apply(&self, x: &mut [f32], heads: usize, turn: Turn) {
        let half = self.half;
        let sign = if turn == Turn::Position { 1.0 } else { -1.0 };
        x.par_chunks_mut(heads * 2 * half).enumerate().for_each(|(n, row)| {
            let (cos, sin) = (&self.cos[n * half..][..half], &self.sin[n * half..][..half]);
            for head in row.chunks_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b, s) = (low[i], high[i], sign * sin[i]);
                    low[i] = a * cos[i] - b * s;
                    high[i] = b * cos[i] + a * s;
                }
            }
        });
    }
}
