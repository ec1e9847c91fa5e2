//! A linear layer with a low-rank adapter, `y = x W^T + s (drop(x) A^T) B^T`: forward and every gradient.
//! Dropout is drawn per (token, module, feature), so it doesn't depend on batch or threads.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::matrix::{self, Term, View, sum_of_products};
use crate::cpu::panels::Right;
use crate::lora_linear::{Dropout, Lora};
use crate::philox::{philox, unit_f32};
use crate::precision::Precision;
use crate::tensor::Into;
use crate::weight::Weight;

/// Where the adapter's gradients are added.
pub struct LoraGrad<'a> {
    /// `[R, in]`.
    pub a: &'a mut [f32],
    /// `[out, R]`.
    pub b: &'a mut [f32],
}

/// `y = x W^T + s (drop(x) A^T) B^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: &mut [f32], x: &[f32], weight: &Weight, lora: &Lora) {
    let u = project_down(&dropped(x, lora), lora);
    sum_of_products(y, &terms(x, &u, weight, lora), Into::Set, lora.precision);
}

/// The two products whose sum is the layer's output; `u` is [`project_down`]'s.
pub(crate) fn terms<'a>(x: &'a [f32], u: &'a [f32], weight: &'a Weight, lora: &Lora<'a>) -> [Term<'a>; 2] {
    let n = x.len() / weight.cols();
    [
        Term { a: View::new(x, n, weight.cols()), b: Right::WeightT(weight), scale: 1.0 },
        Term { a: View::new(u, n, lora.a.rows()), b: Right::WeightT(lora.b), scale: lora.scale },
    ]
}

/// `dx = dy W + s drop'((dy B) A)` (or `+=`) where `dx` is wanted, and the gradients of A and B.
pub fn backward(dx: Option<(&mut [f32], Into)>, grad: LoraGrad, dy: &[f32], x: &[f32], weight: &Weight, lora: &Lora) {
    let (rank, inputs, outputs) = (lora.a.rows(), lora.a.cols(), lora.b.rows());
    let n = x.len() / inputs;
    let x_dropped = dropped(x, lora);
    let u = project_down(&x_dropped, lora);
    let dy_view = View::new(dy, n, outputs);
    matrix::par_product(grad.b, dy_view.t(), View::new(&u, n, rank), lora.scale, Into::Add, lora.precision);
    let mut du = Buffer::unset(n * rank);
    sum_of_products(
        &mut du,
        &[Term { a: dy_view, b: Right::weight(lora.b), scale: lora.scale }],
        Into::Set,
        lora.precision,
    );
    let du = View::new(&du, n, rank);
    matrix::par_product(grad.a, du.t(), View::new(&x_dropped, n, inputs), 1.0, Into::Add, lora.precision);
    let Some((dx, into)) = dx else { return };
    let through_weight = Term { a: dy_view, b: Right::weight(weight), scale: 1.0 };
    let through_adapter = Term { a: du, b: Right::weight(lora.a), scale: 1.0 };
    match &lora.dropout {
        None => sum_of_products(dx, &[through_weight, through_adapter], into, lora.precision),
        Some(dropout) => {
            sum_of_products(dx, &[through_weight], into, lora.precision);
            let mut through = Buffer::unset(n * inputs);
            sum_of_products(&mut through, &[through_adapter], Into::Set, lora.precision);
            apply_dropout(&mut through, inputs, dropout);
            matrix::add(dx, &through);
        }
    }
}

/// The weight that computes the same without adapter, `W + s B A`.
///
/// # Shapes
/// `[out, in]`.
pub fn merged(weight: &Weight, lora: &Lora) -> Vec<f32> {
    let mut merged = weight.to_f32().into_owned();
    let (a, b) = (lora.a.to_f32(), lora.b.to_f32());
    let (a, b) = (View::new(&a, lora.a.rows(), lora.a.cols()), View::new(&b, lora.b.rows(), lora.b.cols()));
    matrix::par_product(&mut merged, b, a, lora.scale, Into::Add, Precision::F32);
    merged
}

/// `u = x A^T` of an input after dropout.
pub(crate) fn project_down(x: &[f32], lora: &Lora) -> Buffer {
    let (rank, inputs) = (lora.a.rows(), lora.a.cols());
    let n = x.len() / inputs;
    let mut u = Buffer::unset(n * rank);
    matrix::times_weight_t(&mut u, View::new(x, n, inputs), lora.a, Into::Set, lora.precision);
    u
}

/// The adapter's input.
pub(crate) fn dropped<'x>(x: &'x [f32], lora: &Lora) -> std::borrow::Cow<'x, [f32]> {
    match &lora.dropout {
        None => x.into(),
        Some(dropout) => {
            let mut x = x.to_vec();
            apply_dropout(&mut x, lora.a.cols(), dropout);
            x.into()
        }
    }
}

/// Multiplies each feature by 0 or `1 / (1 - p)`; the same call is its own backward.
fn apply_dropout(x: &mut [f32], width: usize, dropout: &Dropout) {
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
