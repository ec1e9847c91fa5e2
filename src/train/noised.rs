//! A step's answers before the backward: sequences are laid out, entropies computed or reused, times and masks drawn.
//! Which tokens are masked depends on seed, epoch and example alone. The formulas are in `noising` and `objective`.

use std::borrow::Borrow;
use std::ops::Range;

use super::Trainer;
use super::entropy_reuse::Drift;
use super::gathered::Gathered;
use super::view::{Sequence, View};
use crate::data::Example;
use crate::data::mixing::Occurrence;
use crate::data::packing::{PaddedAnswer, pad_answers};
use crate::model::batch::{AttentionKind, Batch};
use crate::noising::entropy::AnswerEntropy;
use crate::noising::schedule::diffusion_time;
use crate::objective::{DrawnAnswer, Kind, NoisedAnswer};
use crate::rng::{Draws, Stream};

/// How many examples the drift of entropies is measured on at the end of a run.
const DRIFT_EXAMPLES: usize = 32;

/// The examples of one forward, after the forward process.
pub(super) struct MicroBatch {
    pub(super) sequences: Vec<Noised>,
    pub(super) answers: Vec<NoisedAnswer>,
}

impl MicroBatch {
    /// Every answer followed by the same answer under the complement of its mask.
    fn with_complements(self, t_min: f64) -> Self {
        let pairs = self.sequences.into_iter().zip(self.answers);
        let both = pairs.flat_map(|(sequence, answer)| {
            let complement = Noised { is_complement: true, is_fresh: false, ..sequence.clone() };
            [(complement, answer.complement(t_min)), (sequence, answer)].into_iter().rev()
        });
        let (sequences, answers) = both.unzip();
        Self { sequences, answers }
    }

    /// The micro-batch's sequences and their answers.
    pub(super) fn parts(&self) -> (&[Noised], &[NoisedAnswer]) {
        (&self.sequences, &self.answers)
    }
}

/// An example in a batch.
#[derive(Clone)]
pub(super) struct Noised {
    pub(super) occurrence: Occurrence,
    /// Prompt and clean answer, including padding; masks behind a block that is noised by itself.
    pub(super) ids: Vec<u32>,
    /// The tokens that may be masked.
    pub(super) answer: Range<usize>,
    /// How many of those tokens are the answer's own.
    pub(super) num_supervised: usize,
    /// `H_i` in nats; empty if the objective needs no entropies.
    pub(super) token_entropy: Vec<f32>,
    /// Whether the entropies were computed in this step.
    pub(super) is_fresh: bool,
    /// Whether it is an example's second view, under the complement of its mask.
    is_complement: bool,
}

impl Trainer {
    /// This rank's micro-batches of a step: every `size`-th one, so that each rank has as many as the others or one
    /// fewer.
    pub(super) fn own_micro_batches(&self, occurrences: &[Occurrence], epoch: u64) -> Vec<MicroBatch> {
        let own =
            occurrences.chunks(self.job.settings.micro_batch_size).skip(self.ranks.rank()).step_by(self.ranks.size());
        own.map(|occurrences| {
            let mut sequences = self.lay_out(occurrences, epoch);
            if self.job.objective.kind.needs_entropy() {
                self.find_entropies(&mut sequences, epoch);
            }
            let answers = match self.job.objective.kind {
                Kind::Lift => self.lift(&sequences, epoch),
                _ => self.noise(&sequences, epoch),
            };
            let noised = MicroBatch { sequences, answers };
            if self.job.objective.complementary { noised.with_complements(self.job.objective.t_min) } else { noised }
        })
        .collect()
    }

    /// The views of an example that a step trains: its mask, and perhaps the mask's complement.
    pub(super) fn views(&self) -> usize {
        1 + usize::from(self.job.objective.complementary)
    }

