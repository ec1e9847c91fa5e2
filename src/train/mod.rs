//! The training loop. A step noises a global batch (after a pass for entropies where wanted), weighs its losses,
//! goes backward micro-batch by micro-batch and updates; what it masks depends on seed, epoch and example alone.
//! The formulas are `noising`'s and `objective`'s; runs, files and progress are `run`'s.

pub mod checkpoint;
pub mod diagnosis;
pub mod entropy_reuse;
pub mod guard;
pub mod held_out;
pub mod interrupt;
pub mod lr_schedule;
pub mod metrics;
pub mod optimizer;
pub mod pretrain;
pub mod run;
pub mod step;
pub mod tensorboard;

use std::borrow::Borrow;
use std::time::Instant;

use crate::data::Example;
use crate::data::mixing::{Mixture, Turn};
use crate::data::packing::{PaddedAnswer, Padding, pad_answers};
use crate::error::Result;
use crate::model::batch::{Batch, Targets};
use crate::model::block::{Gradients, Pass, Transformer};
use crate::noising::entropy::AnswerEntropy;
use crate::noising::schedule::diffusion_time;
use crate::objective::{DrawnAnswer, NoisedAnswer, Objective};
use crate::recipe::TrainTable;
use crate::rng::{Draws, Stream};
use diagnosis::Computed;
use entropy_reuse::{Drift, EntropyReuse};
use guard::Guard;
use optimizer::{Optimizer, gradient_norm};
use step::{EntropySummary, Phases, StepReport};

/// Examples whose drift of entropies is measured at the end of a run.
const DRIFT_EXAMPLES: usize = 32;

/// A model in training.
pub struct Trainer {
    /// The model.
    pub model: Transformer,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// Steps that are done, those that were passed over included.
    pub step: u64,
    /// What is remembered of them, for steps that are passed over.
    pub guard: Guard,
    job: Job,
    /// Entropies of earlier epochs.
    entropies: EntropyReuse,
    /// The turns of an epoch, once that has begun.
    order: Option<(u64, Vec<Turn>)>,
}

/// What a trainer is made of beside its model.
pub struct Job {
    /// The training examples.
    pub examples: Vec<Example>,
    /// How often each of them comes in an epoch.
    pub mixture: Mixture,
    /// What is trained.
    pub objective: Objective,
    /// How sequences of different lengths meet.
    pub padding: Padding,
    /// The token that pads answers where `padding` is `eos`.
    pub eos_token_id: u32,
    /// The loop's settings.
    pub settings: TrainTable,
}

/// An example of a batch after the forward process.
struct Noised {
    turn: Turn,
    /// Prompt and clean answer, padding included.
    ids: Vec<u32>,
    answer_start: usize,
    num_supervised: usize,
    /// `H_i` in nats; empty where the objective asks for none.
    token_entropy: Vec<f32>,
}

impl Trainer {
    /// A model's training from its beginning; its trainable parameters are what is trained.
    pub fn new(mut model: Transformer, job: Job) -> Self {
        model.config.activation_bytes = job.settings.activation_bytes();
        let (optimizer, objective) = (Optimizer::new(&model), job.objective);
        let (guard, entropies) = (Guard::default(), EntropyReuse::new(1));
        let mut trainer = Self { optimizer, model, step: 0, guard, job, entropies, order: None };
        trainer.set_objective(objective);
        trainer
    }

    /// Trains something else from here on; entropies kept for reuse are dropped.
    pub fn set_objective(&mut self, objective: Objective) {
        let config = &mut self.model.config;
        config.entropy_precision = objective.entropy_precision.unwrap_or(config.precision);
        self.entropies = EntropyReuse::new(objective.entropy_every);
        self.job.objective = objective;
    }

    /// The loop's settings.
    pub fn settings(&self) -> &TrainTable {
        &self.job.settings
    }

