//! Every family's network against PyTorch's numbers: logits, entropies, and every parameter's gradient.

mod device;

use std::path::{Path, PathBuf};

use device::on_device;

use safetensors::SafeTensors;
use weft::model::batch::{Batch, Targets};
use weft::model::block::{Gradients, Transformer};
use weft::model::{checkpoint, lora};

const TOLERANCE: f32 = 1e-4;
const FAMILIES: [&str; 5] = ["llada", "dream", "a2d-qwen3", "a2d-qwen2", "illada"];

fn numbers(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("the golden file has the tensor");
    tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn integers(file: &SafeTensors, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).expect("the golden file has the tensor");
    tensor.data().chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as u32).collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= TOLERANCE * largest, "{what}[{i}]: got {g}, expected {e}");
    }
}

fn logits(model: &Transformer, batch: &Batch) -> Vec<f32> {
    let rows: Vec<usize> = (0..batch.ids.len()).collect();
    let mut all = vec![];
    model.for_each_logits(batch, &rows, |_, chunk| all.extend_from_slice(chunk));
    all
}

fn golden(name: &str) -> (PathBuf, Transformer) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let model = checkpoint::load(&folder).expect("the golden checkpoint loads");
    (folder, on_device(model))
}

#[test]
fn the_whole_model_matches_pytorch() {
    for name in FAMILIES {
        let (folder, mut model) = golden(name);
        model.params.iter_mut().for_each(|p| p.trainable = true);
        assert_matches(&model, &folder);
    }
}

#[test]
fn a_peft_adapter_matches_pytorch() {
    for (name, count) in FAMILIES.into_iter().zip([12, 28, 28, 8, 12]) {
        let (folder, mut model) = golden(name);
        lora::load(&folder.join("lora/adapter"), &mut model).expect("the golden adapter loads");
        model = on_device(model);
        assert_eq!(model.params.iter().filter(|p| p.trainable).count(), count);
        assert_matches(&model, &folder.join("lora"));
    }
}

#[test]
fn a_batch_is_the_sum_of_its_sequences() {
    // The first and the second token of a sequence are among the targets: with shifted logits one row predicts both.
    let sequences: [&[u32]; 3] = [&[5, 9, 3, 77], &[40], &[11, 2, 8, 8, 6]];
    let targets: [&[usize]; 3] = [&[0, 1, 3], &[0], &[1, 4]];
    for name in FAMILIES {
        let (_, mut model) = golden(name);
        model.params.iter_mut().for_each(|p| p.trainable = true);
        let loss = |sequences: &[&[u32]], targets: &[&[usize]], grads: &mut Gradients| -> Vec<f32> {
            let batch = Batch::pack(sequences.iter().copied());
            let in_batch = batch.sequences.iter().zip(targets);
            let rows: Vec<usize> = in_batch.flat_map(|(s, t)| t.iter().map(|t| s.start + t)).collect();
            let ids: Vec<u32> = rows.iter().map(|row| batch.ids[*row] + 1).collect();
            let targets = Targets { rows: &rows, ids: &ids, weights: &vec![0.5; rows.len()] };
            assert_close("nll", &model.nll(&batch, &rows, &ids), &model.loss_and_gradients(&batch, targets, grads).nll);
            model.entropy(&batch, &rows)
        };
        let (mut whole, mut single) = (model.zero_gradients(), model.zero_gradients());
        let together = loss(&sequences, &targets, &mut whole);
        let apart: Vec<f32> = (0..3).flat_map(|i| loss(&sequences[i..=i], &targets[i..=i], &mut single)).collect();
        assert_close("entropy", &together, &apart);
        for ((param, whole), single) in model.params.iter().zip(whole).zip(single) {
            let [whole, single] = [whole, single].map(|grad| grad.expect("everything is trained"));
            assert_close(&param.name, &whole.to_host(), &single.to_host());
        }
    }
}

/// Logits, entropies, nll and the gradient of every trainable parameter against a reference file.
fn assert_matches(model: &Transformer, folder: &Path) {
    let bytes = std::fs::read(folder.join("objectives.safetensors")).expect("the golden file is there");
    let file = SafeTensors::deserialize(&bytes).expect("the golden file is whole");
    let (ids, starts) = (integers(&file, "input_ids"), integers(&file, "prompt_lengths"));
    let length = ids.len() / starts.len();
    let is_answer = |n: usize| n % length >= starts[n / length] as usize;
    let pack = |ids: &[u32]| Batch::pack(ids.chunks(length));
    assert_close("logits_clean", &logits(model, &pack(&ids)), &numbers(&file, "logits_clean"));

    let mask_id = model.config.mask_token_id;
    let noise = |masked: &dyn Fn(usize) -> bool| -> Vec<u32> {
        ids.iter().enumerate().map(|(n, id)| if masked(n) { mask_id } else { *id }).collect()
    };
    let all_masked = pack(&noise(&is_answer));
    assert_close("logits_answer_masked", &logits(model, &all_masked), &numbers(&file, "logits_answer_masked"));
    let answers: Vec<usize> = (0..ids.len()).filter(|n| is_answer(*n)).collect();
    let entropy = numbers(&file, "entropy");
    let expected: Vec<f32> = answers.iter().map(|n| entropy[*n]).collect();
    assert_close("entropy", &model.entropy(&all_masked, &answers), &expected);

    for objective in ["sft", "weft_sqrt"] {
        let masked =
            file.tensor(&format!("{objective}.masked")).expect("the golden file has the masks").data().to_vec();
        let [rates, nll] = ["t_i", "nll"].map(|name| numbers(&file, &format!("{objective}.{name}")));
        let rows: Vec<usize> = (0..ids.len()).filter(|n| masked[*n] != 0).collect();
        let targets: Vec<u32> = rows.iter().map(|n| ids[*n]).collect();
        let weights: Vec<f32> = rows.iter().map(|n| 1.0 / rates[*n] / answers.len() as f32).collect();
        let mut grads = model.zero_gradients();
        let batch = pack(&noise(&|n| masked[n] != 0));
        let targets = Targets { rows: &rows, ids: &targets, weights: &weights };
        let got = model.loss_and_gradients(&batch, targets, &mut grads);
        assert_close("nll", &got.nll, &rows.iter().map(|n| nll[*n]).collect::<Vec<_>>());
        for (param, grad) in model.params.iter().zip(&grads).filter(|(param, _)| param.trainable) {
            let name = format!("{objective}.grad.{}", param.name);
            let grad = grad.as_ref().expect("every parameter is trained").to_host();
            assert_close(&name, &grad, &numbers(&file, &name));
        }
    }
}
