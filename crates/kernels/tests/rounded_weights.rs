//! Weights in bf16 whose f32 numbers lie elsewhere: rounding, ranges, and pairs that are sent as f32 numbers.

mod device;

use device::device;
use half::bf16;
use weft_kernels::adamw::AdamW;
use weft_kernels::linear;
use weft_kernels::precision::Precision;
use weft_kernels::tensor::Tensor;
use weft_kernels::weight::{Dtype, Weight};

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 10_007) as f32 / 997.0 - 5.0).collect()
}

fn rounded(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

#[test]
fn a_weight_is_rounded_and_widened_where_it_is() {
    let Some(on) = device() else { return };
    let x = numbers(7 * 4097);
    let mut weight = on.f32_weight(7, 4097, &x);
    assert_eq!(*weight.stretch(4096..5000).to_host(), x[4096..5000]);
    weight.round();
    assert_eq!((weight.dtype(), &*weight.to_f32()), (Dtype::Bf16, &*rounded(&x)));
    assert_eq!(*weight.stretch(3..9).to_host(), rounded(&x)[3..9]);
    let part: Vec<f32> = x[..5].iter().map(|x| x + 0.7).collect();
    weight.copy_from(4096, &on.put(&[&[9.0], &part[..]].concat()), 1..6);
    assert_eq!(*weight.stretch(4096..4101).to_host(), rounded(&part));
    assert_eq!(*weight.stretch(4101..4103).to_host(), rounded(&x)[4101..4103]);
    weight.write(7, &part);
    assert_eq!(*weight.stretch(7..12).to_host(), rounded(&part));
    weight.widen();
    assert_eq!((weight.dtype(), weight.to_f32()[0]), (Dtype::F32, rounded(&x)[0]));
}

#[test]
fn matmuls_in_bf16_read_a_rounded_weight_as_the_weight() {
    let Some(on) = device() else { return };
    let (n, inputs, outputs) = (5, 130, 67);
    let (x, w) = (on.operands(&numbers(n * inputs), Precision::Bf16), numbers(inputs * outputs));
    let matmul = |weight: &Weight| {
        let mut y = on.zeros(n * outputs);
        linear::forward(&mut y, &x, weight, Precision::Bf16);
        y.to_host().into_owned()
    };
    let exact = on.f32_weight(outputs, inputs, &w);
    let mut rounded = exact.clone();
    rounded.round();
    assert_eq!(matmul(&rounded), matmul(&exact));
}

#[test]
fn pairs_come_back_as_they_were() {
    let Some(on) = device() else { return };
    for len in [1, 2, 7, 4096] {
        let x = numbers(len + 8);
        let mut weight = on.f32_weight(1, len + 8, &x);
        weight.round();
        let words = len.div_ceil(2);
        let mut travelling = on.zeros(words + 3);
        weight.copy_pairs_to(&mut travelling, 3, 4..4 + len);
        let mut other = on.f32_weight(1, len + 8, &vec![1.5; len + 8]);
        other.round();
        // Sends the pairs as a message does: as the bits of f32 numbers.
        let mut arrived = on.zeros(words + 3);
        arrived.write(0, &travelling.to_host());
        other.copy_pairs_from(4..4 + len, &arrived, 3);
        let expected = [&[1.5; 4][..], &rounded(&x[4..4 + len]), &[1.5; 4]].concat();
        assert_eq!(*other.to_f32(), expected, "{len} numbers");
    }
}

#[test]
fn a_part_by_itself_is_updated_as_within_its_weight() {
    let Some(on) = device() else { return };
    let (x, grad) = (numbers(20_000), on.put(&numbers(3000)));
    let adamw = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 3 };
    let moments = || [0, 1].map(|_| on.put(&numbers(3000).iter().map(|x| x * x).collect::<Vec<_>>()));
    let (mut weight, [mut m, mut v]) = (on.f32_weight(1, 20_000, &x), moments());
    let mut part: Tensor = weight.stretch(16_384..19_384);
    adamw.update(&mut weight, 16_384..19_384, [&mut m, &mut v], &grad, 0.5);
    let [mut m, mut v] = moments();
    adamw.update_part(&mut part, [&mut m, &mut v], &grad, 0.5);
    assert_eq!(*part.to_host(), weight.to_f32()[16_384..19_384]);
    assert_ne!(part.to_host()[..], x[16_384..19_384]);
}
