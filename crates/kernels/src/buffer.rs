//! Memory for activations, used again by the next operation that needs as much. The system clears every page that it
//! hands out, which costs as much as an element-wise operation.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Classes of sizes in an octave: batches whose lengths differ a little share their buffers.
const CLASSES: usize = 8;

static POOL: Mutex<Pool> = Mutex::new(Pool { spare: vec![], spare_len: 0, used_len: 0 });

struct Pool {
    /// Memory that nobody uses, what has waited longest first.
    spare: Vec<Vec<f32>>,
    spare_len: usize,
    used_len: usize,
}

/// A slice of numbers on loan; its memory is spare again when it is dropped.
#[derive(Debug)]
pub struct Buffer(Vec<f32>);

impl Buffer {
    /// Numbers that hold whatever was there before: for a result that overwrites them all.
    pub fn unset(len: usize) -> Self {
        if len == 0 {
            return Self(vec![]);
        }
        let mut numbers = POOL.lock().unwrap_or_else(PoisonError::into_inner).take(len);
        numbers.resize(len, 0.0);
        Self(numbers)
    }

    /// Zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::unset(len);
        buffer.fill(0.0);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() > 0 {
            POOL.lock().unwrap_or_else(PoisonError::into_inner).give_back(std::mem::take(&mut self.0));
        }
    }
}

impl Pool {
    /// The smallest spare vector that holds `len` numbers and isn't twice as large, or a new one.
    fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |v: &Vec<f32>| (len..=2 * len).contains(&v.capacity());
        let smallest =
            (0..self.spare.len()).filter(|i| fits(&self.spare[*i])).min_by_key(|i| self.spare[*i].capacity());
        let numbers = match smallest {
            Some(index) => {
                let numbers = self.spare.remove(index);
                self.spare_len -= numbers.capacity();
                numbers
            }
            None => {
                // Sizes have changed: what has waited long may never fit again.
                while self.spare_len > self.used_len / 2 && !self.spare.is_empty() {
                    self.spare_len -= self.spare.remove(0).capacity();
                }
                Vec::with_capacity(len.next_multiple_of((len.next_power_of_two() / (2 * CLASSES)).max(1)))
            }
        };
        self.used_len += numbers.capacity();
        numbers
    }

    fn give_back(&mut self, numbers: Vec<f32>) {
        self.used_len -= numbers.capacity();
        self.spare_len += numbers.capacity();
        self.spare.push(numbers);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_memory_is_used_again_and_what_fits_nothing_goes() {
        let mut pool = Pool { spare: vec![], spare_len: 0, used_len: 0 };
        let first = pool.take(1000);
        let start = first.as_ptr();
        pool.give_back(first);
        let second = pool.take(900);
        assert_eq!((second.as_ptr(), pool.spare_len), (start, 0), "a little less fits");
        pool.give_back(second);
        let third = pool.take(5000);
        assert_eq!((pool.spare.len(), pool.used_len), (0, third.capacity()), "the small one went");
        assert!(third.capacity() >= 5000 && third.capacity() <= 5632);
    }

    #[test]
    fn zeros_are_zeros_though_the_memory_was_used() {
        Buffer::unset(77).fill(1.0);
        assert!(Buffer::zeros(77).iter().all(|x| *x == 0.0));
    }
}
