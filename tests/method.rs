//! The method against PyTorch's numbers (tests/golden) and its properties over generated inputs.

use proptest::prelude::*;
use safetensors::SafeTensors;
use weft::noising::entropy::{AnswerEntropy, Reference, Transform, relative_uncertainty};
use weft::noising::forward_process;
use weft::noising::schedule::{T_MIN, diffusion_time};
use weft::objective::{DrawnAnswer, Kind, NoisedAnswer, Normalizer, Objective, Weighting, cart, weft as page};
use weft::rng::{Draws, Stream};

const GOLDEN: &[u8] = include_bytes!("golden/llada/objectives.safetensors");
const CART: &[u8] = include_bytes!("golden/cart.safetensors");

fn numbers(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("the golden file has the tensor");
    tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn flags(file: &SafeTensors, name: &str) -> Vec<bool> {
    file.tensor(name).expect("the golden file has the tensor").data().iter().map(|b| *b != 0).collect()
}

fn whole(token_entropy: &[f32]) -> AnswerEntropy<'_> {
    AnswerEntropy { token_entropy, num_supervised: token_entropy.len() }
}

/// The golden batch: its answers' entropies, draws, and where they start.
struct Golden {
    file: SafeTensors<'static>,
    length: usize,
    starts: Vec<usize>,
    t: Vec<f32>,
    entropy: Vec<f32>,
    u: Vec<f32>,
}

impl Golden {
    fn open() -> Self {
        let file = SafeTensors::deserialize(GOLDEN).expect("the golden file is whole");
        let starts = file.tensor("prompt_lengths").expect("the golden file has the tensor");
        let start = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize;
        let starts: Vec<usize> = starts.data().chunks(8).map(start).collect();
        let [t, entropy, u] = ["t", "entropy", "u"].map(|name| numbers(&file, name));
        Self { length: u.len() / starts.len(), file, starts, t, entropy, u }
    }

    /// The answers' part of `[B, L]`.
    fn answers<'a, T>(&self, x: &'a [T]) -> Vec<&'a [T]> {
        x.chunks(self.length).zip(&self.starts).map(|(row, start)| &row[*start..]).collect()
    }

    fn noise(&self, objective: Objective) -> Vec<NoisedAnswer> {
        let draws = self.answers(&self.entropy).into_iter().zip(self.answers(&self.u)).zip(&self.t).zip(&self.starts);
        let drawn = draws.map(|(((entropy, u), &t), &prompt_len)| DrawnAnswer {
            prompt_len,
            entropy: whole(entropy),
            t: f64::from(t),
            u,
        });
        objective.noise(&drawn.collect::<Vec<_>>())
    }

    /// The loss of golden `nll` by an objective.
    fn loss(&self, objective: Objective, nll: &[f32]) -> f64 {
        let weights = objective.loss_weights(&self.noise(objective));
        let pairs = weights.iter().zip(self.answers(nll)).flat_map(|(w, n)| w.iter().zip(n));
        pairs.map(|(w, n)| f64::from(w * n)).sum()
    }
}

fn assert_close(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got - expected).abs() <= tolerance * expected.abs(), "{what}: got {got}, expected {expected}");
}

