//! A linear layer with an adapter on a GPU. The adapter's matmuls add to the layer's result directly, so that a
//! separate pass to add them is needed only when there is dropout in between.

use super::array::Array;
use super::elementwise::{InFormat, in_format, int, suffix};
use super::gpu::{Arg, Grid};
use super::linear;
use super::matmul::{Operand, matmul};
use crate::lora_linear::{Dropout, Lora};
use crate::tensor::Into;
use crate::weight::{Dtype, Weight};

/// `y = x W^T + s (drop(x) A^T) B^T`, plus `before` if there is one.
pub(crate) fn forward(y: &mut Array, x: &Array, weight: &Weight, lora: &Lora, before: Option<&Array>) {
    let x = in_format(x, lora.precision);
    linear::forward(y, &x, weight, before, lora.precision);
    let (u, n) = (project_down(&dropped(&x, lora), lora), x.len() / weight.cols());
    let b = in_format(lora.b.array(), lora.precision);
    let operands = [Operand::new(&u, n, lora.a.rows()), Operand::new(&b, lora.b.rows(), lora.b.cols()).t()];
    matmul(y, operands, lora.scale, Into::Add);
}

/// Computes `dx = dy W + s drop'((dy B) A)` (or `+=`) where `dx` is wanted, and adds the gradients of A and B.
pub(crate) fn backward(
    dx: Option<(&mut Array, Into)>,
    [da, db]: [&mut Array; 2],
    dy: &Array,
    x: &Array,
    weight: &Weight,
    lora: &Lora,
) {
    let (rank, inputs, outputs) = (lora.a.rows(), lora.a.cols(), lora.b.rows());
    let n = x.len() / inputs;
    let (dy, x) = (in_format(dy, lora.precision), in_format(x, lora.precision));
    let x_dropped = dropped(&x, lora);
    let u = project_down(&x_dropped, lora);
    let dy_operand = Operand::new(&dy, n, outputs);
    matmul(db, [dy_operand.t(), Operand::new(&u, n, rank)], lora.scale, Into::Add);
    let b = in_format(lora.b.array(), lora.precision);
    let mut du = Array::unset(dy.gpu(), n * rank, lora.precision.dtype());
    matmul(&mut du, [dy_operand, Operand::new(&b, outputs, rank)], lora.scale, Into::Set);
    let du = Operand::new(&du, n, rank);
    matmul(da, [du.t(), Operand::new(&x_dropped, n, inputs)], 1.0, Into::Add);
    let Some((dx, into)) = dx else { return };
    linear::backward_input(dx, &dy, weight, into, lora.precision);
    let a = in_format(lora.a.array(), lora.precision);
    let through = [du, Operand::new(&a, rank, inputs)];
    match &lora.dropout {
        None => matmul(dx, through, 1.0, Into::Add),
        Some(dropout) => {
            let mut to = Array::unset(dx.gpu(), n * inputs, Dtype::F32);
            matmul(&mut to, through, 1.0, Into::Set);
            launch_dropout(&format!("dropout_add_{}", suffix(dx.dtype())), dx, &to, inputs, dropout);
        }
    }
}

/// `u = x A^T`, where `x` is the input after dropout.
fn project_down(x: &Array, lora: &Lora) -> Array {
    let (rank, inputs) = (lora.a.rows(), lora.a.cols());
    let (a, n) = (in_format(lora.a.array(), lora.precision), x.len() / inputs);
    let mut u = Array::unset(x.gpu(), n * rank, lora.precision.dtype());
    matmul(&mut u, [Operand::new(x, n, inputs), Operand::new(&a, rank, inputs).t()], 1.0, Into::Set);
    u
}

/// The adapter's input, after dropout if there is any.
fn dropped<'x>(x: &'x Array, lora: &Lora) -> InFormat<'x> {
    match &lora.dropout {
        None => InFormat::Borrowed(x),
        Some(dropout) => {
            let to = Array::unset(x.gpu(), x.len(), x.dtype());
            launch_dropout(&format!("dropout_{}", suffix(x.dtype())), &to, x, lora.a.cols(), dropout);
            InFormat::Owned(to)
        }
    }
}

/// Multiplies each feature by 0 or `1 / (1 - p)`; the result is written or added to `to`.
fn launch_dropout(kernel: &str, to: &Array, x: &Array, width: usize, dropout: &Dropout) {
    let rows = x.len() / width;
    assert_eq!(to.len(), x.len(), "as many numbers as the input");
    let args = [
        to.arg(),
        x.arg(),
        Arg::Pointer(dropout.token_keys.gpu(rows)),
        Arg::I32(dropout.module as i32),
        Arg::F32(dropout.probability),
        int(width),
        int(rows),
    ];
    // SAFETY: both arrays hold `rows` rows of `width` numbers.
    unsafe { x.gpu().launch(kernel, Grid::over(rows * width.div_ceil(4)), &args) };
}
