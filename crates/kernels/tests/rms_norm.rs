//! RMSNorm of tokens and of heads against a plain f64 oracle, and its gradients against central differences of the
//! oracle. A flipped sign anywhere fails here.

mod device;
mod differences;

use device::device;
use differences::{assert_close, assert_gradient, dot, random, wide};
use half::bf16;
use weft_kernels::precision::Precision;
use weft_kernels::rms_norm;
use weft_kernels::tensor::Tensor;

const EPS: f32 = 1e-2;

fn rms_norm64(x: &[f64], gain: &[f64]) -> Vec<f64> {
    let of_row = |x: &[f64]| {
        let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(EPS)).sqrt();
        x.iter().zip(gain).map(|(x, g)| x * scale * g).collect::<Vec<_>>()
    };
    x.chunks(gain.len()).flat_map(of_row).collect()
}

#[test]
fn the_norm_and_its_gradients() {
    let Some(on) = device() else { return };
    let (n, width) = (67, 5);
    let (x, gain, dy) = (random(1, n * width), random(2, width), random(3, n * width));
    let (mut y, weight) = (on.zeros(x.len()), on.f32_weight(1, width, &gain));
    rms_norm::forward(&mut y, &on.put(&x), &weight, EPS);
    assert_close("y", &y, &rms_norm64(&wide(&x), &wide(&gain)));
    let (mut dx, mut dgain) = (on.zeros(x.len()), on.zeros(width));
    rms_norm::backward(&mut dx, Some(&mut dgain), &on.put(&dy), &on.put(&x), &weight, EPS);
    assert_gradient("dx", &dx, &x, |x| dot(&rms_norm64(x, &wide(&gain)), &dy));
    assert_gradient("dgain", &dgain, &gain, |gain| dot(&rms_norm64(&wide(&x), gain), &dy));
}

/// Rows and widths: a single number, the heads of seven tokens, several tasks or partial sums, and rows that are wider
/// than a head.
const SHAPES: [(usize, usize); 8] = [(1, 1), (300, 1), (7 * 3, 24), (5, 40), (201, 7), (3, 128), (3, 200), (3, 261)];

#[test]
fn a_norm_in_place_has_the_gradients_of_the_oracle() {
    let Some(on) = device() else { return };
    for (rows, width) in SHAPES {
        let (x, gain, dy) = (random(1, rows * width), random(2, width), random(3, rows * width));
        let (on_x, weight, mut y) = (on.put(&x), on.f32_weight(1, width, &gain), on.zeros(x.len()));
        rms_norm::forward(&mut y, &on_x, &weight, EPS);
        assert_close("y", &y, &rms_norm64(&wide(&x), &wide(&gain)));
        let ([mut dx, mut dx_frozen], mut dgain) = ([(); 2].map(|()| on.put(&dy)), on.put(&vec![0.5; width]));
        rms_norm::backward_in_place(&mut dx, Some(&mut dgain), &on_x, &weight, EPS);
        rms_norm::backward_in_place(&mut dx_frozen, None, &on_x, &weight, EPS);
        assert_gradient("dx", &dx, &x, |x| dot(&rms_norm64(x, &wide(&gain)), &dy));
        assert_eq!(dx.to_host(), dx_frozen.to_host(), "{rows} x {width}");
        dgain.change_on_host(|dgain| dgain.iter_mut().for_each(|d| *d -= 0.5));
        assert_gradient("dgain", &dgain, &gain, |gain| dot(&rms_norm64(&wide(&x), gain), &dy));
    }
}

/// Asserts that `got` is `expected` rounded to bf16, with room for f32's own error.
fn assert_rounded(what: &str, got: &Tensor, expected: &[f64]) {
    let got = got.to_host();
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        // bf16 has 8 significant bits, so that rounding is off by at most 2^-9 of the number.
        let allowed = e.abs() / 256.0 + 1e-5 * largest;
        assert!((f64::from(*g) - e).abs() <= allowed, "{what}[{i}]: got {g}, expected {e}");
    }
}

#[test]
fn a_norm_of_operands_in_bf16_reads_and_writes_rounded_numbers() {
    let Some(on) = device() else { return };
    for (rows, width) in SHAPES {
        let rounded =
            |seed: u64| random(seed, rows * width).iter().map(|x| bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
        let (x, gain, dy) = (rounded(1), random(2, width), rounded(3));
        let (on_x, weight) = (on.operands(&x, Precision::Bf16), on.f32_weight(1, width, &gain));
        let expected = rms_norm64(&wide(&x), &wide(&gain));
        let (mut y, mut y_f32) = (on.operands(&vec![0.0; x.len()], Precision::Bf16), on.zeros(x.len()));
        rms_norm::forward(&mut y, &on_x, &weight, EPS);
        assert_rounded("y", &y, &expected);
        rms_norm::forward(&mut y_f32, &on_x, &weight, EPS);
        assert_close("y in f32", &y_f32, &expected);
        // The same gradients in f32, which the test above compares with the oracle's.
        let (mut dx, mut dgain) = (on.operands(&dy, Precision::Bf16), on.zeros(width));
        let (mut dx_f32, mut dgain_f32) = (on.put(&dy), on.zeros(width));
        rms_norm::backward_in_place(&mut dx, Some(&mut dgain), &on_x, &weight, EPS);
        rms_norm::backward_in_place(&mut dx_f32, Some(&mut dgain_f32), &on.put(&x), &weight, EPS);
        assert_rounded("dx", &dx, &wide(&dx_f32.to_host()));
        assert_close("dgain", &dgain, &wide(&dgain_f32.to_host()));
    }
}

#[test]
fn partial_sums_of_many_rows_add_up_to_the_gains_gradient() {
    let Some(on) = device() else { return };
    for (rows, width) in [(70_003, 3), (1301, 30), (130, 300)] {
        let (x, gain, dy) = (random(1, rows * width), random(2, width), random(3, rows * width));
        let (mut dx, mut dgain) = (on.put(&dy), on.zeros(width));
        rms_norm::backward_in_place(&mut dx, Some(&mut dgain), &on.put(&x), &on.f32_weight(1, width, &gain), EPS);
        // The norm is linear in its gain.
        let y = rms_norm64(&wide(&x), &vec![1.0; width]);
        let sum = |i: usize| (0..rows).map(|row| f64::from(dy[row * width + i]) * y[row * width + i]).sum();
        assert_close("dgain", &dgain, &(0..width).map(sum).collect::<Vec<_>>());
    }
}

#[test]
fn thread_count_changes_no_bit_of_a_norm() {
    let Some(on) = device() else { return };
    let (rows, width) = (1201, 24);
    let (x, dy) = (on.put(&random(1, rows * width)), random(3, rows * width));
    let weight = on.f32_weight(1, width, &random(2, width));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
        pool.install(|| {
            let (mut y, mut dx, mut dgain) = (on.zeros(x.len()), on.put(&dy), on.zeros(width));
            rms_norm::forward(&mut y, &x, &weight, EPS);
            rms_norm::backward_in_place(&mut dx, Some(&mut dgain), &x, &weight, EPS);
            [y, dx, dgain].map(|x| x.to_host().into_owned())
        })
    };
    assert!(run(1) == run(2) && run(1) == run(4));
}