#[test]
fn rates_masks_and_losses_match_pytorch() {
    let golden = Golden::open();
    let sft = Objective { kind: Kind::Sft, ..Objective::default() };
    let weft = |transform, reference| Objective { transform, reference, ..Objective::default() };
    for (name, objective) in [
        ("sft", sft),
        ("weft_sqrt", weft(Transform::Sqrt, Reference::Sequence)),
        ("weft_raw", weft(Transform::Identity, Reference::Sequence)),
        ("weft_cbrt", weft(Transform::Cbrt, Reference::Sequence)),
        ("weft_log", weft(Transform::Log1p, Reference::Sequence)),
        ("weft_batch_ref", weft(Transform::Sqrt, Reference::Batch)),
    ] {
        let expected_rates = numbers(&golden.file, &format!("{name}.t_i"));
        let expected_masks = flags(&golden.file, &format!("{name}.masked"));
        let expected = golden.answers(&expected_rates).into_iter().zip(golden.answers(&expected_masks));
        for (answer, (rates, masks)) in golden.noise(objective).iter().zip(expected) {
            for (got, expected) in answer.p_mask.iter().zip(rates) {
                assert_close((*got).into(), (*expected).into(), 1e-5, &format!("{name}.t_i"));
            }
            assert_eq!(answer.masked, masks, "{name}.masked");
        }
        let nll = numbers(&golden.file, &format!("{name}.nll"));
        for (loss, weighting, normalizer) in [
            ("loss_token", Weighting::Inverse, Normalizer::Answer),
            ("loss_sequence", Weighting::Inverse, Normalizer::Sequence),
            ("loss_masked", Weighting::Inverse, Normalizer::Masked),
            ("loss_elbo", Weighting::Elbo, Normalizer::Answer),
        ] {
            let got = golden.loss(Objective { weighting, normalizer: Some(normalizer), ..objective }, &nll);
            let name = format!("{name}.{loss}");
            assert_close(got, numbers(&golden.file, &name)[0].into(), 1e-5, &name);
        }
    }
}

#[test]
fn cart_weights_match_dreams() {
    let file = SafeTensors::deserialize(CART).expect("the golden file is whole");
    for case in 0..3 {
        let geo_p = f64::from(numbers(&file, &format!("{case}.p"))[0]);
        let (masked, expected) = (flags(&file, &format!("{case}.masked")), numbers(&file, &format!("{case}.weight")));
        for (masked, expected) in masked.chunks(33).zip(expected.chunks(33)) {
            // Clean tokens at the beginning are as good as a prompt.
            let longest = masked.iter().take_while(|m| !**m).count();
            for prompt_len in 0..=longest {
                let got = cart::weights(prompt_len, &masked[prompt_len..], geo_p);
                for (got, expected) in got.iter().zip(&expected[prompt_len..]) {
                    // Dream computes powers as exponentials of sums in f32.
                    assert_close(*got, (*expected).into(), 2e-6, &format!("{case}.weight"));
                }
            }
        }
    }
}

/// `cart` and `token_weight` have SFT's rates, so the golden masks and nll of `sft` are theirs; their losses are summed
/// here pair by pair.
#[test]
fn losses_with_token_weights_are_their_formulas() {
    let golden = Golden::open();
    let (all_masked, all_nll) = (flags(&golden.file, "sft.masked"), numbers(&golden.file, "sft.nll"));
    let (mut cart, mut weighted, mut masked_tokens) = (0.0, 0.0, 0.0);
    for (s, (masked, nll)) in all_masked.chunks(golden.length).zip(all_nll.chunks(golden.length)).enumerate() {
        let entropy = &golden.entropy[s * golden.length..][..golden.length];
        let answer = golden.starts[s]..golden.length;
        let roots: f64 = entropy[answer.clone()].iter().map(|h| f64::from(*h).sqrt()).sum();
        let beta_ref = roots / answer.len() as f64;
        for n in answer.filter(|n| masked[*n]) {
            let clean = (0..golden.length).filter(|j| !masked[*j]);
            let context: f64 = clean.map(|j| 0.1 * 0.9f64.powi(n.abs_diff(j) as i32 - 1) / 2.0).sum();
            cart += context * f64::from(nll[n]);
            weighted += f64::from(entropy[n]).sqrt() / beta_ref / f64::from(golden.t[s]) * f64::from(nll[n]);
            masked_tokens += 1.0;
        }
    }
    for (kind, expected) in [(Kind::Cart, cart / masked_tokens), (Kind::TokenWeight, weighted / masked_tokens)] {
        let objective = Objective { kind, ..Objective::default() };
        for (answer, masked) in golden.noise(objective).iter().zip(golden.answers(&all_masked)) {
            assert_eq!(answer.masked, masked, "{kind:?}");
        }
        assert_close(golden.loss(objective, &all_nll), expected, 1e-5, kind.name());
    }
}

