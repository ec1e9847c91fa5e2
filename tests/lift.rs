//! LIFT by its formulas: choices, counts and masks from draws; a step's masks from the run's own draws and a plain
//! network's log-probabilities; a reference file of them; and masks with their complements.

mod device;
mod plain;
mod scratch;
mod small_run;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use device::on_device;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use small_run::examples;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::noising::schedule::diffusion_time;
use weft::objective::lift::Choice;
use weft::objective::{Kind, LiftDraws, LiftPolicy, NoisedAnswer, Normalizer, Objective, Weighting};
use weft::parity::{Tolerances, check};
use weft::rng::{Draws, Stream};
use weft::train::Trainer;
use weft::train::lift::{CHOICE_DRAW, MARGIN_DRAW};
use weft::train::settings::TrainTable;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Transformer {
    checkpoint::load(&path(name)).expect("the golden checkpoint loads")
}

fn settings() -> TrainTable {
    TrainTable { epochs: 2, ..small_run::settings() }
}

fn trainer(name: &str, objective: Objective, settings: TrainTable) -> Trainer {
    let mut model = golden(name);
    small_run::adapt(&mut model, 0.0);
    small_run::trainer(on_device(model), examples(), settings, (objective, Padding::None))
}

#[test]
fn time_chooses_by_the_largest_weight() {
    let of = |t: f64| LiftDraws { t, v: 0.5, choice: 0.0, u: &[], s: &[] }.chosen(LiftPolicy::Time);
    for (t, expected) in [
        (0.05, Choice::LeastLikely),
        (0.33, Choice::LeastLikely),
        (0.34, Choice::Random),
        (0.5, Choice::Random),
        (0.66, Choice::Random),
        (0.67, Choice::MostLikely),
        (1.0, Choice::MostLikely),
    ] {
        assert_eq!(of(t), expected, "{t}");
    }
    let drawn = |choice: f64| LiftDraws { t: 0.9, v: 0.5, choice, u: &[], s: &[] }.chosen(LiftPolicy::Random);
    assert_eq!([0.0, 0.34, 0.67].map(drawn), [Choice::Random, Choice::MostLikely, Choice::LeastLikely]);
}

#[test]
fn margins_and_counts_are_the_formulas() {
    let of = |t: f64, v: f64| LiftDraws { t, v, choice: 0.0, u: &[], s: &[] };
    // t, v, rho; candidates, kept.
    for (t, v, rho, candidates, kept) in [
        (0.5, 0.0, 0.1, 12, 10),
        (0.5, 1.0, 0.5, 12, 6),
        (0.5, 0.5, 0.3, 8, 5),
        (0.2, 0.25, 0.275, 10, 4),
        (0.95, 0.0, 0.0, 7, 7),
        (0.95, 0.5, 0.025, 40, 39),
        // Halves go to the even number.
        (0.5, 1.0, 0.5, 5, 2),
        (0.5, 1.0, 0.5, 7, 4),
        (1.0, 0.7, 0.0, 3, 3),
    ] {
        let draws = of(t, v);
        assert!((draws.rho() - rho).abs() < 1e-12, "{t} {v}: {}", draws.rho());
        assert_eq!(draws.num_kept(candidates), kept, "{t} {v}");
    }
}

#[test]
fn the_easiest_the_hardest_or_random_candidates_stay_masked() {
    let (u, s) = ([0.1, 0.9, 0.2, 0.3, 0.99, 0.4], [0.5, 0.0, 0.9, 0.1, 0.0, 0.7]);
    let log = [-1.0, 0.0, -3.0, -0.5, 0.0, -2.0];
    // Candidates are below t + rho = 0.6, tokens 0, 2, 3 and 5; three of them stay.
    let kept = |choice| LiftDraws { t: 0.4, v: 0.2, choice, u: &u, s: &s }.kept(LiftPolicy::Random, &log);
    assert_eq!(kept(0.0), [true, false, true, false, false, true], "random: by s");
    assert_eq!(kept(0.4), [true, false, false, true, false, true], "most likely");
    assert_eq!(kept(0.9), [true, false, true, false, false, true], "least likely");
}