    /// Optimizer steps per pass over the examples; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        let turns = self.job.mixture.epoch_len(self.job.examples.len());
        turns.div_ceil(self.job.settings.global_batch_size()) as u64
    }

    /// Optimizer steps of the run.
    pub fn num_steps(&self) -> u64 {
        let all = self.job.settings.epochs.saturating_mul(self.steps_per_epoch());
        self.job.settings.max_steps.map_or(all, |max| max.min(all))
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// A loss, gradient or entropy that isn't finite, unless such steps are passed over; too many steps in a row that
    /// were. Everything is as before the step then.
    pub fn step(&mut self) -> Result<StepReport> {
        // 1. The examples of this step.
        let (epoch, index) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        let chosen = self.turns_of(epoch, index as usize);
        let (started, mut phases) = (Instant::now(), Phases::default());
        // 2. Masks: entropies where the objective asks for them, rates, draws. The normaliser is the whole batch's, whatever the micro-batch.
        let (mut sequences, mut answers, mut drifts) = (vec![], vec![], vec![]);
        for turns in chosen.chunks(self.job.settings.micro_batch_size) {
            let mut micro_batch = self.lay_out(turns);
            if self.job.objective.kind.needs_entropy() {
                drifts.extend(self.find_entropies(&mut micro_batch, epoch));
            }
            answers.extend(self.noise(&micro_batch, epoch));
            sequences.extend(micro_batch);
        }
        let weights = self.job.objective.loss_weights(&answers);
        phases.entropy = started.elapsed().as_secs_f64();
        // 3. Forward and backward of the masked tokens.
        let mut grads = self.model.zero_gradients();
        let mut loss = 0.0;
        let micro = self.job.settings.micro_batch_size;
        for ((sequences, answers), weights) in
            sequences.chunks(micro).zip(answers.chunks(micro)).zip(weights.chunks(micro))
        {
            let (part, seconds) = self.backward(sequences, answers, weights, epoch, &mut grads);
            loss += part;
            phases.add(seconds);
        }
        // 4. Clip and update.
        let updating = Instant::now();
        let grad_norm = gradient_norm(&grads);
        let is_finite = loss.is_finite() && grad_norm.is_finite() && sequences.iter().all(Noised::has_finite_entropies);
        let reason = self.guard.judge(is_finite, grad_norm, &self.job.settings);
        let skipped = match reason {
            None => None,
            Some(reason) => {
                let computed =
                    Computed { sequences: &sequences, answers: &answers, weights: &weights, loss, grad_norm };
                Some(self.skip(reason, computed, epoch)?)
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
        let masked: usize = answers.iter().flat_map(|a| &a.masked).filter(|m| **m).count();
        let entropies: Vec<f32> = sequences
            .iter()
            .flat_map(|s| &s.token_entropy[..s.token_entropy.len().min(s.num_supervised)])
            .copied()
            .collect();
        Ok(StepReport {
            step: self.step,
            epoch: self.step as f64 / self.steps_per_epoch() as f64,
            loss,
            grad_norm,
            lr,
            tokens: sequences.iter().map(|s| s.ids.len()).sum(),
            masked_share: masked as f64 / answers.iter().map(|a| a.masked.len()).sum::<usize>().max(1) as f64,
            entropy: EntropySummary::of(entropies, &answers),
            masked: answers.into_iter().map(|a| a.masked).collect(),
            entropy_drift: Drift::mean(&drifts),
            skipped,
            skipped_steps: self.guard.skipped.total(),
            phases,
        })
    }

    /// The turns of a step of an epoch.
    fn turns_of(&mut self, epoch: u64, index: usize) -> Vec<Turn> {
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => self.job.mixture.epoch(self.job.settings.seed, epoch, self.job.examples.len()),
        };
        let start = index * self.job.settings.global_batch_size();
        let end = start.saturating_add(self.job.settings.global_batch_size()).min(order.len());
        let chosen = order[start..end].to_vec();
        self.order = Some((epoch, order));
        chosen
    }

    /// The micro-batch's clean sequences, padded as the recipe says.
    fn lay_out(&self, turns: &[Turn]) -> Vec<Noised> {
        let chosen: Vec<&Example> = turns.iter().map(|turn| &self.job.examples[turn.example]).collect();
        let padded = pad_answers(&chosen, self.job.padding, self.job.eos_token_id);
        let noised = |((answer, &turn), Example { prompt_ids, .. }): ((PaddedAnswer, &Turn), &&Example)| Noised {
            turn,
            ids: [prompt_ids.as_slice(), &answer.ids].concat(),
            answer_start: prompt_ids.len(),
            num_supervised: answer.num_supervised,
            token_entropy: vec![],
        };
        padded.into_iter().zip(turns).zip(&chosen).map(noised).collect()
    }

    /// The answers' entropies: reused ones, and pass 1 for the others, whose drift is returned.
    fn find_entropies(&mut self, micro_batch: &mut [Noised], epoch: u64) -> Vec<Drift> {
        for sequence in micro_batch.iter_mut() {
            sequence.token_entropy = self.entropies.reusable(sequence.turn.example, epoch).unwrap_or_default().to_vec();
        }
        let wanted: Vec<&mut Noised> = micro_batch.iter_mut().filter(|s| s.token_entropy.is_empty()).collect();
        let fresh = self.fresh_entropies(wanted.iter().map(|s| &**s));
        let keep = |(sequence, fresh): (&mut Noised, Vec<f32>)| {
            let drift = self.entropies.keep(sequence.turn.example, epoch, &fresh);
            sequence.token_entropy = fresh;
            drift
        };
        wanted.into_iter().zip(fresh).filter_map(keep).collect()
    }

    /// Pass 1: each answer's token entropies in nats where it is masked as a whole.
    fn fresh_entropies<'a>(&self, sequences: impl IntoIterator<Item = &'a Noised>) -> Vec<Vec<f32>> {
        let sequences: Vec<&Noised> = sequences.into_iter().collect();
        let all_masked = |s: &&Noised| s.noised_ids(|_| true, self.model.config.mask_token_id);
        let ids: Vec<Vec<u32>> = sequences.iter().map(all_masked).collect();
        let batch = Batch::pack(ids.iter().map(Vec::as_slice));
        let entropies = self.model.entropy(&batch, &rows(&sequences, |_, _| true));
        let mut rest = entropies.as_slice();
        let own = |s: &&Noised| {
            let own;
            (own, rest) = rest.split_at(s.ids.len() - s.answer_start);
            own.to_vec()
        };
        sequences.iter().map(own).collect()
    }

    /// How far the kept entropies of a few examples have drifted by now; none where none are reused.
    pub fn entropy_drift(&self) -> Option<Drift> {
        let some: Vec<usize> = self.entropies.kept.keys().copied().take(DRIFT_EXAMPLES).collect();
        let micro_batches = some.chunks(self.job.settings.micro_batch_size);
        let turns = |examples: &[usize]| -> Vec<Turn> {
            examples.iter().map(|&example| Turn { example, draw: example as u64 }).collect()
        };
        let fresh = micro_batches.flat_map(|examples| self.fresh_entropies(&self.lay_out(&turns(examples))));
        let drift =
            |(example, fresh): (&usize, Vec<f32>)| Drift::between(&self.entropies.kept[example].token_entropy, &fresh);
        Drift::mean(&some.iter().zip(fresh).map(drift).collect::<Vec<_>>())
    }

    /// Times, rates and masks of a micro-batch.
    fn noise(&self, micro_batch: &[Noised], epoch: u64) -> Vec<NoisedAnswer> {
        let draws = |stream, s: &Noised| Draws::new(self.job.settings.seed, stream, epoch, s.turn.draw);
        let of_tokens = |s: &Noised| -> Vec<f32> {
            let (draws, positions) = (draws(Stream::Mask, s), s.answer_start as u64..s.ids.len() as u64);
            positions.map(|p| draws.unit_f32(p)).collect()
        };
        let u: Vec<Vec<f32>> = micro_batch.iter().map(of_tokens).collect();
        let drawn = micro_batch.iter().zip(&u).map(|(s, u)| DrawnAnswer {
            prompt_len: s.answer_start,
            entropy: AnswerEntropy { token_entropy: &s.token_entropy, num_supervised: s.num_supervised },
            t: diffusion_time(draws(Stream::Time, s).unit_f64(0), self.job.objective.t_min),
            u,
        });
        self.job.objective.noise(&drawn.collect::<Vec<_>>())
    }

    /// Pass 2 of a micro-batch: its part of the loss, and seconds as [`Pass`] has them; adds its gradients.
    fn backward(
        &self,
        sequences: &[Noised],
        answers: &[NoisedAnswer],
        weights: &[Vec<f32>],
        epoch: u64,
        grads: &mut Gradients,
    ) -> (f64, [f64; 3]) {
        let (batch, rows) = self.noised_batch(sequences, answers, epoch);
        if rows.is_empty() {
            return (0.0, [0.0; 3]);
        }
        let clean: Vec<u32> = sequences.iter().flat_map(|s| &s.ids).copied().collect();
        let ids: Vec<u32> = rows.iter().map(|row| clean[*row]).collect();
        let masked = weights.iter().zip(answers).flat_map(|(w, a)| w.iter().zip(&a.masked));
        let weights: Vec<f32> = masked.filter(|(_, masked)| **masked).map(|(w, _)| *w).collect();
        let targets = Targets { rows: &rows, ids: &ids, weights: &weights };
        let Pass { nll, seconds } = self.model.loss_and_gradients(&batch, targets, grads);
        (nll.iter().zip(&weights).map(|(nll, weight)| f64::from(*nll) * f64::from(*weight)).sum(), seconds)
    }

    /// A micro-batch as pass 2 reads it, and its masked rows.
    fn noised_batch(&self, sequences: &[Noised], answers: &[NoisedAnswer], epoch: u64) -> (Batch, Vec<usize>) {
        let mask = self.model.config.mask_token_id;
        let noised: Vec<Vec<u32>> =
            sequences.iter().zip(answers).map(|(s, a)| s.noised_ids(|i| a.masked[i], mask)).collect();
        let mut batch = Batch::pack(noised.iter().map(Vec::as_slice));
        if self.model.config.lora_dropout > 0.0 {
            batch.dropout_keys = Some(self.dropout_keys(sequences, epoch));
        }
        (batch, rows(sequences, |s, i| answers[s].masked[i]))
    }

    fn dropout_keys(&self, sequences: &[Noised], epoch: u64) -> Vec<u64> {
        let keys = |s: &Noised| {
            let draws = Draws::new(self.job.settings.seed, Stream::Dropout, epoch, s.turn.draw);
            (0..s.ids.len() as u64).map(move |position| draws.key(position))
        };
        sequences.iter().flat_map(keys).collect()
    }
}

impl Noised {
    fn has_finite_entropies(&self) -> bool {
        self.token_entropy.iter().all(|h| h.is_finite())
    }

    /// The ids with some answer tokens masked.
    fn noised_ids(&self, masked: impl Fn(usize) -> bool, mask_token_id: u32) -> Vec<u32> {
        let mut ids = self.ids.clone();
        for (i, id) in ids[self.answer_start..].iter_mut().enumerate() {
            if masked(i) {
                *id = mask_token_id;
            }
        }
        ids
    }
}

/// The batch's rows of the answer tokens that `wanted(sequence, token)` names.
fn rows<S: Borrow<Noised>>(sequences: &[S], wanted: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let (mut rows, mut start) = (vec![], 0);
    for (s, sequence) in sequences.iter().map(Borrow::borrow).enumerate() {
        let answer = sequence.answer_start..sequence.ids.len();
        rows.extend(answer.enumerate().filter(|(i, _)| wanted(s, *i)).map(|(_, token)| start + token));
        start += sequence.ids.len();
    }
    rows
}
