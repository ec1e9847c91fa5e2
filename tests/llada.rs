//! The LLaDA network against PyTorch's numbers: logits, entropies, and every parameter's gradient.

use std::path::Path;

use safetensors::SafeTensors;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::{llada, lora};

const TOLERANCE: f32 = 1e-4;

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

#[test]
fn the_whole_model_matches_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut model = llada::load(&folder).expect("the golden checkpoint loads");
    model.params.iter_mut().for_each(|p| p.trainable = true);
    assert_matches(&model, &folder);
}

#[test]
fn a_peft_adapter_matches_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut model = llada::load(&folder).expect("the golden checkpoint loads");
    lora::load(&folder.join("lora/adapter"), &mut model).expect("the golden adapter loads");
    assert_eq!(model.params.iter().filter(|p| p.trainable).count(), 12);
    assert_matches(&model, &folder.join("lora"));
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
            assert_close(&name, grad.as_ref().expect("every parameter is trained"), &numbers(&file, &name));
        }
    }
}
