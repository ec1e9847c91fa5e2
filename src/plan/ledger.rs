//! Buffers as lengths: taken and given back through the pool's own policy, with what each is for. What is counted are the
//! pages that something was written to, spare ones included, for they stay resident.

use weft_kernels::buffer::{Piece, Pool};

/// Bytes of a page.
const PAGE: usize = 4096;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Gradients of what is trained.
    Gradients,
    /// Each layer's input and attention, kept for backward.
    Kept,
    /// Products that are kept so that they aren't computed again.
    Products,
    /// What one layer's forward or backward works with.
    Layer,
    /// What the head works with.
    Head,
    /// Keys and values that the sampler keeps from step to step.
    Cache,
}

/// The number of uses.
pub(super) const USES: usize = 6;

/// A buffer on loan.
#[derive(Debug)]
pub(super) struct Held {
    piece: Option<Piece<usize>>,
    bytes: usize,
    used_for: Use,
}

/// The pool's state, and its fullest moment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Each piece knows how many of its bytes were written to.
    pool: Pool<usize>,
    /// Written bytes of the pieces on loan.
    on_loan: usize,
    live: [usize; USES],
    fullest: Fullest,
}

/// The most that the pool ever was. What it was used for then lies within what stays resident.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fullest {
    /// Resident bytes, spare ones included.
    pub resident: usize,
    /// What was used at once, and for what.
    pub live: [usize; USES],
}

impl Ledger {
    /// A buffer of so many numbers, all of which will be written.
    pub(super) fn take(&mut self, used_for: Use, len: usize) -> Held {
        if len == 0 {
            return Held { piece: None, bytes: 0, used_for };
        }
        let bytes = (len * size_of::<f32>()).next_multiple_of(PAGE);
        let mut piece = self.pool.take(len, |_| 0);
        piece.memory = piece.memory.max(bytes);
        self.on_loan += piece.memory;
        self.live[used_for as usize] += bytes;
        let resident = self.on_loan + self.pool.spare().sum::<usize>();
        self.fullest.resident = self.fullest.resident.max(resident);
        if self.live.iter().sum::<usize>() > self.fullest.live.iter().sum() {
            self.fullest.live = self.live;
        }
        Held { piece: Some(piece), bytes, used_for }
    }

    /// Gives buffers back, in order.
    pub(super) fn give(&mut self, held: impl IntoIterator<Item = Held>) {
        for Held { piece, bytes, used_for } in held {
            self.live[used_for as usize] -= bytes;
            if let Some(piece) = piece {
                self.on_loan -= piece.memory;
                self.pool.give_back(piece);
            }
        }
    }

    /// A buffer stays where it is, for another use.
    pub(super) fn keep(&mut self, mut held: Held, used_for: Use) -> Held {
        self.live[held.used_for as usize] -= held.bytes;
        self.live[used_for as usize] += held.bytes;
        held.used_for = used_for;
        held
    }

    /// The pool's fullest moment so far.
    pub(super) fn fullest(&self) -> Fullest {
        self.fullest
    }

    /// The most bytes that were on loan at once, as the pool counts them.
    pub(super) fn most_used_bytes(&self) -> usize {
        self.pool.most_used_bytes()
    }
}