#[test]
fn normalizers_by_default_are_the_sources_own() {
    use Normalizer::{Answer, Masked};
    let normalizers = Kind::ALL.map(|kind| Objective { kind, ..Objective::default() }.normalizer());
    assert_eq!(normalizers, [Masked, Answer, Masked, Masked, Answer]);
    let chosen = Objective { normalizer: Some(Normalizer::Sequence), ..Objective::default() };
    assert_eq!(chosen.normalizer(), Normalizer::Sequence);
}

#[test]
fn padding_stays_out_of_the_reference() {
    let padded = AnswerEntropy { token_entropy: &[1.0, 3.0, 8.0], num_supervised: 2 };
    for reference in [Reference::Sequence, Reference::Batch] {
        assert_eq!(relative_uncertainty(&[padded], Transform::Identity, reference), [[0.5, 1.5, 4.0]]);
    }
}

#[test]
fn a_degenerate_reference_falls_back_to_the_uniform_rate() {
    assert_eq!(relative_uncertainty(&[whole(&[0.0, 0.0])], Transform::Sqrt, Reference::Sequence), [[1.0, 1.0]]);
    let floored = |kind| Objective { kind, rate_floor: 0.3, ..Objective::default() };
    assert_eq!(floored(Kind::Weft).rate(0.5, 0.0), 0.0, "a token without uncertainty is never masked");
    for kind in Kind::ALL {
        assert_eq!(floored(kind).rate(0.1, 1.0), 0.3, "the floor holds for the others");
    }
}

#[test]
fn degenerate_entropies_have_their_exact_rates() {
    let relative =
        |entropies: &[f32], transform| relative_uncertainty(&[whole(entropies)], transform, Reference::Sequence);
    for transform in [Transform::Sqrt, Transform::Identity, Transform::Cbrt, Transform::Log1p] {
        assert_eq!(relative(&[], transform), [[0f32; 0]], "no token");
        assert_eq!(relative(&[0.0], transform), [[1.0]], "one token that is certain");
        assert_eq!(relative(&[2.5], transform), [[1.0]], "one token: it is its own reference");
        assert_eq!(relative(&[0.0, 0.0, 7.0, 0.0], transform), [[0.0, 0.0, 4.0, 0.0]], "one uncertain token");
        // The smallest number there is: not 0, and no infinity either.
        let tiny = f32::from_bits(1);
        assert!(relative(&[tiny, tiny], transform)[0].iter().all(|r| (r - 1.0).abs() < 1e-6));
    }
    // In a batch a certain answer's reference is its own, or the others'.
    let answers = [whole(&[0.0, 0.0]), whole(&[1.0, 1.0])];
    assert_eq!(relative_uncertainty(&answers, Transform::Sqrt, Reference::Sequence), [[1.0, 1.0], [1.0, 1.0]]);
    assert_eq!(relative_uncertainty(&answers, Transform::Sqrt, Reference::Batch), [[0.0, 0.0], [2.0, 2.0]]);
    // Only what is supervised counts: certain tokens before uncertain padding.
    let padded = AnswerEntropy { token_entropy: &[0.0, 0.0, 3.0], num_supervised: 2 };
    assert_eq!(relative_uncertainty(&[padded], Transform::Sqrt, Reference::Sequence), [[1.0, 1.0, 1.0]]);
}

#[test]
fn the_mask_rate_is_the_tokens_rate() {
    let (draws, rate) = (20_000u32, 0.3f32);
    let p_mask = vec![rate; draws as usize];
    let u: Vec<f32> = (0..draws).map(|e| Draws::new(7, Stream::Mask, 1, u64::from(e)).unit_f32(3)).collect();
    let masked = forward_process(&p_mask, &u).iter().filter(|m| **m).count() as f64;
    let deviation = (f64::from(draws) * 0.3 * 0.7).sqrt();
    assert!((masked - 0.3 * f64::from(draws)).abs() < 4.0 * deviation, "{masked} of {draws} at rate {rate}");
}

