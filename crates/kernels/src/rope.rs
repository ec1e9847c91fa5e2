//! Rotary position embedding, half-split (feature `i` rotates with `i + D/2`), in f32. Its backward is the inverse rotation.

use rayon::prelude::*;

use crate::cpu;
use crate::cuda;
use crate::device::Device;
use crate::tensor::Tensor;

/// Cosines and sines for every position of a batch.
#[derive(Debug)]
pub struct Rope {
    half: usize,
    cos: Tensor,
    sin: Tensor,
}

/// The direction of a rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// Forward.
    Forward,
    /// Backward: the transpose of a rotation is its inverse.
    Inverse,
}

impl Rope {
    /// Computes the angles `position * theta^(-2i/head_dim)` of each token.
    pub fn new(device: &Device, positions: &[u32], head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        // All in f32, as the checkpoints' own modelling code computes them.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32)).collect();
        let of_angles = |f: fn(f32) -> f32| -> Vec<f32> {
            let of_position =
                |p: &u32| frequencies.iter().map(|frequency| f(*p as f32 * frequency)).collect::<Vec<_>>();
            positions.par_iter().flat_map_iter(of_position).collect()
        };
        let [cos, sin] = [f32::cos, f32::sin].map(|f| device.put_made(positions.len() * half, || of_angles(f)));
        Self { half, cos, sin }
    }

    /// Rotates every head of every token in place.
    ///
    /// # Shapes
    /// `x` `[N, heads * head_dim]`.
    pub fn apply(&self, x: &mut Tensor, heads: usize, rotation: Rotation) {
        let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
        match x {
            x if x.is_meta() => {}
            Tensor::Host(x) => cpu::rope::apply(x, [self.cos.host(), self.sin.host()], (heads, self.half), sign),
            Tensor::Gpu(x) => {
                cuda::elementwise::rope(x, [self.cos.array(), self.sin.array()], (heads, self.half), sign);
            }
        }
    }
}
