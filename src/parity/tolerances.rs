//! How far a comparison's quantities may be off.

use serde::Serialize;
use weft_kernels::precision::Precision;

use super::Row;

/// The largest relative differences from PyTorch's f32 numbers that a comparison allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerances {
    /// The tolerance of rates, masks and sampled tokens.
    pub exact: f64,
    /// The tolerance of logits, entropies, nll and losses.
    pub forward: f64,
    /// The tolerance of gradients and their norm.
    pub gradients: f64,
}

impl Tolerances {
    /// The tolerances of a comparison whose matmuls have operands in this precision. A bf16 operand is off by up to
    /// 2^-9, and the reference models are only some 64 numbers wide, so few rounding errors cancel: on the CPU and the
    /// GPU the worst errors were 5e-2 of the largest logit and 2e-1 of the largest number in a gradient. A flipped sign
    /// is off by about 1. In bf16x3 the worst errors were 1.5e-4 in the gradients of queries and keys.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::all(1e-4),
            Precision::Bf16x3 => Self { gradients: 2e-4, ..Self::all(1e-4) },
            Precision::Bf16 => Self { exact: 1e-4, forward: 1e-1, gradients: 3e-1 },
        }
    }

    /// The same tolerance for every quantity.
    pub fn all(tolerance: f64) -> Self {
        Self { exact: tolerance, forward: tolerance, gradients: tolerance }
    }

    /// Whether a quantity is within its tolerance.
    pub fn pass(&self, row: &Row) -> bool {
        // A name begins with that of its objective; in a reference of block diffusion, which has only one, it doesn't.
        let is = |part: &str| row.name.split('.').take(2).any(|name| name == part);
        row.error
            <= match () {
                () if is("grad") || is("grad_norm") => self.gradients,
                () if is("t_i") || is("masked") || is("output") || is("attention") => self.exact,
                () => self.forward,
            }
    }
}
