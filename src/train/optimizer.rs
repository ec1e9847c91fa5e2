//! AdamW over the model's trainable parameters, with gradient-norm clipping. Each rank keeps the moments of its part of
//! the parameters and updates that part (ZeRO-1); a single rank has everything. The update of one tensor is in
//! `weft_kernels::adamw`, and the parts are defined by `shards`.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::mpsc;

use weft_kernels::adamw::{AdamW, chunk_sums};
use weft_kernels::device::{Device, Mark};
use weft_kernels::tensor::Tensor;
use weft_kernels::weight::{Dtype, Weight};

use super::gradients::Finished;
use super::settings::TrainTable;
use super::shards::{Shards, Table};
use crate::model::block::{Gradients, Param, ParamId, Transformer};
use crate::model::weights;
use crate::parallel::collective::{Ranks, solo};

/// The first and second moments of this rank's part of each parameter (empty for a frozen one), and this rank's part of
/// the f32 numbers that the model holds in bf16.
pub struct Optimizer {
    /// First moments.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
    /// This rank's part of the f32 numbers of each parameter that several ranks hold in bf16; empty for the others,
    /// whose f32 numbers are in the model.
    masters: Vec<Tensor>,
    /// Whether finished buckets travel while the rest is computed; the results are the same bit for bit.
    pub overlaps: bool,
    shards: Shards,
    ranks: Ranks,
}

/// The sums of all ranks' gradients over this rank's part.
struct Summed {
    sums: Table,
    /// Gradients that may still be read until `end`.
    sent: Vec<(Mark, Table)>,
    /// The moment at which the sums are ready.
    end: Mark,
}

impl Optimizer {
    /// Zero moments, for a single rank.
    pub fn new(model: &mut Transformer) -> Self {
        Self::on(solo(), model)
    }

    /// Like [`Optimizer::new`], for one of several ranks. Trained parameters become f32 in the model, or bf16 if
    /// matmuls read them as bf16 only: their f32 numbers are then split among the ranks.
    pub fn on(ranks: Ranks, model: &mut Transformer) -> Self {
        let shards = Shards::new(model, ranks.size());
        let device = model.device.clone();
        let params = model.params.iter_mut().enumerate();
        let masters = params.map(|(id, Param { weight, trainable, .. })| {
            if !shards.is_rounded(id) {
                trainable.then(|| weight.widen());
                return device.unset(0);
            }
            let own = weight.stretch(shards.part(id, ranks.rank()));
            weight.round();
            own
        });
        let masters = masters.collect();
        let zeros = |id: ParamId| model.device.put(vec![0.0; shards.part(id, ranks.rank()).len()]);
        let [m, v] = [(); 2].map(|()| (0..model.params.len()).map(zeros).collect());
        Self { m, v, masters, overlaps: true, shards, ranks }
    }

