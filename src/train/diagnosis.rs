//! Where a step's numbers went wrong: in which of its examples, and in which layer. This is found out afterwards by
//! computing each example of the step again by itself, which costs the time of a step, and nothing as long as all goes
//! well.

use super::Trainer;
use super::gathered::Gathered;
use super::guard::{MOST_IN_A_ROW, OnNonFinite, Reason, Skip};
use super::noised::{MicroBatch, Noised, rows};
use super::optimizer::gradient_norm;
use crate::error::diagnosis::{Diagnosis, WrongExample};
use crate::error::{Error, Result};
use crate::objective::{Counts, NoisedAnswer};

/// What a step computed before its update.
pub(super) struct Computed<'a> {
    /// The micro-batches of this rank.
    pub(super) own: &'a [MicroBatch],
    /// The answers of the whole step.
    pub(super) gathered: &'a [Gathered],
    pub(super) counts: Counts,
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
}

impl Trainer {
    /// Whether one more skipped step would be too many in a row.
    fn is_last_skip(&self) -> bool {
        self.guard.in_a_row + 1 >= MOST_IN_A_ROW
    }

    /// Skips a step.
    ///
    /// # Errors
    /// Numbers that aren't finite, unless the recipe says to skip such steps; the last of too many skipped steps in a
    /// row.
    pub(super) fn skip(&self, reason: Reason, computed: Computed, epoch: u64) -> Result<Skip> {
        let examples = computed.gathered.iter().map(|answer| answer.example).collect();
        let is_last = self.is_last_skip();
        let why = match reason {
            Reason::NonFinite => {
                let diagnosis = self.diagnose(&computed, epoch);
                if is_last || self.job.settings.on_non_finite == OnNonFinite::Stop {
                    return Err(Error::NonFinite(Box::new(diagnosis)));
                }
                diagnosis.to_string()
            }
            Reason::Spike => {
                let (_, median) = self.guard.limit(self.job.settings.spike_factor).expect("a spike is above a limit");
                let (step, norm) = (self.step + 1, computed.grad_norm);
                let times = norm / median;
                let why = format!(
                    "step {step}: the gradient norm {norm:.4} is {times:.1} times the median {median:.4} of those \
                     before it"
                );
                if is_last {
                    return Err(Error::Run(format!(
                        "{why}; the {} steps before it were skipped too: raise train.spike_factor and add --resume, \
                         or start over with a lower train.lr",
                        MOST_IN_A_ROW - 1
                    )));
                }
                why
            }
        };
        Ok(Skip { reason, why, examples })
    }

    /// Which of a step's examples go wrong by themselves, and where the first of them does. Each rank checks its own
    /// examples; the results are gathered at all ranks.
    fn diagnose(&self, computed: &Computed, epoch: u64) -> Diagnosis {
        let &Computed { own, gathered, counts, loss, grad_norm } = computed;
        let mut found: Vec<(usize, f64, String)> = vec![];
        for MicroBatch { sequences, answers } in own {
            let weights = self.job.objective.loss_weights_within(answers, counts);
            for (i, sequence) in sequences.iter().enumerate() {
                let by_itself = (&sequences[i..=i], &answers[i..=i], &weights[i..=i]);
                let Some(place) = self.wrong_place(by_itself, epoch) else { continue };
                found.push((sequence.occurrence.example, answers[i].t, place));
            }
        }
        if self.ranks.size() > 1 {
            let all = self.ranks.all_gather_bytes(&serde_json::to_vec(&found).expect("places are JSON"));
            let of_rank = |bytes: Vec<u8>| -> Vec<(usize, f64, String)> {
                serde_json::from_slice(&bytes).expect("every rank writes the same form")
            };
            found = all.into_iter().flat_map(of_rank).collect();
            let occurrence = |example: usize| gathered.iter().position(|answer| answer.example == example);
            found.sort_by_key(|(example, ..)| occurrence(*example));
        }
        let place = found.first().map(|(.., place)| place.clone());
        let wrong = found.into_iter().map(|(example, t, _)| WrongExample { example, t, row: None });
        Diagnosis {
            step: self.step + 1,
            loss,
            grad_norm,
            examples: gathered.len(),
            wrong: wrong.collect(),
            place: place.unwrap_or_else(|| "each of its examples is finite by itself, but their sum is not".to_owned()),
            skipped_before: if self.is_last_skip() { MOST_IN_A_ROW - 1 } else { 0 },
            skips: self.job.settings.on_non_finite == OnNonFinite::Skip,
            saved: None,
        }
    }

    /// Where an example goes wrong by itself; `None` if it doesn't.
    fn wrong_place(
        &self,
        (sequence, answer, weights): (&[Noised], &[NoisedAnswer], &[Vec<f32>]),
        epoch: u64,
    ) -> Option<String> {
        // 1. Pass 1: entropies kept from an earlier epoch were finite.
        if !sequence[0].has_finite_entropies() {
            let (batch, rows) = self.all_masked_batch(sequence);
            let precision = self.model.config.entropy_precision;
            let place = self.model.first_non_finite(&batch, &rows, precision);
            let place = place.as_deref().unwrap_or("though its forward is");
            return Some(format!("its entropies aren't finite, {place}"));
        }
        // 2. Pass 2, forward and backward. An example without masked tokens goes wrong only by way of its micro-batch.
        let (batch, mut masked) = self.noised_batch(sequence, answer, epoch);
        let is_idle = masked.is_empty();
        if is_idle {
            masked = rows(&batch, sequence, |_, _| true);
        }
        let mut grads = self.model.zero_gradients();
        let ([loss, _], _) = self.backward((sequence, answer), weights, epoch, (&mut grads, &mut |_, _| {}));
        if !is_idle && loss.is_finite() && gradient_norm(&grads).is_finite() {
            return None;
        }
        if let Some(place) = self.model.first_non_finite(&batch, &masked, self.model.config.precision) {
            return Some(format!("its forward isn't finite {place}"));
        }
        if is_idle {
            return None;
        }
        if let Some(weight) = weights[0].iter().find(|weight| !weight.is_finite()) {
            return Some(format!("a token's loss is weighted by {weight}"));
        }
        Some(match self.model.first_non_finite_gradient(&grads) {
            Some(name) => format!("its forward is finite; in the backward {name} is the first whose gradient is not"),
            None if loss.is_finite() => {
                "each of its gradients is finite, but the sum of their squares is not".to_owned()
            }
            None => "its forward and its gradients are finite, but its loss is not".to_owned(),
        })
    }
}
