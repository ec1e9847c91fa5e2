//! Memory for activations, which the next operation of about the same size reuses. The system clears every page that it
//! hands out, which costs as much as an element-wise operation. Pages are mapped and unmapped directly, because an
//! allocator in between would hold on to some of them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use memmap2::MmapMut;
use rayon::prelude::*;

use crate::meta::{Loan, Meta};

/// Size classes per octave: batches whose lengths differ a little share their buffers.
const CLASSES: usize = 8;
/// How many numbers two huge pages hold. A smaller buffer would waste much of a huge page.
const HUGE: usize = 1 << 20;

static POOL: Mutex<Pool<MmapMut>> = Mutex::new(Pool::new());

/// Decides which memory is reused and which is freed, from lengths alone. The memory itself is `M`: pages for
/// [`Buffer`], and only byte counts on the meta device.
#[derive(Debug)]
pub struct Pool<M> {
    /// Memory that is not in use, longest-waiting first.
    spare: Vec<Piece<M>>,
    /// How many numbers the spare memory holds.
    spare_len: usize,
    used_len: usize,
    /// The most numbers that were in use at once.
    most_used: usize,
}

/// Memory for a fixed count of numbers.
#[derive(Debug)]
pub struct Piece<M> {
    /// How many numbers it holds.
    len: usize,
    /// The memory.
    pub memory: M,
}

/// A slice of numbers borrowed from the pool; its memory becomes spare again when the buffer is dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
}

/// The owner of a buffer's memory.
#[derive(Debug)]
enum Memory {
    None,
    Pools(Piece<MmapMut>),
    /// A caller's vector, which never belonged to the pool.
    Own(Vec<f32>),
    /// Memory of a meta device, which has no storage.
    Meta(Loan),
}

/// Maps whole pages of zeros.
fn pages(len: usize) -> MmapMut {
    // Like an allocator, this ends the program when there is no memory.
    let pages = MmapMut::map_anon(len * size_of::<f32>())
        .unwrap_or_else(|e| panic!("{} MB of memory for activations: {e}", len * size_of::<f32>() / 1_000_000));
    #[cfg(target_os = "linux")]
    if len >= HUGE {
        // A system without huge pages falls back to small ones.
        let _ = pages.advise(memmap2::Advice::HugePage);
    }
    pages
}

/// The most bytes that buffers have used at once so far.
pub fn most_used_bytes() -> usize {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).most_used_bytes()
}

impl Buffer {
    /// A buffer with arbitrary contents, for a result that overwrites them all. It has no storage if a meta device is
    /// given.
    pub fn unset(meta: Option<&Meta>, len: usize) -> Self {
        let take = || POOL.lock().unwrap_or_else(PoisonError::into_inner).take(len, pages);
        let memory = match meta {
            Some(meta) => Memory::Meta(meta.take(len)),
            None if len > 0 => Memory::Pools(take()),
            None => Memory::None,
        };
        Self { memory, len }
    }

    /// A buffer of zeros.
    pub fn zeros(meta: Option<&Meta>, len: usize) -> Self {
        let mut buffer = Self::unset(meta, len);
        if meta.is_none() {
            buffer.par_chunks_mut(HUGE).for_each(|chunk| chunk.fill(0.0));
        }
        buffer
    }

