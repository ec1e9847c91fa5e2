//! Entropies of extreme distributions: a single token, equal tokens, impossible tokens.

mod device;

use device::device;
use weft_kernels::head_loss::Head;
use weft_kernels::precision::Precision;

#[test]
fn entropy_of_a_degenerate_distribution_is_zero() {
    let Some(on) = device() else { return };
    let weight = on.f32_weight(3, 1, &[1e4, 0.0, -1e4]);
    assert_eq!(Head { weight: &weight, lora: None, precision: Precision::F32 }.entropy(&on.put(&[1.0])), [0.0]);
}

#[test]
fn impossible_tokens_add_nothing_to_an_entropy() {
    let Some(on) = device() else { return };
    // Whole tiles of tokens are impossible, at the beginning, in the middle and at the end; the entropy is that of the
    // remaining tokens.
    let vocab = 3000;
    let possible = |v: usize| [1100, 1101, 2500, 2501].contains(&v);
    let logits: Vec<f32> = (0..vocab).map(|v| if possible(v) { 2.0 } else { f32::NEG_INFINITY }).collect();
    let weight = on.f32_weight(vocab, 1, &logits);
    for precision in [Precision::F32, Precision::Bf16] {
        let head = Head { weight: &weight, lora: None, precision };
        let (entropy, nll) = (head.entropy(&on.put(&[1.0]))[0], head.nll(&on.put(&[1.0]), &[1100])[0]);
        assert!((entropy - 4f32.ln()).abs() < 1e-6 && (nll - 4f32.ln()).abs() < 1e-6, "{entropy}, {nll}");
        assert_eq!(head.nll(&on.put(&[1.0]), &[0]), [f32::INFINITY], "an impossible target");
    }
    // If no token is possible there is no distribution, and the entropy is NaN.
    let none = on.f32_weight(vocab, 1, &vec![f32::NEG_INFINITY; vocab]);
    assert!(Head { weight: &none, lora: None, precision: Precision::F32 }.entropy(&on.put(&[1.0]))[0].is_nan());
}

#[test]
fn equal_logits_have_the_largest_entropy_and_one_token_none() {
    let Some(on) = device() else { return };
    for vocab in [1, 2, 17, 1024, 5000] {
        for logit in [0.0, 80.0, -3e38] {
            let weight = on.f32_weight(vocab, 1, &vec![logit; vocab]);
            let got = Head { weight: &weight, lora: None, precision: Precision::F32 }.entropy(&on.put(&[1.0]))[0];
            let expected = (vocab as f64).ln() as f32;
            assert!((got - expected).abs() <= 1e-6 * expected, "{vocab} of {logit}: {got} instead of {expected}");
        }
    }
}
