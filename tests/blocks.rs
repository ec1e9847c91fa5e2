//! Block diffusion and blockwise SFT: PyTorch's numbers, a plain network in f64, and what must not change a bit.

mod device;
mod plain;
mod scratch;
mod small_run;

use std::path::{Path, PathBuf};

use device::on_device;
use proptest::prelude::*;
use small_run::examples;
use weft::data::Example;
use weft::data::packing::Padding;
use weft::eval::likelihood::{MonteCarlo, nll_bounds};
use weft::model::batch::{AttentionKind, Batch, Targets};
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::objective::blocks::AnswerBlocks;
use weft::objective::{Blocks, Kind, Objective};
use weft::parity::{Tolerances, check, check_blocks};
use weft::progress::Progress;
use weft::train::held_out::{nll_bound, nll_bound_seen};
use weft::train::settings::TrainTable;
use weft::train::view::View;
use weft::train::{Trainer, optimizer::train_everything};
use weft_kernels::precision::Precision;

const FAMILIES: [&str; 3] = ["a2d-qwen3", "a2d-qwen2", "dream"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Transformer {
    let mut model = checkpoint::load(&path(name)).expect("the golden checkpoint loads");
    model.params.iter_mut().for_each(|p| p.trainable = true);
    on_device(model)
}

#[test]
fn block_diffusion_matches_pytorch() {
    for (name, block_length) in [("a2d-qwen3", 8), ("a2d-qwen2", 4)] {
        let (model, reference) = (golden(name), path(name).join("bd3lm.safetensors"));
        let rows = check_blocks(&model, &reference, (Some(Blocks::Bd3lm), Some(block_length))).expect("it is compared");
        let tolerances = Tolerances::all(1e-4);
        for row in &rows {
            assert!(tolerances.pass(row), "{name}: {} is {} off", row.name, row.error);
        }
        let has = |quantity: &str| rows.iter().any(|row| row.name == quantity);
        assert!(["attention", "entropy", "masked", "nll", "loss_token"].into_iter().all(has), "{rows:?}");
        assert_eq!(rows.iter().filter(|row| row.name.starts_with("grad.")).count(), model.params.len(), "{name}");
        // The file says what it is of.
        assert_eq!(check(&model, &reference).expect("it is compared"), rows);
        for (asked, told) in [
            ((None, Some(16)), format!("blocks of {block_length} tokens, not 16")),
            ((Some(Blocks::None), None), "give --blocks bd3lm".to_owned()),
        ] {
            let error = check_blocks(&model, &reference, asked).expect_err("the file is of other blocks").to_string();
            assert!(error.contains(&told), "{error}");
        }
    }
}

/// The sequences of a batch: noised and clean, with the masked positions.
fn halves(len: usize, seed: usize, mask: u32) -> ([Vec<u32>; 2], Vec<usize>) {
    let clean: Vec<u32> = (0..len).map(|i| ((i * 37 + seed * 11 + 5) % 150) as u32).collect();
    let masked: Vec<usize> = (0..len).filter(|i| !(i * 7 + seed).is_multiple_of(3)).collect();
    let mut noised = clean.clone();
    masked.iter().for_each(|i| noised[*i] = mask);
    ([noised, clean], masked)
}

#[test]
fn blocks_of_any_length_match_a_plain_network() {
    for name in FAMILIES {
        let model = golden(name);
        let mask = model.config.mask_token_id;
        for (len, block_length) in [(12, 1), (12, 3), (13, 5), (16, 16), (9, 32)] {
            let ([noised, clean], masked) = halves(len, block_length, mask);
            let kind = AttentionKind::BlockDiffusion { block_length };
            let batch = Batch::pack_as(kind, [[noised.as_slice(), &clean]]);
            let ids: Vec<u32> = masked.iter().map(|i| clean[*i]).collect();
            let got = model.nll(&batch, &masked, &ids);
            let logits = plain::block_diffusion(&model, [&noised, &clean], block_length);
            for ((i, id), got) in masked.iter().zip(&ids).zip(got) {
                let total: f64 = logits[*i].iter().map(|z| z.exp()).sum();
                let expected = total.ln() - logits[*i][*id as usize];
                assert!((f64::from(got) - expected).abs() < 2e-4, "{name} {len} {block_length} {i}: {got}, {expected}");
            }
        }
    }
}

/// The gradient of a small batch's loss, number by number, as the plain network's loss changes.
#[test]
fn the_backward_goes_through_both_halves() {
    for name in FAMILIES {
        let mut model = golden(name);
        let (mask, block_length) = (model.config.mask_token_id, 3);
        let ([noised, clean], masked) = halves(10, 1, mask);
        let ids: Vec<u32> = masked.iter().map(|i| clean[*i]).collect();
        let kind = AttentionKind::BlockDiffusion { block_length };
        let batch = Batch::pack_as(kind, [[noised.as_slice(), &clean]]);
        let weights: Vec<f32> = (0..masked.len()).map(|i| 0.25 + 0.125 * i as f32).collect();
        let mut grads = model.zero_gradients();
        model.loss_and_gradients(&batch, Targets { rows: &masked, ids: &ids, weights: &weights }, &mut grads);
        let grads: Vec<Vec<f32>> =
            grads.iter().map(|grad| grad.as_ref().expect("everything is trained").to_host().into_owned()).collect();
        for (id, grad) in grads.iter().enumerate() {
            let largest = grad.iter().fold(0f32, |most, x| most.max(x.abs()));
            let at = grad.iter().position(|x| x.abs() == largest).expect("a gradient");
            let mut loss = |by: f32| {
                model.params[id].weight.make_trainable()[at] += by;
                let logits = plain::block_diffusion(&model, [&noised, &clean], block_length);
                model.params[id].weight.make_trainable()[at] -= by;
                let nll =
                    |i: usize, id: u32| logits[i].iter().map(|z| z.exp()).sum::<f64>().ln() - logits[i][id as usize];
                masked.iter().zip(&ids).zip(&weights).map(|((i, id), w)| nll(*i, *id) * f64::from(*w)).sum::<f64>()
            };
            let h = 1.0 / 1024.0;
            let expected = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
            let error = (f64::from(grad[at]) - expected).abs();
            let param = &model.params[id].name;
            assert!(error < 5e-3 * f64::from(largest), "{name}: {param}: {} for {expected}", grad[at]);
        }
    }
}

#[test]
fn packed_sequences_never_meet() {
    for name in FAMILIES {
        let model = golden(name);
        let mask = model.config.mask_token_id;
        let kind = AttentionKind::BlockDiffusion { block_length: 4 };
        let sequences = [halves(9, 0, mask), halves(24, 1, mask), halves(2, 2, mask), halves(70, 3, mask)];
        let loss = |chosen: &[([Vec<u32>; 2], Vec<usize>)], grads: &mut _| {
            let batch = Batch::pack_as(kind, chosen.iter().map(|(halves, _)| halves.each_ref().map(Vec::as_slice)));
            let of = |((_, masked), rows): (&(_, Vec<usize>), &std::ops::Range<usize>)| {
                masked.iter().map(|i| rows.start + i).collect::<Vec<_>>()
            };
            let rows: Vec<usize> = chosen.iter().zip(&batch.sequences).flat_map(of).collect();
            let ids: Vec<u32> =
                chosen.iter().flat_map(|([_, clean], masked)| masked.iter().map(|i| clean[*i])).collect();
            let targets = Targets { rows: &rows, ids: &ids, weights: &vec![0.5; rows.len()] };
            model.loss_and_gradients(&batch, targets, grads).nll
        };
        let (mut whole, mut single) = (model.zero_gradients(), model.zero_gradients());
        let together = loss(&sequences, &mut whole);
        let apart: Vec<f32> = sequences.iter().flat_map(|s| loss(std::slice::from_ref(s), &mut single)).collect();
        let close = |what: &str, got: &[f32], expected: &[f32]| {
            let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            let error = got.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0f32, f32::max);
            assert!(error <= 1e-4 * largest, "{name}: {what} is {error} off");
        };
        close("nll", &together, &apart);
        for ((param, whole), single) in model.params.iter().zip(whole).zip(single) {
            let [whole, single] = [whole, single].map(|grad| grad.expect("everything is trained"));
            close(&param.name, &whole.to_host(), &single.to_host());
        }
    }
}

