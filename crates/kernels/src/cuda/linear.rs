//! A linear layer and its gradients on a GPU.

use super::array::{Array, Memory};
use super::elementwise::{in_format, int, long, suffix};
use super::gpu::Grid;
use super::matmul::{Operand, matmul, matmul_onto};
use crate::precision::Precision;
use crate::tensor::Into;
use crate::weight::{Dtype, Weight};

/// How many rows' bias gradients are added into one partial sum.
pub(super) const PARTIAL_ROWS: usize = 64;

/// `y = x W^T`, plus `before` if there is one.
pub(crate) fn forward(y: &mut Array, x: &Array, weight: &Weight, before: Option<&Array>, precision: Precision) {
    let (w, n) = (weight.operand(precision), x.len() / weight.cols());
    let x = in_format(x, precision);
    let operands = [Operand::new(&x, n, weight.cols()), Operand::new(&w, weight.rows(), weight.cols()).t()];
    match before {
        None => matmul(y, operands, 1.0, Into::Set),
        Some(before) => matmul_onto(y, operands, before),
    }
}

/// `dx = dy W` (or `+=`).
pub(crate) fn backward_input(dx: &mut Array, dy: &Array, weight: &Weight, into: Into, precision: Precision) {
    let (w, n) = (weight.operand(precision), dy.len() / weight.rows());
    let dy = in_format(dy, precision);
    let operands = [Operand::new(&dy, n, weight.rows()), Operand::new(&w, weight.rows(), weight.cols())];
    matmul(dx, operands, 1.0, into);
}

/// `dW += dy^T x`.
pub(crate) fn backward_weight(dw: &mut Array, dy: &Array, x: &Array, n: usize, precision: Precision) {
    if n == 0 {
        return;
    }
    let (dy, x) = (in_format(dy, precision), in_format(x, precision));
    let operands = [Operand::new(&dy, n, dy.len() / n).t(), Operand::new(&x, n, x.len() / n)];
    matmul(dw, operands, 1.0, Into::Add);
}

/// `y += b` in every row.
pub(crate) fn add_bias(y: &mut Array, bias: &Weight) {
    let b = bias.array();
    assert!(b.dtype() == Dtype::F32 && y.len().is_multiple_of(b.len().max(1)), "whole rows, and a bias in f32");
    let kernel = format!("add_bias_{}", suffix(y.dtype()));
    // SAFETY: each row is as wide as the bias.
    unsafe { y.gpu().launch(&kernel, Grid::over(y.len()), &[y.arg(), b.arg(), int(b.len()), long(y.len())]) };
}

/// `db += sum over rows of dy`.
pub(crate) fn backward_bias(dbias: &mut Array, dy: &Array) {
    let (width, rows) = (dbias.len(), dy.len() / dbias.len());
    sum_partials(dbias, rows, |partials, grid| {
        let kernel = format!("bias_partials_{}", suffix(dy.dtype()));
        // SAFETY: there is a partial sum for each column and each block of rows.
        unsafe { dy.gpu().launch(&kernel, grid, &[partials.arg(), dy.arg(), int(width), int(rows)]) };
    });
}

/// Adds a sum over rows to `to`, through partial sums that `write(partials, grid)` computes, one for each block of
/// rows.
pub(super) fn sum_partials(to: &mut Array, rows: usize, write: impl FnOnce(&Memory, Grid)) {
    let (width, count) = (to.len(), rows.div_ceil(PARTIAL_ROWS));
    let partials = Memory::unset(to.gpu(), 4 * width * count);
    write(&partials, Grid { blocks: [count, width.div_ceil(256), 1], threads: 256, shared: 0, operations: (0, false) });
    let args = [to.arg(), partials.arg(), int(width), int(count)];
    // SAFETY: `partials` holds `count` rows of that width.
    unsafe { to.gpu().launch("add_partials", Grid::over(width), &args) };
}