    /// The micro-batch's clean sequences, padded and seen as the recipe says.
    fn lay_out(&self, occurrences: &[Occurrence], epoch: u64) -> Vec<Noised> {
        let chosen: Vec<&Example> =
            occurrences.iter().map(|occurrence| &self.job.examples[occurrence.example]).collect();
        let padded = pad_answers(&chosen, self.job.padding, self.job.eos_token_id);
        let (view, seed, mask) = (self.view(), self.job.settings.seed, self.model.config.mask_token_id);
        let noised = |((padded, &occurrence), example): ((PaddedAnswer, &Occurrence), &&Example)| {
            let u = || Draws::new(seed, Stream::Block, epoch, occurrence.draw).unit_f64(0);
            let Sequence { ids, answer, num_supervised, .. } =
                view.sequence([&example.prompt_ids, &padded.ids], padded.num_supervised, u, mask);
            Noised {
                occurrence,
                ids,
                answer,
                num_supervised,
                token_entropy: vec![],
                is_fresh: false,
                is_complement: false,
            }
        };
        padded.into_iter().zip(occurrences).zip(&chosen).map(noised).collect()
    }

    /// Sets the answers' entropies: reused ones, and pass 1 for the others.
    fn find_entropies(&self, micro_batch: &mut [Noised], epoch: u64) {
        for sequence in micro_batch.iter_mut() {
            sequence.token_entropy =
                self.entropies.reusable(sequence.occurrence.example, epoch).unwrap_or_default().to_vec();
        }
        let wanted: Vec<&mut Noised> = micro_batch.iter_mut().filter(|s| s.token_entropy.is_empty()).collect();
        let fresh = self.fresh_entropies(wanted.iter().map(|s| &**s));
        for (sequence, fresh) in wanted.into_iter().zip(fresh) {
            (sequence.token_entropy, sequence.is_fresh) = (fresh, true);
        }
    }

    /// Keeps the whole step's fresh entropies, whichever rank computed them; returns their drift.
    pub(super) fn keep_entropies(&mut self, gathered: &[Gathered], epoch: u64) -> Vec<Drift> {
        let fresh = gathered.iter().filter(|answer| answer.is_fresh);
        fresh.filter_map(|answer| self.entropies.keep(answer.example, epoch, &answer.token_entropy)).collect()
    }

