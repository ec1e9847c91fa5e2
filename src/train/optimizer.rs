//! AdamW over the model's trainable parameters, with the gradient's norm clipped. Each rank keeps the moments of its part
//! and updates that (ZeRO-1); one rank alone has everything. The update of one tensor is `weft_kernels::adamw`, the
//! parts are `shards`'.

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

/// First and second moments of this rank's part of each parameter, empty for a frozen one, and its part of those f32
/// numbers that the model has in bf16.
pub struct Optimizer {
    /// First moments.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
    /// This rank's part of each parameter that several ranks have in bf16; empty for the others, whose f32 numbers are the
    /// model's.
    masters: Vec<Tensor>,
    /// Whether finished buckets travel while the rest is computed; not a bit depends on it.
    pub overlaps: bool,
    shards: Shards,
    ranks: Ranks,
}

/// This rank's part of every rank's gradients, summed.
struct Summed {
    sums: Table,
    /// Gradients that may still be read until `end`.
    sent: Vec<(Mark, Table)>,
    /// The moment from which the sums are there.
    end: Mark,
}

impl Optimizer {
    /// Moments of zero, of one rank alone.
    pub fn new(model: &mut Transformer) -> Self {
        Self::on(solo(), model)
    }

    /// Moments of zero at one of several ranks. What is trained becomes f32 in the model, or bf16 where that is all that
    /// its matmuls read: its f32 numbers are then split among the ranks.
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

    /// Sums every rank's gradients, those that `work` returns, and leaves this rank its part of them. Buckets that `work`
    /// hands over when they are finished travel while it goes on; a thread of its own waits for them.
    pub fn reduce_beside(&self, work: &mut dyn FnMut(Finished) -> Gradients) -> Gradients {
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
                // A thread that panicked is found below.
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

    /// Sums the tables of every rank that `finished` brings, each with the mark at which this rank's is computed, beside
    /// what other threads compute.
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
            // A GPU may be reading what was handed over for some time yet.
            sent.push((read, table));
            sent.retain(|(read, _)| !read.has_passed());
        }
        let _beside = device.beside();
        Summed { sums, sent, end: device.mark() }
    }

    /// The norm of all gradients together, of which this rank has its part; the same bits for any number of ranks.
    pub fn gradient_norm(&self, grads: &Gradients) -> f64 {
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

    /// One update at a step counted from 0, of gradients that [`Optimizer::reduce_beside`] left, scaled down to `max_grad_norm`
    /// where their norm is larger.
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
                // Decay would pull the gains of norms towards 0.
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

    /// A parameter as it is saved. Where ranks have parts of its f32 numbers, these are gathered when they are written: every
    /// rank calls it, and the others of those who write `make_in_order`.
    pub fn saved<'a>(&'a self, id: ParamId, param: &'a Param, dtype: Dtype) -> weights::Tensor<'a> {
        if !self.shards.is_rounded(id) {
            return weights::Tensor::of(param, dtype);
        }
        let gather = move || self.shards.gather(&*self.ranks, id, &self.masters[id]);
        weights::Tensor::made(Cow::from(&param.name), &param.shape, dtype, Box::new(gather))
    }

    /// Its first and second moments, as they are saved in the same way.
    pub fn saved_moments<'a>(&'a self, id: ParamId, param: &'a Param) -> [weights::Tensor<'a>; 2] {
        let [m, v] = moment_names(param);
        [(m, &self.m[id]), (v, &self.v[id])].map(|(name, own)| {
            let gather = move || self.shards.gather(&*self.ranks, id, own);
            weights::Tensor::made(Cow::from(name), &param.shape, Dtype::F32, Box::new(gather))
        })
    }

    /// Takes a parameter's numbers: into the model, and this rank's part where they are in bf16 there.
    pub fn put_weight(&mut self, id: ParamId, weight: &mut Weight, numbers: &[f32]) {
        weight.write(0, numbers);
        if self.shards.is_rounded(id) {
            self.masters[id].write(0, &numbers[self.shards.part(id, self.ranks.rank())]);
        }
    }

    /// Takes this rank's part of a parameter's whole moments.
    pub fn put_moments(&mut self, id: ParamId, [m, v]: [&[f32]; 2]) {
        let own = self.shards.part(id, self.ranks.rank());
        self.m[id].write(0, &m[own.clone()]);
        self.v[id].write(0, &v[own]);
    }

    /// Whether ranks have parts of f32 numbers that the model has in bf16.
    pub fn has_masters(&self) -> bool {
        (0..self.masters.len()).any(|id| self.shards.is_rounded(id))
    }
}

/// The names of a parameter's moments where they are saved.
pub fn moment_names(param: &Param) -> [String; 2] {
    ["m.", "v."].map(|prefix| format!("{prefix}{}", param.name))
}

/// Makes every weight of a model trainable. Each gets its f32 master copy when its optimizer is made.
pub fn train_everything(model: &mut Transformer) {
    model.params.iter_mut().for_each(|param| param.trainable = true);
}

/// The norm of all gradients together.
pub fn gradient_norm(grads: &Gradients) -> f64 {
    let of_each = chunk_sums(&grads.iter().flatten().collect::<Vec<_>>());
    of_each.iter().map(|sums| sums.iter().sum::<f64>()).sum::<f64>().sqrt()
}
