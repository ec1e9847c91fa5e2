//! Weights that are trained: their numbers in f32 or bf16, written in place, and copied to and from tensors.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::{Dtype, Numbers, Storage, Weight, widen};
use crate::cuda::Array;
use crate::cuda::elementwise;
use crate::precision;
use crate::tensor::Tensor;

impl Weight {
    /// The numbers of a trained weight: an f32 copy of its own in the machine's memory, made on the first call.
    pub fn make_trainable(&mut self) -> &mut [f32] {
        if !matches!(self.storage, Storage::F32(_)) {
            self.storage = Storage::F32(self.to_f32().into_owned());
        }
        match &mut self.storage {
            Storage::F32(data) => data,
            _ => unreachable!("the storage was made f32 above"),
        }
    }

    /// Converts the numbers to f32 on their device, in memory of their own.
    pub fn widen(&mut self) {
        match &self.storage {
            Storage::Gpu(array) if array.dtype() == Dtype::F32 => {}
            Storage::Gpu(array) => self.storage = Storage::Gpu(Arc::new(elementwise::cast(array, Dtype::F32))),
            _ => drop(self.make_trainable()),
        }
    }

    /// Rounds the numbers to bf16 on their device, in memory of their own, as bf16 matmuls round their operands.
    pub fn round(&mut self) {
        self.storage = match &self.storage {
            Storage::Gpu(array) if array.dtype() == Dtype::Bf16 => return,
            Storage::Gpu(array) => Storage::Gpu(Arc::new(elementwise::cast(array, Dtype::Bf16))),
            _ => match self.numbers() {
                Numbers::Bf16(numbers) => Storage::Bf16(numbers.to_vec()),
                Numbers::F32(numbers) => {
                    let mut rounded = vec![bf16::ZERO; numbers.len()];
                    precision::round_into(&mut rounded, numbers);
                    Storage::Bf16(rounded)
                }
                Numbers::Nf4(_) => panic!("a quantised weight is frozen"),
            },
        };
    }

    /// A range of the numbers in f32, on their device.
    pub fn stretch(&self, stretch: Range<usize>) -> Tensor {
        match &self.storage {
            Storage::Gpu(array) => {
                let mut own = Array::unset(array.gpu(), stretch.len(), array.dtype());
                own.copy(0, array, stretch);
                Tensor::Gpu(if own.dtype() == Dtype::F32 { own } else { elementwise::cast(&own, Dtype::F32) })
            }
            _ => match self.numbers() {
                Numbers::F32(numbers) => numbers[stretch].to_vec().into(),
                Numbers::Bf16(numbers) => numbers[stretch].iter().map(|x| widen(*x)).collect::<Vec<f32>>().into(),
                Numbers::Nf4(_) => panic!("a quantised weight is frozen"),
            },
        }
    }

    /// Copies a range of bf16 numbers to `start` of an f32 tensor on their device, two numbers in the place of one.
    pub fn copy_pairs_to(&self, to: &mut Tensor, start: usize, stretch: Range<usize>) {
        match (&self.storage, to) {
            (Storage::Gpu(array), Tensor::Gpu(to)) => to.copy_pairs_of(start, array, stretch),
            (Storage::Bf16(numbers), Tensor::Host(to)) => {
                let to = bytemuck::cast_slice_mut::<f32, bf16>(&mut to[start..]);
                to[..stretch.len()].copy_from_slice(&numbers[stretch]);
            }
            _ => panic!("bf16 numbers, on the tensor's device"),
        }
    }

    /// Overwrites a range of bf16 numbers with what [`Weight::copy_pairs_to`] wrote at `start` of a tensor.
    pub fn copy_pairs_from(&mut self, stretch: Range<usize>, from: &Tensor, start: usize) {
        match from {
            Tensor::Gpu(from) => self.array_mut().copy_pairs_from(stretch, from, start),
            Tensor::Host(from) => {
                let len = stretch.len();
                let from = bytemuck::cast_slice::<f32, bf16>(&from[start..]);
                self.bf16_mut()[stretch].copy_from_slice(&from[..len]);
            }
        }
    }

    fn bf16_mut(&mut self) -> &mut [bf16] {
        match &mut self.storage {
            Storage::Bf16(numbers) => numbers,
            _ => panic!("numbers that were rounded"),
        }
    }

    /// Overwrites the numbers of a trained weight in place, from `start` on; rounds them if the weight is bf16.
    pub fn write(&mut self, start: usize, numbers: &[f32]) {
        match &mut self.storage {
            Storage::Gpu(array) if array.dtype() == Dtype::Bf16 => {
                let numbers = Array::of(array.gpu(), numbers);
                elementwise::round_into(self.array_mut(), start, &numbers, 0..numbers.len());
            }
            Storage::Gpu(_) => self.array_mut().write(start, numbers),
            Storage::Bf16(own) => precision::round_into(&mut own[start..start + numbers.len()], numbers),
            _ => self.make_trainable()[start..start + numbers.len()].copy_from_slice(numbers),
        }
    }

    /// Copies a range of a trained weight's numbers to `start` of a tensor on its device.
    pub fn copy_to(&self, to: &mut Tensor, start: usize, stretch: Range<usize>) {
        match (&self.storage, to) {
            (Storage::Gpu(array), Tensor::Gpu(to)) => to.copy(start, array, stretch),
            (Storage::F32(numbers), Tensor::Host(to)) => {
                to[start..start + stretch.len()].copy_from_slice(&numbers[stretch]);
            }
            _ => panic!("what is trained is stored as f32, on the tensor's device"),
        }
    }

    /// Overwrites the numbers of a trained weight in place, from `start` on, with a range of an f32 tensor on its
    /// device; rounds them if the weight is bf16.
    pub fn copy_from(&mut self, start: usize, from: &Tensor, stretch: Range<usize>) {
        match from {
            Tensor::Gpu(from) => match self.array_mut() {
                own if own.dtype() == Dtype::Bf16 => elementwise::round_into(own, start, from, stretch),
                own => own.copy(start, from, stretch),
            },
            Tensor::Host(from) => self.write(start, &from[stretch]),
        }
    }
}
