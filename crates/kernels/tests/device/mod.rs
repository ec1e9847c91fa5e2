//! The device that the tests' operations run on: the CPU, or the GPU if `WEFT_DEVICE=cuda` is set.
#![allow(dead_code)] // each test binary uses a part

use std::io::Write;
use std::sync::LazyLock;

use weft_kernels::cuda::Gpu;
use weft_kernels::device::Device;
use weft_kernels::precision::Precision;
use weft_kernels::tensor::Tensor;
use weft_kernels::weight::Weight;

static DEVICE: LazyLock<Result<Device, String>> = LazyLock::new(|| match std::env::var("WEFT_DEVICE").as_deref() {
    Ok(name) if name.starts_with("cuda") => Gpu::open(0, None).map(Device::Cuda),
    _ => Ok(Device::Cpu),
});

/// The device; if the GPU asked for is missing, reports the test as skipped and returns `None`.
pub fn device() -> Option<On> {
    let device = DEVICE.as_ref().map_err(|reason| {
        let is_absent = ["was not found", "no GPU can be used here"].iter().any(|what| reason.contains(what));
        assert!(is_absent, "{reason}");
        // This bypasses the test runner, which captures what a passing test prints.
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test} on a GPU: {reason}");
    });
    device.ok().cloned().map(On)
}

/// Whether results are as exact as the CPU's; a GPU's matmuls add in another order.
pub fn is_cpu() -> bool {
    matches!(*DEVICE, Ok(Device::Cpu))
}

/// Makes tensors on the device.
pub struct On(pub Device);

impl On {
    pub fn put(&self, numbers: &[f32]) -> Tensor {
        self.0.put(numbers.to_vec())
    }

    pub fn zeros(&self, len: usize) -> Tensor {
        self.0.zeros(len)
    }

    /// A tensor in the format of the matmuls' operands.
    pub fn operands(&self, numbers: &[f32], precision: Precision) -> Tensor {
        self.put(numbers).rounded(precision)
    }

    pub fn weight(&self, mut weight: Weight) -> Weight {
        weight.put_on(&self.0);
        weight
    }

    pub fn f32_weight(&self, rows: usize, cols: usize, numbers: &[f32]) -> Weight {
        self.weight(Weight::from_f32(rows, cols, numbers.to_vec()))
    }
}