#[test]
fn every_part_of_a_draws_name_counts() {
    let draw = |seed, stream, epoch, example, position| Draws::new(seed, stream, epoch, example).unit_f64(position);
    let base = draw(1, Stream::Time, 2, 3, 4);
    assert_eq!(base, draw(1, Stream::Time, 2, 3, 4));
    for other in [
        draw(9, Stream::Time, 2, 3, 4),
        draw(1, Stream::Mask, 2, 3, 4),
        draw(1, Stream::Time, 9, 3, 4),
        draw(1, Stream::Time, 2, 9, 4),
        draw(1, Stream::Time, 2, 3, 9),
    ] {
        assert_ne!(base, other);
    }
}

proptest! {
    #[test]
    fn rates_are_probabilities(u in 0.0f64..1.0, r in 1e-3f32..1e3) {
        let t = diffusion_time(u, T_MIN);
        prop_assert!((T_MIN..=1.0).contains(&t));
        for kind in Kind::ALL {
            let rate = Objective { kind, ..Objective::default() }.rate(t, r);
            prop_assert!(rate > 0.0 && rate <= 1.0);
        }
    }

    /// Certain tokens are never masked and weigh nothing, whatever is drawn; an answer of nothing else is SFT's.
    #[test]
    fn entropies_of_zero_leave_rates_and_weights_whole(
        entropies in prop::collection::vec(prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), 0.0f32..12.0], 1..40),
        transform in prop::sample::select(vec![Transform::Sqrt, Transform::Identity, Transform::Cbrt, Transform::Log1p]),
        reference in prop::sample::select(vec![Reference::Sequence, Reference::Batch]),
        weighting in prop::sample::select(vec![Weighting::Inverse, Weighting::Elbo]),
        rate_floor in prop::sample::select(vec![0.0, 0.05]),
        u in 0.0f64..1.0,
        draw in 0.0f32..1.0,
    ) {
        let (t, draws) = (diffusion_time(u, T_MIN), vec![draw; entropies.len()]);
        let is_certain = entropies.iter().all(|h| transform.beta(*h) == 0.0);
        for kind in Kind::ALL {
            let objective = Objective { kind, transform, reference, weighting, rate_floor, ..Objective::default() };
            let drawn = DrawnAnswer { prompt_len: 2, entropy: whole(&entropies), t, u: &draws };
            let answer = objective.noise(&[drawn]).remove(0);
            let weights = objective.loss_weights(std::slice::from_ref(&answer)).remove(0);
            for (i, h) in entropies.iter().enumerate() {
                let (rate, r) = (answer.p_mask[i], answer.relative_uncertainty[i]);
                prop_assert!((0.0..=1.0).contains(&rate) && r >= 0.0 && r.is_finite(), "rate {}, r {}", rate, r);
                prop_assert!(weights[i] >= 0.0 && !weights[i].is_nan(), "{:?}: {}", kind, weights[i]);
                if kind.needs_entropy() && transform.beta(*h) == 0.0 {
                    prop_assert_eq!(r, if is_certain { 1.0 } else { 0.0 });
                }
                if kind == Kind::Weft && r == 0.0 {
                    prop_assert!(rate == 0.0 && !answer.masked[i] && weights[i] == 0.0);
                }
            }
            if is_certain && kind.needs_entropy() {
                let rates = vec![objective.rate(t, 1.0); entropies.len()];
                prop_assert_eq!(answer.p_mask, rates, "as SFT");
            }
        }
    }

    #[test]
    fn equal_entropies_make_weft_and_token_weights_equal_sft(
        h in 1e-3f32..10.0,
        u in 0.0f64..1.0,
        draws in prop::collection::vec(0.0f32..1.0, 1..50),
    ) {
        let (t, entropies) = (diffusion_time(u, T_MIN), vec![h; draws.len()]);
        let [sft, weft, token_weight] = [Kind::Sft, Kind::Weft, Kind::TokenWeight].map(|kind| {
            let objective = Objective { kind, normalizer: Some(Normalizer::Answer), ..Objective::default() };
            let drawn = DrawnAnswer { prompt_len: 3, entropy: whole(&entropies), t, u: &draws };
            let answer = objective.noise(&[drawn]).remove(0);
            (answer.p_mask.clone(), answer.masked.clone(), objective.loss_weights(&[answer]).remove(0))
        });
        for (rate, expected) in weft.0.iter().chain(&token_weight.0).zip(sft.0.iter().cycle()) {
            prop_assert!((rate - expected).abs() <= 1e-5 * expected, "{} against {}", rate, expected);
        }
        prop_assert_eq!(&sft.1, &token_weight.1);
        for (weight, expected) in token_weight.2.iter().zip(&sft.2) {
            prop_assert!((weight - expected).abs() <= 1e-5 * expected, "{} against {}", weight, expected);
        }
    }

    #[test]
    fn the_exact_weight_is_the_rates_derivative(r in 0.1f64..5.0, t in 0.05f64..0.95) {
        let (rate, step) = (page::rate(t, r), 1e-5);
        let slope = (page::rate(t + step, r) - page::rate(t - step, r)) / (2.0 * step);
        let weight = page::weight(Weighting::Elbo, t, r, rate);
        prop_assert!((weight * rate - slope).abs() <= 1e-6 * slope, "{} and {}", weight * rate, slope);
        prop_assert_eq!(page::weight(Weighting::Inverse, t, r, rate), 1.0 / rate);
    }

    #[test]
    fn token_weights_leave_an_answer_its_weight(
        entropies in prop::collection::vec(1e-3f32..10.0, 1..50),
        u in 0.0f64..1.0,
    ) {
        // Masked as a whole, so that every token counts.
        let (t, draws) = (diffusion_time(u, T_MIN), vec![0.0; entropies.len()]);
        let [sft, token_weight] = [Kind::Sft, Kind::TokenWeight].map(|kind| {
            let objective = Objective { kind, normalizer: Some(Normalizer::Answer), ..Objective::default() };
            let drawn = DrawnAnswer { prompt_len: 0, entropy: whole(&entropies), t, u: &draws };
            objective.loss_weights(&objective.noise(&[drawn])).concat().iter().map(|w| f64::from(*w)).sum::<f64>()
        });
        prop_assert!((sft - token_weight).abs() <= 1e-5 * sft, "{} and {}", sft, token_weight);
    }

    #[test]
    fn cart_weighs_every_masked_token_by_its_clean_ones(
        prompt_len in 0usize..5,
        masked in prop::collection::vec(any::<bool>(), 1..60),
        geo_p in 0.01f64..0.99,
    ) {
        let weights = cart::weights(prompt_len, &masked, geo_p);
        let any_clean = prompt_len > 0 || masked.iter().any(|m| !m);
        for (n, weight) in weights.iter().enumerate() {
            prop_assert!((0.0..=1.0).contains(weight), "{}", weight);
            prop_assert_eq!(*weight > 0.0, masked[n] && any_clean);
        }
        // The sum as it is written, pair by pair; the prompt's tokens are positions before 0.
        let clean = |j: &isize| *j < 0 || !masked[*j as usize];
        for (n, weight) in weights.iter().enumerate().filter(|(n, _)| masked[*n]) {
            let positions = -(prompt_len as isize)..masked.len() as isize;
            let context = positions.filter(clean).map(|j| (1.0 - geo_p).powi((n as isize).abs_diff(j) as i32 - 1));
            let expected = geo_p * context.sum::<f64>() / 2.0;
            prop_assert!((weight - expected).abs() <= 1e-12 * expected, "{} against {}", weight, expected);
        }
    }
}