    /// A vector of `len` numbers outside the pool. `make` creates it unless there is a meta device.
    pub fn vector(meta: Option<&Meta>, len: usize, make: impl FnOnce() -> Vec<f32>) -> Self {
        match meta {
            Some(meta) => Self { memory: Memory::Meta(meta.take_outside(len * size_of::<f32>())), len },
            None => make().into(),
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The meta device that the buffer lies on, if any.
    pub fn meta(&self) -> Option<&Meta> {
        match &self.memory {
            Memory::Meta(loan) => Some(loan.meta()),
            _ => None,
        }
    }

    /// The numbers for writing, or the meta device in their place.
    pub(crate) fn numbers_or_meta(&mut self) -> (&mut [f32], Option<&Meta>) {
        match &mut self.memory {
            Memory::None => (&mut [], None),
            Memory::Pools(piece) => (&mut bytemuck::cast_slice_mut(&mut piece.memory)[..self.len], None),
            Memory::Own(numbers) => (numbers, None),
            Memory::Meta(loan) => (&mut [], Some(loan.meta())),
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(numbers: Vec<f32>) -> Self {
        Self { len: numbers.len(), memory: Memory::Own(numbers) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Pools(memory) = std::mem::replace(&mut self.memory, Memory::None) {
            POOL.lock().unwrap_or_else(PoisonError::into_inner).give_back(memory);
        }
    }
}

/// A vector whose memory this thread reuses, for an innermost loop whose vectors are too small for the pool. Fresh
/// memory for every matmul would cost system calls, which stop the other threads.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<f32>);

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(vec![]) };
}

impl Scratch {
    /// An empty vector.
    pub(crate) fn new() -> Self {
        let mut numbers = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        numbers.clear();
        Self(numbers)
    }

    /// Resizes the vector to `len` numbers with arbitrary contents.
    pub(crate) fn unset(len: usize) -> Self {
        let mut scratch = Self(SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default());
        scratch.resize(len, 0.0);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let numbers = std::mem::take(&mut self.0);
        // A thread that is ending no longer has a place to keep the vector.
        let _ = SCRATCH.try_with(|spare| spare.borrow_mut().push(numbers));
    }
}

impl Deref for Scratch {
    type Target = Vec<f32>;

    fn deref(&self) -> &Vec<f32> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<f32> {
        &mut self.0
    }
}

impl<M> Pool<M> {
    /// An empty pool.
    pub const fn new() -> Self {
        Self { spare: vec![], spare_len: 0, used_len: 0, most_used: 0 }
    }

    /// The most bytes that were in use at once so far.
    pub fn most_used_bytes(&self) -> usize {
        self.most_used * size_of::<f32>()
    }

    /// The spare memory.
    pub fn spare(&self) -> impl Iterator<Item = &M> {
        self.spare.iter().map(|piece| &piece.memory)
    }

    /// Takes the smallest spare memory that holds `len` numbers and isn't twice as large, or new memory: `make` creates
    /// it from a length.
    pub fn take(&mut self, len: usize, make: impl FnOnce(usize) -> M) -> Piece<M> {
        let fits = |piece: &Piece<M>| (len..=2 * len).contains(&piece.len);
        let smallest = (0..self.spare.len()).filter(|i| fits(&self.spare[*i])).min_by_key(|i| self.spare[*i].len);
        let piece = match smallest {
            Some(index) => {
                let piece = self.spare.remove(index);
                self.spare_len -= piece.len;
                piece
            }
            None => {
                let len = len.next_multiple_of((len.next_power_of_two() / (2 * CLASSES)).max(1));
                // Memory that has waited long may never fit again. Used and spare memory together never exceed the peak
                // of use.
                let limit = self.most_used.max(self.used_len + len);
                while self.used_len + self.spare_len + len > limit && !self.spare.is_empty() {
                    self.spare_len -= self.spare.remove(0).len;
                }
                Piece { len, memory: make(len) }
            }
        };
        self.used_len += piece.len;
        self.most_used = self.most_used.max(self.used_len);
        piece
    }

    /// Returns memory to the pool.
    pub fn give_back(&mut self, piece: Piece<M>) {
        self.used_len -= piece.len;
        self.spare_len += piece.len;
        self.spare.push(piece);
    }
}

impl<M> Default for Pool<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.memory {
            Memory::None => &[],
            Memory::Pools(piece) => &bytemuck::cast_slice(&piece.memory)[..self.len],
            Memory::Own(numbers) => numbers,
            Memory::Meta(_) => panic!("the meta device has no numbers"),
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let (numbers, meta) = self.numbers_or_meta();
        assert!(meta.is_none(), "the meta device has no numbers");
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_memory_is_used_again_and_what_fits_nothing_goes() {
        let mut pool = Pool::new();
        let first = pool.take(1000, pages);
        let start = first.memory.as_ptr();
        pool.give_back(first);
        let second = pool.take(900, pages);
        assert_eq!((second.memory.as_ptr(), pool.spare_len), (start, 0), "a little less fits");
        let third = pool.take(5000, pages);
        assert!((5000..=5632).contains(&third.len));
        let both = second.len + third.len;
        pool.give_back(second);
        pool.give_back(third);
        let fourth = pool.take(400, pages);
        assert_eq!(pool.spare.len(), 1, "what has waited longest went");
        assert!(pool.spare_len + pool.used_len <= both && pool.most_used == both);
        pool.give_back(fourth);
    }

    #[test]
    fn zeros_are_zeros_though_the_memory_was_used() {
        Buffer::unset(None, 77).fill(1.0);
        assert!(Buffer::zeros(None, 77).iter().all(|x| *x == 0.0));
    }
}
