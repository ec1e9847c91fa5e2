//! Where tensors lie and where operations run: the CPU with the machine's memory, or a GPU with its own.

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
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(Arc<Gpu>),
    /// The CPU's operations on tensors without storage.
    Meta(Meta),
}

/// A point in the sequence of a device's work.
#[derive(Debug)]
pub enum Mark {
    /// A point in the CPU's work: everything asked for before it is done.
    Cpu(Instant),
    /// A point in a GPU's work: it passes once the GPU has finished the work before it.
    Cuda(GpuMark),
}

impl Device {
    /// An f32 tensor with arbitrary contents, for a result that overwrites them all.
    pub fn unset(&self, len: usize) -> Tensor {
        self.operands(len, Precision::F32)
    }

    /// Like [`Device::unset`], for a tensor that only matmuls, attention, the norm of heads and SwiGLU read. Matmuls round
    /// it to `precision` anyway, so a GPU stores it in that format.
    pub fn operands(&self, len: usize, precision: Precision) -> Tensor {
        match self {
            Self::Cpu | Self::Meta(_) => Tensor::Host(Buffer::unset(self.meta(), len)),
            Self::Cuda(gpu) => Tensor::Gpu(Array::unset(gpu, len, precision.dtype())),
        }
    }

    /// An f32 tensor of zeros.
    pub fn zeros(&self, len: usize) -> Tensor {
        self.zero_operands(len, Precision::F32)
    }

    /// Like [`Device::operands`], but filled with zeros.
    pub fn zero_operands(&self, len: usize, precision: Precision) -> Tensor {
        match self {
            Self::Cpu | Self::Meta(_) => Tensor::Host(Buffer::zeros(self.meta(), len)),
            Self::Cuda(gpu) => Tensor::Gpu(Array::zeros(gpu, len, precision.dtype())),
        }
    }

    /// A tensor with the given numbers, which lie in the machine's memory.
    pub fn put(&self, numbers: Vec<f32>) -> Tensor {
        self.put_made(numbers.len(), || numbers)
    }

    /// A tensor of `len` numbers, which `make` creates in the machine's memory; the meta device doesn't call it.
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

    /// Puts the dropout keys of a batch's rows on the device.
    pub fn dropout_keys(&self, keys: Vec<u64>) -> DropoutKeys {
        match self {
            Self::Cpu | Self::Meta(_) => DropoutKeys::Host(keys),
            Self::Cuda(gpu) => DropoutKeys::Gpu(Keys::of(gpu, &keys)),
        }
    }

    /// The point at which everything asked for so far is done.
    pub fn mark(&self) -> Mark {
        match self {
            Self::Cpu | Self::Meta(_) => Mark::Cpu(Instant::now()),
            Self::Cuda(gpu) => Mark::Cuda(gpu.mark()),
        }
    }

    /// While the returned guard lives, this thread's work runs beside the work of other threads: on a GPU, it goes to
    /// the stream that moves numbers between ranks. [`Device::wait_for`] orders this work against the work whose
    /// results it reads and the work that reads its results.
    pub fn beside(&self) -> Option<Beside> {
        matches!(self, Self::Cuda(_)).then(Beside::begin)
    }

    /// Makes the work that this thread asks for from now on wait for a mark.
    pub fn wait_for(&self, mark: &Mark) {
        if let (Self::Cuda(gpu), Mark::Cuda(mark)) = (self, mark) {
            gpu.wait_for(mark);
        }
    }

    /// Returns when all work asked for is done.
    pub fn finish(&self) {
        if let Self::Cuda(gpu) = self {
            gpu.finish();
        }
    }

    /// The most bytes that tensors have taken at once so far; on a GPU, weights are included.
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

    /// Seconds since an earlier mark of the same device; on a GPU, waits until the work has reached this mark.
    pub fn seconds_since(&self, earlier: &Self) -> f64 {
        match (self, earlier) {
            (Self::Cpu(this), Self::Cpu(earlier)) => this.duration_since(*earlier).as_secs_f64(),
            (Self::Cuda(this), Self::Cuda(earlier)) => this.seconds_since(earlier),
            _ => panic!("two moments of one device"),
        }
    }
}
