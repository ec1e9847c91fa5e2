//! A contiguous part of a buffer, as the CPU's operations take it. On the meta device a slice has a length and a way to
//! allocate more memory there, but no numbers.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::meta::Meta;

/// A slice for reading.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    numbers: &'a [f32],
    len: usize,
    meta: Option<&'a Meta>,
}

/// A slice for writing.
pub struct SliceMut<'a> {
    numbers: &'a mut [f32],
    len: usize,
    meta: Option<&'a Meta>,
}

impl<'a> Slice<'a> {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The meta device that the slice lies on, if any.
    pub(crate) fn meta(&self) -> Option<&'a Meta> {
        self.meta
    }

    /// The numbers; there are none on the meta device.
    pub(crate) fn numbers(self) -> &'a [f32] {
        self.numbers
    }

    /// A part of the slice.
    pub(crate) fn range(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len, "a part of the stretch");
        let len = range.len();
        Self { numbers: if self.meta.is_some() { &[] } else { &self.numbers[range] }, len, ..self }
    }
}

impl<'a> SliceMut<'a> {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The numbers; `None` on the meta device, where the operation returns.
    pub(crate) fn numbers(self) -> Option<&'a mut [f32]> {
        if self.meta.is_some() { None } else { Some(self.numbers) }
    }

    /// Borrows the whole slice again.
    pub(crate) fn borrow(&mut self) -> SliceMut<'_> {
        SliceMut { numbers: &mut *self.numbers, len: self.len, meta: self.meta }
    }

    /// A part of the slice.
    pub(crate) fn range(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len, "a part of the stretch");
        let len = range.len();
        Self { numbers: if self.meta.is_some() { &mut [] } else { &mut self.numbers[range] }, len, meta: self.meta }
    }

    /// The same slice for reading.
    pub(crate) fn read(&self) -> Slice<'_> {
        Slice { numbers: &*self.numbers, len: self.len, meta: self.meta }
    }
}

impl<'a> From<&'a [f32]> for Slice<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self { numbers, len: numbers.len(), meta: None }
    }
}

impl<'a> From<&'a mut [f32]> for SliceMut<'a> {
    fn from(numbers: &'a mut [f32]) -> Self {
        Self { len: numbers.len(), numbers, meta: None }
    }
}

impl<'a> From<&'a Buffer> for Slice<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        match buffer.meta() {
            Some(meta) => Self { numbers: &[], len: buffer.len(), meta: Some(meta) },
            None => Self::from(&**buffer),
        }
    }
}

impl<'a> From<&'a mut Buffer> for SliceMut<'a> {
    fn from(buffer: &'a mut Buffer) -> Self {
        let len = buffer.len();
        let (numbers, meta) = buffer.numbers_or_meta();
        Self { numbers, len, meta }
    }
}
