//! A sampler's predictions against a plain f64 oracle: Gumbel noise, guidance, forbidden and excluded tokens, `top_p`,
//! `top_k`, and each measure of confidence; on the CPU, or on the GPU if `WEFT_DEVICE=cuda` is set.

mod device;

use device::device;
use weft_kernels::head_loss::Head;
use weft_kernels::philox::{philox, unit_f32, unit_f64};
use weft_kernels::precision::Precision;
use weft_kernels::predict::{Confidence, Guidance, Prediction, RowDraw, Rule};

const ROWS: usize = 37;
const WIDTH: usize = 5;

const PLAIN: Rule = Rule::GREEDY;

fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|i| scale * (2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0)).collect()
}

fn draws() -> Vec<RowDraw> {
    (0..ROWS as u32).map(|row| RowDraw { key: 0x0123_4567_89ab_cdef ^ u64::from(row % 3), position: 7 * row }).collect()
}

/// The logits of the head's inputs, in f64.
fn logits(x: &[f32], weight: &[f32]) -> Vec<Vec<f64>> {
    let matmul = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks(WIDTH).map(|x| weight.chunks(WIDTH).map(|w| matmul(x, w)).collect()).collect()
}

/// The prediction for a row of f64 logits, computed step by step as the rule's fields say.
fn expected(mut z: Vec<f64>, draw: RowDraw, rule: &Rule) -> Prediction {
    rule.forbidden.iter().for_each(|id| z[*id as usize] = f64::NEG_INFINITY);
    z.iter_mut().for_each(|z| *z /= f64::from(rule.divisor));
    let probabilities = |z: &[f64]| -> Vec<f64> {
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let all: f64 = z.iter().map(|z| (z - max).exp()).sum();
        z.iter().map(|z| (z - max).exp() / all).collect()
    };
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
    if rule.top_p < 1.0 {
        let p = probabilities(&z);
        let mut held = 0.0;
        for v in &order {
            if held > rule.top_p {
                z[*v] = f64::NEG_INFINITY;
            }
            held += p[*v];
        }
    }
    if rule.top_k > 0 {
        let least = z[order[rule.top_k - 1]];
        z.iter_mut().filter(|z| **z < least).for_each(|z| *z = f64::NEG_INFINITY);
    }
    let p = probabilities(&z);
    let score = |v: usize| {
        let words = philox(draw.key, [v as u32, draw.position + 1, 0, 2]);
        let gumbel = -(-unit_f64(words[0], words[1]).ln()).ln();
        z[v] + if rule.noise == 0.0 { 0.0 } else { rule.noise * gumbel }
    };
    let open = (0..z.len()).filter(|v| rule.excluded != Some(*v as u32));
    let token = open.reduce(|best, v| if score(v) > score(best) { v } else { best }).expect("a vocabulary");
    let mut falling = p.clone();
    falling.sort_by(|a, b| b.total_cmp(a));
    let confidence = match rule.confidence {
        Confidence::Probability => p[token],
        Confidence::Margin => falling[0] - falling[1],
        Confidence::NegativeEntropy => p.iter().map(|p| p * (p + 1e-10).ln()).sum(),
    };
    Prediction { token: token as u32, confidence }
}

fn assert_agrees(what: &str, got: &[Prediction], logits: &[Vec<f64>], rule: &Rule) {
    assert_eq!(got.len(), logits.len(), "{what}: a prediction for each row");
    for (row, ((got, z), draw)) in got.iter().zip(logits).zip(draws()).enumerate() {
        let wanted = expected(z.clone(), draw, rule);
        assert_eq!(got.token, wanted.token, "{what}, row {row}: {got:?}, expected {wanted:?}");
        let apart = (got.confidence - wanted.confidence).abs();
        assert!(apart < 2e-5 * wanted.confidence.abs().max(0.1), "{what}, row {row}: {got:?}, expected {wanted:?}");
    }
}

