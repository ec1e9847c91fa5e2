//! Where this process computes: the device that `--device` names or, without a command line, the environment's
//! `WEFT_DEVICE`.

pub(crate) mod rate;

use std::env;
use std::sync::{Arc, OnceLock};

use weft_kernels::cuda::Gpu;
use weft_kernels::device::Device;

use crate::error::{Error, Result};
use crate::files::user_cache;

/// The environment variable that names a device.
pub const VARIABLE: &str = "WEFT_DEVICE";

static CURRENT: OnceLock<Device> = OnceLock::new();

/// A device by the name that a user gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `cpu`.
    Cpu,
    /// `cuda:n`, or `cuda`: the GPU of this process's local rank; the first one for a single rank.
    Cuda(Option<usize>),
    /// `auto`: the same GPU as `cuda` if there is one, else the CPU.
    Auto,
}

impl Name {
    /// Parses a device's name.
    ///
    /// # Errors
    /// An unknown name, with those that are known.
    pub fn parse(name: &str) -> Result<Self> {
        let number =
            |n: &str| n.parse::<usize>().ok().filter(|number| number.to_string() == n).map(|n| Self::Cuda(Some(n)));
        let read = match name {
            "cpu" => Some(Self::Cpu),
            "auto" => Some(Self::Auto),
            "cuda" => Some(Self::Cuda(None)),
            _ => name.strip_prefix("cuda:").and_then(number),
        };
        read.ok_or_else(|| Error::Usage(format!("--device {name}: the known devices are cpu, cuda, cuda:N and auto")))
    }

    /// The device that the environment names, or `auto`.
    ///
    /// # Errors
    /// Those of [`Name::parse`].
    pub fn of_environment() -> Result<Self> {
        match env::var(VARIABLE).unwrap_or_default() {
            name if name.is_empty() => Ok(Self::Auto),
            name => Self::parse(&name).map_err(|_| {
                Error::Usage(format!(
                    "the environment variable {VARIABLE} is {name}: the known devices are cpu, cuda, cuda:N and auto"
                ))
            }),
        }
    }

    /// Opens the device; `local_rank` is the process's number on its machine.
    ///
    /// # Errors
    /// A GPU that isn't there, with what is missing. Under `auto`, a machine whose GPU can't be used computes on the
    /// CPU and says why.
    pub fn open(self, local_rank: usize) -> Result<Device> {
        // Some launchers show each process only its own GPU.
        let own = || if Gpu::count() == 1 { 0 } else { local_rank };
        let gpu = |n: usize| Gpu::open(n, user_cache().map(|cache| cache.join("kernels")).as_deref());
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => {
                let opened = gpu(n.unwrap_or_else(own)).map_err(|e| {
                    let number = n.map_or(String::new(), |n| format!(":{n}"));
                    Error::Usage(format!("--device cuda{number}: {e}"))
                });
                opened.map(Device::Cuda)
            }
            Self::Auto if !Gpu::has_driver() => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(own()).map_or_else(
                |reason| {
                    eprintln!("warning: computing on the CPU: {reason}");
                    Device::Cpu
                },
                Device::Cuda,
            )),
        }
    }
}

/// Sets the process's device; the first call wins.
pub fn set(device: Device) {
    let _ = CURRENT.set(device);
}

/// The process's device: the CPU unless one was set.
pub fn current() -> Device {
    CURRENT.get().cloned().unwrap_or_default()
}

/// The process's GPU, if it computes on one.
pub fn gpu() -> Option<Arc<Gpu>> {
    match CURRENT.get() {
        Some(Device::Cuda(gpu)) => Some(gpu.clone()),
        _ => None,
    }
}

/// What the process computes on, in words: its GPU's name, or `cpu`.
pub fn name() -> String {
    gpu().map_or_else(|| "cpu".to_owned(), |gpu| gpu.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let names =
            [("cpu", Name::Cpu), ("auto", Name::Auto), ("cuda", Name::Cuda(None)), ("cuda:3", Name::Cuda(Some(3)))];
        for (name, device) in names {
            assert_eq!(Name::parse(name).expect("a known one"), device);
        }
        for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:01", "CPU", ""] {
            let error = Name::parse(name).expect_err("an unknown one").to_string();
            assert!(error.contains(&format!("--device {name}")), "{error}");
        }
    }
}
