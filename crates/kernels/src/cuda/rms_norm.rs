//! RMSNorm on a GPU.

use super::array::{Array, Memory};
use super::elementwise::{int, suffix};
use super::gpu::{Arg, Grid};
use super::linear::sum_partials;
use crate::weight::{Dtype, Weight};

/// `y = g x / rms(x)`, in the format of `y`.
pub(crate) fn forward(y: &mut Array, x: &Array, gain: &Weight, eps: f32) {
    let (gain, rows) = checked(gain, x);
    assert_eq!(y.len(), x.len(), "as many numbers as its input");
    let kernel = format!("rms_norm_{}", suffix(y.dtype()));
    let args = [y.arg(), x.arg(), gain.arg(), Arg::F32(eps), int(gain.len())];
    // SAFETY: input and output hold `rows` rows that are as wide as the gain.
    unsafe { x.gpu().launch(&kernel, Grid::rows(rows, 256), &args) };
}

/// `dx += d y / d x`, and the gain's gradient if it is wanted.
pub(crate) fn backward(dx: &mut Array, dgain: Option<&mut Array>, dy: &Array, x: &Array, gain: &Weight, eps: f32) {
    let (gain, rows) = checked(gain, x);
    let is_f32 = [&*dx, dy].iter().all(|array| array.dtype() == Dtype::F32 && array.len() == x.len());
    assert!(is_f32, "gradients in f32, as many numbers as the input");
    let (width, scales) = (gain.len(), Memory::unset(x.gpu(), 4 * rows));
    let args = [dx.arg(), scales.arg(), dy.arg(), x.arg(), gain.arg(), Arg::F32(eps), int(width)];
    // SAFETY: all arrays hold `rows` rows that are as wide as the gain, and there is a scale for each row.
    unsafe { x.gpu().launch("rms_norm_backward", Grid::rows(rows, 256), &args) };
    let Some(dgain) = dgain else { return };
    sum_partials(dgain, rows, |partials, grid| {
        let args = [partials.arg(), dy.arg(), x.arg(), scales.arg(), int(width), int(rows)];
        // SAFETY: there is a partial sum for each column and each block of rows.
        unsafe { dy.gpu().launch("gain_partials", grid, &args) };
    });
}

/// Overwrites `dy` with the gradient of `x`, and adds the gain's gradient if it is wanted.
pub(crate) fn backward_in_place(dy: &mut Array, dgain: Option<&mut Array>, x: &Array, gain: &Weight, eps: f32) {
    let _ = (dy, dgain, x, gain, eps);
    unimplemented!("the kernels follow")
}

/// The gain, and the number of rows of `x`.
fn checked<'a>(gain: &'a Weight, x: &Array) -> (&'a Array, usize) {
    let gain = gain.array();
    assert!(gain.dtype() == Dtype::F32 && x.dtype() == Dtype::F32, "a norm's input and gain are f32");
    (gain, x.len() / gain.len())
}
