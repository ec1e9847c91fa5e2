//! A checkpoint's tensor as it is stored: f32 or bf16, owned, a view of a memory-mapped file, or on a GPU. Rows are
//! converted to f32 only while a matmul reads them. The library takes care of names and files.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use memmap2::Mmap;

use crate::buffer::Scratch;
use crate::cpu::exp::vectorised;
use crate::cpu::matrix::View;
use crate::cuda::{Array, Gpu, elementwise};
use crate::device::Device;
use crate::precision;
use crate::tensor::Tensor;

/// A file mapped read-only.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. A file that another process truncates
        // meanwhile ends the run by SIGBUS; checkpoints are immutable by convention, as in every loader that maps.
        Ok(Self(Arc::new(unsafe { Mmap::map(file)? })))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A number format that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16, the upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Mapped { file: MappedFile, bytes: Range<usize>, dtype: Dtype },
    Meta(Dtype),
    Gpu(Arc<Array>),
}

/// A weight's numbers, wherever they lie.
enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A matrix `[rows, cols]` of weights; a vector has one row.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    storage: Storage,
}

impl Weight {
    /// A weight that owns f32 numbers.
    pub fn from_f32(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "a weight of [{rows}, {cols}]");
        Self { rows, cols, storage: Storage::F32(data) }
    }

    /// A weight that owns bf16 numbers.
    pub fn from_bf16(rows: usize, cols: usize, data: Vec<bf16>) -> Self {
        assert_eq!(data.len(), rows * cols, "a weight of [{rows}, {cols}]");
        Self { rows, cols, storage: Storage::Bf16(data) }
    }

    /// A weight without numbers, for callers that need only its shape; reading it is a programming error.
    pub fn meta(rows: usize, cols: usize, dtype: Dtype) -> Self {
        Self { rows, cols, storage: Storage::Meta(dtype) }
    }

    /// Normally distributed bf16 numbers made on a GPU, for measuring models that no file holds.
    pub fn normal_on(gpu: &Arc<Gpu>, rows: usize, cols: usize, seed: u64, deviation: f32) -> Self {
        let array = elementwise::normal(gpu, rows * cols, seed, deviation);
        Self { rows, cols, storage: Storage::Gpu(Arc::new(array)) }
    }

    /// A weight with a copy of little-endian numbers.
    pub fn from_bytes(rows: usize, cols: usize, dtype: Dtype, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.size(), "a weight of [{rows}, {cols}]");
        let storage = match dtype {
            Dtype::F32 => Storage::F32(bytemuck::allocation::pod_collect_to_vec(bytes)),
            Dtype::Bf16 => Storage::Bf16(bytemuck::allocation::pod_collect_to_vec(bytes)),
        };
        Self { rows, cols, storage }
    }

    /// A view of `bytes` of a mapped file. The bytes are copied once if their offset isn't a multiple of the number's
    /// size.
    pub fn mapped(rows: usize, cols: usize, dtype: Dtype, file: MappedFile, bytes: Range<usize>) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.size(), "a weight of [{rows}, {cols}]");
        let raw = &file.bytes()[bytes.clone()];
        match (raw.as_ptr() as usize).is_multiple_of(dtype.size()) {
            true => Self { rows, cols, storage: Storage::Mapped { file, bytes, dtype } },
            false => Self::from_bytes(rows, cols, dtype, raw),
        }
    }

    /// The number of rows: a linear layer's outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns: a linear layer's inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored format.
    pub fn dtype(&self) -> Dtype {
        match &self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
            Storage::Mapped { dtype, .. } | Storage::Meta(dtype) => *dtype,
            Storage::Gpu(array) => array.dtype(),
        }
    }

    /// Some rows as f32, borrowed if they are stored so; a GPU's rows are copied once its work is done.
    pub fn rows_f32(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let range = rows.start * self.cols..rows.end * self.cols;
        if let Storage::Gpu(array) = &self.storage {
            return array.stretch_to_f32(range).into();
        }
        match self.numbers() {
            Numbers::F32(data) => Cow::Borrowed(&data[range]),
            Numbers::Bf16(data) => Cow::Owned(data[range].iter().map(|x| widen(*x)).collect()),
        }
    }

    /// Calls `f` with some rows and columns as f32, borrowed if they are stored so.
    pub(crate) fn with_block<R>(&self, rows: Range<usize>, cols: Range<usize>, f: impl FnOnce(View) -> R) -> R {
        match self.numbers() {
            Numbers::F32(data) => f(View::new(data, self.rows, self.cols).block(rows, cols)),
            Numbers::Bf16(data) => {
                let mut block = Scratch::new();
                for row in rows.clone() {
                    let row = &data[row * self.cols..][cols.clone()];
                    vectorised(
                        #[inline(always)]
                        || block.extend(row.iter().map(|x| widen(*x))),
                    );
                }
                f(View::new(&block[..], rows.len(), cols.len()))
            }
        }
    }

    fn numbers(&self) -> Numbers<'_> {
        match &self.storage {
            Storage::F32(data) => Numbers::F32(data),
            Storage::Bf16(data) => Numbers::Bf16(data),
            Storage::Meta(_) => unreachable!("a meta GPU has no numbers"),
            Storage::Gpu(_) => panic!("the tensors of one operation lie on one device"),
            Storage::Mapped { file, bytes, dtype } => {
                let raw = &file.bytes()[bytes.clone()];
                match dtype {
                    Dtype::F32 => Numbers::F32(bytemuck::cast_slice(raw)),
                    Dtype::Bf16 => Numbers::Bf16(bytemuck::cast_slice(raw)),
                }
            }
        }
    }

    /// All numbers as f32.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        self.rows_f32(0..self.rows)
    }

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

    /// Moves the numbers to a device. A matrix keeps its stored format, and its bytes go to a GPU straight from the
    /// mapped file; a vector becomes f32 there.
    pub fn put_on(&mut self, device: &Device) {
        let Device::Cuda(gpu) = device else {
            if matches!(self.storage, Storage::Gpu(_)) {
                self.storage = Storage::F32(self.to_f32().into_owned());
            }
            return;
        };
        let array = match &self.storage {
            Storage::Gpu(_) => return,
            Storage::Meta(dtype) => {
                Array::unset(gpu, self.rows * self.cols, if self.rows == 1 { Dtype::F32 } else { *dtype })
            }
            _ if self.rows == 1 => Array::of(gpu, &self.to_f32()),
            _ => match self.numbers() {
                Numbers::F32(data) => Array::of_bytes(gpu, bytemuck::cast_slice(data), Dtype::F32),
                Numbers::Bf16(data) => Array::of_bytes(gpu, bytemuck::cast_slice(data), Dtype::Bf16),
            },
        };
        self.storage = Storage::Gpu(Arc::new(array));
    }

    /// The numbers as an array on a GPU.
    pub(crate) fn array(&self) -> &Array {
        match &self.storage {
            Storage::Gpu(array) => array,
            _ => panic!("the tensors of one operation lie on one device"),
        }
    }

    /// The numbers as an array on a GPU, for writing; a clone of the weight keeps the old numbers.
    pub(crate) fn array_mut(&mut self) -> &mut Array {
        match &mut self.storage {
            Storage::Gpu(array) => Arc::make_mut(array),
            _ => panic!("the tensors of one operation lie on one device"),
        }
    }
}

/// Converts numbers to little-endian bf16, rounded to nearest, ties to even.
pub fn to_bf16_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

/// A bf16 number is the upper half of an f32; plain shifts vectorise, while `half`'s own conversion doesn't.
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}
