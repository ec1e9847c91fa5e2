//! SwiGLU, `h = silu(gate) * up`: forward and backward, element by element.

use crate::cpu;
use crate::cuda;
use crate::precision::Precision;
use crate::tensor::Tensor;

/// `h = gate sigmoid(gate) up`, with the gate and the up projection rounded to `precision` first, because they may be
/// saved for backward in that format.
///
/// # Shapes
/// All `[N, mlp width]`.
pub fn forward(h: &mut Tensor, gate: &Tensor, up: &Tensor, precision: Precision) {
    match (h, gate) {
        (h, _) if h.is_meta() => {}
        (Tensor::Host(h), Tensor::Host(gate)) => cpu::swiglu::forward(h, gate, up.host(), precision),
        (h, gate) => cuda::elementwise::swiglu(h.array_mut(), gate.array(), up.array()),
    }
}

/// Overwrites `gate` and `up`, which are no longer needed, with their gradients. Both are rounded first, as in forward.
pub fn backward(gate: &mut Tensor, up: &mut Tensor, dh: &Tensor, precision: Precision) {
    match (gate, dh) {
        (gate, _) if gate.is_meta() => {}
        (Tensor::Host(gate), Tensor::Host(dh)) => cpu::swiglu::backward(gate, up.host_mut(), dh, precision),
        (gate, dh) => cuda::elementwise::swiglu_backward(gate.array_mut(), up.array_mut(), dh.array()),
    }
}