    /// Pass 1: each answer's token entropies in nats, with the whole answer masked.
    fn fresh_entropies<'a>(&self, sequences: impl IntoIterator<Item = &'a Noised>) -> Vec<Vec<f32>> {
        let sequences: Vec<&Noised> = sequences.into_iter().collect();
        let (batch, rows) = self.all_masked_batch(&sequences);
        let entropies = self.model.entropy(&batch, &rows);
        let mut rest = entropies.as_slice();
        let own = |s: &&Noised| {
            let own;
            (own, rest) = rest.split_at(s.answer.len());
            own.to_vec()
        };
        sequences.iter().map(own).collect()
    }

    /// Sequences as pass 1 reads them, with every token masked that may be, and the rows of those tokens.
    pub(super) fn all_masked_batch<S: Borrow<Noised>>(&self, sequences: &[S]) -> (Batch, Vec<usize>) {
        self.masked_batch(sequences, |_, _| true)
    }

    /// Sequences with the answer tokens masked for which `masked(sequence, token)` is true, and the rows of those tokens.
    pub(super) fn masked_batch<S: Borrow<Noised>>(
        &self,
        sequences: &[S],
        masked: impl Fn(usize, usize) -> bool,
    ) -> (Batch, Vec<usize>) {
        let batch = self.pack(sequences, &masked);
        let rows = rows(&batch, sequences, masked);
        (batch, rows)
    }

    /// Packs sequences with the mask token at the answer tokens for which `masked(sequence, token)` is true.
    pub(super) fn pack<S: Borrow<Noised>>(&self, sequences: &[S], masked: impl Fn(usize, usize) -> bool) -> Batch {
        let mask = self.model.config.mask_token_id;
        let noised = sequences.iter().enumerate().map(|(s, of)| of.borrow().noised_ids(|i| masked(s, i), mask));
        let noised: Vec<Vec<u32>> = noised.collect();
        let halves = noised.iter().zip(sequences).map(|(noised, s)| [noised.as_slice(), &s.borrow().ids]);
        Batch::pack_as(AttentionKind::of(&self.job.objective), halves)
    }

    /// How the run sees its examples.
    pub fn view(&self) -> View {
        View::of(&self.job.objective, self.job.eos_token_id)
    }

    /// How far the kept entropies of a few examples have drifted by now; `None` if none are reused.
    pub fn entropy_drift(&self) -> Option<Drift> {
        let some: Vec<usize> = self.entropies.kept.keys().copied().take(DRIFT_EXAMPLES).collect();
        let micro_batches = some.chunks(self.job.settings.micro_batch_size);
        let occurrences = |examples: &[usize]| -> Vec<Occurrence> {
            examples.iter().map(|&example| Occurrence { example, draw: example as u64 }).collect()
        };
        let fresh = micro_batches.flat_map(|examples| self.fresh_entropies(&self.lay_out(&occurrences(examples), 0)));
        let drift =
            |(example, fresh): (&usize, Vec<f32>)| Drift::between(&self.entropies.kept[example].token_entropy, &fresh);
        Drift::mean(&some.iter().zip(fresh).map(drift).collect::<Vec<_>>())
    }

    /// An example's draws for a purpose.
    pub(super) fn draws(&self, stream: Stream, s: &Noised, epoch: u64) -> Draws {
        Draws::new(self.job.settings.seed, stream, epoch, s.occurrence.draw)
    }

    /// A draw for each token that may be masked.
    pub(super) fn token_draws(&self, stream: Stream, s: &Noised, epoch: u64) -> Vec<f32> {
        let draws = self.draws(stream, s, epoch);
        s.answer.clone().map(|position| draws.unit_f32(position as u64)).collect()
    }

    /// The diffusion time of an example.
    pub(super) fn time(&self, s: &Noised, epoch: u64) -> f64 {
        diffusion_time(self.draws(Stream::Time, s, epoch).unit_f64(0), self.job.objective.t_min)
    }

    /// Draws the times, rates and masks of a micro-batch.
    fn noise(&self, micro_batch: &[Noised], epoch: u64) -> Vec<NoisedAnswer> {
        let u: Vec<Vec<f32>> = micro_batch.iter().map(|s| self.token_draws(Stream::Mask, s, epoch)).collect();
        let drawn = micro_batch.iter().zip(&u).map(|(s, u)| DrawnAnswer {
            prompt_len: s.answer.start,
            entropy: AnswerEntropy { token_entropy: &s.token_entropy, num_supervised: s.num_supervised },
            t: self.time(s, epoch),
            u,
        });
        self.job.objective.noise(&drawn.collect::<Vec<_>>())
    }

    /// Keys of the adapters' dropout, one for each row of a batch of these sequences.
    pub(super) fn dropout_keys(&self, batch: &Batch, sequences: &[Noised], epoch: u64) -> Vec<u64> {
        let keys = |(s, rows): (&Noised, &Range<usize>)| {
            let draws = Draws::new(self.job.settings.seed, Stream::Dropout, epoch, s.occurrence.draw);
            let len = s.ids.len();
            // A clean half's tokens have draws of their own, and so has the view of a complement.
            let first = if s.is_complement { 2 } else { 0 };
            let place = move |row: usize| (first + (row / len) as u64) << 32 | (row % len) as u64;
            (0..rows.len()).map(move |row| draws.key(place(row)))
        };
        sequences.iter().zip(&batch.sequences).flat_map(keys).collect()
    }
}

impl Noised {
    pub(super) fn has_finite_entropies(&self) -> bool {
        self.token_entropy.iter().all(|h| h.is_finite())
    }

    /// The ids, with the mask token at the answer tokens for which `masked` is true.
    pub(super) fn noised_ids(&self, masked: impl Fn(usize) -> bool, mask_token_id: u32) -> Vec<u32> {
        let mut ids = self.ids.clone();
        for (i, id) in ids[self.answer.clone()].iter_mut().enumerate() {
            if masked(i) {
                *id = mask_token_id;
            }
        }
        ids
    }
}

/// The batch's rows of the answer tokens for which `wanted(sequence, token)` is true.
pub(super) fn rows<S: Borrow<Noised>>(
    batch: &Batch,
    sequences: &[S],
    wanted: impl Fn(usize, usize) -> bool,
) -> Vec<usize> {
    let mut rows = vec![];
    for (s, (sequence, own)) in sequences.iter().zip(&batch.sequences).enumerate() {
        let answer = sequence.borrow().answer.clone();
        rows.extend(answer.enumerate().filter(|(i, _)| wanted(s, *i)).map(|(_, token)| own.start + token));
    }
    rows
}
