//! The device that a test's network computes on: the processor, or the GPU that `WEFT_DEVICE=cuda` asks for.

use std::io::Write;
use std::sync::LazyLock;

use weft::device::Name;
use weft::model::block::Transformer;
use weft_kernels::device::Device;

static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    // Without a wish a test's numbers don't depend on what the machine has.
    if std::env::var_os(weft::device::VARIABLE).is_none() {
        return Device::Cpu;
    }
    Name::of_environment().and_then(|name| name.open(0)).unwrap_or_else(|reason| {
        // Past the test runner, which keeps what a passing test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU, and run on the CPU: {reason}");
        Device::Cpu
    })
});

/// The model there.
pub fn on_device(mut model: Transformer) -> Transformer {
    model.put_on(&DEVICE);
    model
}
