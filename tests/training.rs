//! The training loop: what must not change a result doesn't, and a resumed run equals an uninterrupted one bit for
//! bit.

mod device;
mod scratch;
mod small_run;

use std::path::Path;

use device::on_device;
use scratch::folder;
use serde_json::{Value, json};
use small_run::{BEGIN, RESUME, examples, go_on};
use weft::data::Example;
use weft::data::packing::Padding;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::objective::{Kind, Objective};
use weft::train::lr_schedule::LrSchedule;
use weft::train::optimizer::train_everything;
use weft::train::resolved::Resolved;
use weft::train::run::Options;
use weft::train::settings::TrainTable;
use weft::train::{Trainer, run};
use weft_kernels::weight::{Dtype, Weight, to_bf16_bytes};

fn model(lora_dropout: f64) -> Transformer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut model = checkpoint::load(&folder).expect("the golden checkpoint loads");
    small_run::adapt(&mut model, lora_dropout);
    on_device(model)
}

fn settings() -> TrainTable {
    TrainTable { lr_schedule: LrSchedule::Cosine, eval_every: 2, checkpoint_every: 2, ..small_run::settings() }
}

fn trainer(settings: TrainTable, objective: Objective, padding: Padding) -> Trainer {
    small_run::trainer(model(0.1), examples(), settings, (objective, padding))
}

/// Trains every weight of a base that is stored in bf16.
fn full_trainer(settings: TrainTable, objective: Objective) -> Trainer {
    let mut model = bf16_base();
    train_everything(&mut model);
    small_run::trainer(model, examples(), settings, (objective, Padding::None))
}

fn bf16_base() -> Transformer {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut model = checkpoint::load(&golden).expect("the golden checkpoint loads");
    for weight in model.params.iter_mut().map(|p| &mut p.weight) {
        let bytes = to_bf16_bytes(&weight.to_f32());
        *weight = Weight::from_bytes(weight.rows(), weight.cols(), Dtype::Bf16, &bytes);
    }
    model
}

