//! How the numbers of a model's parameters are split among ranks. A bucket is a group of parameters whose gradients
//! travel together; each rank has a contiguous part of every bucket, as large as the others'. A part's gradients are
//! summed, its moments kept and its update made by its rank alone (ZeRO-1): gradients are sent there, and updated
//! numbers come back. If only matmuls in bf16 read a parameter, its f32 numbers belong to that rank too, and the other
//! ranks have it in bf16.
//!
//! # Source
//! Rajbhandari, Rasley, Ruwase and He, ZeRO, arXiv 1910.02054, section 5.

use std::borrow::Cow;
use std::ops::Range;

use weft_kernels::adamw::CHUNK;
use weft_kernels::tensor::Tensor;

use crate::model::block::{ParamId, Transformer};
use crate::parallel::collective::Collective;

/// The most numbers in a message, over the parts of all ranks: what is staged besides the parameters.
pub(crate) const MESSAGE: usize = 1 << 24;

/// The parts of all ranks.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    buckets: Vec<Vec<ParamId>>,
    /// The end of each rank's part of every parameter; empty for a frozen one.
    ends: Vec<Vec<usize>>,
    /// Whether every rank has a parameter in bf16, and in f32 only its own part.
    rounded: Vec<bool>,
    size: usize,
}

/// The gradients of some parameters.
pub type Table = Vec<(ParamId, Tensor)>;

/// A contiguous range of a parameter's numbers.
type Stretch = (ParamId, Range<usize>);

impl Shards {
    /// Splits a model's trained parameters among `size` ranks.
    pub fn new(model: &Transformer, size: usize) -> Self {
        let len = |id: ParamId| model.params[id].weight.rows() * model.params[id].weight.cols();
        let buckets = model.buckets();
        let mut ends = vec![vec![]; model.params.len()];
        for bucket in &buckets {
            let total: usize = bucket.iter().map(|id| len(*id)).sum();
            let mut start = 0;
            for &id in bucket {
                // Parts end at the chunks of the sums of squares, so that those sums are the same for any number of
                // ranks.
                let end = |rank: usize| match (total * rank / size).saturating_sub(start) {
                    end if end >= len(id) => len(id),
                    end => end / CHUNK * CHUNK,
                };
                ends[id] = (1..=size).map(end).collect();
                start += len(id);
            }
        }
        let rounded = (0..model.params.len()).map(|id| model.is_split(id, size)).collect();
        Self { buckets, ends, rounded, size }
    }

    /// The buckets, in the order in which backward finishes them.
    pub(crate) fn buckets(&self) -> &[Vec<ParamId>] {
        &self.buckets
    }

    /// Whether the ranks hold a parameter in bf16, and each only its own part in f32.
    pub fn is_rounded(&self, id: ParamId) -> bool {
        self.rounded[id]
    }

    /// A rank's part of a parameter.
    pub fn part(&self, id: ParamId, rank: usize) -> Range<usize> {
        let ends = &self.ends[id];
        let start = rank.checked_sub(1).map_or(0, |before| ends.get(before).copied().unwrap_or(0));
        start..ends.get(rank).copied().unwrap_or(0)
    }

    /// Sums a bucket's gradients over all ranks, and returns this rank's part of each sum.
    pub(crate) fn reduce(&self, ranks: &dyn Collective, bucket: usize, grads: &Table) -> Table {
        let rank = ranks.rank();
        let part = |(id, grad): &(ParamId, Tensor)| (*id, grad.device().unset(self.part(*id, rank).len()));
        let mut sums: Table = grads.iter().map(part).collect();
        let at = |id: ParamId| self.buckets[bucket].iter().position(|of| *of == id).expect("it is of this bucket");
        for pieces in self.messages(bucket) {
            let counts: Vec<usize> = pieces.iter().map(|piece| piece.iter().map(numbers).sum()).collect();
            let device = grads.first().map(|(_, grad)| grad.device()).unwrap_or_default();
            let mut send = device.unset(counts.iter().sum());
            for (start, (id, stretch)) in places(pieces.iter().flatten(), numbers) {
                send.copy(start, &grads[at(id)].1, stretch);
            }
            let own = counts[rank];
            let mut received = device.unset(own * self.size);
            ranks.exchange(&send, &counts, &mut received);
            drop(send);
            sum_blocks(&mut received, own, self.size);
            for (start, (id, stretch)) in places(&pieces[rank], numbers) {
                let sum = &mut sums[at(id)].1;
                sum.copy(stretch.start - self.part(id, rank).start, &received, start..start + stretch.len());
            }
        }
        sums
    }

