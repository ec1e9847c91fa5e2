//! A checkpoint's tensor as it is stored: f32, bf16 or NF4, owned, a view of a memory-mapped file, or on a GPU. Rows are
//! converted to f32 only while a matmul reads them. The library takes care of names and files.

mod trained;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use crate::buffer::Scratch;
use crate::cpu::exp::vectorised;
use crate::cpu::matrix::View;
use crate::cuda::elementwise::{self, InFormat};
use crate::cuda::{Array, Gpu, Nf4Array};
use crate::device::Device;
pub use crate::mapped::MappedFile;
use crate::nf4::{Nf4, Original};
use crate::precision::Precision;

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

/// How a weight's numbers are encoded where they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Each number by itself.
    Plain(Dtype),
    /// NF4: 4-bit codes and a scale for each block, which may be quantised to 8 bits itself.
    Nf4 {
        /// The format of the numbers before they were quantised.
        original: Original,
        /// Whether the scales are quantised too.
        is_nested: bool,
    },
}

impl Encoding {
    /// The bytes that `len` numbers take.
    pub fn bytes(self, len: usize) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size() * len,
            Self::Nf4 { is_nested, .. } => Nf4::bytes(len, is_nested),
        }
    }
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Mapped { file: MappedFile, bytes: Range<usize>, dtype: Dtype },
    Nf4(Arc<Nf4>),
    Meta(Encoding),
    Gpu(Arc<Array>),
    GpuNf4(Arc<Nf4Array>),
}

