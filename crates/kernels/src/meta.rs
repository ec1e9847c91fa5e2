//! The meta device: tensors with a length and no storage. The CPU's own operations accept them, take the buffers they
//! need from a pool of byte counts, and return before they compute. So the code of a run itself counts the memory that
//! the run would use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{Buffer, Piece, Pool};

/// Bytes of a page.
const PAGE: usize = 4096;

/// A meta device. A clone is a handle to the same device.
#[derive(Clone, Debug, Default)]
pub struct Meta(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The pool. Each piece records how many of its bytes would have been written to, because written pages stay
    /// resident.
    pool: Pool<usize>,
    /// Written bytes of the pieces that are in use.
    on_loan: usize,
    /// Bytes that tensors from the pool use now, and their peak so far.
    used: usize,
    most_used: usize,
    /// The peak of the pool's resident bytes, spare pieces included.
    most_resident: usize,
    /// Bytes of tensors and vectors outside the pool now, and their peak so far.
    outside: usize,
    most_outside: usize,
    /// The most bytes of vectors that one thread keeps for itself.
    thread: usize,
}

/// The memory that a tensor would use; dropping the loan gives the memory back.
#[derive(Debug)]
pub(crate) struct Loan {
    meta: Meta,
    bytes: usize,
    /// The piece from the pool; `None` if the memory is outside the pool.
    piece: Option<Piece<usize>>,
}

impl Meta {
    /// The bytes that tensors from the pool use now.
    pub fn used_bytes(&self) -> usize {
        self.state().used
    }

    /// The most bytes that tensors from the pool have used at once so far.
    pub fn most_used_bytes(&self) -> usize {
        self.state().most_used
    }

    /// The most bytes of the pool's pieces that have been in use at once so far, counted as
    /// [`crate::buffer::most_used_bytes`] counts the CPU's pool.
    pub fn most_lent_bytes(&self) -> usize {
        self.state().pool.most_used_bytes()
    }

    /// The most bytes of the pool that have been resident at once so far: pages that were written to stay resident
    /// while they are spare.
    pub fn most_resident_bytes(&self) -> usize {
        self.state().most_resident
    }

    /// The most bytes that tensors and vectors outside the pool have used at once so far.
    pub fn most_outside_bytes(&self) -> usize {
        self.state().most_outside
    }

    /// The most bytes of vectors that each thread keeps for itself.
    pub fn thread_bytes(&self) -> usize {
        self.state().thread
    }

    /// Takes a piece of the pool for `len` numbers, all of which will be written.
    pub(crate) fn take(&self, len: usize) -> Loan {
        if len == 0 {
            return Loan { meta: self.clone(), bytes: 0, piece: None };
        }
        let bytes = (len * size_of::<f32>()).next_multiple_of(PAGE);
        let mut state = self.state();
        let mut piece = state.pool.take(len, |_| 0);
        piece.memory = piece.memory.max(bytes);
        state.on_loan += piece.memory;
        state.used += bytes;
        state.most_used = state.most_used.max(state.used);
        let resident = state.on_loan + state.pool.spare().sum::<usize>();
        state.most_resident = state.most_resident.max(resident);
        Loan { meta: self.clone(), bytes, piece: Some(piece) }
    }

    /// Takes bytes outside the pool.
    pub(crate) fn take_outside(&self, bytes: usize) -> Loan {
        let mut state = self.state();
        state.outside += bytes;
        state.most_outside = state.most_outside.max(state.outside);
        Loan { meta: self.clone(), bytes, piece: None }
    }

    /// Takes a buffer of `len` numbers on every thread and gives all of them back.
    pub(crate) fn take_on_threads(&self, len: usize) {
        let buffers: Vec<Buffer> = (0..rayon::current_num_threads()).map(|_| Buffer::unset(Some(self), len)).collect();
        drop(buffers);
    }

    /// Records that a thread's own vectors hold `len` numbers.
    pub(crate) fn note_thread(&self, len: usize) {
        let mut state = self.state();
        state.thread = state.thread.max(len * size_of::<f32>());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    /// The device that lent the memory.
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut state = self.meta.state();
        match self.piece.take() {
            Some(piece) => {
                state.used -= self.bytes;
                state.on_loan -= piece.memory;
                state.pool.give_back(piece);
            }
            None => state.outside -= self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spare_stays_resident_and_is_used_again() {
        let meta = Meta::default();
        let [first, second] = [1000, 3000].map(|len| meta.take(len));
        assert_eq!(meta.used_bytes(), 4096 + 3 * 4096);
        drop((first, second));
        assert_eq!((meta.used_bytes(), meta.most_used_bytes()), (0, 4 * 4096));
        drop(meta.take(1000));
        drop(meta.take_outside(77));
        assert_eq!((meta.most_resident_bytes(), meta.most_outside_bytes()), (4 * 4096, 77));
    }
}
