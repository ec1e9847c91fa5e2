//! Tensors on a device, and the few operations that move or add their numbers. A tensor has a length; its shape is up
//! to the operation. All tensors of one operation lie on one device: mixing devices is a programming error.

use std::borrow::Cow;
use std::ops::Range;

use crate::buffer::Buffer;
use crate::cpu::matrix;
use crate::cuda::{self, Array};
use crate::device::Device;
use crate::precision::Precision;

/// What an operation does with the numbers that are already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// Overwrite them.
    Set,
    /// Add to them.
    Add,
}

/// Numbers on a device: f32, or on a GPU the format of matmuls for what only matmuls read ([`Device::operands`]).
#[derive(Debug)]
pub enum Tensor {
    /// In the machine's memory, or without storage on a meta device.
    Host(Buffer),
    /// In a GPU's memory.
    Gpu(Array),
}

impl Tensor {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(numbers) => numbers.len(),
            Self::Gpu(array) => array.len(),
        }
    }

    /// Whether the tensor is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device that the tensor lies on.
    pub fn device(&self) -> Device {
        match self {
            Self::Host(numbers) => numbers.meta().map_or(Device::Cpu, |meta| Device::Meta(meta.clone())),
            Self::Gpu(array) => Device::Cuda(array.gpu().clone()),
        }
    }

    /// Whether the tensor has no storage; work that would only change its numbers is then skipped.
    pub(crate) fn is_meta(&self) -> bool {
        matches!(self, Self::Host(numbers) if numbers.meta().is_some())
    }

    /// The numbers as f32; a GPU's are copied once all work before is done.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Host(numbers) => Cow::Borrowed(numbers),
            Self::Gpu(array) => array.to_f32().into(),
        }
    }

    /// A copy in the format that matmuls of `precision` read on its device.
    pub fn rounded(&self, precision: Precision) -> Self {
        match self {
            Self::Host(numbers) => numbers.to_vec().into(),
            Self::Gpu(array) => Self::Gpu(cuda::elementwise::cast(array, precision.dtype())),
        }
    }

    /// Lets `f` change the numbers in the machine's memory; a GPU's are copied there and back.
    pub fn change_on_host(&mut self, f: impl FnOnce(&mut [f32])) {
        match self {
            Self::Host(numbers) => f(numbers),
            Self::Gpu(array) => {
                let mut numbers = array.to_f32();
                f(&mut numbers);
                array.write(0, &numbers);
            }
        }
    }

    /// Writes numbers from `start` on.
    pub fn write(&mut self, start: usize, numbers: &[f32]) {
        match self {
            Self::Host(own) => own[start..start + numbers.len()].copy_from_slice(numbers),
            Self::Gpu(array) => array.write(start, numbers),
        }
    }

    /// Copies a range of another tensor to `start`.
    pub fn copy(&mut self, start: usize, from: &Self, stretch: Range<usize>) {
        match (self, from) {
            (Self::Host(to), Self::Host(_)) if to.meta().is_some() => {}
            (Self::Host(to), Self::Host(from)) => {
                to[start..start + stretch.len()].copy_from_slice(&from[stretch]);
            }
            (to, from) => to.array_mut().copy(start, from.array(), stretch),
        }
    }

    /// `self += from`.
    pub fn add(&mut self, from: &Self) {
        match (self, from) {
            (Self::Host(to), Self::Host(from)) => matrix::add((&mut *to).into(), from.into()),
            (to, from) => cuda::elementwise::add(to.array_mut(), from.array()),
        }
    }

    /// `self[to + i] += self[from + i]` for `i` below `len`; the two ranges don't overlap.
    pub fn add_within(&mut self, to: usize, from: usize, len: usize) {
        assert!(to + len <= from, "the sum comes before what is added");
        match self {
            Self::Host(numbers) if numbers.meta().is_some() => {}
            Self::Host(numbers) => {
                // This runs on one thread, because the others may be busy with something else.
                let (sums, rest) = numbers[to..].split_at_mut(from - to);
                sums[..len].iter_mut().zip(&rest[..len]).for_each(|(sum, x)| *sum += x);
            }
            Self::Gpu(array) => cuda::elementwise::add_within(array, to, from, len),
        }
    }

    /// The numbers of a host tensor.
    pub(crate) fn host(&self) -> &Buffer {
        match self {
            Self::Host(numbers) => numbers,
            Self::Gpu(_) => panic!("the tensors of one operation lie on one device"),
        }
    }

    /// The numbers of a host tensor, for writing.
    pub(crate) fn host_mut(&mut self) -> &mut Buffer {
        match self {
            Self::Host(numbers) => numbers,
            Self::Gpu(_) => panic!("the tensors of one operation lie on one device"),
        }
    }

    /// The array of a GPU tensor.
    pub(crate) fn array(&self) -> &Array {
        match self {
            Self::Gpu(array) => array,
            Self::Host(_) => panic!("the tensors of one operation lie on one device"),
        }
    }

    /// The array of a GPU tensor, for writing.
    pub(crate) fn array_mut(&mut self) -> &mut Array {
        match self {
            Self::Gpu(array) => array,
            Self::Host(_) => panic!("the tensors of one operation lie on one device"),
        }
    }
}

impl From<Vec<f32>> for Tensor {
    /// Numbers in the machine's memory.
    fn from(numbers: Vec<f32>) -> Self {
        Self::Host(Buffer::from(numbers))
    }
}
