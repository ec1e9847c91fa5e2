//! A run's largest resident size, part by part. What the network computes in are the pool's buffers, which `replay`
//! takes and gives back as a run does; everything else is a formula.

use serde::Serialize;
use weft_kernels::cpu::{attention, head_loss, matrix};
use weft_kernels::weight::Dtype;

use super::batches::MicroBatch;
use super::card;
use super::ledger::{Fullest, Held, Ledger, Use};
use super::replay::Replay;
use crate::model::block::{Param, Transformer};
use crate::train::shards::MESSAGE;

/// Bytes around a page that is read of a mapped file, which the system maps with it.
const FAULT_AROUND: usize = 1 << 16;
/// Vectors that a thread works with at once: attention's backward packs five blocks, each with a copy of their layout,
/// beside scores, their gradients, rows and strips.
const THREAD_VECTORS: usize = 14;

/// A part of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Its size where the whole is largest.
    pub bytes: usize,
}

/// Where the base's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In a mapped file: resident once read.
    Mapped,
    /// In memory.
    Owned,
    /// In the program, and copied to memory.
    Embedded,
    /// Both already: they are part of the program's resident size.
    Resident,
}

/// What a run does that takes memory.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    /// The model's outline, with what is trained.
    pub model: &'a Transformer,
    /// Where its base's weights are.
    pub stored: Stored,
    /// Rows of the embedding that are ever read.
    pub distinct_ids: usize,
    /// The resident size before any weight is read: program, tokenizer, rows.
    pub program_bytes: usize,
    /// What training has beside: its own copy of the rows, kept entropies.
    pub rows_bytes: usize,
    /// Steps that tell the largest.
    pub steps: &'a [Vec<MicroBatch>],
    /// The longest sequence of all that is computed.
    pub longest: usize,
    /// Whether there is a pass for entropies.
    pub needs_entropy: bool,
    /// The largest batch of an evaluation of held-out rows.
    pub held_out: Option<MicroBatch>,
    /// The largest batch of the sampler: its masked tokens are the rows whose logits are held.
    pub generation: Option<MicroBatch>,
    /// Networks that the sampler asks: 2 with guidance. Each has its logits.
    pub networks: usize,
    /// Whether each of them keeps keys and values.
    pub has_cache: bool,
    /// Bytes that the largest tensor takes while it is written.
    pub written_bytes: usize,
    /// Threads.
    pub threads: usize,
    /// Ranks that share the moments.
    pub ranks: usize,
}

impl<'a> Work<'a> {
    /// The steps of a training alone, without evaluations, rows or what is written; `distinct_ids` and `program_bytes` are
    /// the caller's.
    pub fn of_steps(model: &'a Transformer, stored: Stored, steps: &'a [Vec<MicroBatch>]) -> Self {
        Self {
            model,
            stored,
            distinct_ids: 0,
            program_bytes: 0,
            rows_bytes: 0,
            steps,
            longest: steps.iter().flatten().map(|batch| batch.longest).max().unwrap_or(0),
            needs_entropy: false,
            held_out: None,
            generation: None,
            networks: 1,
            has_cache: false,
            written_bytes: 0,
            threads: rayon::current_num_threads(),
            ranks: 1,
        }
    }

    /// The parts at the run's largest moment.
    pub fn parts(&self) -> Vec<Part> {
        let Fullest { resident, live } = self.buffers().fullest();
        let of = |used_for: Use| live[used_for as usize];
        let (beside, beside_bytes) = self.beside();
        let [weights, adapter, moments] = self.stored_parts();
        let parts = [
            ("program, tokenizer, rows", self.program_bytes),
            ("rows in training", self.rows_bytes),
            ("weights", weights),
            ("adapter", adapter),
            ("optimizer moments", moments),
            ("gradients", of(Use::Gradients)),
            ("kept of each layer", of(Use::Kept)),
            ("kept products", of(Use::Products)),
            ("one layer at work", of(Use::Layer)),
            ("head", of(Use::Head)),
            ("the sampler's cache", of(Use::Cache)),
            ("spare buffers", resident - live.iter().sum::<usize>()),
            (beside, beside_bytes),
            ("threads", self.thread_bytes()),
        ];
        parts.map(|(name, bytes)| Part { name, bytes }).to_vec()
    }

