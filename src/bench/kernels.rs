//! The kernels of a step on a GPU: how long each took, which rates it reached, and what the GPU's own rates would
//! allow.

use std::collections::BTreeMap;

use serde::Serialize;
use weft_kernels::cuda::Launches;

use crate::plan::GpuRates;

/// All launches of one kernel in a step, whatever their shapes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kernel {
    /// The kernel's name.
    pub kernel: String,
    /// How often it was launched.
    pub launches: u64,
    /// Seconds of all launches together.
    pub seconds: f64,
    /// Its arithmetic, in 10^12 operations per second.
    pub tflops: f64,
    /// Its bandwidth, in 10^9 bytes per second; each number is counted once.
    pub gbps: f64,
    /// Seconds that the measured rate of matmuls and the measured bandwidth would allow.
    pub bound_seconds: f64,
}

impl Kernel {
    /// The seconds beyond what the GPU's rates allow.
    pub fn lost_seconds(&self) -> f64 {
        self.seconds - self.bound_seconds
    }
}

/// A step's kernels; those that take most time come first.
pub(crate) fn of_launches(launches: &[Launches], rates: &GpuRates) -> Vec<Kernel> {
    let mut kernels: BTreeMap<&str, (Kernel, f64, f64)> = BTreeMap::new();
    for l in launches {
        let (kernel, operations, bytes) = kernels.entry(&l.kernel).or_default();
        let count = l.count as f64;
        kernel.launches += l.count;
        kernel.seconds += l.seconds;
        kernel.bound_seconds += count * rates.bound_seconds(&l.work);
        *operations += count * l.work.operations as f64;
        *bytes += count * l.work.bytes as f64;
    }
    let rate = |amount: f64, seconds: f64, unit: f64| if seconds > 0.0 { amount / seconds / unit } else { 0.0 };
    let whole = |(name, (kernel, operations, bytes)): (&str, (Kernel, f64, f64))| Kernel {
        kernel: name.to_owned(),
        tflops: rate(operations, kernel.seconds, 1e12),
        gbps: rate(bytes, kernel.seconds, 1e9),
        ..kernel
    };
    let mut all: Vec<Kernel> = kernels.into_iter().map(whole).collect();
    all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    all
}

/// The three kernels that lose the most time to something other than the GPU's rates.
pub fn slowest(kernels: &[Kernel]) -> Vec<&Kernel> {
    let mut all: Vec<&Kernel> = kernels.iter().collect();
    all.sort_by(|a, b| b.lost_seconds().total_cmp(&a.lost_seconds()));
    all.truncate(3);
    all
}
