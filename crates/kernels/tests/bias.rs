//! A bias against sums in f64. The loss `sum of dy (x + b)` is linear in `b`, so its gradient is exact.

mod device;

use device::device;
use weft_kernels::linear;
use weft_kernels::philox::{philox, unit_f32};

fn random(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| 2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0).collect()
}

#[test]
fn a_bias_is_added_to_every_row_and_sums_their_gradients() {
    let Some(on) = device() else { return };
    for (rows, outputs) in [(1, 1), (5, 3), (131, 7), (64, 130)] {
        let (x, bias, dy) = (random(1, rows * outputs), random(2, outputs), random(3, rows * outputs));
        let (mut y, weight) = (on.put(&x), on.f32_weight(1, outputs, &bias));
        linear::add_bias(&mut y, &weight);
        for (i, y) in y.to_host().iter().enumerate() {
            assert_eq!(*y, x[i] + bias[i % outputs]);
        }
        let before = random(4, outputs);
        let mut dbias = on.put(&before);
        linear::backward_bias(&mut dbias, &on.put(&dy));
        for (j, (got, before)) in dbias.to_host().iter().zip(before).enumerate() {
            let sum: f64 = (0..rows).map(|i| f64::from(dy[i * outputs + j])).sum();
            assert!((f64::from(*got) - f64::from(before) - sum).abs() < 1e-5, "{rows} x {outputs}, {j}: {got}");
        }
    }
}