/// A weight's numbers, wherever they lie.
enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    Nf4(&'a Nf4),
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
        Self::meta_encoded(rows, cols, Encoding::Plain(dtype))
    }

    /// Like [`Weight::meta`], in any encoding.
    pub fn meta_encoded(rows: usize, cols: usize, encoding: Encoding) -> Self {
        Self { rows, cols, storage: Storage::Meta(encoding) }
    }

    /// A weight in NF4.
    pub fn from_nf4(rows: usize, cols: usize, nf4: Nf4) -> Self {
        assert_eq!(nf4.len(), rows * cols, "a weight of [{rows}, {cols}]");
        Self { rows, cols, storage: Storage::Nf4(Arc::new(nf4)) }
    }

    /// The weight in NF4; on a meta device only its encoding changes. A mapped file's pages are given back once they
    /// have been read.
    pub fn quantized(&self, is_nested: bool) -> Self {
        let (rows, cols, original) = (self.rows, self.cols, self.dtype().into());
        if matches!(self.storage, Storage::Meta(_)) {
            return Self::meta_encoded(rows, cols, Encoding::Nf4 { original, is_nested });
        }
        let of_gpu = matches!(self.storage, Storage::Gpu(_) | Storage::GpuNf4(_)).then(|| self.to_f32());
        let read = |start: usize, to: &mut [f32]| match &of_gpu {
            Some(numbers) => to.copy_from_slice(&numbers[start..start + to.len()]),
            None => self.read(start, to),
        };
        let nf4 = Nf4::quantize(rows * cols, read, original, is_nested);
        if let Storage::Mapped { file, bytes, .. } = &self.storage {
            file.give_back(bytes.clone());
        }
        Self::from_nf4(rows, cols, nf4)
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

    /// The stored format; of NF4, the format that dequantised numbers are rounded to.
    pub fn dtype(&self) -> Dtype {
        match self.encoding() {
            Encoding::Plain(dtype) => dtype,
            Encoding::Nf4 { original, .. } => original.dtype(),
        }
    }

    /// How the numbers are encoded.
    pub fn encoding(&self) -> Encoding {
        match &self.storage {
            Storage::F32(_) => Encoding::Plain(Dtype::F32),
            Storage::Bf16(_) => Encoding::Plain(Dtype::Bf16),
            Storage::Mapped { dtype, .. } => Encoding::Plain(*dtype),
            Storage::Nf4(nf4) => Encoding::Nf4 { original: nf4.original(), is_nested: nf4.is_nested() },
            Storage::Meta(encoding) => *encoding,
            Storage::Gpu(array) => Encoding::Plain(array.dtype()),
            Storage::GpuNf4(array) => array.encoding(),
        }
    }

    /// Whether the weight is stored in NF4.
    pub fn is_quantized(&self) -> bool {
        matches!(self.encoding(), Encoding::Nf4 { .. })
    }

    /// The codes and scales of a weight in NF4 in the machine's memory.
    pub fn as_nf4(&self) -> Option<&Nf4> {
        if let Storage::Nf4(nf4) = &self.storage { Some(nf4) } else { None }
    }

    /// Some rows as f32, borrowed if they are stored so; a GPU's rows are copied once its work is done.
    pub fn rows_f32(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let range = rows.start * self.cols..rows.end * self.cols;
        match &self.storage {
            Storage::Gpu(array) => return array.stretch_to_f32(range).into(),
            Storage::GpuNf4(array) => return array.to_f32()[range].to_vec().into(),
            _ => {}
        }
        match self.numbers() {
            Numbers::F32(data) => Cow::Borrowed(&data[range]),
            Numbers::Bf16(_) | Numbers::Nf4(_) => {
                let mut numbers = vec![0.0; range.len()];
                self.read(range.start, &mut numbers);
                Cow::Owned(numbers)
            }
        }
    }

    /// Copies the numbers from `start` on, in row-major order, from the machine's memory.
    fn read(&self, start: usize, to: &mut [f32]) {
        let range = start..start + to.len();
        match self.numbers() {
            Numbers::F32(data) => to.copy_from_slice(&data[range]),
            Numbers::Bf16(data) => to.iter_mut().zip(&data[range]).for_each(|(to, x)| *to = widen(*x)),
            Numbers::Nf4(nf4) => nf4.dequantize(start, to),
        }
    }

    /// Copies one row as f32; a mapped file's row doesn't become resident.
    pub(crate) fn copy_row(&self, row: usize, to: &mut [f32]) {
        let Storage::Mapped { file, bytes, dtype } = &self.storage else { return self.read(row * self.cols, to) };
        let size = self.cols * dtype.size();
        let start = bytes.start + row * size;
        match dtype {
            Dtype::F32 => file.copy(start, bytemuck::cast_slice_mut(to)),
            Dtype::Bf16 => {
                let mut stored = vec![bf16::ZERO; self.cols];
                file.copy(start, bytemuck::cast_slice_mut(&mut stored));
                to.iter_mut().zip(&stored).for_each(|(to, x)| *to = widen(*x));
            }
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
            Numbers::Nf4(nf4) => {
                let mut block = Scratch::unset(rows.len() * cols.len());
                for (row, to) in rows.clone().zip(block.chunks_mut(cols.len().max(1))) {
                    nf4.dequantize(row * self.cols + cols.start, to);
                }
                f(View::new(&block[..], rows.len(), cols.len()))
            }
        }
    }

    fn numbers(&self) -> Numbers<'_> {
        match &self.storage {
            Storage::F32(data) => Numbers::F32(data),
            Storage::Bf16(data) => Numbers::Bf16(data),
            Storage::Nf4(nf4) => Numbers::Nf4(nf4),
            Storage::Meta(_) => unreachable!("a meta GPU has no numbers"),
            Storage::Gpu(_) | Storage::GpuNf4(_) => panic!("the tensors of one operation lie on one device"),
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
            Storage::Gpu(_) | Storage::GpuNf4(_) => return,
            Storage::Nf4(nf4) => return self.storage = Storage::GpuNf4(Arc::new(Nf4Array::of(gpu, nf4))),
            Storage::Meta(Encoding::Nf4 { original, is_nested }) => {
                let array = Nf4Array::unset(gpu, self.rows * self.cols, *original, *is_nested);
                return self.storage = Storage::GpuNf4(Arc::new(array));
            }
            Storage::Meta(Encoding::Plain(dtype)) => {
                Array::unset(gpu, self.rows * self.cols, if self.rows == 1 { Dtype::F32 } else { *dtype })
            }
            _ if self.rows == 1 => Array::of(gpu, &self.to_f32()),
            _ => match self.numbers() {
                Numbers::F32(data) => Array::of_bytes(gpu, bytemuck::cast_slice(data), Dtype::F32),
                Numbers::Bf16(data) => Array::of_bytes(gpu, bytemuck::cast_slice(data), Dtype::Bf16),
                Numbers::Nf4(_) => unreachable!("NF4 was put there above"),
            },
        };
        self.storage = Storage::Gpu(Arc::new(array));
    }

    /// The numbers on a GPU as a matmul's operand in the given format: the array itself if it is stored so, else a copy.
    pub(crate) fn operand(&self, precision: Precision) -> InFormat<'_> {
        match &self.storage {
            Storage::GpuNf4(array) => InFormat::Dequantized(array.dequantized(precision.dtype())),
            _ => elementwise::in_format(self.array(), precision),
        }
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