fn weights(trainer: &Trainer) -> Vec<u32> {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

fn run_steps(trainer: &mut Trainer) -> Vec<f64> {
    (0..trainer.num_steps()).map(|_| trainer.step().expect("the step works").loss).collect()
}

#[test]
fn ten_examples_make_three_steps_an_epoch() {
    let mut trainer = trainer(settings(), Objective::default(), Padding::None);
    assert_eq!((trainer.steps_per_epoch(), trainer.num_steps()), (3, 9));
    let tokens: usize = (0..3).map(|_| trainer.step().expect("the step works").tokens).sum();
    let all: usize = examples().iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
    assert_eq!(tokens, all, "an epoch sees every example once");
}

/// A change of these numbers is a change of the method: say so in the changelog.
#[test]
fn nine_losses_stay_what_they_were() {
    let expected = [WEFT_LOSSES, SFT_LOSSES, CART_LOSSES, TOKEN_WEIGHT_LOSSES];
    for (kind, expected) in Kind::ALL.into_iter().zip(expected) {
        let mut trainer = trainer(settings(), Objective { kind, ..Objective::default() }, Padding::None);
        let losses = run_steps(&mut trainer);
        assert_eq!(losses.len(), expected.len());
        for (got, expected) in losses.iter().zip(expected) {
            // Other processors sum matmuls in another order.
            assert!((got - expected).abs() <= 2e-3 * expected, "{kind:?}: {losses:?}");
        }
    }
}

const WEFT_LOSSES: [f64; 9] = [23.0306, 31.5806, 24.5706, 47.3865, 23.0026, 15.1563, 45.2304, 17.3145, 97.8095];
const SFT_LOSSES: [f64; 9] = [14.0089, 13.3886, 15.2970, 14.6538, 10.4441, 7.0707, 7.9008, 11.4822, 17.6936];
const CART_LOSSES: [f64; 9] = [3.2765, 3.1891, 3.2852, 3.1223, 2.0692, 2.3041, 5.0866, 2.0536, 6.9281];
const TOKEN_WEIGHT_LOSSES: [f64; 9] =
    [22.8029, 30.4772, 25.9032, 43.9155, 22.0844, 16.5043, 44.0062, 17.5873, 102.4065];

/// The unweighted loss of a step is the mean nll of its masked tokens, however they are split into micro-batches.
#[test]
fn the_nll_of_a_step_is_the_mean_over_its_masked_tokens() {
    // A floor of 1 masks every answer token with weight 1: the loss as trained is the mean nll too.
    let objective = Objective {
        kind: Kind::Sft,
        rate_floor: 1.0,
        normalizer: Some(weft::objective::Normalizer::Masked),
        ..Objective::default()
    };
    let model = model(0.0);
    let (mut ids, mut rows, mut targets) = (vec![], vec![], vec![]);
    for Example { prompt_ids, answer_ids } in examples() {
        let start = ids.iter().map(Vec::len).sum::<usize>() + prompt_ids.len();
        rows.extend(start..start + answer_ids.len());
        ids.push([prompt_ids, vec![model.config.mask_token_id; answer_ids.len()]].concat());
        targets.extend(answer_ids);
    }
    let nll = model.nll(&Batch::pack(ids.iter().map(Vec::as_slice)), &rows, &targets);
    let expected = nll.iter().copied().map(f64::from).sum::<f64>() / nll.len() as f64;
    for (micro_batch_size, grad_accum_steps) in [(10, 1), (2, 5), (3, 4), (1, 10)] {
        let settings = TrainTable { micro_batch_size, grad_accum_steps, ..settings() };
        let mut trainer = small_run::trainer(model.clone(), examples(), settings, (objective, Padding::None));
        let report = trainer.step().expect("the step works");
        let got = report.nll.expect("every token is masked");
        assert_eq!(report.masked_share, 1.0);
        assert!((got - expected).abs() < 1e-5 * expected, "{micro_batch_size}: {got}, not {expected}");
        assert!((report.loss - expected).abs() < 1e-5 * expected, "{micro_batch_size}: {}", report.loss);
    }
    // Weights change the loss alone.
    let mut weighted = trainer(settings(), Objective::default(), Padding::None);
    let report = weighted.step().expect("the step works");
    assert!(report.nll.expect("some token is masked") < report.loss, "{report:?}");
}

/// The forward of a step gives PyTorch's mean nll under PyTorch's masks.
#[test]
fn the_mean_nll_is_pytorchs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let model = checkpoint::load(&folder).expect("the golden checkpoint loads");
    let bytes = std::fs::read(folder.join("objectives.safetensors")).expect("the golden file is there");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("the golden file is whole");
    let data = |name: &str| file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec();
    let ids: Vec<u32> = data("input_ids").chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let length = ids.len() / (data("prompt_lengths").len() / 8);
    for name in ["sft", "weft_sqrt"] {
        let masked: Vec<bool> = data(&format!("{name}.masked")).iter().map(|b| *b != 0).collect();
        let golden = data(&format!("{name}.nll"));
        let golden: Vec<f64> = golden.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        let rows: Vec<usize> = (0..ids.len()).filter(|i| masked[*i]).collect();
        let expected = rows.iter().map(|i| golden[*i]).sum::<f64>() / rows.len() as f64;
        let noised: Vec<u32> =
            ids.iter().zip(&masked).map(|(id, m)| if *m { model.config.mask_token_id } else { *id }).collect();
        let batch = Batch::pack(noised.chunks(length));
        let of_rows: Vec<u32> = rows.iter().map(|i| ids[*i]).collect();
        let weights = vec![1.0; rows.len()];
        let targets = Targets { rows: &rows, ids: &of_rows, weights: &weights };
        let nll = model.loss_and_gradients(&batch, targets, &mut model.zero_gradients()).nll;
        let got = nll.iter().copied().map(f64::from).sum::<f64>() / rows.len() as f64;
        assert!((got - expected).abs() < 1e-4 * expected, "{name}: {got}, not {expected}");
    }
}