/// In blocks of one token, a token's prediction depends on the clean tokens before it alone.
#[test]
fn blocks_of_one_token_see_as_an_autoregressive_model_does() {
    for name in FAMILIES {
        let model = golden(name);
        let (mask, len) = (model.config.mask_token_id, 9);
        let kind = AttentionKind::BlockDiffusion { block_length: 1 };
        let ([_, clean], _) = halves(len, 4, mask);
        let noised = vec![mask; len];
        let rows: Vec<usize> = (0..len).collect();
        let nll =
            |clean: &[u32], ids: &[u32]| model.nll(&Batch::pack_as(kind, [[noised.as_slice(), clean]]), &rows, ids);
        let expected = nll(&clean, &clean);
        for changed in 0..len {
            let mut other = clean.clone();
            other[changed] = (other[changed] + 1) % 150;
            let got = nll(&other, &clean);
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert_eq!(got == expected, i <= changed, "{name}: token {i}, with token {changed} changed");
            }
        }
        // A mask in place of each token in turn, behind the tokens before it.
        for i in 0..len {
            let mut ids = clean[..i].to_vec();
            ids.push(mask);
            let causal = AttentionKind::BlockCausal { block_length: 1 };
            let alone = model.nll(&Batch::pack_as(causal, [[ids.as_slice(); 2]]), &[i], &clean[i..=i])[0];
            assert!((alone - expected[i]).abs() < 1e-4, "{name}: token {i}: {alone}, {}", expected[i]);
        }
    }
}

