//! Memory on a GPU, and numbers in it.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::cudaError_enum;
use cudarc::driver::{CudaSlice, DevicePtr, DriverError, result};
use half::bf16;

use super::fail;
use super::gpu::{Arg, Gpu};
use super::matmul::WORKSPACE;
use crate::weight::Dtype;

/// Some bytes of a GPU's memory; they are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    bytes: usize,
    pointer: u64,
    slice: Option<CudaSlice<u8>>,
}

/// Numbers on a GPU.
#[derive(Debug)]
pub struct Array {
    memory: Memory,
    len: usize,
    dtype: Dtype,
}

/// Dropout keys on a GPU.
#[derive(Debug)]
pub struct Keys {
    memory: Memory,
    len: usize,
}

impl Keys {
    /// Uploads keys.
    pub(crate) fn of(gpu: &Arc<Gpu>, keys: &[u64]) -> Self {
        Self { memory: Memory::of(gpu, keys), len: keys.len() }
    }

    /// Where the keys of `rows` rows from `first` on begin.
    pub(crate) fn at(&self, first: usize, rows: usize) -> u64 {
        assert!(first + rows <= self.len, "a key for each row");
        self.memory.pointer() + (size_of::<u64>() * first) as u64
    }
}

impl Memory {
    /// Bytes that hold whatever was there before.
    pub(super) fn unset(gpu: &Arc<Gpu>, bytes: usize) -> Self {
        let slice = gpu.engine().filter(|_| bytes > 0).map(|engine| {
            // SAFETY: every operation writes what it gives out before it is read.
            unsafe { engine.stream().alloc::<u8>(bytes) }.unwrap_or_else(|first| {
                // What the pool keeps may be in pieces: all of it goes back to the driver, once.
                gpu.give_back_spare();
                let again = unsafe { engine.stream().alloc::<u8>(bytes) };
                again.unwrap_or_else(|_| no_room(gpu, bytes, first))
            })
        });
        let pointer = slice.as_ref().zip(gpu.engine()).map_or(0, |(slice, engine)| slice.device_ptr(engine.stream()).0);
        gpu.take(bytes);
        Self { gpu: gpu.clone(), bytes, pointer, slice }
    }

    /// A copy of numbers of the machine's; they may be changed once this returns.
    pub(super) fn of<T: Pod>(gpu: &Arc<Gpu>, numbers: &[T]) -> Self {
        let memory = Self::unset(gpu, size_of_val(numbers));
        memory.write(0, bytemuck::cast_slice(numbers));
        memory
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Where it begins.
    pub(super) fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(super) fn arg(&self) -> Arg {
        Arg::Numbers(self.pointer, self.bytes)
    }

    /// Copies bytes of the machine's to `start`.
    pub(super) fn write(&self, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() <= self.bytes, "what is written fits");
        let Some(engine) = self.gpu.engine().filter(|_| !bytes.is_empty()) else { return };
        self.gpu.bind();
        // SAFETY: the range lies within the memory; pageable bytes are staged before the call returns.
        let written =
            unsafe { result::memcpy_htod_async(self.pointer + start as u64, bytes, engine.stream().cu_stream()) };
        written.unwrap_or_else(|e| self.gpu.fail("take numbers", e));
    }

    /// Copies bytes from `start` on to the machine, once all work before is done.
    pub(super) fn read(&self, start: usize, bytes: &mut [u8]) {
        assert!(start + bytes.len() <= self.bytes, "what is read is there");
        let Some(engine) = self.gpu.engine().filter(|_| !bytes.is_empty()) else { return };
        self.gpu.bind();
        // SAFETY: the range lies within the memory, and the bytes are borrowed until the stream is done.
        let read =
            unsafe { result::memcpy_dtoh_async(bytes, self.pointer + start as u64, engine.stream().cu_stream()) };
        let read = read.and_then(|()| engine.stream().synchronize());
        read.unwrap_or_else(|e| self.gpu.fail("give its numbers", e));
    }

    /// Fills the memory with zeros.
    pub(super) fn clear(&self) {
        let Some(engine) = self.gpu.engine().filter(|_| self.bytes > 0) else { return };
        self.gpu.bind();
        // SAFETY: the bytes are this memory's.
        let cleared = unsafe { result::memset_d8_async(self.pointer, 0, self.bytes, engine.stream().cu_stream()) };
        cleared.unwrap_or_else(|e| self.gpu.fail("clear its memory", e));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((slice, engine)) = self.slice.as_ref().zip(self.gpu.engine()) {
            self.gpu.bind();
            // A driver that refuses has failed before, and said so.
            let _ = engine.streams.release(slice.stream());
        }
        self.gpu.give(self.bytes);
    }
}

fn no_room(gpu: &Gpu, bytes: usize, error: DriverError) -> ! {
    if error.0 != cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
        gpu.fail("take memory", error);
    }
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let [free, all] = gpu.memory().map(mb);
    fail(format!(
        "the GPU {} has no room for {:.1} MB more: {free:.0} of its {all:.0} MB are free, and this process has {:.0}; lower \
         train.micro_batch_size, data.max_seq_len or --gen-length, or end what else is on the GPU",
        gpu.name(),
        mb(bytes),
        mb(gpu.used_bytes() + WORKSPACE),
    ))
}