#[test]
fn training_lowers_the_loss() {
    let long = TrainTable { epochs: 40, ..settings() };
    let mut trainer = trainer(long, Objective::default(), Padding::None);
    let losses = run_steps(&mut trainer);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    assert!(mean(&losses[100..]) < 0.8 * mean(&losses[..20]), "{losses:?}");
}

#[test]
fn eos_padding_supervises_the_padding() {
    let mut padded = trainer(settings(), Objective::default(), Padding::Eos);
    let mut packed = trainer(settings(), Objective::default(), Padding::None);
    let tokens = |t: &mut Trainer| t.step().expect("the step works").tokens;
    assert!(tokens(&mut padded) > tokens(&mut packed));
}

#[test]
fn pass_1_runs_for_objectives_with_entropies_alone() {
    for kind in Kind::ALL {
        let mut trainer = trainer(settings(), Objective { kind, ..Objective::default() }, Padding::None);
        let entropy = trainer.step().expect("the step works").entropy.map(|e| e.mean);
        assert_eq!(entropy.is_some(), [Kind::Weft, Kind::TokenWeight].contains(&kind), "{kind:?}");
    }
}

#[test]
fn full_training_moves_every_tensor_and_keeps_what_bf16_would_lose() {
    let before = bf16_base();
    let mut trainer = full_trainer(TrainTable { lr: 1e-5, ..settings() }, Objective::default());
    trainer.step().expect("the step works");
    let (mut moved, mut moved_in_bf16) = (0, 0);
    for (was, is) in before.params.iter().zip(&trainer.model.params) {
        assert_eq!((was.weight.dtype(), is.weight.dtype()), (Dtype::Bf16, Dtype::F32), "{}", is.name);
        let (was, is_now) = (was.weight.to_f32(), is.weight.to_f32());
        let changed = was.iter().zip(&*is_now).filter(|(a, b)| a != b).count();
        assert!(changed > 0, "{} is trained", is.name);
        moved += changed;
        let rounded = |x: &[f32]| to_bf16_bytes(x);
        moved_in_bf16 += rounded(&was).chunks(2).zip(rounded(&is_now).chunks(2)).filter(|(a, b)| a != b).count();
    }
    // Adam's first step is about the learning rate, far below bf16's resolution of most weights.
    assert!(moved_in_bf16 < moved / 4, "{moved} weights moved, {moved_in_bf16} of them in bf16");
}

#[test]
fn full_training_lowers_the_loss() {
    let long = TrainTable { epochs: 20, lr: 3e-3, ..settings() };
    let losses = run_steps(&mut full_trainer(long, Objective { kind: Kind::Sft, ..Objective::default() }));
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    assert!(mean(&losses[50..]) < 0.8 * mean(&losses[..10]), "{losses:?}");
}

#[test]
fn what_is_kept_for_backward_changes_no_bit() {
    let with_bytes = |bytes: usize| {
        let mut trainer = trainer(settings(), Objective::default(), Padding::None);
        trainer.model.config.activation_bytes = bytes;
        run_steps(&mut trainer);
        weights(&trainer)
    };
    let all = with_bytes(usize::MAX);
    assert_eq!(all, with_bytes(0));
    // Enough for some of the two layers' matmuls, which take tens of kilobytes.
    assert_eq!(all, with_bytes(20_000));
}

#[test]
fn entropies_are_reused_between_epochs_and_their_drift_is_told() {
    let mut reusing = trainer(settings(), Objective { entropy_every: 2, ..Objective::default() }, Padding::None);
    let mut fresh = trainer(settings(), Objective::default(), Padding::None);
    for step in 1..=9 {
        let [reused, computed] = [&mut reusing, &mut fresh].map(|t| t.step().expect("the step works"));
        // Three steps an epoch: the second reuses, the third computes again.
        assert_eq!(reused.entropy_drift.is_some(), step > 6, "step {step}");
        assert_eq!(reused.entropy == computed.entropy, step <= 3, "step {step}");
        if let Some(drift) = reused.entropy_drift {
            assert!(drift.mean_change > 0.0 && (-1.0..=1.0).contains(&drift.rank_correlation), "{drift:?}");
        }
    }
    assert!(reusing.entropy_drift().is_some_and(|d| d.mean_change > 0.0));
    assert_eq!(fresh.entropy_drift(), None);
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    resumes_bit_for_bit("fresh", || trainer(settings(), Objective::default(), Padding::None));
}