fn settings() -> TrainTable {
    TrainTable { epochs: 2, ..small_run::settings() }
}

fn trainer(name: &str, objective: Objective, padding: Padding, settings: TrainTable) -> Trainer {
    let mut model = checkpoint::load(&path(name)).expect("the golden checkpoint loads");
    small_run::adapt(&mut model, 0.1);
    small_run::trainer(on_device(model), examples(), settings, (objective, padding))
}

fn weights(trainer: &Trainer) -> Vec<u32> {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

fn run(trainer: &mut Trainer) -> Vec<f64> {
    (0..trainer.num_steps()).map(|_| trainer.step().expect("the step works").loss).collect()
}

fn objectives(blocks: Blocks, block_length: usize) -> [Objective; 5] {
    Kind::ALL.map(|kind| Objective { kind, blocks, block_length, ..Objective::default() })
}

#[test]
fn one_block_of_the_whole_answer_is_plain_training_bit_for_bit() {
    for padding in [Padding::None, Padding::Eos] {
        let plain = objectives(Blocks::None, 1).into_iter();
        for (plain, blockwise) in plain.zip(objectives(Blocks::Blockwise, 64)) {
            let [mut plain, mut blockwise] = [plain, blockwise].map(|o| trainer("llada", o, padding, settings()));
            assert_eq!(run(&mut plain), run(&mut blockwise));
            assert_eq!(weights(&plain), weights(&blockwise));
            let [plain, blockwise] =
                [plain, blockwise].map(|t| nll_bound_seen(&t.model, &examples(), &t.view()).to_bits());
            assert_eq!(plain, blockwise);
        }
    }
}

#[test]
fn a_step_in_blocks_depends_on_no_batch() {
    for blocks in [Blocks::Blockwise, Blocks::Bd3lm] {
        for objective in objectives(blocks, 3) {
            let normalizer = Some(weft::objective::Normalizer::Answer);
            let objective = Objective { normalizer, ..objective };
            let [two, one] = [2, 1].map(|micro_batch_size| {
                let settings = TrainTable { micro_batch_size, grad_accum_steps: 4 / micro_batch_size, ..settings() };
                let mut trainer = trainer("a2d-qwen3", objective, Padding::None, settings);
                let report = trainer.step().expect("the step works");
                (report.loss, report.masked)
            });
            assert_eq!(two.1, one.1, "{blocks:?} {:?}: the same tokens are masked", objective.kind);
            assert!((two.0 - one.0).abs() < 1e-4 * one.0, "{blocks:?} {:?}: {} {}", objective.kind, two.0, one.0);
        }
    }
}

#[test]
fn training_in_blocks_lowers_the_loss() {
    for (blocks, kind) in [(Blocks::Blockwise, Kind::Weft), (Blocks::Bd3lm, Kind::Weft), (Blocks::Bd3lm, Kind::Sft)] {
        let objective = Objective { kind, blocks, block_length: 4, ..Objective::default() };
        let long = TrainTable { epochs: 40, ..settings() };
        let mut trainer = trainer("a2d-qwen2", objective, Padding::None, long);
        let bound = |t: &Trainer| nll_bound_seen(&t.model, &examples(), &t.view());
        let before = bound(&trainer);
        run(&mut trainer);
        let after = bound(&trainer);
        assert!(after < 0.6 * before, "{blocks:?} {kind:?}: {before} before, {after} after");
    }
}

#[test]
fn recomputed_layers_change_no_bit() {
    let objective = Objective { blocks: Blocks::Bd3lm, block_length: 4, ..Objective::default() };
    let [saved, recomputed] = [1.0, 0.0].map(|gb| {
        let settings = TrainTable { activation_memory_gb: Some(gb), ..settings() };
        let mut trainer = trainer("a2d-qwen3", objective, Padding::None, settings);
        run(&mut trainer);
        weights(&trainer)
    });
    assert_eq!(saved, recomputed);
}

#[test]
fn every_weight_can_be_trained_in_blocks() {
    let mut model = checkpoint::load(&path("a2d-qwen2")).expect("the golden checkpoint loads");
    train_everything(&mut model);
    let objective = Objective { blocks: Blocks::Bd3lm, block_length: 4, ..Objective::default() };
    let settings = TrainTable { lr: 1e-3, epochs: 20, ..settings() };
    let mut trainer = small_run::trainer(model, examples(), settings, (objective, Padding::None));
    let losses = run(&mut trainer);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    assert!(mean(&losses[50..]) < 0.7 * mean(&losses[..10]), "{losses:?}");
}

#[test]
fn rounded_operands_stay_close_in_blocks() {
    let mut model = golden("a2d-qwen3");
    let ([noised, clean], masked) = halves(150, 1, model.config.mask_token_id);
    let batch = Batch::pack_as(AttentionKind::BlockDiffusion { block_length: 7 }, [[noised.as_slice(), &clean]]);
    let ids: Vec<u32> = masked.iter().map(|i| clean[*i]).collect();
    let exact = model.nll(&batch, &masked, &ids);
    let largest = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (precision, tolerance) in [(Precision::Bf16, 5e-2), (Precision::Bf16x3, 1e-4)] {
        model.config.precision = precision;
        let rounded = model.nll(&batch, &masked, &ids);
        let error = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(error > 0.0 && error < tolerance * largest, "{precision:?}: {error} of {largest}");
    }
}

#[test]
fn a_view_of_whole_answers_is_the_bound_without_a_view() {
    let model = golden("llada");
    let rows = examples();
    assert_eq!(nll_bound(&model, &rows), nll_bound_seen(&model, &rows, &View::WHOLE));
}

/// In blocks of one token, a bound is the likelihood itself: that token is masked in every sample.
#[test]
fn a_likelihood_in_blocks_is_that_of_the_blocks_one_after_the_other() {
    let mut model = golden("a2d-qwen3");
    let settings = MonteCarlo { mc_samples: 4, ..MonteCarlo::default() };
    let rows = &examples()[..3];
    let bounds =
        |model: &Transformer| nll_bounds(model, rows, settings, &Progress::hidden()).expect("they are bounded");
    for block_length in [1, 3] {
        model.config.block_length = Some(block_length);
        for (bound, row) in bounds(&model).iter().zip(rows) {
            assert_eq!(bound.answer_tokens, row.answer_ids.len());
            let clean = [row.prompt_ids.as_slice(), &row.answer_ids].concat();
            let mut noised = clean.clone();
            noised[row.prompt_ids.len()..].fill(model.config.mask_token_id);
            let positions: Vec<usize> = (row.prompt_ids.len()..clean.len()).collect();
            let kind = AttentionKind::BlockDiffusion { block_length };
            let nll = model.nll(&Batch::pack_as(kind, [[noised.as_slice(), &clean]]), &positions, &row.answer_ids);
            let sum: f64 = nll.iter().map(|nll| f64::from(*nll)).sum();
            if block_length == 1 {
                assert!((bound.nll_bound - sum).abs() < 1e-4 * sum, "{bound:?}, {sum}");
                assert!(bound.standard_error < 1e-6, "{bound:?}");
            }
            assert!(bound.nll_bound > 0.3 * sum && bound.nll_bound < 3.0 * sum, "{bound:?}, {sum}");
        }
    }
}

#[test]
fn a_sequence_is_what_its_view_says() {
    let (mask, example) = (99, Example { prompt_ids: vec![1, 2, 3], answer_ids: vec![10, 11, 12, 13, 14] });
    let of = |blocks, u: f64| {
        let view = View { blocks, block_length: 2, eos_token_id: 7 };
        view.sequence([&example.prompt_ids, &example.answer_ids], 5, || u, mask)
    };
    let whole = of(Blocks::None, 0.0);
    assert_eq!((whole.ids, whole.answer, whole.num_supervised), (vec![1, 2, 3, 10, 11, 12, 13, 14], 3..8, 5));
    let middle = of(Blocks::Blockwise, 0.5);
    assert_eq!((middle.ids, middle.answer, middle.drawn_of), (vec![1, 2, 3, 10, 11, 12, 13, 99], 5..7, 3));
    let last = of(Blocks::Blockwise, 0.99);
    assert_eq!((last.ids, last.answer, last.num_supervised), (vec![1, 2, 3, 10, 11, 12, 13, 14], 7..8, 1));
    let odd = Example { answer_ids: vec![10, 11], ..example.clone() };
    let view = View { blocks: Blocks::Bd3lm, block_length: 4, eos_token_id: 7 };
    let padded = view.sequence([&odd.prompt_ids, &odd.answer_ids], 2, || 0.0, mask);
    assert_eq!((padded.ids, padded.answer, padded.num_supervised), (vec![1, 2, 3, 10, 11, 7, 7, 7], 3..8, 2));
}

proptest! {
    #[test]
    fn drawn_blocks_cover_the_answer(own in 1usize..40, padding in 0usize..9, block_length in 1usize..50) {
        let blocks = AnswerBlocks { own, padded: own + padding, block_length };
        let count = blocks.count();
        let mut next = 0;
        for i in 0..count {
            let block = blocks.drawn((i as f64 + 0.5) / count as f64);
            prop_assert_eq!(block.start, next);
            prop_assert!(block.len() <= block_length && block.start < own);
            next = block.end;
        }
        prop_assert!(next >= own, "every token of the answer lies in a block");
    }
}
