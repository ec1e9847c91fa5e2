//! RMSNorm on a GPU. A warp takes a short row, such as a head's, and a block takes a wider one.

use super::array::{Array, Memory};
use super::elementwise::{int, long, suffix};
use super::gpu::{Arg, Grid};
use super::linear::{PARTIAL_ROWS, sum_partials};
use crate::weight::{Dtype, Weight};

/// The width of the widest row that a warp takes, and how many warps a block has, as in the kernels.
const SHORT_WIDTH: usize = 128;
const WARPS: usize = 8;
/// The most partial sums of a gain's gradient; with more rows, each partial sum has more of them.
const MOST_PARTIALS: usize = 1024;

/// `y = g x / rms(x)`, in the format of `y`.
pub(crate) fn forward(y: &mut Array, x: &Array, gain: &Weight, eps: f32) {
    let (gain, rows) = checked(gain, x);
    assert_eq!(y.len(), x.len(), "as many numbers as its input");
    let formats = suffix(y.dtype()).to_owned() + if x.dtype() == Dtype::Bf16 { "_of_bf16" } else { "" };
    let [y, input, g, width] = [y.arg(), x.arg(), gain.arg(), int(gain.len())];
    let (kernel, grid, args) = if gain.len() <= SHORT_WIDTH {
        let args = vec![y, input, g, Arg::F32(eps), width, long(rows)];
        (format!("rms_norm_short_{formats}"), Grid::rows(rows.div_ceil(WARPS), 256), args)
    } else {
        (format!("rms_norm_{formats}"), Grid::rows(rows, 256), vec![y, input, g, Arg::F32(eps), width])
    };
    // SAFETY: input and output hold `rows` rows that are as wide as the gain.
    unsafe { x.gpu().launch(&kernel, grid, &args) };
}

/// `dx += d y / d x`, and the gain's gradient if it is wanted.
pub(crate) fn backward(dx: &mut Array, dgain: Option<&mut Array>, dy: &Array, x: &Array, gain: &Weight, eps: f32) {
    let (gain, rows) = checked(gain, x);
    let is_f32 = [&*dx, dy, x].iter().all(|array| array.dtype() == Dtype::F32 && array.len() == x.len());
    assert!(is_f32, "input and gradients in f32, all of one size");
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
    let (gain, rows) = checked(gain, x);
    assert_eq!((dy.len(), dy.dtype()), (x.len(), x.dtype()), "the gradient has the input's size and format");
    let (gpu, width, is_short) = (x.gpu(), gain.len(), gain.len() <= SHORT_WIDTH);
    let block_rows = match (&dgain, is_short) {
        (Some(_), _) => PARTIAL_ROWS.max(rows.div_ceil(MOST_PARTIALS).next_multiple_of(WARPS)),
        (None, true) => WARPS,
        (None, false) => 1,
    };
    let blocks = rows.div_ceil(block_rows);
    let partials = dgain.as_ref().map(|_| Memory::unset(gpu, 4 * width * blocks));
    let kernel = format!("rms_norm_in_place_{}{}", if is_short { "short_" } else { "" }, suffix(x.dtype()));
    let to_partials = partials.as_ref().map_or(Arg::Pointer(0), Memory::arg);
    let shape = [int(width), long(rows), int(block_rows)];
    let args = [dy.arg(), to_partials, x.arg(), gain.arg(), Arg::F32(eps), shape[0], shape[1], shape[2]];
    // SAFETY: both arrays hold `rows` rows that are as wide as the gain, and each block has its own partial sums.
    unsafe { gpu.launch(&kernel, Grid::rows(blocks, 256), &args) };
    let Some((dgain, partials)) = dgain.zip(partials) else { return };
    assert_eq!((dgain.len(), dgain.dtype()), (width, Dtype::F32), "a gain's gradient in f32");
    let args = [dgain.arg(), partials.arg(), int(width), int(blocks)];
    // SAFETY: there are `blocks` partial sums for each of the gain's numbers.
    unsafe { gpu.launch("add_column_partials", Grid::rows(width, 256), &args) };
}

/// The gain, and the number of rows of `x`.
fn checked<'a>(gain: &'a Weight, x: &Array) -> (&'a Array, usize) {
    let gain = gain.array();
    assert!(gain.dtype() == Dtype::F32 && x.len().is_multiple_of(gain.len()), "whole rows, and a gain in f32");
    (gain, x.len() / gain.len())
}
