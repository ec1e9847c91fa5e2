//! The training loop. A step noises a global batch (after a pass for entropies if the objective needs one), weights its
//! losses, runs backward micro-batch by micro-batch, and updates. Which tokens are masked depends on seed, epoch and
//! example alone. The formulas are in `noising` and `objective`; folders, files and progress are `run`'s.

pub(crate) mod best;
pub mod checkpoint;
mod diagnosis;
pub mod entropy_reuse;
mod gathered;
mod gradients;
pub mod guard;
pub mod held_out;
pub mod lift;
pub mod lr_schedule;
pub(crate) mod metrics;
mod noised;
pub mod optimizer;
mod pace;
pub mod pretrain;
pub mod rank_log;
pub mod resolved;
pub mod run;
pub mod scored;
pub mod settings;
pub(crate) mod shards;
pub mod step;
mod tags;
pub(crate) mod tensorboard;
pub mod view;

use std::time::Instant;

use weft_kernels::precision::Precision;

use crate::data::Example;
use crate::data::mixing::{Mixture, Occurrence};
use crate::data::packing::Padding;
use crate::error::Result;
use crate::model::batch::{Batch, Targets};
use crate::model::block::{Gradients, Pass, Transformer};
use crate::objective::{NoisedAnswer, Objective};
use crate::parallel::collective::{Ranks, solo};
use diagnosis::Computed;
use entropy_reuse::{Drift, EntropyReuse};
use gathered::Gathered;
use gradients::Finished;
pub(crate) use gradients::sum_in_tree;
use guard::Guard;
use noised::Noised;
use optimizer::Optimizer;
use rank_log::RankLog;
use settings::{ACTIVATION_BYTES, TrainTable};
use step::{EntropySummary, Phases, StepReport};

/// A model in training.
pub struct Trainer {
    /// The model.
    pub model: Transformer,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// How many steps are done, including skipped ones.
    pub step: u64,
    /// What is remembered of the steps so far, to decide which steps are skipped.
    pub guard: Guard,
    job: Job,
    ranks: Ranks,
    /// This rank's own log, if it has one.
    #[doc(hidden)]
    pub rank_log: Option<RankLog>,
    /// Entropies of earlier epochs that are kept for reuse.
    entropies: EntropyReuse,
    /// The current epoch and its occurrences, once an epoch has begun.
    order: Option<(u64, Vec<Occurrence>)>,
}

/// What a trainer needs besides its model.
pub struct Job {
    /// The training examples.
    pub examples: Vec<Example>,
    /// How often each example occurs in an epoch.
    pub mixture: Mixture,
    /// The objective that is trained.
    pub objective: Objective,
    /// How sequences of different lengths form a batch.
    pub padding: Padding,
    /// The token that pads answers if `padding` is `eos`.
    pub eos_token_id: u32,
    /// The loop's settings.
    pub settings: TrainTable,
}

impl Job {
    /// A job in which every example occurs once in an epoch and nothing is padded.
    pub fn new(examples: Vec<Example>, objective: Objective, settings: TrainTable, eos_token_id: u32) -> Self {
        Self { examples, mixture: Mixture::default(), objective, padding: Padding::None, eos_token_id, settings }
    }
}

impl Trainer {
    /// Begins to train a model on one rank; the model's trainable parameters are trained.
    pub fn new(model: Transformer, job: Job) -> Self {
        Self::on(solo(), model, job)
    }

    /// Like [`Trainer::new`], for one rank of a data-parallel group, in which every rank passes the same model and
    /// examples.
    #[doc(hidden)]
    pub fn on(ranks: Ranks, mut model: Transformer, job: Job) -> Self {
        model.config.activation_bytes = job.settings.activation_bytes(ACTIVATION_BYTES);
        model.config.entropy_precision = job.objective.entropy_precision.unwrap_or(model.config.precision);
        // An adapter may have been attached since the weights were moved; it moves to their device here.
        model.put_on(&model.device.clone());
        let optimizer = Optimizer::on(ranks.clone(), &mut model);
        let (guard, entropies) = (Guard::default(), EntropyReuse::new(job.objective.entropy_every));
        Self { optimizer, model, step: 0, guard, job, ranks, rank_log: None, entropies, order: None }
    }