    /// The parts of a card's memory at the run's largest moment there.
    pub fn parts_of_card(&self) -> Vec<Part> {
        card::parts(self)
    }

    /// The most bytes of buffers that are used at once, as the pool counts them.
    pub fn buffer_bytes(&self) -> usize {
        self.buffers().most_used_bytes()
    }

    /// The pool after the telling steps, with the evaluations around them.
    fn buffers(&self) -> Ledger {
        let mut replay = Replay { model: self.model, threads: self.threads, ledger: Ledger::default() };
        let config = &self.model.config;
        let evaluate = |replay: &mut Replay| {
            if let Some(batch) = self.generation {
                replay.logits(
                    batch.tokens,
                    batch.masked,
                    [if self.has_cache { self.networks } else { 0 }, self.networks],
                );
            }
            if let Some(batch) = self.held_out {
                replay.statistics(batch.tokens, batch.masked, config.precision);
            }
        };
        evaluate(&mut replay);
        for step in self.steps {
            for batch in step.iter().filter(|_| self.needs_entropy) {
                replay.statistics(batch.tokens, batch.answers, config.entropy_precision);
            }
            let gradients = match self.model.is_trained_whole() {
                true => {
                    let gradients = replay.zero_gradients();
                    // A layer's gradients travel while those below are computed.
                    let staged = self.staged(&mut replay);
                    step.iter().for_each(|batch| backward(&mut replay, batch));
                    replay.ledger.give(staged);
                    Some(gradients)
                }
                false => {
                    let gradients = sum_in_tree(&mut replay, step, (0, 1));
                    let staged = self.staged(&mut replay);
                    replay.ledger.give(staged);
                    gradients
                }
            };
            replay.ledger.give(gradients.into_iter().flatten());
        }
        evaluate(&mut replay);
        replay.ledger
    }

    /// What a bucket's gradients are sent from, received in and summed to.
    fn staged(&self, replay: &mut Replay) -> Vec<Held> {
        let staged = self.staged_lens().into_iter().filter(|_| self.ranks > 1);
        staged.map(|len| replay.ledger.take(Use::Gradients, len)).collect()
    }

    /// Numbers of what a bucket's gradients are sent from, received in and summed to; none of one rank alone.
    pub(super) fn staged_lens(&self) -> [usize; 3] {
        if self.ranks == 1 {
            return [0; 3];
        }
        let len = |id: &usize| self.model.params[*id].weight.rows() * self.model.params[*id].weight.cols();
        let buckets = self.model.buckets();
        let largest = buckets.iter().map(|bucket| bucket.iter().map(len).sum::<usize>()).max().unwrap_or(0);
        [largest.min(MESSAGE), largest.min(MESSAGE), largest.div_ceil(self.ranks)]
    }

