//! What tests compare an operation with: random inputs, numbers in f64, and central differences.
#![allow(dead_code)] // each test binary uses a part

use weft_kernels::philox::{philox, unit_f32};
use weft_kernels::tensor::Tensor;

/// The largest error of a gradient, relative to the tensor's largest element.
const TOLERANCE: f64 = 2e-4;

pub fn random(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| 2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

pub fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

pub fn assert_close(what: &str, got: &Tensor, expected: &[f64]) {
    assert_all_close(what, &got.to_host(), expected);
}

pub fn assert_all_close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*g) - e).abs() <= TOLERANCE * largest, "{what}[{i}]: got {g}, expected {e}");
    }
}

/// Compares an analytic gradient with central differences of `f` at `x`.
pub fn assert_gradient(what: &str, got: &Tensor, x: &[f32], f: impl Fn(&[f64]) -> f64) {
    let mut x = wide(x);
    let h = 1e-5;
    let expected: Vec<f64> = (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + h;
            let above = f(&x);
            x[i] = at - h;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * h)
        })
        .collect();
    assert!(expected.iter().any(|e| e.abs() > 1e-6), "{what}: the check sees no gradient");
    assert_close(what, got, &expected);
}