    /// Sends every rank's part of the trained parameters to all ranks; bf16 numbers travel in pairs, each in the place
    /// of one f32.
    pub fn spread(&self, ranks: &dyn Collective, model: &mut Transformer) {
        let buckets = if self.size == 1 { 0 } else { self.buckets.len() };
        let len = |(id, stretch): &Stretch| stretch.len().div_ceil(if self.rounded[*id] { 2 } else { 1 });
        for pieces in (0..buckets).flat_map(|bucket| self.messages(bucket)) {
            let counts: Vec<usize> = pieces.iter().map(|piece| piece.iter().map(len).sum()).collect();
            let mut own = model.device.unset(counts[ranks.rank()]);
            let mut all = model.device.unset(counts.iter().sum());
            for (start, (id, stretch)) in places(&pieces[ranks.rank()], len) {
                let weight = &model.params[id].weight;
                match self.rounded[id] {
                    true => weight.copy_pairs_to(&mut own, start, stretch),
                    false => weight.copy_to(&mut own, start, stretch),
                }
            }
            ranks.all_gather(&own, &counts, &mut all);
            for (start, (id, stretch)) in places(pieces.iter().flatten(), len) {
                let weight = &mut model.params[id].weight;
                match self.rounded[id] {
                    true => weight.copy_pairs_from(stretch, &all, start),
                    false => weight.copy_from(stretch.start, &all, start..start + stretch.len()),
                }
            }
        }
    }

    /// Gathers a parameter-shaped tensor from every rank's part.
    pub(crate) fn gather<'a>(&self, ranks: &dyn Collective, id: ParamId, own: &'a Tensor) -> Cow<'a, [f32]> {
        if self.size == 1 {
            return own.to_host();
        }
        let counts: Vec<usize> = (0..self.size).map(|rank| self.part(id, rank).len()).collect();
        let mut all = own.device().put(vec![0.0; counts.iter().sum()]);
        ranks.all_gather(own, &counts, &mut all);
        all.to_host().into_owned().into()
    }

    /// The stretches of each rank's part that travel in each message.
    fn messages(&self, bucket: usize) -> Vec<Vec<Vec<Stretch>>> {
        let limit = (MESSAGE / self.size).max(1);
        let cut = |rank: usize| {
            let (mut messages, mut room) = (vec![vec![]], limit);
            for &id in &self.buckets[bucket] {
                let mut part = self.part(id, rank);
                while !part.is_empty() {
                    let len = part.len().min(room);
                    messages.last_mut().expect("there is one").push((id, part.start..part.start + len));
                    (part.start, room) = (part.start + len, room - len);
                    if room == 0 {
                        messages.push(vec![]);
                        room = limit;
                    }
                }
            }
            messages
        };
        let mut of_ranks: Vec<std::vec::IntoIter<Vec<Stretch>>> = (0..self.size).map(|r| cut(r).into_iter()).collect();
        let count = of_ranks.iter().map(|messages| messages.len()).max().unwrap_or(0);
        let next = |_| of_ranks.iter_mut().map(|messages| messages.next().unwrap_or_default()).collect();
        (0..count).map(next).collect()
    }
}

/// Sums `count` blocks of `len` numbers into the first: blocks at even places and blocks at odd places are summed
/// separately, and so on recursively, with the last splits summed first. It continues the tree in which a rank sums its
/// own micro-batches.
fn sum_blocks(blocks: &mut Tensor, len: usize, count: usize) {
    let mut stride = count.next_power_of_two() / 2;
    while stride > 0 {
        blocks.add_within(0, stride * len, (count - stride).min(stride) * len);
        stride /= 2;
    }
}

/// The length of a stretch.
fn numbers((_, stretch): &Stretch) -> usize {
    stretch.len()
}

/// The offset of each stretch in a message that concatenates them, where each takes `len(stretch)` numbers.
fn places<'a>(
    stretches: impl IntoIterator<Item = &'a Stretch>,
    len: impl Fn(&Stretch) -> usize,
) -> impl Iterator<Item = (usize, Stretch)> {
    stretches.into_iter().scan(0, move |end, stretch| {
        let start = *end;
        *end += len(stretch);
        Some((start, stretch.clone()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_summed_even_and_odd_apart() {
        // The sum of these numbers depends on the order.
        let x = [1e8f32, 1.0, -1e8, 3.0, 0.25];
        let sum = |count: usize| {
            let mut blocks = Tensor::from(x[..count].iter().flat_map(|x| [*x, 2.0 * x]).collect::<Vec<f32>>());
            sum_blocks(&mut blocks, 2, count);
            let blocks = blocks.to_host();
            [blocks[0], blocks[1]]
        };
        let [a, b, c, d, e] = x;
        for (count, expected) in [(1, a), (2, a + b), (3, (a + c) + b), (4, (a + c) + (b + d))] {
            assert_eq!(sum(count), [expected, 2.0 * expected], "{count} blocks");
        }
        assert_eq!(sum(5)[0], ((a + e) + c) + (b + d));
    }
}