proptest! {
    #[test]
    fn lift_keeps_what_it_says(
        draw in 0.0f64..1.0, v in 0.0f64..1.0, choice in 0.0f64..1.0, seed in 0u64..1000, len in 1usize..60,
        policy in prop::sample::select(vec![LiftPolicy::Random, LiftPolicy::Time]),
    ) {
        let numbers = |stream| -> Vec<f32> {
            (0..len as u64).map(|i| Draws::new(seed, stream, 0, 0).unit_f32(i)).collect()
        };
        let [u, s, log] = [Stream::Mask, Stream::Lift, Stream::Text].map(numbers);
        let log: Vec<f32> = log.iter().map(|x| x.ln()).collect();
        let draws = LiftDraws { t: diffusion_time(draw, 1e-3), v, choice, u: &u, s: &s };
        prop_assert!(draws.rho() >= 0.0 && draws.t + draws.rho() <= 1.0 + 1e-12);
        let (candidates, kept) = (draws.candidates(), draws.kept(policy, &log));
        let count = |of: &[bool]| of.iter().filter(|is| **is).count();
        prop_assert_eq!(count(&kept), draws.num_kept(count(&candidates)));
        prop_assert!(kept.iter().zip(&candidates).all(|(kept, is)| *is || !kept), "only candidates stay masked");
        let of = |wanted: bool| {
            let (candidates, kept, log) = (&candidates, &kept, &log);
            (0..len).filter(move |i| candidates[*i] && kept[*i] == wanted).map(move |i| log[i])
        };
        let best = |values: &mut dyn Iterator<Item = f32>| values.fold(f32::NEG_INFINITY, f32::max);
        let worst = |values: &mut dyn Iterator<Item = f32>| values.fold(f32::INFINITY, f32::min);
        match draws.chosen(policy) {
            Choice::Random => {}
            Choice::MostLikely => prop_assert!(best(&mut of(false)) <= worst(&mut of(true))),
            Choice::LeastLikely => prop_assert!(worst(&mut of(false)) >= best(&mut of(true))),
        }
        // Weights are SFT's at time t, over the answer's tokens.
        let objective = Objective { kind: Kind::Lift, lift_policy: policy, ..Objective::default() };
        let answer = objective.lift(3, &draws, &log);
        let weights = objective.loss_weights(std::slice::from_ref(&answer)).remove(0);
        for (weight, kept) in weights.iter().zip(&kept) {
            let expected = if *kept { 1.0 / f64::from(draws.t as f32) / len as f64 } else { 0.0 };
            prop_assert!((f64::from(*weight) - expected).abs() <= 1e-6 * expected);
        }
    }

    /// What a mask and its complement weigh: each token is masked in one of the two.
    #[test]
    fn complements_cover_the_answer(t in 0.01f64..0.99, r in 0.2f32..4.0, draw in prop::collection::vec(0.0f32..1.0, 1..30)) {
        let objective = Objective { weighting: Weighting::Elbo, ..Objective::default() };
        let p = objective.rate(t, r);
        let len = draw.len();
        let answer = NoisedAnswer {
            prompt_len: 1, t, relative_uncertainty: vec![r; len], p_mask: vec![p; len],
            masked: draw.iter().map(|u| *u < p).collect(), is_complement: false,
        };
        let other = answer.complement(1e-3);
        prop_assert!(answer.masked.iter().zip(&other.masked).all(|(a, b)| a != b));
        prop_assert!((other.t - (1.0 - t)).abs() < 1e-12 && (other.p_mask[0] - (1.0 - p).max(1e-3)).abs() < 1e-7);
        let inverse = Objective { normalizer: Some(Normalizer::Answer), ..Objective::default() };
        let weights = inverse.loss_weights(&[answer.clone(), other.clone()]);
        for i in 0..len {
            let (rate, weight) = if answer.masked[i] { (p, weights[0][i]) } else { (other.p_mask[i], weights[1][i]) };
            prop_assert!((weight * rate * 2.0 * len as f32 - 1.0).abs() < 1e-4);
        }
        // The exact weight is the derivative of the complement's own rate, divided by it.
        let exact = objective.loss_weights(&[answer.clone(), other.clone()])[1].clone();
        let expected = f64::from(r) / (1.0 - t) / len as f64;
        for (weight, masked) in exact.iter().zip(&other.masked) {
            prop_assert!(!masked || (f64::from(*weight) - expected).abs() < 1e-4 * expected);
        }
    }
}

/// The log-probabilities of an answer's tokens by the plain network, with the candidates masked.
fn plain_log_probability(model: &Transformer, [prompt, answer]: [&[u32]; 2], candidates: &[bool]) -> Vec<f32> {
    let mask = model.config.mask_token_id;
    let noised = answer.iter().zip(candidates).map(|(id, is)| if *is { mask } else { *id });
    let ids: Vec<u32> = prompt.iter().copied().chain(noised).collect();
    let logits = plain::forward(model, &ids, 0..ids.len(), None).logits;
    let of = |(i, id): (usize, &u32)| {
        let row = &logits[prompt.len() + i];
        (row[*id as usize] - row.iter().map(|z| z.exp()).sum::<f64>().ln()) as f32
    };
    answer.iter().enumerate().map(of).collect()
}

