//! The exponential as arithmetic that compilers vectorise, and loops compiled for the widest vectors of the current
//! processor. Every machine computes the same bits: there are no fused operations, and sums use a fixed number of
//! lanes.

/// The number of partial sums of a reduction.
pub const LANES: usize = 16;

/// `e^x` within 2 units in the last place; 0 below -87.33, where the true value is subnormal.
///
/// # Source
/// Cody and Waite's reduction by ln 2 in two parts, then the Taylor polynomial of degree 7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.33;
    let clamped = x.clamp(LOWEST, 88.37);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` hold the integer, which becomes the exponent of 2^n.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { p * scale }
}

/// Runs a loop compiled for the processor's widest vectors: `vectorised(#[inline(always)] || ...)`. A closure that
/// isn't inlined here is compiled for the baseline processor instead, which no test can detect.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The largest number of a row; negative infinity for an empty row.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `sum of a b` in f32.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `sum of a b c` in f32.
#[inline(always)]
pub fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = a.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (lane, ((a, b), c)) in lanes.iter_mut().zip(a[i..].iter().zip(&b[i..]).zip(&c[i..])) {
            *lane += a * b * c;
        }
    }
    lanes.iter().sum::<f32>() + (whole..a.len()).map(|i| a[i] * b[i] * c[i]).sum::<f32>()
}

/// The sum of `f(x)` over a row, in f64.
#[inline(always)]
pub fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(f(*x));
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(f(*x))).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_exact_to_two_units() {
        for i in -87_300..88_300 {
            let x = i as f32 / 1000.0;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - expected).abs() <= 2.0 * f64::from(f32::EPSILON) * expected, "exp({x}) = {got}, {expected}");
        }
        assert_eq!([exp(f32::NEG_INFINITY), exp(-100.0), exp(0.0)], [0.0, 0.0, 1.0]);
        assert!(exp(f32::NAN).is_nan(), "a number gone wrong must stay visible");
    }

    #[test]
    fn reductions_see_every_number() {
        for len in [0, 1, 15, 16, 17, 40] {
            let row: Vec<f32> = (0..len).map(|i| i as f32 - 3.0).collect();
            assert_eq!(sum(&row, |x| x), row.iter().map(|x| f64::from(*x)).sum::<f64>());
            assert_eq!(max(&row), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
