//! A run's largest resident size, part by part. What the network computes with is counted on the meta device; what
//! surrounds it (weights, moments, logits and files of the callers) follows formulas.

use serde::Serialize;
use weft_kernels::device::Device;
use weft_kernels::meta::Meta;
use weft_kernels::weight::Dtype;

use super::batches::MicroBatch;
use super::gpu;
use super::rehearsal::{Fullest, Rehearsal};
use crate::model::batch::AttentionKind;
use crate::model::block::{Param, Transformer};
use crate::train::shards::MESSAGE;

/// A part of a run's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The part's name.
    pub name: &'static str,
    /// The part's size at the moment when the whole is largest.
    pub bytes: usize,
}

/// Where the base's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In a mapped file: they become resident when they are read.
    Mapped,
    /// In memory of their own.
    Owned,
    /// In the program, from which they are copied to memory.
    Embedded,
    /// Already in memory: they are part of the program's resident size.
    Resident,
}

/// The work of a run that takes memory.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    /// The model on the meta device, with its trained parameters marked.
    pub model: &'a Transformer,
    /// Where the base's weights are.
    pub stored: Stored,
    /// The resident size before any weight is read: program, tokenizer and rows.
    pub program_bytes: usize,
    /// What training holds besides: its own copy of the rows, and entropies kept for reuse.
    pub rows_bytes: usize,
    /// The steps that may be the largest.
    pub steps: &'a [Vec<MicroBatch>],
    /// Whether steps have a pass for entropies, or one that ranks tokens.
    pub needs_entropy: bool,
    /// The views of each example that a step trains: 2 if masks have their complements trained too.
    pub views: usize,
    /// Which tokens of its sequence a token attends to in training.
    pub attention_kind: AttentionKind,
    /// The largest batch of an evaluation on held-out rows.
    pub held_out: Option<MicroBatch>,
    /// The largest batch of the sampler; its masked tokens are the rows whose logits are held.
    pub generation: Option<MicroBatch>,
    /// How many times the sampler runs the network per step: 2 with guidance. Each run has its own logits.
    pub networks: usize,
    /// Whether the sampler caches keys and values, for each of these networks.
    pub has_cache: bool,
    /// Tokens per block if answers are sampled with block-causal attention.
    pub sampled_in_blocks: Option<usize>,
    /// Bytes that the largest tensor takes while it is being written.
    pub written_bytes: usize,
    /// Ranks that share the moments.
    pub ranks: usize,
}

impl<'a> Work<'a> {
    /// The steps of training alone, without evaluations, rows or anything that is written; the caller fills in
    /// `program_bytes`.
    pub fn of_steps(model: &'a Transformer, stored: Stored, steps: &'a [Vec<MicroBatch>]) -> Self {
        Self {
            model,
            stored,
            program_bytes: 0,
            rows_bytes: 0,
            steps,
            needs_entropy: false,
            views: 1,
            attention_kind: AttentionKind::Bidirectional,
            held_out: None,
            generation: None,
            networks: 1,
            has_cache: false,
            sampled_in_blocks: None,
            written_bytes: 0,
            ranks: 1,
        }
    }

    /// The parts at the run's largest moment.
    pub fn parts(&self) -> Vec<Part> {
        let (meta, Fullest { used, gradients, saved_layers, saved_matmuls, cache }) = self.rehearse();
        let (beside, beside_bytes) = self.beside(meta.most_outside_bytes());
        let [weights, adapter, moments] = self.stored_parts();
        let parts = [
            ("program, tokenizer, rows", self.program_bytes),
            ("rows in training", self.rows_bytes),
            ("weights", weights),
            ("adapter", adapter),
            ("optimizer moments", moments),
            ("gradients", gradients),
            ("saved of each layer", saved_layers),
            ("saved matmul results", saved_matmuls),
            ("layer or head at work", used - gradients - saved_layers - saved_matmuls - cache),
            ("the sampler's cache", cache),
            ("spare buffers", meta.most_resident_bytes() - used),
            (beside, beside_bytes),
            ("threads", rayon::current_num_threads() * meta.thread_bytes()),
        ];
        parts.map(|(name, bytes)| Part { name, bytes }).to_vec()
    }

    /// The parts of a GPU's memory at the run's largest moment there.
    pub(crate) fn parts_of_gpu(&self) -> Vec<Part> {
        gpu::parts(self)
    }

    /// The most bytes that the pool has lent at once, as the CPU's pool counts them.
    pub fn buffer_bytes(&self) -> usize {
        self.rehearse().0.most_lent_bytes()
    }

    /// Runs the largest steps on a meta device, with the evaluations before and after them.
    fn rehearse(&self) -> (Meta, Fullest) {
        let meta = Meta::default();
        let mut model = self.model.to_meta();
        model.put_on(&Device::Meta(meta.clone()));
        let mut rehearsal = Rehearsal::new(self, &model);
        rehearsal.evaluate();
        rehearsal.train();
        rehearsal.evaluate();
        (meta, rehearsal.fullest())
    }

    /// Lengths of the buffers from which a bucket's gradients are sent, into which they are received, and in which they
    /// are summed; 0 for one rank alone.
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
    /// A frozen weight takes its stored size, and a trained one 4 bytes per number, because the file from which it was
    /// mapped is unmapped before the first step. Moments take 8 bytes per trained number. A weight that several ranks
    /// hold in bf16 takes 2 bytes per number, plus 4 that are split among them. A mapped embedding takes nothing: its
    /// rows are copied from the file, and the system may drop what it has cached of the file.
    fn stored_parts(&self) -> [usize; 3] {
        let len = |p: &Param| p.weight.rows() * p.weight.cols();
        let stored = |(id, p): (usize, &Param)| {
            if self.model.is_split(id, self.ranks) {
                let program = if self.stored == Stored::Embedded { Dtype::Bf16.size() * len(p) } else { 0 };
                let masters = (size_of::<f32>() * len(p)).div_ceil(self.ranks);
                return program + Dtype::Bf16.size() * len(p) + masters;
            }
            let bytes = if p.trainable { size_of::<f32>() * len(p) } else { p.weight.encoding().bytes(len(p)) };
            let is_lookup = id == self.model.embedding && !self.model.has_tied_head();
            match self.stored {
                Stored::Mapped if is_lookup && !p.trainable => 0,
                Stored::Mapped | Stored::Owned => bytes,
                Stored::Embedded if p.trainable => bytes + bytes / 2,
                // If the weight was quantized, the program holds the original too.
                Stored::Embedded => bytes + p.weight.dtype().size() * len(p),
                Stored::Resident if p.trainable => bytes,
                Stored::Resident => 0,
            }
        };
        let params = || self.model.params.iter().enumerate();
        let weights = params().filter(|(_, p)| !p.is_adapters()).map(stored).sum();
        let adapter = params().filter(|(_, p)| p.is_adapters()).map(|(_, p)| len(p) * size_of::<f32>()).sum();
        let trained: usize = self.model.params.iter().filter(|p| p.trainable).map(len).sum();
        [weights, adapter, (2 * size_of::<f32>() * trained).div_ceil(self.ranks)]
    }

    /// The larger of two sizes that are held outside the pool for a while, while the pool keeps its largest size: the
    /// operations' vectors, which the meta device counted, and a copy of a tensor that is being written.
    fn beside(&self, vectors: usize) -> (&'static str, usize) {
        let all = [("operations' vectors", vectors), ("a tensor being written", self.written_bytes)];
        all.into_iter().max_by_key(|(_, bytes)| *bytes).expect("the list has elements")
    }
}