#[test]
fn a_steps_masks_follow_from_its_draws_and_the_networks_log_probabilities() {
    for (name, policy) in
        [("llada", LiftPolicy::Random), ("dream", LiftPolicy::Time), ("a2d-qwen3", LiftPolicy::Random)]
    {
        let objective = Objective { kind: Kind::Lift, lift_policy: policy, ..Objective::default() };
        let mut trainer = trainer(name, objective, settings());
        let (model, rows, seed) = (trainer.model.clone(), examples(), settings().seed);
        let order = Mixture::default().epoch(seed, 0, rows.len());
        let masked = trainer.step().expect("the step works").masked;
        assert_eq!(masked.len(), 4);
        for (occurrence, masked) in order.iter().zip(masked) {
            let example = &rows[occurrence.example];
            let start = example.prompt_ids.len() as u64;
            let draws = |stream| Draws::new(seed, stream, 0, occurrence.draw);
            let numbers = |stream| -> Vec<f32> {
                (start..start + example.answer_ids.len() as u64).map(|p| draws(stream).unit_f32(p)).collect()
            };
            let [u, s] = [Stream::Mask, Stream::Lift].map(numbers);
            let [v, choice] = [MARGIN_DRAW, CHOICE_DRAW].map(|place| draws(Stream::Lift).unit_f64(place));
            let t = diffusion_time(draws(Stream::Time).unit_f64(0), objective.t_min);
            let drawn = LiftDraws { t, v, choice, u: &u, s: &s };
            let ids = [example.prompt_ids.as_slice(), &example.answer_ids];
            let log = plain_log_probability(&model, ids, &drawn.candidates());
            assert_eq!(masked, drawn.kept(policy, &log), "{name}, example {}", occurrence.example);
        }
    }
}

