//! What ranks all-gather about a step's answers: entropies and masks, so that each rank knows the whole batch's
//! normaliser and keeps the same entropies for reuse. The answers themselves stay where they are.

use super::noised::MicroBatch;
use crate::objective::Counts;
use crate::parallel::collective::Collective;

/// What every rank gathers about an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Gathered {
    /// The index of the example.
    pub(super) example: usize,
    /// Diffusion time.
    pub(super) t: f64,
    /// Tokens of prompt and answer.
    pub(super) tokens: usize,
    /// Tokens of the answer, including padding.
    pub(super) answer_tokens: usize,
    /// Answer tokens that aren't padding.
    pub(super) num_supervised: usize,
    /// Answer tokens that are masked.
    pub(super) masked: usize,
    /// Whether the entropies were computed in this step.
    pub(super) is_fresh: bool,
    /// `H_i` in nats; empty if the objective needs no entropies.
    pub(super) token_entropy: Vec<f32>,
    /// `r_i`; empty if the objective needs no entropies.
    pub(super) relative_uncertainty: Vec<f32>,
}

/// How many values of 8 bytes, integers and a time, precede an answer's entropies.
const HEADER: usize = 8;

/// Gathers the whole step's answers in order. This rank noised every `size`-th micro-batch of `micro` answers.
pub(super) fn all_gather(
    ranks: &dyn Collective,
    own: &[MicroBatch],
    (answers, micro): (usize, usize),
) -> Vec<Gathered> {
    let gathered = own.iter().flat_map(|batch| batch.sequences.iter().zip(&batch.answers));
    let gathered = gathered.map(|(sequence, answer)| Gathered {
        example: sequence.occurrence.example,
        t: answer.t,
        tokens: sequence.ids.len(),
        answer_tokens: answer.masked.len(),
        num_supervised: sequence.num_supervised,
        masked: answer.masked.iter().filter(|m| **m).count(),
        is_fresh: sequence.is_fresh,
        token_entropy: sequence.token_entropy.clone(),
        relative_uncertainty: match sequence.token_entropy.is_empty() {
            true => vec![],
            false => answer.relative_uncertainty.clone(),
        },
    });
    if ranks.size() == 1 {
        return gathered.collect();
    }
    let bytes: Vec<u8> = gathered.flat_map(|gathered| gathered.to_bytes()).collect();
    let all = ranks.all_gather_bytes(&bytes);
    let mut rests: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    (0..answers).map(|i| Gathered::from_bytes(&mut rests[i / micro % ranks.size()])).collect()
}

/// The counts of some answers from which their divisor is computed.
pub(super) fn counts(gathered: &[Gathered]) -> Counts {
    Counts {
        answers: gathered.len(),
        answer_tokens: gathered.iter().map(|a| a.answer_tokens).sum(),
        masked: gathered.iter().map(|a| a.masked).sum(),
    }
}

/// The sums of both numbers over all micro-batches of a step, in the order of the micro-batches: the bits are the same
/// however many ranks share the step. This rank had every `size`-th micro-batch.
pub(super) fn sums(ranks: &dyn Collective, own: &[[f64; 2]]) -> [f64; 2] {
    let all = ranks.all_gather_f64(own.as_flattened());
    let count = all.iter().map(Vec::len).sum::<usize>() / 2;
    let of = |k: usize| (0..count).map(|i| all[i % ranks.size()][2 * (i / ranks.size()) + k]).sum();
    [of(0), of(1)]
}

impl Gathered {
    pub(super) fn has_finite_entropies(&self) -> bool {
        self.token_entropy.iter().all(|h| h.is_finite())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self { example, t, tokens, answer_tokens, num_supervised, masked, is_fresh, .. } = self;
        let len = self.token_entropy.len();
        let counts = [*example, *tokens, *answer_tokens, *num_supervised, *masked, usize::from(*is_fresh), len];
        let header = counts.iter().flat_map(|n| (*n as u64).to_le_bytes()).chain(t.to_le_bytes());
        let numbers = self.token_entropy.iter().chain(&self.relative_uncertainty).flat_map(|x| x.to_le_bytes());
        header.chain(numbers).collect()
    }

    /// Decodes the first answer in `bytes` and removes it from them.
    fn from_bytes(bytes: &mut &[u8]) -> Self {
        let whole = "every rank tells of all its answers";
        let (header, mut rest) = bytes.split_at_checked(8 * HEADER).expect(whole);
        let word = |i: usize| u64::from_le_bytes(header[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        let number = |i: usize| word(i) as usize;
        let mut numbers = || -> Vec<f32> {
            let (numbers, after) = rest.split_at_checked(4 * number(6)).expect(whole);
            rest = after;
            numbers.chunks(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect()
        };
        let (token_entropy, relative_uncertainty) = (numbers(), numbers());
        *bytes = rest;
        Self {
            example: number(0),
            t: f64::from_bits(word(7)),
            tokens: number(1),
            answer_tokens: number(2),
            num_supervised: number(3),
            masked: number(4),
            is_fresh: number(5) != 0,
            token_entropy,
            relative_uncertainty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_every_bit() {
        let gathered = Gathered {
            example: 1 << 40,
            t: 0.1,
            tokens: 9,
            answer_tokens: 3,
            num_supervised: 2,
            masked: 1,
            is_fresh: true,
            token_entropy: vec![0.3, f32::MIN_POSITIVE, -0.0],
            relative_uncertainty: vec![1.0, 0.0, f32::NAN],
        };
        let bytes = [gathered.to_bytes(), Gathered { t: 0.5, ..Gathered::default() }.to_bytes()].concat();
        let mut rest = bytes.as_slice();
        let [first, second] = [(); 2].map(|()| Gathered::from_bytes(&mut rest));
        assert_eq!((first.to_bytes(), rest.len()), (gathered.to_bytes(), 0));
        assert_eq!(second, Gathered { t: 0.5, ..Gathered::default() });
    }
}
