//! Which examples an epoch contains, and in which order. A source of n rows and weight w gives `round(w n)` examples
//! per epoch: each row `floor(w)` times, plus once more the rows with the smallest draws of that epoch. All epochs have
//! the same length, and each copy of a row has its own draws. If an epoch trains on one answer of each chat, n is the
//! number of chats, and each occurrence of a chat draws one of its answers.

use crate::rng::{Draws, Stream};

/// How the examples of several sources are mixed. Without parts, each example occurs once per epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixture {
    /// The number of chats and the weight of each source; the sources' examples are concatenated in this order.
    parts: Vec<(usize, f64)>,
    /// The first example of each chat, in ascending order; empty if each example is a chat of its own.
    chats: Vec<usize>,
}

/// An example's occurrence in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Occurrence {
    /// The example.
    pub example: usize,
    /// Identifies its draws, together with the epoch: the index of the chat (of the example, unless answers are drawn), or
    /// for further copies a number beyond all indices.
    pub draw: u64,
}

impl Mixture {
    /// Mixes sources by the number of their examples and their weights.
    pub fn new(parts: Vec<(usize, f64)>) -> Self {
        Self { parts, chats: vec![] }
    }

    /// Draws one example for each occurrence of a chat. `chats` holds the first example of each chat of all sources, in
    /// ascending order; the sizes of the sources are then numbers of chats.
    pub fn with_chats(self, chats: Vec<usize>) -> Self {
        Self { chats, ..self }
    }

    /// The number of chats among `len` examples.
    fn num_chats(&self, len: usize) -> usize {
        if self.chats.is_empty() { len } else { self.chats.len() }
    }

    /// The number of occurrences in an epoch, given `len` examples in all.
    pub fn epoch_len(&self, len: usize) -> usize {
        match self.parts.is_empty() {
            true => self.num_chats(len),
            false => self.parts.iter().map(|part| occurrences(*part)).sum(),
        }
    }

    /// The occurrences of an epoch in order: each gets a draw, and they are sorted by it.
    pub fn epoch(&self, seed: u64, epoch: u64, len: usize) -> Vec<Occurrence> {
        let mut occurrences = self.chosen(seed, epoch, self.num_chats(len));
        occurrences.sort_by_cached_key(|occurrence| {
            (Draws::new(seed, Stream::Order, epoch, occurrence.draw).key(0), occurrence.draw)
        });
        if !self.chats.is_empty() {
            occurrences
                .iter_mut()
                .for_each(|occurrence| occurrence.example = self.drawn(seed, epoch, *occurrence, len));
        }
        occurrences
    }

    /// The example that an occurrence of a chat draws.
    fn drawn(&self, seed: u64, epoch: u64, Occurrence { example: chat, draw }: Occurrence, len: usize) -> usize {
        let first = self.chats[chat];
        let answers = self.chats.get(chat + 1).copied().unwrap_or(len) - first;
        let u = Draws::new(seed, Stream::Answer, epoch, draw).unit_f64(0);
        first + (u * answers as f64) as usize
    }

    /// The occurrences of an epoch before they are ordered; their `example` is still the index of a chat.
    fn chosen(&self, seed: u64, epoch: u64, len: usize) -> Vec<Occurrence> {
        let copy = |example: usize, copy: usize| Occurrence { example, draw: (example + copy * len) as u64 };
        if self.parts.is_empty() {
            return (0..len).map(|example| copy(example, 0)).collect();
        }
        let (mut chosen, mut start) = (vec![], 0);
        for (rows, weight) in &self.parts {
            let (examples, whole) = (start..start + rows, weight.floor() as usize);
            chosen.extend(examples.clone().flat_map(|example| (0..whole).map(move |c| copy(example, c))));
            let mut drawn: Vec<usize> = examples.collect();
            drawn.sort_by_cached_key(|i| (Draws::new(seed, Stream::Mixing, epoch, *i as u64).key(0), *i));
            chosen.extend(
                drawn[..occurrences((*rows, *weight)) - whole * rows].iter().map(|example| copy(*example, whole)),
            );
            start += rows;
        }
        chosen
    }
}

/// The number of occurrences of a source in an epoch.
fn occurrences((rows, weight): (usize, f64)) -> usize {
    let whole = weight.floor() as usize * rows;
    // At most every row once more, because the fraction is below 1.
    whole + (weight.fract() * rows as f64).round() as usize
}