#[test]
fn predictions_are_the_oracles() {
    let Some(on) = device() else { return };
    // Vocabularies smaller and larger than a GPU's block of threads, and one so large that a chunk has only a few rows.
    for vocab in [3, 517, 40_001] {
        let (x, w) = (random(1, ROWS * WIDTH, 1.5), random(2, vocab * WIDTH, 1.5));
        let weight = on.f32_weight(vocab, WIDTH, &w);
        let (head, input) = (Head { weight: &weight, lora: None, precision: Precision::F32 }, on.put(&x));
        let all = logits(&x, &w);
        let greedy = all[0].iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).expect("a row").0 as u32;
        let forbidden = [greedy];
        let rules = [
            ("greedy", PLAIN),
            ("a token excluded", Rule { excluded: Some(greedy), ..PLAIN }),
            ("a token forbidden", Rule { forbidden: &forbidden, ..PLAIN }),
            ("noise", Rule { noise: 0.8, ..PLAIN }),
            ("a temperature", Rule { noise: 1.0, divisor: 0.4, ..PLAIN }),
            ("top_p", Rule { noise: 1.0, top_p: 0.6, ..PLAIN }),
            ("top_k", Rule { noise: 1.0, top_k: 2, ..PLAIN }),
            ("top_p, then top_k", Rule { noise: 1.0, top_p: 0.9, top_k: 3, ..PLAIN }),
            ("margin", Rule { confidence: Confidence::Margin, ..PLAIN }),
            ("entropy", Rule { confidence: Confidence::NegativeEntropy, ..PLAIN }),
            ("entropy of what is left", Rule { confidence: Confidence::NegativeEntropy, top_k: 2, ..PLAIN }),
        ];
        for (what, rule) in rules {
            let got = head.predict(&input, None, &draws(), &rule);
            assert_agrees(&format!("{what}, {vocab} tokens"), &got, &all, &rule);
        }
    }
}

#[test]
fn guidance_leads_away_from_the_other_pass() {
    let Some(on) = device() else { return };
    let vocab = 301;
    let (x, u, w) = (random(1, ROWS * WIDTH, 1.0), random(3, ROWS * WIDTH, 1.0), random(2, vocab * WIDTH, 1.0));
    let weight = on.f32_weight(vocab, WIDTH, &w);
    let head = Head { weight: &weight, lora: None, precision: Precision::F32 };
    let (input, other) = (on.put(&x), on.put(&u));
    let guided = |(l, u): (Vec<f64>, Vec<f64>)| l.iter().zip(u).map(|(l, u)| u + 2.5 * (l - u)).collect();
    let wanted: Vec<Vec<f64>> = logits(&x, &w).into_iter().zip(logits(&u, &w)).map(guided).collect();
    let got = head.predict(&input, Some(Guidance { x: &other, scale: 1.5 }), &draws(), &PLAIN);
    assert_agrees("guidance", &got, &wanted, &PLAIN);
    assert!(got != head.predict(&input, None, &draws(), &PLAIN), "guidance changes what is predicted");
}

/// In rows of equal logits the earliest token is chosen, `top_p` keeps the earlier tokens, and `top_k` keeps all.
#[test]
fn equal_logits_are_taken_in_the_vocabularys_order() {
    let Some(on) = device() else { return };
    let vocab = 10;
    let weight = on.f32_weight(vocab, WIDTH, &vec![0.5; vocab * WIDTH]);
    let head = Head { weight: &weight, lora: None, precision: Precision::F32 };
    let input = on.put(&random(4, ROWS * WIDTH, 1.0));
    let cases = [(1.0, 0, 10.0f64), (0.25, 0, 3.0), (1.0, 4, 10.0), (0.25, 2, 3.0)];
    for (top_p, top_k, left) in cases {
        let rule = Rule { top_p, top_k, confidence: Confidence::NegativeEntropy, ..PLAIN };
        for got in head.predict(&input, None, &draws(), &rule) {
            assert_eq!(got.token, 0, "top_p {top_p}, top_k {top_k}");
            assert!((got.confidence + left.ln()).abs() < 1e-5, "top_p {top_p}, top_k {top_k}: {got:?}");
        }
    }
}