#[test]
fn a_resumed_full_run_equals_an_uninterrupted_one() {
    resumes_bit_for_bit("full", || full_trainer(settings(), Objective::default()));
}

#[test]
fn a_resumed_run_has_the_entropies_that_it_reuses() {
    let objective = Objective { entropy_every: 3, ..Objective::default() };
    resumes_bit_for_bit("reused", || trainer(settings(), objective, Padding::None));
}

#[test]
fn token_weights_reuse_entropies_too() {
    let objective = Objective { kind: Kind::TokenWeight, entropy_every: 3, ..Objective::default() };
    resumes_bit_for_bit("reused-token-weight", || trainer(settings(), objective, Padding::None));
}

fn resumes_bit_for_bit(name: &str, start: impl Fn() -> Trainer) {
    let recipe = Resolved::from(json!({ "train": { "lr": 1e-2 } }));
    let whole = |output: &Path| {
        let mut trainer = start();
        run::train(&mut trainer, (&examples()[..3], output), &recipe, BEGIN, go_on).expect("the run works");
        weights(&trainer)
    };
    let uninterrupted = whole(&folder(&format!("{name}-whole")));
    let output = folder(&format!("{name}-resumed"));
    for stop in [3, 5, 9] {
        // A run that ends early without its last checkpoint stands for a killed one.
        let mut killed = start();
        let _ = std::fs::remove_dir_all(&output);
        let mut job = start();
        std::fs::create_dir_all(&output).expect("the folder can be made");
        for step in 1..=stop {
            killed.step().expect("the step works");
            if step % 2 == 0 {
                weft::train::checkpoint::save(&output, &killed, &recipe).expect("the checkpoint is saved");
            }
        }
        let summary =
            run::train(&mut job, (&examples()[..3], &output), &recipe, RESUME, go_on).expect("the run resumes");
        assert_eq!(summary.first_step, stop / 2 * 2);
        assert_eq!(weights(&job), uninterrupted, "killed at step {stop}");
    }
    let kept = std::fs::read_dir(output.join("checkpoints")).expect("there are checkpoints").count();
    assert_eq!(kept, 2, "older checkpoints are dropped");
    let lines = std::fs::read_to_string(output.join("metrics.jsonl")).expect("there are metrics");
    assert!(lines.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_with_another_recipe() {
    let output = folder("refused");
    let mut first = trainer(settings(), Objective::default(), Padding::None);
    run::train(&mut first, (&[], &output), &Resolved::from(json!({ "train": { "lr": 1 } })), BEGIN, go_on)
        .expect("the run works");
    let mut second = trainer(settings(), Objective::default(), Padding::None);
    let mut error = |recipe: Value, resume: bool| {
        let recipe = Resolved::from(recipe);
        run::train(&mut second, (&[], &output), &recipe, Options { resume, quiet: true }, go_on)
            .expect_err("the run is refused")
            .to_string()
    };
    assert!(error(json!({}), false).contains("already holds a run; add --resume"));
    let message = error(json!({ "train": { "lr": 2 } }), true);
    assert!(message.contains("was started with another recipe: train.lr was 1 and is 2"), "{message}");
    let cut = |step: &str| {
        let file = output.join(format!("checkpoints/step-{step}/state.safetensors"));
        let bytes = std::fs::read(&file).expect("the checkpoint is there");
        std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("the checkpoint is cut");
    };
    cut("00000009");
    let mut third = trainer(settings(), Objective::default(), Padding::None);
    let summary =
        run::train(&mut third, (&[], &output), &Resolved::from(json!({ "train": { "lr": 1 } })), RESUME, go_on)
            .expect("the run resumes");
    assert_eq!(summary.first_step, 8, "the checkpoint before the damaged one is taken");
    assert_eq!(weights(&third), weights(&first));
    cut("00000009");
    cut("00000008");
    assert!(error(json!({ "train": { "lr": 1 } }), true).contains("is damaged"));
}