impl Clone for Array {
    fn clone(&self) -> Self {
        let mut copy = Self::unset(self.gpu(), self.len, self.dtype);
        copy.copy(0, self, 0..self.len);
        copy
    }
}

impl Array {
    /// Numbers that hold whatever was there before.
    pub(crate) fn unset(gpu: &Arc<Gpu>, len: usize, dtype: Dtype) -> Self {
        Self { memory: Memory::unset(gpu, len * dtype.size()), len, dtype }
    }

    /// Zeros.
    pub(crate) fn zeros(gpu: &Arc<Gpu>, len: usize, dtype: Dtype) -> Self {
        let array = Self::unset(gpu, len, dtype);
        array.memory.clear();
        array
    }

    /// The machine's numbers as f32.
    pub(crate) fn of(gpu: &Arc<Gpu>, numbers: &[f32]) -> Self {
        Self { memory: Memory::of(gpu, numbers), len: numbers.len(), dtype: Dtype::F32 }
    }

    /// The machine's numbers as they are stored, little-endian.
    pub(crate) fn of_bytes(gpu: &Arc<Gpu>, bytes: &[u8], dtype: Dtype) -> Self {
        Self { memory: Memory::of(gpu, bytes), len: bytes.len() / dtype.size(), dtype }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their format.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Where they are.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.memory.gpu()
    }

    /// The numbers as f32, once all work before is done.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        self.stretch_to_f32(0..self.len)
    }

    /// Some numbers as f32.
    pub(crate) fn stretch_to_f32(&self, stretch: Range<usize>) -> Vec<f32> {
        let start = stretch.start * self.dtype.size();
        match self.dtype {
            Dtype::F32 => {
                let mut numbers = vec![0.0f32; stretch.len()];
                self.memory.read(start, bytemuck::cast_slice_mut(&mut numbers));
                numbers
            }
            Dtype::Bf16 => {
                let mut numbers = vec![bf16::ZERO; stretch.len()];
                self.memory.read(start, bytemuck::cast_slice_mut(&mut numbers));
                numbers.into_iter().map(bf16::to_f32).collect()
            }
        }
    }

    /// Writes numbers of the machine's from `start` on.
    pub(crate) fn write(&mut self, start: usize, numbers: &[f32]) {
        assert_eq!(self.dtype, Dtype::F32, "the machine writes f32 numbers");
        self.memory.write(4 * start, bytemuck::cast_slice(numbers));
    }

    /// Copies a stretch of another array in the same format to `start`.
    pub(crate) fn copy(&mut self, start: usize, from: &Self, stretch: Range<usize>) {
        assert!(stretch.end <= from.len && start + stretch.len() <= self.len, "the stretch lies within both");
        assert_eq!(self.dtype, from.dtype, "a copy in one format");
        self.copy_bytes(self.at(start), from.at(stretch.start), stretch.len() * self.dtype.size());
    }

    /// Copies a stretch of a bf16 array to `start` of this f32 one, two numbers in the place of one.
    pub(crate) fn copy_pairs_of(&mut self, start: usize, from: &Self, stretch: Range<usize>) {
        let words = stretch.len().div_ceil(2);
        assert!(stretch.end <= from.len && start + words <= self.len, "the stretch lies within both");
        assert_eq!((self.dtype, from.dtype), (Dtype::F32, Dtype::Bf16), "pairs in the place of f32 numbers");
        self.copy_bytes(self.at(start), from.at(stretch.start), stretch.len() * Dtype::Bf16.size());
    }

    /// The way back, to a stretch of this bf16 array.
    pub(crate) fn copy_pairs_from(&mut self, stretch: Range<usize>, from: &Self, start: usize) {
        let words = stretch.len().div_ceil(2);
        assert!(stretch.end <= self.len && start + words <= from.len, "the stretch lies within both");
        assert_eq!((self.dtype, from.dtype), (Dtype::Bf16, Dtype::F32), "pairs in the place of f32 numbers");
        self.copy_bytes(self.at(stretch.start), from.at(start), stretch.len() * Dtype::Bf16.size());
    }

    /// Copies bytes between two places on the GPU that the caller has seen to be there.
    fn copy_bytes(&self, to: u64, from: u64, bytes: usize) {
        let Some(engine) = self.gpu().engine().filter(|_| bytes > 0) else { return };
        self.gpu().bind();
        // SAFETY: the callers' assertions.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, engine.stream().cu_stream()) };
        copied.unwrap_or_else(|e| self.gpu().fail("copy its numbers", e));
    }

    /// The pointer to a number.
    pub(super) fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "a number of the array");
        self.memory.pointer() + (index * self.dtype.size()) as u64
    }

    pub(super) fn arg(&self) -> Arg {
        self.memory.arg()
    }

    /// So many of the numbers from `start` on, or anywhere as many.
    pub(super) fn part(&self, start: usize, count: usize) -> Arg {
        Arg::Numbers(self.at(start), count * self.dtype.size())
    }
}
