//! Where numbers lie and are computed with: the processor with the machine's memory, or a GPU with its own.

use std::sync::Arc;
use std::time::Instant;

use crate::buffer::{self, Buffer};
use crate::cuda::{Array, Beside, Gpu, Keys, Mark as GpuMark};
use crate::lora_linear::DropoutKeys;
use crate::meta::Meta;
use crate::precision::Precision;
use crate::tensor::Tensor;

/// A device.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(Arc<Gpu>),
    /// The processor's operations on tensors without storage.
    Meta(Meta),
}

/// A moment in a device's work.
#[derive(Debug)]
pub enum Mark {
    /// The processor's: what was asked for before is done.
    Cpu(Instant),
    /// A GPU's: known once its work has come so far.
    Cuda(GpuMark),
}

impl Device {
    /// f32 numbers that hold whatever was there before: for a result that overwrites them all.
    pub fn unset(&self, len: usize) -> Tensor {
        self.operands(len, Precision::F32)
    }

    /// The same for what nothing but matmuls, attention and SwiGLU read, which round it to `precision` anyway: on a GPU
    /// it is stored so.
    pub fn operands(&self, len: usize, precision: Precision) -> Tensor {
        match self {
            Self::Cpu | Self::Meta(_) => Tensor::Host(Buffer::unset(self.meta(), len)),
            Self::Cuda(gpu) => Tensor::Gpu(Array::unset(gpu, len, precision.dtype())),
        }
    }

    /// Zeros in f32.
    pub fn zeros(&self, len: usize) -> Tensor {
        self.zero_operands(len, Precision::F32)
    }

    /// Zeros of what [`Device::operands`] holds.
    pub fn zero_operands(&self, len: usize, precision: Precision) -> Tensor {
        match self {
            Self::Cpu | Self::Meta(_) => Tensor::Host(Buffer::zeros(self.meta(), len)),
            Self::Cuda(gpu) => Tensor::Gpu(Array::zeros(gpu, len, precision.dtype())),
        }
    }

    /// The machine's numbers.
    pub fn put(&self, numbers: Vec<f32>) -> Tensor {
        self.put_made(numbers.len(), || numbers)
    }

    /// So many numbers that `make` makes on the machine; the meta device needs none.
    pub fn put_made(&self, len: usize, make: impl FnOnce() -> Vec<f32>) -> Tensor {
        match self {
            Self::Cpu | Self::Meta(_) => Tensor::Host(Buffer::vector(self.meta(), len, make)),
            Self::Cuda(gpu) => Tensor::Gpu(Array::of(gpu, &make())),
        }
    }

    fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Meta(meta) => Some(meta),
            _ => None,
        }
    }

    /// The dropout keys of a batch's rows.
    pub fn dropout_keys(&self, keys: Vec<u64>) -> DropoutKeys {
        match self {
            Self::Cpu | Self::Meta(_) => DropoutKeys::Host(keys),
            Self::Cuda(gpu) => DropoutKeys::Gpu(Keys::of(gpu, &keys)),
        }
    }

    /// The moment at which everything asked for so far is done.
    pub fn mark(&self) -> Mark {
        match self {
            Self::Cpu | Self::Meta(_) => Mark::Cpu(Instant::now()),
            Self::Cuda(gpu) => Mark::Cuda(gpu.mark()),
        }
    }

    /// While the result lives, this thread's work runs beside what other threads compute: on a GPU, on the stream that
    /// moves numbers between ranks. What it reads is waited for with [`Device::wait_for`], and what it writes.
    pub fn beside(&self) -> Option<Beside> {
        matches!(self, Self::Cuda(_)).then(Beside::begin)
    }

    /// Makes what this thread asks for from now on wait for a mark.
    pub fn wait_for(&self, mark: &Mark) {
        if let (Self::Cuda(gpu), Mark::Cuda(mark)) = (self, mark) {
            gpu.wait_for(mark);
        }
    }

    /// Returns when everything asked for is done.
    pub fn finish(&self) {
        if let Self::Cuda(gpu) = self {
            gpu.finish();
        }
    }

    /// The most bytes that tensors took at once so far, and on a GPU weights too.
    pub fn most_used_bytes(&self) -> usize {
        match self {
            Self::Cpu => buffer::most_used_bytes(),
            Self::Cuda(gpu) => gpu.most_used_bytes(),
            Self::Meta(meta) => meta.most_lent_bytes(),
        }
    }
}

impl Mark {
    /// Whether the work before it is done.
    pub fn has_passed(&self) -> bool {
        match self {
            Self::Cpu(_) => true,
            Self::Cuda(mark) => mark.has_passed(),
        }
    }

    /// Seconds from an earlier one of the same device; on a GPU it waits until its work has come to this one.
    pub fn seconds_since(&self, earlier: &Self) -> f64 {
        match (self, earlier) {
            (Self::Cpu(this), Self::Cpu(earlier)) => this.duration_since(*earlier).as_secs_f64(),
            (Self::Cuda(this), Self::Cuda(earlier)) => this.seconds_since(earlier),
            _ => panic!("two moments of one device"),
        }
    }
}
