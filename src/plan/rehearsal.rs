//! A run's largest steps and its evaluations, done by the run's own code on a device that has figures in place of numbers:
//! the meta device for the CPU, the meta GPU for a GPU. There is no second description of a step that could
//! differ from it.

use weft_kernels::device::Device;
use weft_kernels::predict::{Guidance, RowDraw, Rule};

use super::batches::MicroBatch;
use super::memory::Work;
use crate::model::batch::{Batch, Targets};
use crate::model::block::{Gradients, Transformer};
use crate::model::cached::{KeysValues, Part as Computed};
use crate::train::sum_in_tree;

/// What is planned, on a device that counts.
pub(super) struct Rehearsal<'a> {
    work: &'a Work<'a>,
    model: &'a Transformer,
    /// Bytes in use before anything is done.
    held: usize,
    fullest: Fullest,
}

/// What tensors are for at the moment when they take most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fullest {
    /// All of their bytes.
    pub used: usize,
    /// Gradients, and what of them is on its way to other ranks.
    pub gradients: usize,
    /// What the forward saved for backward of each layer: its input and attention.
    pub saved_layers: usize,
    /// What it saved of matmuls' results, so that they aren't computed again.
    pub saved_matmuls: usize,
    /// The sampler's keys and values.
    pub cache: usize,
}

impl<'a> Rehearsal<'a> {
    /// Begins on the model's device.
    pub(super) fn new(work: &'a Work<'a>, model: &'a Transformer) -> Self {
        let [held, _] = counted(&model.device);
        Self { work, model, held, fullest: Fullest { used: held, ..Fullest::default() } }
    }

    /// The fullest moment so far.
    pub(super) fn fullest(&self) -> Fullest {
        self.fullest
    }

    /// The sampler's largest forward and the largest of an evaluation of held-out rows.
    pub(super) fn evaluate(&mut self) {
        if let Some(batch) = self.work.generation {
            let cache = self.generate(&batch);
            self.note(Fullest { cache, ..Fullest::default() });
        }
        if let Some(batch) = self.work.held_out {
            let rows = first(batch.masked);
            self.model.nll(&batch_of(&batch), &rows, &vec![0; rows.len()]);
            self.note(Fullest::default());
        }
    }

    /// The largest steps.
    pub(super) fn train(&mut self) {
        let (work, model) = (self.work, self.model);
        let staged = || work.staged_lens().map(|len| model.device.unset(len));
        for step in work.steps {
            for batch in step.iter().filter(|_| work.needs_entropy) {
                model.entropy(&batch_of(batch), &first(batch.answers));
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

    /// A micro-batch's pass 2.
    fn backward(&mut self, batch: &MicroBatch, gradients: &mut Gradients) {
        if batch.masked == 0 {
            return;
        }
        let model = self.model;
        let (rows, mut packed) = (first(batch.masked), batch_of(batch));
        if model.config.lora_dropout > 0.0 {
            packed.dropout_keys = Some(vec![0; packed.ids.len()]);
        }
        let targets = Targets { rows: &rows, ids: &vec![0; rows.len()], weights: &vec![0.0; rows.len()] };
        let ([before, _], mut saved) = (counted(&model.device), 0);
        // The head is done: what is in use beside gradients was saved for the layers' backward.
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

    /// The sampler's largest forward: of every row, which a block's first step computes. Returns the bytes of the caches.
    fn generate(&self, batch: &MicroBatch) -> usize {
        let (model, packed, rows) = (self.model, batch_of(batch), first(batch.masked));
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

    /// Takes what tensors are for as the fullest moment's, if it came since the last note.
    fn note(&mut self, held: Fullest) {
        let [_, used] = counted(&self.model.device);
        if used > self.fullest.used {
            self.fullest = Fullest { used, ..held };
        }
    }
}

/// Bytes in use on a device that counts: now, and the most so far.
fn counted(device: &Device) -> [usize; 2] {
    match device {
        Device::Meta(meta) => [meta.used_bytes(), meta.most_used_bytes()],
        Device::Cuda(gpu) => [gpu.used_bytes(), gpu.most_used_bytes()],
        Device::Cpu => unreachable!("a plan computes nothing"),
    }
}

/// As many tokens in sequences that are as long as its longest.
fn batch_of(batch: &MicroBatch) -> Batch {
    let ids = vec![0u32; batch.tokens];
    Batch::pack(ids.chunks(batch.longest.max(1)))
}

fn first(rows: usize) -> Vec<usize> {
    (0..rows).collect()
}