    /// Sums the gradients that `work` returns over all ranks, and returns this rank's part of the sums. Buckets that
    /// `work` hands over when they are finished travel while it continues; a thread of its own waits for them.
    pub(crate) fn reduce_beside(&self, work: &mut dyn FnMut(Finished) -> Gradients) -> Gradients {
        let buckets = self.shards.buckets();
        if self.ranks.size() == 1 {
            return work(&mut |_, _| {});
        }
        let device = self.masters.first().map(Tensor::device).unwrap_or_default();
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel::<(Mark, Table)>();
            let summing = scope.spawn({
                let device = device.clone();
                move || self.sum_tables(&device, receiver)
            });
            let handed = Cell::new(0);
            let mut hand_over = |bucket: usize, grads: &mut Gradients| {
                assert_eq!(bucket, handed.replace(bucket + 1), "every rank hands over in the same order");
                let take = |id: &ParamId| (*id, grads[*id].take().expect("what is trained has a gradient"));
                // If the thread has panicked, that is reported below.
                let _ = sender.send((device.mark(), buckets[bucket].iter().map(take).collect()));
            };
            let mut grads = match self.overlaps {
                true => work(&mut hand_over),
                false => work(&mut |_, _| {}),
            };
            (handed.get()..buckets.len()).for_each(|bucket| hand_over(bucket, &mut grads));
            drop(sender);
            let summed = summing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            device.wait_for(&summed.end);
            drop(summed.sent);
            summed.sums.into_iter().for_each(|(id, sum)| grads[id] = Some(sum));
            grads
        })
    }

    /// Sums over all ranks the tables that `finished` receives, each with the mark at which this rank's gradients are
    /// computed, while other threads compute.
    fn sum_tables(&self, device: &Device, finished: mpsc::Receiver<(Mark, Table)>) -> Summed {
        let mut sent: Vec<(Mark, Table)> = vec![];
        let mut sums = vec![];
        for (bucket, (computed, table)) in finished.into_iter().enumerate() {
            let read = {
                let _beside = device.beside();
                device.wait_for(&computed);
                sums.extend(self.shards.reduce(&*self.ranks, bucket, &table));
                device.mark()
            };
            // A GPU may still be reading what was handed over.
            sent.push((read, table));
            sent.retain(|(read, _)| !read.has_passed());
        }
        let _beside = device.beside();
        Summed { sums, sent, end: device.mark() }
    }

    /// The norm of all gradients together, of which this rank has its part; the bits are the same for any number of
    /// ranks.
    pub(crate) fn gradient_norm(&self, grads: &Gradients) -> f64 {
        if self.ranks.size() == 1 {
            return gradient_norm(grads);
        }
        let own: Vec<f64> = chunk_sums(&grads.iter().flatten().collect::<Vec<_>>()).concat();
        let of_ranks = self.ranks.all_gather_f64(&own);
        let mut of_ranks: Vec<_> = of_ranks.iter().map(|sums| sums.iter()).collect();
        let whole = |id: ParamId| -> f64 {
            let chunks = |rank: usize| self.shards.part(id, rank).len().div_ceil(weft_kernels::adamw::CHUNK);
            of_ranks.iter_mut().enumerate().flat_map(|(rank, sums)| sums.take(chunks(rank))).sum()
        };
        (0..grads.len()).filter(|id| grads[*id].is_some()).map(whole).sum::<f64>().sqrt()
    }

    /// Does one update at `step`, counted from 0, with the gradients that [`Optimizer::reduce_beside`] left, scaled
    /// down to `max_grad_norm` if their norm is larger.
    pub fn update(
        &mut self,
        model: &mut Transformer,
        grads: &Gradients,
        grad_norm: f64,
        (step, lr): (u64, f64),
        settings: &TrainTable,
    ) {
        let limit = settings.max_grad_norm;
        let grad_scale = if limit > 0.0 && grad_norm > limit { (limit / grad_norm) as f32 } else { 1.0 };
        for (i, param) in model.params.iter_mut().enumerate() {
            let Some(grad) = &grads[i] else { continue };
            let adamw = AdamW {
                lr: lr as f32,
                beta1: settings.adam_beta1 as f32,
                beta2: settings.adam_beta2 as f32,
                eps: settings.adam_eps as f32,
                // Weight decay would pull the gains of norms towards 0.
                weight_decay: if param.shape.len() == 1 { 0.0 } else { settings.weight_decay as f32 },
                step: step + 1,
            };
            let (own, moments) = (self.shards.part(i, self.ranks.rank()), [&mut self.m[i], &mut self.v[i]]);
            match self.shards.is_rounded(i) {
                true => {
                    adamw.update_part(&mut self.masters[i], moments, grad, grad_scale);
                    param.weight.copy_from(own.start, &self.masters[i], 0..own.len());
                }
                false => adamw.update(&mut param.weight, own, moments, grad, grad_scale),
            }
        }
        self.shards.spread(&*self.ranks, model);
    }

    /// A parameter as it is saved. If its f32 numbers are split among ranks, they are gathered while they are written,
    /// so every rank takes part: those that don't write call `make_in_order`.
    pub fn saved<'a>(&'a self, id: ParamId, param: &'a Param, dtype: Dtype) -> weights::Tensor<'a> {
        if !self.shards.is_rounded(id) {
            return weights::Tensor::of(param, dtype);
        }
        let gather = move || self.shards.gather(&*self.ranks, id, &self.masters[id]);
        weights::Tensor::made(Cow::from(&param.name), &param.shape, dtype, Box::new(gather))
    }

    /// A parameter's first and second moments, saved like [`Optimizer::saved`].
    pub(crate) fn saved_moments<'a>(&'a self, id: ParamId, param: &'a Param) -> [weights::Tensor<'a>; 2] {
        let [m, v] = moment_names(param);
        [(m, &self.m[id]), (v, &self.v[id])].map(|(name, own)| {
            let gather = move || self.shards.gather(&*self.ranks, id, own);
            weights::Tensor::made(Cow::from(name), &param.shape, Dtype::F32, Box::new(gather))
        })
    }

    /// Sets a parameter's numbers in the model, and this rank's f32 part if the model holds them in bf16.
    pub(crate) fn put_weight(&mut self, id: ParamId, weight: &mut Weight, numbers: &[f32]) {
        weight.write(0, numbers);
        if self.shards.is_rounded(id) {
            self.masters[id].write(0, &numbers[self.shards.part(id, self.ranks.rank())]);
        }
    }

    /// Sets this rank's part of a parameter's moments, given whole.
    pub(crate) fn put_moments(&mut self, id: ParamId, [m, v]: [&[f32]; 2]) {
        let own = self.shards.part(id, self.ranks.rank());
        self.m[id].write(0, &m[own.clone()]);
        self.v[id].write(0, &v[own]);
    }

    /// Whether the ranks hold parts of f32 numbers that the model has in bf16.
    pub(crate) fn has_masters(&self) -> bool {
        (0..self.masters.len()).any(|id| self.shards.is_rounded(id))
    }
}

/// The names under which a parameter's moments are saved.
pub(crate) fn moment_names(param: &Param) -> [String; 2] {
    ["m.", "v."].map(|prefix| format!("{prefix}{}", param.name))
}

/// Makes every weight of a model trainable. Each gets its f32 master copy when the optimizer is created.
pub fn train_everything(model: &mut Transformer) {
    model.params.iter_mut().for_each(|param| param.trainable = true);
}

/// The norm of all gradients together.
pub(crate) fn gradient_norm(grads: &Gradients) -> f64 {
    let of_each = chunk_sums(&grads.iter().flatten().collect::<Vec<_>>());
    of_each.iter().map(|sums| sums.iter().sum::<f64>()).sum::<f64>().sqrt()
}
