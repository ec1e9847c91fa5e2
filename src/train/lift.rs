//! LIFT's masks in a step: draws, the pass that ranks the candidates, and which of them stay masked. The formulas are
//! `objective::lift`'s.

use super::Trainer;
use super::noised::Noised;
use crate::objective::lift::Choice;
use crate::objective::{LiftDraws, NoisedAnswer};
use crate::rng::Stream;

/// The place of the draw of the margin among an answer's draws, where no token stands.
pub const MARGIN_DRAW: u64 = u64::MAX;
/// The place of the draw of the choice.
pub const CHOICE_DRAW: u64 = u64::MAX - 1;

impl Trainer {
    /// Draws LIFT's times and candidates, ranks the candidates in a pass of their own, and keeps some of them masked.
    pub(super) fn lift(&self, micro_batch: &[Noised], epoch: u64) -> Vec<NoisedAnswer> {
        let of_tokens = |s: &Noised| [Stream::Mask, Stream::Lift].map(|stream| self.token_draws(stream, s, epoch));
        let by_token: Vec<[Vec<f32>; 2]> = micro_batch.iter().map(of_tokens).collect();
        let draws = micro_batch.iter().zip(&by_token).map(|(sequence, [u, s])| {
            let of_answer = self.draws(Stream::Lift, sequence, epoch);
            let [v, choice] = [MARGIN_DRAW, CHOICE_DRAW].map(|place| of_answer.unit_f64(place));
            LiftDraws { t: self.time(sequence, epoch), v, choice, u, s }
        });
        let (draws, objective) = (draws.collect::<Vec<_>>(), &self.job.objective);
        let log_probability = self.log_probabilities(micro_batch, |i| match draws[i].chosen(objective.lift_policy) {
            Choice::Random => vec![false; draws[i].u.len()],
            Choice::MostLikely | Choice::LeastLikely => draws[i].candidates(),
        });
        let noised = draws.iter().zip(micro_batch).zip(&log_probability);
        noised.map(|((draws, sequence), log)| objective.lift(sequence.answer.start, draws, log)).collect()
    }

    /// The log-probability of each answer token that `candidates(sequence)` says, with all of them masked; 0 for the
    /// others. A sequence without candidates takes no part in the pass.
    fn log_probabilities(&self, micro_batch: &[Noised], candidates: impl Fn(usize) -> Vec<bool>) -> Vec<Vec<f32>> {
        let candidates: Vec<Vec<bool>> = (0..micro_batch.len()).map(candidates).collect();
        let is_ranked = |i: &usize| candidates[*i].contains(&true);
        let ranked: Vec<usize> = (0..micro_batch.len()).filter(is_ranked).collect();
        let sequences: Vec<&Noised> = ranked.iter().map(|i| &micro_batch[*i]).collect();
        let (batch, rows) = self.masked_batch(&sequences, |s, i| candidates[ranked[s]][i]);
        let ids = |i: &usize| {
            let clean = micro_batch[*i].ids[micro_batch[*i].answer.clone()].iter().zip(&candidates[*i]);
            clean.filter(|(_, is_candidate)| **is_candidate).map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let ids: Vec<u32> = ranked.iter().flat_map(ids).collect();
        let found = if ids.is_empty() { vec![] } else { self.model.log_probability(&batch, &rows, &ids) };
        let mut found = found.into_iter();
        let of = |(s, candidates): (&Noised, &Vec<bool>)| {
            let mut own = vec![0.0; s.answer.len()];
            let places = own.iter_mut().zip(candidates).filter(|(_, is_candidate)| **is_candidate);
            places.for_each(|(own, _)| *own = found.next().expect("one for each candidate"));
            own
        };
        micro_batch.iter().zip(&candidates).map(of).collect()
    }
}
