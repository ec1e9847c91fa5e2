//! A linear layer with a low-rank adapter, `y = x W^T + s (drop(x) A^T) B^T`: forward and every gradient.
//! Dropout is drawn per (token, module, feature), so it doesn't depend on batch or threads.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::matrix::{self, Term, View, sum_of_matmuls};
use crate::cpu::panels::Right;
use crate::lora_linear::{Dropout, Lora};
use crate::philox::{philox, unit_f32};
use crate::precision::Precision;
use crate::slice::{Slice, SliceMut};
use crate::tensor::Into;
use crate::weight::Weight;

/// Where the gradients of the adapter are added.
pub struct LoraGrad<'a> {
    /// Gradient of `lora_a`, `[R, in]`.
    pub a: &'a mut Buffer,
    /// Gradient of `lora_b`, `[out, R]`.
    pub b: &'a mut Buffer,
}

/// `y = x W^T + s (drop(x) A^T) B^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: SliceMut, x: Slice, weight: &Weight, lora: &Lora) {
    let u = project_down(dropped(x, lora).as_ref().map_or(x, Slice::from), lora);
    sum_of_matmuls(y, &terms(x, &u, weight, lora), Into::Set, lora.precision);
}

/// The two matmuls whose sum is the layer's output; `u` is the result of [`project_down`].
pub(crate) fn terms<'a>(x: Slice<'a>, u: &'a Buffer, weight: &'a Weight, lora: &Lora<'a>) -> [Term<'a>; 2] {
    let n = x.len() / weight.cols();
    [
        Term { a: View::new(x, n, weight.cols()), b: Right::WeightT(weight), scale: 1.0 },
        Term { a: View::new(u, n, lora.a.rows()), b: Right::WeightT(lora.b), scale: lora.scale },
    ]
}

/// Computes `dx = dy W + s drop'((dy B) A)` (or `+=`) where `dx` is wanted, and adds the gradients of A and B to
/// `grad`.
pub fn backward(dx: Option<(SliceMut, Into)>, grad: LoraGrad, dy: Slice, x: Slice, weight: &Weight, lora: &Lora) {
    let (rank, inputs, outputs) = (lora.a.rows(), lora.a.cols(), lora.b.rows());
    let n = x.len() / inputs;
    let dropped = dropped(x, lora);
    let x_dropped = dropped.as_ref().map_or(x, Slice::from);
    let u = project_down(x_dropped, lora);
    let dy_view = View::new(dy, n, outputs);
    matrix::par_matmul(grad.b.into(), dy_view.t(), View::new(&u, n, rank), lora.scale, Into::Add, lora.precision);
    let mut du = Buffer::unset(x.meta(), n * rank);
    sum_of_matmuls(
        (&mut du).into(),
        &[Term { a: dy_view, b: Right::weight(lora.b), scale: lora.scale }],
        Into::Set,
        lora.precision,
    );
    let du = View::new(&du, n, rank);
    matrix::par_matmul(grad.a.into(), du.t(), View::new(x_dropped, n, inputs), 1.0, Into::Add, lora.precision);
    let Some((mut dx, into)) = dx else { return };
    let through_weight = Term { a: dy_view, b: Right::weight(weight), scale: 1.0 };
    let through_adapter = Term { a: du, b: Right::weight(lora.a), scale: 1.0 };
    match &lora.dropout {
        None => sum_of_matmuls(dx, &[through_weight, through_adapter], into, lora.precision),
        Some(dropout) => {
            sum_of_matmuls(dx.borrow(), &[through_weight], into, lora.precision);
            let mut through = Buffer::unset(x.meta(), n * inputs);
            sum_of_matmuls((&mut through).into(), &[through_adapter], Into::Set, lora.precision);
            apply_dropout((&mut through).into(), inputs, dropout);
            matrix::add(dx, (&through).into());
        }
    }
}

/// The weight that computes the same without an adapter, `W + s B A`.
///
/// # Shapes
/// `[out, in]`.
pub fn merged(weight: &Weight, lora: &Lora) -> Vec<f32> {
    let mut merged = weight.to_f32().into_owned();
    let (a, b) = (lora.a.to_f32(), lora.b.to_f32());
    let (a, b) = (View::new(&*a, lora.a.rows(), lora.a.cols()), View::new(&*b, lora.b.rows(), lora.b.cols()));
    matrix::par_matmul(merged[..].as_mut().into(), b, a, lora.scale, Into::Add, Precision::F32);
    merged
}

/// `u = x A^T`, where `x` is the input after dropout.
pub(crate) fn project_down(x: Slice, lora: &Lora) -> Buffer {
    let (rank, inputs) = (lora.a.rows(), lora.a.cols());
    let n = x.len() / inputs;
    let mut u = Buffer::unset(x.meta(), n * rank);
    matrix::times_weight_t((&mut u).into(), View::new(x, n, inputs), lora.a, Into::Set, lora.precision);
    u
}

/// The adapter's input after dropout; `None` without dropout.
pub(crate) fn dropped(x: Slice, lora: &Lora) -> Option<Buffer> {
    let dropout = lora.dropout.as_ref()?;
    let mut dropped = Buffer::vector(x.meta(), x.len(), || x.numbers().to_vec());
    apply_dropout((&mut dropped).into(), lora.a.cols(), dropout);
    Some(dropped)
}

/// Multiplies each feature by 0 or `1 / (1 - p)`; the same call is its own backward.
fn apply_dropout(x: SliceMut, width: usize, dropout: &Dropout) {
    let Some(x) = x.numbers() else { return };
    let (keep, keys) = (1.0 / (1.0 - dropout.probability), dropout.token_keys.host(x.len() / width));
    x.par_chunks_mut(width).zip(keys).for_each(|(row, &key)| {
        for (i, four) in row.chunks_mut(4).enumerate() {
            let words = philox(key, [i as u32, dropout.module, 0, 0]);
            for (value, word) in four.iter_mut().zip(words) {
                *value *= if unit_f32(word) < dropout.probability { 0.0 } else { keep };
            }
        }
    });
}