#[test]
fn a_reference_file_replays_lift() {
    let mut model = golden("a2d-qwen3");
    model.params.iter_mut().for_each(|p| p.trainable = true);
    let (length, starts) = (16usize, [4usize, 7, 5]);
    let ids: Vec<u32> = (0..3 * length).map(|i| (i * 31 % 150) as u32).collect();
    let draw = |stream: u64, n: usize| -> Vec<f32> {
        (0..n as u64).map(|i| Draws::new(stream, Stream::Text, 0, 0).unit_f32(i)).collect()
    };
    let (t, v, choice) = ([0.3f32, 0.55, 0.8], [0.2f32, 0.9, 0.5], [0.5f32, 0.1, 0.9]);
    let (u, s) = (draw(1, 3 * length), draw(2, 3 * length));
    let mut tensors: HashMap<String, (Vec<usize>, Vec<f32>)> = HashMap::new();
    for (name, values) in [("t", t), ("lift.v", v), ("lift.choice", choice)] {
        tensors.insert(name.to_owned(), (vec![3], values.to_vec()));
    }
    for (name, values) in [("u", &u), ("lift.s", &s)] {
        tensors.insert(name.to_owned(), (vec![3, length], values.clone()));
    }
    let (mut entropy, mut log_probability) = (vec![0.0; 3 * length], vec![0.0; 3 * length]);
    let mut of_policies: HashMap<&str, [Vec<f32>; 3]> = HashMap::new();
    let policies = [("lift_random", LiftPolicy::Random), ("lift_time", LiftPolicy::Time)];
    let answer_tokens: usize = starts.iter().map(|start| length - start).sum();
    let mut losses = HashMap::from([("lift_random", 0.0f64), ("lift_time", 0.0)]);
    for (i, start) in starts.into_iter().enumerate() {
        let at = i * length + start..(i + 1) * length;
        let (prompt, answer) = (&ids[i * length..at.start], &ids[at.clone()]);
        let of = |masked: &[bool]| plain_log_probability(&model, [prompt, answer], masked);
        let mask = model.config.mask_token_id;
        let all: Vec<u32> = prompt.iter().copied().chain(answer.iter().map(|_| mask)).collect();
        for (j, row) in plain::forward(&model, &all, 0..length, None).logits[start..].iter().enumerate() {
            let total: f64 = row.iter().map(|z| z.exp()).sum();
            entropy[at.start + j] = row.iter().map(|z| z.exp() / total * (total.ln() - z)).sum::<f64>() as f32;
        }
        let draws = LiftDraws {
            t: t[i].into(),
            v: v[i].into(),
            choice: choice[i].into(),
            u: &u[at.clone()],
            s: &s[at.clone()],
        };
        let candidates = draws.candidates();
        let log = of(&candidates);
        for (j, is) in candidates.iter().enumerate().filter(|(_, is)| **is) {
            assert!(*is);
            log_probability[at.start + j] = log[j];
        }
        for (name, policy) in policies {
            let kept = draws.kept(policy, &log);
            let nll = of(&kept);
            let [rates, masks, all_nll] =
                of_policies.entry(name).or_insert_with(|| [(); 3].map(|()| vec![0.0; 3 * length]));
            for (j, kept) in kept.iter().enumerate() {
                rates[at.start + j] = t[i];
                if *kept {
                    masks[at.start + j] = 1.0;
                    all_nll[at.start + j] = -nll[j];
                    *losses.get_mut(name).expect("there is one") += f64::from(-nll[j]) / f64::from(t[i]);
                }
            }
        }
    }
    tensors.insert("entropy".to_owned(), (vec![3, length], entropy));
    tensors.insert("lift.log_probability".to_owned(), (vec![3, length], log_probability));
    let mut bytes: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = HashMap::new();
    for (name, [rates, masks, nll]) in of_policies {
        tensors.insert(format!("{name}.t_i"), (vec![3, length], rates));
        tensors.insert(format!("{name}.nll"), (vec![3, length], nll));
        let masks = masks.iter().map(|m| *m as u8).collect();
        bytes.insert(format!("{name}.masked"), (Dtype::U8, vec![3, length], masks));
        let loss = (losses[name] / answer_tokens as f64) as f32;
        tensors.insert(format!("{name}.loss_token"), (vec![1], vec![loss]));
    }
    let integers = |values: &mut dyn Iterator<Item = u64>| values.flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    bytes.insert(
        "input_ids".to_owned(),
        (Dtype::I64, vec![3, length], integers(&mut ids.iter().map(|i| u64::from(*i)))),
    );
    bytes.insert("prompt_lengths".to_owned(), (Dtype::I64, vec![3], integers(&mut starts.iter().map(|s| *s as u64))));
    for (name, (shape, numbers)) in tensors {
        bytes.insert(name, (Dtype::F32, shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    let file = scratch::folder("lift-reference").join("lift.safetensors");
    let views = bytes.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).expect("whole")));
    std::fs::write(&file, safetensors::serialize(views, None).expect("names are unique")).expect("it is written");
    let rows = check(&on_device(model), &file).expect("it is compared");
    for row in &rows {
        assert!(Tolerances::all(1e-4).pass(row), "{} is {} off", row.name, row.error);
    }
    let has = |name: &str| rows.iter().any(|row| row.name == name);
    assert!(has("lift.log_probability") && has("lift_random.masked") && has("lift_time.loss_token"), "{rows:?}");
}

#[test]
fn lift_depends_on_no_batch() {
    let objective = Objective { kind: Kind::Lift, ..Objective::default() };
    let [two, one] = [2, 1].map(|micro_batch_size| {
        let settings = TrainTable { micro_batch_size, grad_accum_steps: 4 / micro_batch_size, ..settings() };
        let report = trainer("a2d-qwen2", objective, settings).step().expect("the step works");
        (report.masked, report.loss)
    });
    assert_eq!(two.0, one.0);
    assert!((two.1 - one.1).abs() < 1e-4 * one.1, "{} {}", two.1, one.1);
}

#[test]
fn complements_are_trained_beside_their_masks() {
    for kind in Kind::ALL {
        let objective = Objective { kind, complementary: true, ..Objective::default() };
        let mut trainer = trainer("llada", objective, settings());
        let report = trainer.step().expect("the step works");
        assert_eq!(report.masked.len(), 8, "two views of four examples");
        for pair in report.masked.chunks(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| a != b), "{kind:?}: every token is masked in one view");
        }
        assert!(report.loss.is_finite() && report.grad_norm > 0.0);
        // A complement is of the mask that is drawn without it.
        let alone = Objective { complementary: false, ..objective };
        let masked = self::trainer("llada", alone, settings()).step().expect("the step works").masked;
        assert_eq!(masked, report.masked.iter().step_by(2).cloned().collect::<Vec<_>>(), "{kind:?}");
    }
}