    /// Trains another objective from here on; entropies kept for reuse are dropped.
    pub fn set_objective(&mut self, objective: Objective) {
        let config = &mut self.model.config;
        config.entropy_precision = objective.entropy_precision.unwrap_or(config.precision);
        let is_exact = config.entropy_precision == Precision::F32;
        assert!(!(is_exact && self.optimizer.has_masters()), "what ranks have in bf16 can't be read in f32");
        self.entropies = EntropyReuse::new(objective.entropy_every);
        self.job.objective = objective;
    }

    /// The loop's settings.
    pub fn settings(&self) -> &TrainTable {
        &self.job.settings
    }

    /// The ranks that train together.
    #[doc(hidden)]
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Examples per optimizer step, over all ranks.
    pub fn global_batch_size(&self) -> usize {
        self.job.settings.global_batch_size().saturating_mul(self.ranks.size())
    }

    /// Optimizer steps per epoch; the last one may have fewer examples.
    pub fn steps_per_epoch(&self) -> u64 {
        self.job.settings.steps_per_epoch(self.epoch_len(), self.ranks.size())
    }

    /// Optimizer steps of the run.
    pub fn num_steps(&self) -> u64 {
        self.job.settings.num_steps(self.epoch_len(), self.ranks.size())
    }

    /// The number of examples in an epoch.
    fn epoch_len(&self) -> usize {
        self.job.mixture.epoch_len(self.job.examples.len())
    }

    /// Does one optimizer step.
    ///
    /// # Errors
    /// A loss, gradient or entropy that isn't finite, unless such steps are skipped; too many skipped steps in a row.
    /// In either case everything is as it was before the step.
    pub fn step(&mut self) -> Result<StepReport> {
        // 1. The examples of this step.
        let (epoch, index) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        let chosen = self.occurrences_of(epoch, index as usize);
        let (started, mut phases, sent) = (Instant::now(), Phases::default(), self.ranks.traffic());
        // 2. Masks: entropies if the objective needs them, rates, draws. The normaliser is that of the whole batch,
        // however it is split into micro-batches and ranks.
        let own = self.own_micro_batches(&chosen, epoch);
        let views = self.views();
        let of_step = (views * chosen.len(), views * self.job.settings.micro_batch_size);
        let gathered = gathered::all_gather(&*self.ranks, &own, of_step);
        let (drifts, counts) = (self.keep_entropies(&gathered, epoch), gathered::counts(&gathered));
        phases.entropy = started.elapsed().as_secs_f64();
        // 3. Forward and backward of the masked tokens.
        let mut sums = vec![[0.0; 2]; own.len()];
        let mut updating = Instant::now();
        let grads = self.optimizer.reduce_beside(&mut |hand_over| {
            let grads = self.sum_gradients(&own, hand_over, &mut |index, grads, finished| {
                let weights = self.job.objective.loss_weights_within(&own[index].answers, counts);
                let (sum, seconds) = self.backward(own[index].parts(), &weights, epoch, (grads, finished));
                sums[index] = sum;
                phases.add(seconds);
            });
            updating = Instant::now();
            grads
        });
        // 4. Clip and update.
        let [loss, nll] = gathered::sums(&*self.ranks, &sums);
        let grad_norm = self.optimizer.gradient_norm(&grads);
        let is_finite =
            loss.is_finite() && grad_norm.is_finite() && gathered.iter().all(Gathered::has_finite_entropies);
        let reason = self.guard.judge(is_finite, grad_norm, &self.job.settings);
        let skipped = match reason {
            None => None,
            Some(reason) => {
                Some(self.skip(reason, Computed { own: &own, gathered: &gathered, counts, loss, grad_norm }, epoch)?)
            }
        };
        let factor = self.job.settings.lr_schedule.factor(self.step, self.job.settings.warmup_steps, self.num_steps());
        let lr = self.job.settings.lr * factor;
        if skipped.is_none() {
            let updates = self.step - self.guard.skipped.total();
            self.optimizer.update(&mut self.model, &grads, grad_norm, (updates, lr), &self.job.settings);
        }
        self.guard.remember(grad_norm, &self.job.settings, reason);
        self.step += 1;
        phases.optimizer = updating.elapsed().as_secs_f64();
        let entropies = gathered.iter().flat_map(|a| &a.token_entropy[..a.token_entropy.len().min(a.num_supervised)]);
        let relative_uncertainty = gathered.iter().flat_map(|a| &a.relative_uncertainty).copied();
        let report = StepReport {
            step: self.step,
            epoch: self.step as f64 / self.steps_per_epoch() as f64,
            loss,
            nll: (counts.masked > 0).then(|| nll / counts.masked as f64),
            grad_norm,
            lr,
            tokens: gathered.iter().map(|a| a.tokens).sum(),
            masked_share: counts.masked as f64 / counts.answer_tokens.max(1) as f64,
            entropy: EntropySummary::of(entropies.copied().collect(), relative_uncertainty),
            masked: own.iter().flat_map(|batch| &batch.answers).map(|a| a.masked.clone()).collect(),
            entropy_drift: Drift::mean(&drifts),
            skipped,
            skipped_steps: self.guard.skipped.total(),
            held_out: None,
            phases,
            traffic: self.ranks.traffic().since(sent),
        };
        self.rank_log.as_mut().map_or(Ok(()), |log| log.step(&report, own.len()))?;
        Ok(report)
    }

