//! Matmuls of bf16 operands against those of f32: gradients and training curves lie close, and what must not change a
//! result doesn't in either format. The layers are adapted, the head is frozen.

mod device;
mod scratch;

use std::path::Path;

use device::on_device;
use weft::data::Example;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::model::lora::{self, LoraConfig};
use weft::objective::{Kind, Objective};
use weft::parity::{self, Tolerances};
use weft::train::settings::TrainTable;
use weft::train::{Job, Trainer};
use weft_kernels::precision::Precision;
use weft_kernels::weight::Dtype;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Bf16x3];

fn adapted(folder: &Path, precision: Precision) -> Transformer {
    let mut model = checkpoint::load(folder).expect("the checkpoint loads");
    let targets = ["q_proj", "k_proj", "v_proj", "ff_proj"].map(str::to_owned).to_vec();
    lora::attach_fresh(&mut model, &LoraConfig::new(4, 8.0, 0.1, targets, false), 3).expect("there are such layers");
    model.config.precision = precision;
    on_device(model)
}

fn golden() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llada"))
}

fn trainer(precision: Precision, kind: Kind, epochs: u64) -> Trainer {
    let ids = |from: usize, len: usize| (from..from + len).map(|i| (i * 37 % 150) as u32).collect();
    let example = |i| Example { prompt_ids: ids(i, 3 + i % 4), answer_ids: ids(5 * i, 14 + i % 5) };
    let settings =
        TrainTable { seed: 11, epochs, micro_batch_size: 4, grad_accum_steps: 2, lr: 3e-3, ..TrainTable::default() };
    let job = Job {
        examples: (0..16).map(example).collect(),
        mixture: Mixture::default(),
        objective: Objective { kind, ..Objective::default() },
        padding: Padding::None,
        eos_token_id: 157,
        settings,
    };
    Trainer::new(adapted(golden(), precision), job)
}

fn run_steps(trainer: &mut Trainer) -> Vec<f64> {
    (0..trainer.num_steps()).map(|_| trainer.step().expect("the step works").loss).collect()
}

fn trained_bits(mut trainer: Trainer) -> Vec<u32> {
    run_steps(&mut trainer);
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn gradients_lie_within_five_hundredths_of_f32s() {
    let config = golden().join("config.json");
    let text = std::fs::read_to_string(&config).expect("the golden configuration");
    let config = ModelConfig::parse(&text, &config).expect("it is one");
    let rounded = scratch::folder("rounded");
    checkpoint::save(&rounded, &checkpoint::load(golden()).expect("the golden checkpoint loads"), &config, Dtype::Bf16)
        .expect("it is saved");
    let gradient = |folder: &Path, precision| {
        let model = adapted(folder, precision);
        let (rows, ids) = ((0..20).collect::<Vec<_>>(), (0..20).map(|i| i * 7 % 150).collect::<Vec<u32>>());
        let mut grads = model.zero_gradients();
        let targets = Targets { rows: &rows, ids: &ids, weights: &[0.05; 20] };
        model.loss_and_gradients(&Batch::pack([&ids[..]]), targets, &mut grads);
        grads.iter().flatten().flat_map(|grad| grad.to_host().into_owned()).collect::<Vec<f32>>()
    };
    let exact = gradient(golden(), Precision::F32);
    for (what, got, most) in [
        ("matmuls in bf16", gradient(golden(), Precision::Bf16), 5e-2),
        ("weights in bf16", gradient(&rounded, Precision::F32), 5e-2),
        ("weights and matmuls in bf16", gradient(&rounded, Precision::Bf16), 5e-2),
        ("matmuls of two bf16 numbers for each", gradient(golden(), Precision::Bf16x3), 1e-4),
    ] {
        let distance = norm(exact.iter().zip(&got).map(|(a, b)| a - b)) / norm(exact.iter().copied());
        assert!(distance > 0.0 && distance < most, "{what}: {distance} of the gradient's norm");
    }
}

#[test]
fn training_curves_lie_on_each_other() {
    for kind in [Kind::Sft, Kind::Weft] {
        let [exact, rounded] =
            [Precision::F32, Precision::Bf16].map(|precision| run_steps(&mut trainer(precision, kind, 40)));
        // A model in plain Rust stands in for the instructions, so a part of the run has to do.
        let mut slow = trainer(Precision::Bf16x3, kind, 40);
        let in_parts: Vec<f64> = (0..8).map(|_| slow.step().expect("the step works").loss).collect();
        assert_ne!(exact, rounded);
        assert_ne!(exact[..8], in_parts);
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        assert!(mean(&exact[60..]) < 0.9 * mean(&exact[..20]), "nothing is learnt: {exact:?}");
        for (exact, rounded) in exact.chunks(10).zip(rounded.chunks(10)) {
            let [exact, rounded] = [exact, rounded].map(mean);
            assert!((exact - rounded).abs() < 0.03 * exact, "{kind:?}: {exact} and {rounded}");
        }
        for (exact, in_parts) in exact.iter().zip(&in_parts) {
            assert!((exact - in_parts).abs() < 1e-3 * exact, "{kind:?}: {exact} and {in_parts}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for precision in PRECISIONS {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
            pool.install(|| trained_bits(trainer(precision, Kind::Weft, 2)))
        };
        let one = with_threads(1);
        assert_eq!(one, with_threads(2), "{precision}");
        assert_eq!(one, with_threads(4), "{precision}");
    }
}

#[test]
fn what_is_kept_for_backward_changes_no_bit() {
    for precision in PRECISIONS {
        let with_bytes = |bytes| {
            let mut trainer = trainer(precision, Kind::Weft, 2);
            trainer.model.config.activation_bytes = bytes;
            trained_bits(trainer)
        };
        assert_eq!(with_bytes(usize::MAX), with_bytes(0), "{precision}");
    }
}

#[test]
fn entropies_may_have_a_format_of_their_own() {
    let masked = |precision, entropy_precision| {
        let mut trainer = trainer(precision, Kind::Weft, 1);
        trainer.model.config.entropy_precision = entropy_precision;
        let report = trainer.step().expect("the step works");
        (report.entropy.expect("weft has entropies").mean, report.loss)
    };
    let [exact, of_bf16, bf16] = [[0, 0], [0, 1], [1, 1]].map(|[p, e]| masked(PRECISIONS[p], PRECISIONS[e]));
    assert_ne!(exact.0, of_bf16.0);
    assert_eq!(of_bf16.0, bf16.0);
    assert!((exact.0 - of_bf16.0).abs() < 1e-2 * exact.0, "{exact:?} {of_bf16:?}");
    assert_ne!(of_bf16.1, bf16.1);
}

#[test]
fn operands_of_two_bf16_numbers_compute_pytorchs_numbers() {
    for family in ["llada", "dream", "a2d-qwen3", "a2d-qwen2", "illada"] {
        let folder = golden().with_file_name(family);
        let mut model = checkpoint::load(&folder).expect("the golden checkpoint loads");
        model.params.iter_mut().for_each(|p| p.trainable = true);
        (model.config.precision, model.config.entropy_precision) = (Precision::Bf16x3, Precision::Bf16x3);
        let rows = parity::check(&model, &folder.join("objectives.safetensors")).expect("the reference is read");
        let past: Vec<_> = rows.iter().filter(|row| !Tolerances::of(Precision::Bf16x3).pass(row)).collect();
        assert!(rows.len() > 20 && past.is_empty(), "{family}: {past:?}");
    }
}
