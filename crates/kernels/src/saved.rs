//! What a forward pass saves for backward, in the format that backward reads.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::exp::vectorised;
use crate::precision::{Precision, write_pairs};
use crate::tensor::Tensor;

/// How many words a task packs.
const CHUNK: usize = 1 << 14;

/// Numbers saved for backward. The CPU packs them in the format that their readers round them to anyway; a GPU already
/// stores them in that format.
pub struct Saved {
    words: Tensor,
    len: usize,
    precision: Precision,
}

impl Saved {
    /// Saves numbers for backward.
    pub fn new(numbers: Tensor, precision: Precision) -> Self {
        let len = numbers.len();
        let words = match (numbers, precision) {
            (Tensor::Host(numbers), Precision::Bf16) => {
                let mut words = Buffer::unset(numbers.meta(), len.div_ceil(2));
                if numbers.meta().is_some() {
                    return Self { words: Tensor::Host(words), len, precision };
                }
                let pieces = words.par_chunks_mut(CHUNK).zip(numbers.par_chunks(2 * CHUNK));
                pieces.for_each(|(words, numbers)| {
                    vectorised(
                        #[inline(always)]
                        || write_pairs(words, numbers),
                    );
                });
                Tensor::Host(words)
            }
            (numbers, _) => numbers,
        };
        Self { words, len, precision }
    }

    /// Returns the saved numbers as f32.
    pub fn take(self) -> Tensor {
        let words = match self.words {
            Tensor::Host(words) if self.precision == Precision::Bf16 => words,
            numbers => return numbers,
        };
        let mut numbers = Buffer::unset(words.meta(), self.len);
        if words.meta().is_some() {
            return Tensor::Host(numbers);
        }
        numbers.par_chunks_mut(2 * CHUNK).zip(words.par_chunks(CHUNK)).for_each(|(numbers, words)| {
            vectorised(
                #[inline(always)]
                || {
                    for (numbers, word) in numbers.chunks_mut(2).zip(words) {
                        let halves = [word.to_bits() << 16, word.to_bits() & 0xffff_0000];
                        numbers.iter_mut().zip(halves).for_each(|(x, half)| *x = f32::from_bits(half));
                    }
                },
            );
        });
        Tensor::Host(numbers)
    }

    /// The bytes that `numbers` saved numbers take.
    pub fn bytes(numbers: usize, precision: Precision) -> usize {
        match precision {
            Precision::F32 | Precision::Bf16x3 => 4 * numbers,
            Precision::Bf16 => 4 * numbers.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn what_is_saved_comes_back_rounded() {
        for len in [0, 1, 2, 7, 2 * CHUNK + 3] {
            let mut numbers = Buffer::unset(None, len);
            numbers.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 / 7.0 - 1.0);
            let expected: Vec<f32> = numbers.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let exact = numbers.to_vec();
            let saved = Saved::new(Tensor::Host(numbers), Precision::Bf16);
            assert_eq!(4 * saved.words.len(), Saved::bytes(len, Precision::Bf16));
            let rounded = saved.take();
            assert_eq!(rounded.host()[..], expected[..]);
            assert_eq!(Saved::new(rounded, Precision::F32).take().host()[..], expected[..]);
            assert!(len < 3 || exact != expected, "the test sees no rounding");
        }
    }
}