    /// The occurrences of one step of an epoch.
    fn occurrences_of(&mut self, epoch: u64, index: usize) -> Vec<Occurrence> {
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => self.job.mixture.epoch(self.job.settings.seed, epoch, self.job.examples.len()),
        };
        let start = index * self.global_batch_size();
        let end = start.saturating_add(self.global_batch_size()).min(order.len());
        let chosen = order[start..end].to_vec();
        self.order = Some((epoch, order));
        chosen
    }

    /// Runs pass 2 of a micro-batch and adds its gradients. Returns its part of the loss and the sum of its masked
    /// tokens' nll, and the seconds of [`Pass`].
    fn backward(
        &self,
        (sequences, answers): (&[Noised], &[NoisedAnswer]),
        weights: &[Vec<f32>],
        epoch: u64,
        (grads, finished): (&mut Gradients, Finished),
    ) -> ([f64; 2], [f64; 3]) {
        let (batch, rows) = self.noised_batch(sequences, answers, epoch);
        if rows.is_empty() {
            return ([0.0; 2], [0.0; 3]);
        }
        let of_answer = |(s, a): (&Noised, &NoisedAnswer)| -> Vec<u32> {
            let clean = s.ids[s.answer.clone()].iter().zip(&a.masked);
            clean.filter(|(_, masked)| **masked).map(|(id, _)| *id).collect()
        };
        let ids: Vec<u32> = sequences.iter().zip(answers).flat_map(of_answer).collect();
        let masked = weights.iter().zip(answers).flat_map(|(w, a)| w.iter().zip(&a.masked));
        let weights: Vec<f32> = masked.filter(|(_, masked)| **masked).map(|(w, _)| *w).collect();
        let targets = Targets { rows: &rows, ids: &ids, weights: &weights };
        let Pass { nll, seconds } = self.model.loss_and_finished_gradients(&batch, targets, grads, finished);
        let loss = nll.iter().zip(&weights).map(|(nll, weight)| f64::from(*nll) * f64::from(*weight)).sum();
        ([loss, nll.iter().copied().map(f64::from).sum()], seconds)
    }

    /// A micro-batch as pass 2 reads it, with its masked rows.
    fn noised_batch(&self, sequences: &[Noised], answers: &[NoisedAnswer], epoch: u64) -> (Batch, Vec<usize>) {
        let (mut batch, rows) = self.masked_batch(sequences, |s, i| answers[s].masked[i]);
        if self.model.config.lora_dropout > 0.0 {
            batch.dropout_keys = Some(self.dropout_keys(&batch, sequences, epoch));
        }
        (batch, rows)
    }
}