    /// Weights, the adapter, and AdamW's moments.
    ///
    /// A frozen weight takes what it is stored in, a trained one 4 bytes a number, beside what is mapped until it has
    /// become that; the moments of what is trained take 8. What several ranks have in bf16 takes 2, and 4 split among
    /// them. Of a mapped embedding only the rows that are read become
    /// resident, each with the 64 KiB that the system maps at once.
    fn stored_parts(&self) -> [usize; 3] {
        let len = |p: &Param| p.weight.rows() * p.weight.cols();
        let stored = |(id, p): (usize, &Param)| {
            if self.model.is_split(id, self.ranks) {
                let program = if self.stored == Stored::Embedded { Dtype::Bf16.size() * len(p) } else { 0 };
                let masters = (size_of::<f32>() * len(p)).div_ceil(self.ranks);
                return program + Dtype::Bf16.size() * len(p) + masters;
            }
            let bytes = len(p) * p.weight.dtype().size();
            let is_lookup = id == self.model.embedding && !self.model.has_tied_head();
            let read = match self.stored {
                Stored::Mapped if is_lookup && !p.trainable => {
                    bytes.min(self.distinct_ids * FAULT_AROUND.max(bytes / p.weight.rows().max(1)))
                }
                Stored::Mapped | Stored::Owned => bytes,
                Stored::Embedded if p.trainable => bytes + bytes / 2,
                Stored::Embedded => 2 * bytes,
                Stored::Resident if p.trainable => bytes,
                Stored::Resident => 0,
            };
            let is_master = p.weight.dtype().size() == size_of::<f32>();
            read + if p.trainable && !is_master { len(p) * size_of::<f32>() } else { 0 }
        };
        let params = || self.model.params.iter().enumerate();
        let weights = params().filter(|(_, p)| !p.is_adapters()).map(stored).sum();
        let adapter = params().filter(|(_, p)| p.is_adapters()).map(|(_, p)| len(p) * size_of::<f32>()).sum();
        let trained: usize = self.model.params.iter().filter(|p| p.trainable).map(len).sum();
        [weights, adapter, (2 * size_of::<f32>() * trained).div_ceil(self.ranks)]
    }

    /// The largest of what is held outside the pool for a while, while the pool keeps what it had at its fullest.
    ///
    /// Dropout copies an adapter's input, `4 N in`; the last layer gathers `4 M D`; pass 1 has 24 bytes for each answer
    /// row and 256 rows of the head; a tensor is written from a copy.
    fn beside(&self) -> (&'static str, usize) {
        let model = self.model;
        let [vocab, width] = [model.params[model.head.weight].weight.rows(), model.config.width];
        let adapted = model.linears().filter(|layer| layer.lora.is_some());
        let inputs = adapted.map(|layer| model.params[layer.weight].weight.cols()).max().unwrap_or(0);
        let batches = || self.steps.iter().flatten();
        let most = |of: fn(&MicroBatch) -> usize| batches().map(of).max().unwrap_or(0);
        let dropped = if model.config.lora_dropout > 0.0 { inputs } else { 0 };
        let gathered = size_of::<f32>() * (most(|b| b.tokens) * dropped + most(|b| b.masked) * width);
        let statistics = if self.needs_entropy { head_loss::statistics_bytes(most(|b| b.answers), vocab) } else { 0 };
        let all = [
            ("gathered rows", gathered),
            ("pass 1's statistics", statistics),
            ("a tensor being written", self.written_bytes),
        ];
        all.into_iter().max_by_key(|(_, bytes)| *bytes).expect("the list has elements")
    }

    /// Each thread's vectors: a packed block of a product's factor, or attention's keys or scores where they are larger.
    fn thread_bytes(&self) -> usize {
        let config = &self.model.config;
        let block = matrix::BLOCK[0] * matrix::BLOCK[1];
        let len = block.max(attention::scratch_len(self.longest, config.width / config.heads));
        self.threads * THREAD_VECTORS * len * size_of::<f32>()
    }
}

/// A micro-batch's pass 2.
fn backward(replay: &mut Replay, batch: &MicroBatch) {
    if batch.masked > 0 {
        replay.loss_and_gradients(batch.tokens, batch.masked);
    }
}

/// The tables of gradients that an adapter's step holds, as `train` sums its micro-batches.
fn sum_in_tree(replay: &mut Replay, step: &[MicroBatch], (first, stride): (usize, usize)) -> Option<Vec<Held>> {
    let batch = step.get(first)?;
    if stride >= step.len().next_power_of_two() {
        let gradients = replay.zero_gradients();
        backward(replay, batch);
        return Some(gradients);
    }
    let even = sum_in_tree(replay, step, (first, 2 * stride));
    let odd = sum_in_tree(replay, step, (first + stride, 2 * stride));
    replay.ledger.give(odd.into_iter().flatten());
    even
}
