//! The sum of the gradients of one rank's micro-batches in a step.

use super::Trainer;
use super::noised::MicroBatch;
use crate::model::block::Gradients;

/// Takes a bucket's gradients when they are final.
pub(super) type Finished<'a> = &'a mut dyn FnMut(usize, &mut Gradients);

impl Trainer {
    /// The sum of the gradients of micro-batches, each of which `add` adds to the table that it is given.
    ///
    /// An adapter's gradients are summed in the tree of [`sum_in_tree`], which the ranks continue: the bits are the
    /// same however many ranks share a step. The tree holds a few tables of gradients at once, too many if every weight
    /// is trained: then each micro-batch adds to one table, and during the last one the buckets are handed over as they
    /// are finished.
    pub(super) fn sum_gradients(
        &self,
        own: &[MicroBatch],
        hand_over: Finished,
        add: &mut dyn FnMut(usize, &mut Gradients, Finished),
    ) -> Gradients {
        if self.model.is_trained_whole() {
            let is_masked = |batch: &MicroBatch| batch.answers.iter().any(|answer| answer.masked.contains(&true));
            let last = own.iter().rposition(is_masked);
            let mut grads = self.model.zero_gradients();
            for index in 0..own.len() {
                match Some(index) == last {
                    true => add(index, &mut grads, hand_over),
                    false => add(index, &mut grads, &mut |_, _| {}),
                }
            }
            return grads;
        }
        let mut leaf = |index: usize| {
            let mut grads = self.model.zero_gradients();
            add(index, &mut grads, &mut |_, _| {});
            grads
        };
        let slots = self.job.settings.grad_accum_steps.next_power_of_two();
        sum_in_tree((0, 1), slots, own.len(), &mut leaf).unwrap_or_else(|| self.model.zero_gradients())
    }
}

/// The sum of `leaf(first)`, `leaf(first + stride)` and so on below `many`: leaves at even places and leaves at odd
/// places are summed separately, and so on recursively, down to one of `slots`. Each rank has every `size`-th
/// micro-batch, so the first splits are between ranks and the others within one.
pub(crate) fn sum_in_tree(
    (first, stride): (usize, usize),
    slots: usize,
    many: usize,
    leaf: &mut dyn FnMut(usize) -> Gradients,
) -> Option<Gradients> {
    if first >= many {
        return None;
    }
    if stride >= slots {
        return Some(leaf(first));
    }
    let mut even = sum_in_tree((first, 2 * stride), slots, many, leaf)?;
    if let Some(odd) = sum_in_tree((first + stride, 2 * stride), slots, many, leaf) {
        let pairs = even.iter_mut().flatten().zip(odd.iter().flatten());
        pairs.for_each(|(even, odd)| even.add(odd));
    }
    Some(even)
}
