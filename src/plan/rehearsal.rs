//! A run's largest steps and its evaluations, executed by the run's own code on a device without storage: the meta
//! device for the CPU, the meta GPU for a GPU. There is no second description of a step that could differ from it.

use weft_kernels::device::Device;
use weft_kernels::predict::{Guidance, RowDraw, Rule};

use super::batches::MicroBatch;
use super::memory::Work;
use crate::model::batch::{AttentionKind, Batch, Targets};
use crate::model::block::{Gradients, Transformer};
use crate::model::cached::{KeysValues, Part as Computed};
use crate::train::sum_in_tree;

/// The planned work on a device that only counts bytes.
pub(super) struct Rehearsal<'a> {
    work: &'a Work<'a>,
    model: &'a Transformer,
    /// Bytes in use before the rehearsal begins.
    held: usize,
    fullest: Fullest,
}

/// How memory is divided among tensors at the moment when they take the most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fullest {
    /// All bytes in use.
    pub used: usize,
    /// Gradients, including the ones on their way to other ranks.
    pub gradients: usize,
    /// The input and attention of each layer, saved for backward.
    pub saved_layers: usize,
    /// Matmul results saved for backward, so that they aren't recomputed.
    pub saved_matmuls: usize,
    /// The keys and values that the sampler caches.
    pub cache: usize,
}

impl<'a> Rehearsal<'a> {
    /// Starts a rehearsal on the model's device.
    pub(super) fn new(work: &'a Work<'a>, model: &'a Transformer) -> Self {
        let [held, _] = counted(&model.device);
        Self { work, model, held, fullest: Fullest { used: held, ..Fullest::default() } }
    }

    /// The division at the fullest moment so far.
    pub(super) fn fullest(&self) -> Fullest {
        self.fullest
    }

    /// Runs the sampler's largest forward, and the largest forward of an evaluation on held-out rows.
    pub(super) fn evaluate(&mut self) {
        if let Some(batch) = self.work.generation {
            let cache = self.generate(&batch);
            self.note(Fullest { cache, ..Fullest::default() });
        }
        if let Some(batch) = self.work.held_out {
            let rows = first(batch.masked);
            self.model.nll(&self.batch_of(&batch), &rows, &vec![0; rows.len()]);
            self.note(Fullest::default());
        }
    }

    /// Runs the largest steps.
    pub(super) fn train(&mut self) {
        let (work, model) = (self.work, self.model);
        let staged = || work.staged_lens().map(|len| model.device.unset(len));
        for step in work.steps {
            for batch in step.iter().filter(|_| work.needs_entropy) {
                model.entropy(&self.batch_of(batch), &first(batch.answers));
                self.note(Fullest::default());
            }
            if model.is_trained_whole() {
                let mut gradients = model.zero_gradients();
                // A layer's gradients travel while those below it are computed.
                let _staged = staged();
                step.iter().for_each(|batch| self.backward(batch, &mut gradients));
                continue;
            }
            let mut leaf = |index: usize| {
                let mut gradients = model.zero_gradients();
                self.backward(&step[index], &mut gradients);
                gradients
            };
            let gradients = sum_in_tree((0, 1), step.len().next_power_of_two(), step.len(), &mut leaf);
            drop((staged(), gradients));
        }
    }

    /// Runs pass 2 of a micro-batch.
    fn backward(&mut self, batch: &MicroBatch, gradients: &mut Gradients) {
        let batch = &batch.of_views(self.work.views);
        if batch.masked == 0 {
            return;
        }
        let model = self.model;
        let (rows, mut packed) = (first(batch.masked), self.batch_of(batch));
        if model.config.lora_dropout > 0.0 {
            packed.dropout_keys = Some(vec![0; packed.ids.len()]);
        }
        let targets = Targets { rows: &rows, ids: &vec![0; rows.len()], weights: &vec![0.0; rows.len()] };
        let ([before, _], mut saved) = (counted(&model.device), 0);
        // The head is finished: whatever is in use besides gradients was saved for the layers' backward.
        let mut at_turn = |bucket: usize, _: &mut Gradients| {
            if bucket == 0 {
                saved = counted(&model.device)[0] - before;
            }
        };
        model.loss_and_finished_gradients(&packed, targets, gradients, &mut at_turn);
        let saved_matmuls = model.saved_matmul_bytes(batch.tokens, batch.masked).min(saved);
        let gradients = before - self.held;
        self.note(Fullest { gradients, saved_layers: saved - saved_matmuls, saved_matmuls, ..Fullest::default() });
    }

    /// Runs the sampler's largest forward, which is over all rows, as in a block's first step. Returns the bytes of the
    /// caches.
    fn generate(&self, batch: &MicroBatch) -> usize {
        let (model, rows) = (self.model, first(batch.masked));
        let of_blocks = |block_length| AttentionKind::BlockCausal { block_length };
        let packed = packed(batch, self.work.sampled_in_blocks.map_or(AttentionKind::Bidirectional, of_blocks));
        let networks = self.work.networks;
        let caches = if self.work.has_cache { networks } else { 0 };
        let mut caches: Vec<KeysValues> = (0..caches).map(|_| KeysValues::new(model, &packed)).collect();
        let cache = counted(&model.device)[0] - self.held;
        let part = Computed { computed: &first(packed.ids.len()), predicted: &rows };
        let mut inputs = || match caches.first_mut() {
            None => model.predicting_inputs(&packed, &rows),
            Some(cache) => model.predicting_inputs_cached(&packed, cache, part),
        };
        let (x, without_prompts) = (inputs(), (networks > 1).then(&mut inputs));
        let guidance = without_prompts.as_ref().map(|x| Guidance { x, scale: 1.0 });
        model.predict(&x, guidance, &vec![RowDraw { key: 0, position: 0 }; rows.len()], &Rule::GREEDY);
        cache
    }

    /// A batch of training with the same number of rows.
    fn batch_of(&self, batch: &MicroBatch) -> Batch {
        packed(batch, self.work.attention_kind)
    }

    /// Records `held` as the division of the fullest moment, if that moment came since the last call.
    fn note(&mut self, held: Fullest) {
        let [_, used] = counted(&self.model.device);
        if used > self.fullest.used {
            self.fullest = Fullest { used, ..held };
        }
    }
}

/// Bytes in use on a device that counts them: now, and the most so far.
fn counted(device: &Device) -> [usize; 2] {
    match device {
        Device::Meta(meta) => [meta.used_bytes(), meta.most_used_bytes()],
        Device::Cuda(gpu) => [gpu.used_bytes(), gpu.most_used_bytes()],
        Device::Cpu => unreachable!("a plan computes nothing"),
    }
}

/// A batch with the same number of rows, in sequences as long as the longest.
fn packed(batch: &MicroBatch, kind: AttentionKind) -> Batch {
    let halves = if let AttentionKind::BlockDiffusion { .. } = kind { 2 } else { 1 };
    let ids = vec![0u32; batch.tokens / halves];
    Batch::pack_as(kind, ids.chunks((batch.longest / halves).max(1)).map(|half| [half, half]))
}

fn first(rows: usize) -> Vec<usize> {
    (0..rows).collect()
}
