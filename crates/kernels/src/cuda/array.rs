//! Memory on a GPU, and arrays of numbers in it.

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

/// Bytes of a GPU's memory, which are freed on drop.
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

    /// The address of the keys of `rows` rows from `first` on.
    pub(crate) fn at(&self, first: usize, rows: usize) -> u64 {
        assert!(first + rows <= self.len, "a key for each row");
        self.memory.pointer() + (size_of::<u64>() * first) as u64
    }
}

impl Memory {
    /// Memory with arbitrary contents.
    pub(super) fn unset(gpu: &Arc<Gpu>, bytes: usize) -> Self {
        let slice = gpu.engine().filter(|_| bytes > 0).map(|engine| {
            // SAFETY: every operation writes its result before it is read.
            unsafe { engine.stream().alloc::<u8>(bytes) }.unwrap_or_else(|first| {
                // The pool's spare memory may be fragmented: return all of it to the driver and try once more.
                gpu.give_back_spare();
                let again = unsafe { engine.stream().alloc::<u8>(bytes) };
                again.unwrap_or_else(|_| no_room(gpu, bytes, first))
            })
        });
        let pointer = slice.as_ref().zip(gpu.engine()).map_or(0, |(slice, engine)| slice.device_ptr(engine.stream()).0);
        gpu.take(bytes);
        Self { gpu: gpu.clone(), bytes, pointer, slice }
    }

    /// A copy of numbers in the machine's memory, which may be changed once this returns.
    pub(super) fn of<T: Pod>(gpu: &Arc<Gpu>, numbers: &[T]) -> Self {
        let memory = Self::unset(gpu, size_of_val(numbers));
        memory.write(0, bytemuck::cast_slice(numbers));
        memory
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The address of the first byte.
    pub(super) fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(super) fn arg(&self) -> Arg {
        Arg::Numbers(self.pointer, self.bytes)
    }

    /// Copies bytes from the machine's memory to `start`.
    pub(super) fn write(&self, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() <= self.bytes, "what is written fits");
        let Some(engine) = self.gpu.engine().filter(|_| !bytes.is_empty()) else { return };
        self.gpu.bind();
        // SAFETY: the range lies within the memory; pageable bytes are staged before the call returns.
        let written =
            unsafe { result::memcpy_htod_async(self.pointer + start as u64, bytes, engine.stream().cu_stream()) };
        written.unwrap_or_else(|e| self.gpu.fail("copy numbers to its memory", e));
    }

    /// Copies the bytes from `start` on to the machine's memory, once all work before is done.
    pub(super) fn read(&self, start: usize, bytes: &mut [u8]) {
        assert!(start + bytes.len() <= self.bytes, "what is read is there");
        let Some(engine) = self.gpu.engine().filter(|_| !bytes.is_empty()) else { return };
        self.gpu.bind();
        // SAFETY: the range lies within the memory, and the bytes are borrowed until the stream is done.
        let read =
            unsafe { result::memcpy_dtoh_async(bytes, self.pointer + start as u64, engine.stream().cu_stream()) };
        let read = read.and_then(|()| engine.stream().synchronize());
        read.unwrap_or_else(|e| self.gpu.fail("copy its numbers back", e));
    }

    /// Fills the memory with zeros.
    pub(super) fn clear(&self) {
        let Some(engine) = self.gpu.engine().filter(|_| self.bytes > 0) else { return };
        self.gpu.bind();
        // SAFETY: the bytes belong to this memory.
        let cleared = unsafe { result::memset_d8_async(self.pointer, 0, self.bytes, engine.stream().cu_stream()) };
        cleared.unwrap_or_else(|e| self.gpu.fail("clear its memory", e));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((slice, engine)) = self.slice.as_ref().zip(self.gpu.engine()) {
            self.gpu.bind();
            // A driver that refuses has failed before, and that failure was reported.
            let _ = engine.streams.release(slice.stream());
        }
        self.gpu.give(self.bytes);
    }
}

