//! The method against PyTorch's numbers (tests/golden) and its properties over generated inputs.

use proptest::prelude::*;
use safetensors::SafeTensors;
use weft::noising::entropy::{AnswerEntropy, Reference, Transform, relative_uncertainty};
use weft::noising::forward_process;
use weft::noising::schedule::{T_MIN, diffusion_time, token_rate};
use weft::objective::{NoisedAnswer, Normalizer, Weighting, loss_weights};
use weft::rng::{Draws, Stream};

const GOLDEN: &[u8] = include_bytes!("golden/llada/objectives.safetensors");

fn numbers(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("the golden file has the tensor");
    tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn prompt_lengths(file: &SafeTensors) -> Vec<usize> {
    let tensor = file.tensor("prompt_lengths").expect("the golden file has the tensor");
    tensor.data().chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize).collect()
}

fn whole(token_entropy: &[f32]) -> AnswerEntropy<'_> {
    AnswerEntropy { token_entropy, num_supervised: token_entropy.len() }
}

fn noised(r: Vec<Vec<f32>>, t: &[f32], u: &[&[f32]]) -> Vec<NoisedAnswer> {
    r.into_iter()
        .zip(t)
        .zip(u)
        .map(|((r, &t), u)| {
            let p_mask: Vec<f32> = r.iter().map(|r| token_rate(f64::from(t), *r, 0.0)).collect();
            let masked = forward_process(&p_mask, u);
            NoisedAnswer { t: f64::from(t), relative_uncertainty: r, p_mask, masked }
        })
        .collect()
}

#[test]
fn rates_masks_and_losses_match_pytorch() {
    let file = SafeTensors::deserialize(GOLDEN).expect("the golden file is whole");
    let starts = prompt_lengths(&file);
    let length = numbers(&file, "u").len() / starts.len();
    let [entropy, u, t] = ["entropy", "u", "t"].map(|name| numbers(&file, name));
    let answers = |x: &'static [f32]| -> Vec<&[f32]> {
        x.chunks(length).zip(&starts).map(|(row, start)| &row[*start..]).collect()
    };
    let (entropy, u) = (answers(entropy.leak()), answers(u.leak()));
    let uniform: Vec<Vec<f32>> = entropy.iter().map(|a| vec![1.0; a.len()]).collect();
    let entropies: Vec<AnswerEntropy> = entropy.iter().map(|a| whole(a)).collect();
    let weft = |transform, reference| relative_uncertainty(&entropies, transform, reference);
    for (name, r) in [
        ("sft", uniform),
        ("weft_sqrt", weft(Transform::Sqrt, Reference::Sequence)),
        ("weft_raw", weft(Transform::Identity, Reference::Sequence)),
        ("weft_cbrt", weft(Transform::Cbrt, Reference::Sequence)),
        ("weft_log", weft(Transform::Log1p, Reference::Sequence)),
        ("weft_batch_ref", weft(Transform::Sqrt, Reference::Batch)),
    ] {
        let batch = noised(r, &t, &u);
        let expected_rates = answers(numbers(&file, &format!("{name}.t_i")).leak());
        let nll = answers(numbers(&file, &format!("{name}.nll")).leak());
        let masked_tensor = file.tensor(&format!("{name}.masked")).expect("the golden file has the masks");
        for (i, answer) in batch.iter().enumerate() {
            for (got, expected) in answer.p_mask.iter().zip(expected_rates[i]) {
                assert!((got - expected).abs() <= 1e-5 * expected, "{name}.t_i: got {got}, expected {expected}");
            }
            let row = &masked_tensor.data()[i * length + starts[i]..(i + 1) * length];
            assert!(answer.masked.iter().zip(row).all(|(got, expected)| *got == (*expected != 0)), "{name}.masked");
        }
        for (loss, weighting, normalizer) in [
            ("loss_token", Weighting::Inverse, Normalizer::Answer),
            ("loss_sequence", Weighting::Inverse, Normalizer::Sequence),
            ("loss_masked", Weighting::Inverse, Normalizer::Masked),
            ("loss_elbo", Weighting::Elbo, Normalizer::Answer),
        ] {
            let weights = loss_weights(&batch, weighting, normalizer);
            let got: f64 =
                weights.iter().zip(&nll).flat_map(|(w, n)| w.iter().zip(*n)).map(|(w, n)| f64::from(w * n)).sum();
            let expected = f64::from(numbers(&file, &format!("{name}.{loss}"))[0]);
            assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{name}.{loss}: got {got}, expected {expected}");
        }
    }
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
    assert_eq!(token_rate(0.5, 0.0, 0.3), 0.0, "a token without uncertainty is never masked");
    assert_eq!(token_rate(0.1, 1.0, 0.3), 0.3, "the floor holds for the others");
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
        let rate = token_rate(t, r, 0.0);
        prop_assert!(rate > 0.0 && rate <= 1.0);
    }

    #[test]
    fn equal_entropies_make_weft_equal_sft(h in 1e-3f32..10.0, u in 0.0f64..1.0, n in 1usize..50) {
        let t = diffusion_time(u, T_MIN);
        let entropies = vec![h; n];
        for r in &relative_uncertainty(&[whole(&entropies)], Transform::Sqrt, Reference::Sequence)[0] {
            let (weft, sft) = (token_rate(t, *r, 0.0), token_rate(t, 1.0, 0.0));
            prop_assert!((weft - sft).abs() <= 1e-5 * sft, "{} against {}", weft, sft);
        }
    }
}
