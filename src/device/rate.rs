//! The matmul rate that the process's device reaches, as measured: time plans and benchmarks compare with it.

use std::time::Instant;

use weft_kernels::linear;
use weft_kernels::precision::Precision;
use weft_kernels::tensor::Tensor;
use weft_kernels::weight::{Dtype, Weight, to_bf16_bytes};

use super::{current, gpu};

/// The side of the matrices with which a CPU's rate is measured.
const GEMM_SIDE: usize = 1024;
/// The largest side with which a GPU's rate is measured.
const GPU_GEMM_SIDE: usize = 8192;

/// The device's matmul rate, in 10^9 operations per second: the best of nine matmuls, or of more until `secs` have passed.
pub(crate) fn gemm_gflops(precision: Precision, secs: f64) -> f64 {
    let mut matmul = Matmul::new(GEMM_SIDE, precision);
    // On a GPU the matrices grow until one matmul takes long enough to be measured.
    while gpu().is_some() && matmul.side < GPU_GEMM_SIDE && matmul.seconds().min(matmul.seconds()) < 1e-3 {
        matmul = Matmul::new(2 * matmul.side, precision);
    }
    let (started, mut fastest) = (Instant::now(), f64::MAX);
    loop {
        fastest = (0..9).map(|_| matmul.seconds()).fold(fastest, f64::min);
        if started.elapsed().as_secs_f64() >= secs {
            return 2.0 * (matmul.side as f64).powi(3) / fastest / 1e9;
        }
    }
}

/// Length of the addition that measures a GPU's bandwidth: it reads and writes 1.6 GB.
const BANDWIDTH_NUMBERS: usize = 1 << 27;

/// The bandwidth of the device's memory, in 10^9 bytes per second: the best of five additions of long tensors.
pub(crate) fn bandwidth_gb_per_second() -> f64 {
    let device = current();
    // An emulated GPU is no faster with longer tensors.
    let len = gpu().map_or(BANDWIDTH_NUMBERS, |gpu| BANDWIDTH_NUMBERS.min(gpu.memory()[0] / 64));
    let (mut to, from) = (device.zeros(len), device.zeros(len));
    let mut seconds = || {
        let started = device.mark();
        to.add(&from);
        device.mark().seconds_since(&started)
    };
    let fastest = (0..5).map(|_| seconds()).fold(f64::MAX, f64::min);
    3e-9 * (size_of::<f32>() * len) as f64 / fastest
}

/// A matmul of two square matrices whose numbers differ, because a GPU is faster with equal ones.
struct Matmul {
    side: usize,
    precision: Precision,
    x: Tensor,
    weight: Weight,
    y: Tensor,
}

impl Matmul {
    fn new(side: usize, precision: Precision) -> Self {
        let device = current();
        let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let numbers: Vec<f32> = (0..(side * side) as u32).map(number).collect();
        let mut weight = match precision {
            Precision::Bf16 if gpu().is_some() => Weight::from_bytes(side, side, Dtype::Bf16, &to_bf16_bytes(&numbers)),
            _ => Weight::from_f32(side, side, numbers.clone()),
        };
        weight.put_on(&device);
        let (x, y) = (device.put(numbers).rounded(precision), device.operands(side * side, precision));
        Self { side, precision, x, weight, y }
    }

    fn seconds(&mut self) -> f64 {
        let device = current();
        let started = device.mark();
        linear::forward(&mut self.y, &self.x, &self.weight, self.precision);
        device.mark().seconds_since(&started)
    }
}