fn no_room(gpu: &Gpu, bytes: usize, error: DriverError) -> ! {
    if error.0 != cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
        gpu.fail("allocate memory", error);
    }
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let [free, all] = gpu.memory().map(mb);
    fail(format!(
        "GPU {} has no room for {:.1} MB more: {free:.0} of its {all:.0} MB are free, and this process uses {:.0}; lower \
         train.micro_batch_size, data.max_seq_len or --gen-length, or end other programs on the GPU",
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
    /// An array with arbitrary contents.
    pub(crate) fn unset(gpu: &Arc<Gpu>, len: usize, dtype: Dtype) -> Self {
        Self { memory: Memory::unset(gpu, len * dtype.size()), len, dtype }
    }

    /// An array of zeros.
    pub(crate) fn zeros(gpu: &Arc<Gpu>, len: usize, dtype: Dtype) -> Self {
        let array = Self::unset(gpu, len, dtype);
        array.memory.clear();
        array
    }

    /// An f32 array with the given numbers.
    pub(crate) fn of(gpu: &Arc<Gpu>, numbers: &[f32]) -> Self {
        Self { memory: Memory::of(gpu, numbers), len: numbers.len(), dtype: Dtype::F32 }
    }

    /// An array with the given bytes, which hold little-endian numbers in its format.
    pub(crate) fn of_bytes(gpu: &Arc<Gpu>, bytes: &[u8], dtype: Dtype) -> Self {
        Self { memory: Memory::of(gpu, bytes), len: bytes.len() / dtype.size(), dtype }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The format of the numbers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The GPU that the array lies on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.memory.gpu()
    }

    /// The numbers as f32, once all work before is done.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        self.stretch_to_f32(0..self.len)
    }

    /// A range of the numbers as f32.
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

    /// Writes numbers from the machine's memory, from `start` on.
    pub(crate) fn write(&mut self, start: usize, numbers: &[f32]) {
        assert_eq!(self.dtype, Dtype::F32, "the machine writes f32 numbers");
        self.memory.write(4 * start, bytemuck::cast_slice(numbers));
    }

    /// Copies a range of another array in the same format to `start`.
    pub(crate) fn copy(&mut self, start: usize, from: &Self, stretch: Range<usize>) {
        assert!(stretch.end <= from.len && start + stretch.len() <= self.len, "the stretch lies within both");
        assert_eq!(self.dtype, from.dtype, "a copy in one format");
        self.copy_bytes(self.at(start), from.at(stretch.start), stretch.len() * self.dtype.size());
    }

    /// Copies a range of a bf16 array to `start` of this f32 array, two numbers in the place of one.
    pub(crate) fn copy_pairs_of(&mut self, start: usize, from: &Self, stretch: Range<usize>) {
        let words = stretch.len().div_ceil(2);
        assert!(stretch.end <= from.len && start + words <= self.len, "the stretch lies within both");
        assert_eq!((self.dtype, from.dtype), (Dtype::F32, Dtype::Bf16), "pairs in the place of f32 numbers");
        self.copy_bytes(self.at(start), from.at(stretch.start), stretch.len() * Dtype::Bf16.size());
    }

    /// The inverse of [`Array::copy_pairs_of`]: copies pairs from `start` of an f32 array to a range of this bf16
    /// array.
    pub(crate) fn copy_pairs_from(&mut self, stretch: Range<usize>, from: &Self, start: usize) {
        let words = stretch.len().div_ceil(2);
        assert!(stretch.end <= self.len && start + words <= from.len, "the stretch lies within both");
        assert_eq!((self.dtype, from.dtype), (Dtype::Bf16, Dtype::F32), "pairs in the place of f32 numbers");
        self.copy_bytes(self.at(stretch.start), from.at(start), stretch.len() * Dtype::Bf16.size());
    }

    /// Copies bytes within the GPU's memory; the caller has checked both places.
    fn copy_bytes(&self, to: u64, from: u64, bytes: usize) {
        let Some(engine) = self.gpu().engine().filter(|_| bytes > 0) else { return };
        self.gpu().bind();
        // SAFETY: the callers have asserted that both places are valid.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, engine.stream().cu_stream()) };
        copied.unwrap_or_else(|e| self.gpu().fail("copy its numbers", e));
    }

    /// The address of the number at an index.
    pub(super) fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "a number of the array");
        self.memory.pointer() + (index * self.dtype.size()) as u64
    }

    pub(super) fn arg(&self) -> Arg {
        self.memory.arg()
    }

    /// The kernel argument for `count` numbers from `start` on.
    pub(super) fn part(&self, start: usize, count: usize) -> Arg {
        Arg::Numbers(self.at(start), count * self.dtype.size())
    }
}
