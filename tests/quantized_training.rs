//! Training adapters on a base in 4 bits: the gradients are those of the same network with dequantized weights, and a
//! run by the command line trains, resumes, is planned, asked and merged.

mod device;
mod fixtures;
mod scratch;
mod small_run;

use std::fs;
use std::path::{Path, PathBuf};

use device::on_device;
use fixtures::{FAMILIES, Golden, IDS, disturb, stdout, weft};
use scratch::folder;
use serde_json::Value;
use weft::data::packing::Padding;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::quantize::Quantization;
use weft::objective::Objective;
use weft_kernels::precision::Precision;
use weft_kernels::weight::{Dtype, Weight, to_bf16_bytes};

/// A golden model with an adapter on every layer, its base in 4 bits.
fn quantized(golden: Golden, double_quant: bool) -> Transformer {
    let mut model = golden.load();
    model.quantize(Quantization { double_quant });
    small_run::adapt(&mut model, 0.1);
    disturb(&mut model);
    model
}

/// The same network with plain weights.
fn dequantized(mut model: Transformer) -> Transformer {
    for param in &mut model.params {
        let (rows, cols, numbers) = (param.weight.rows(), param.weight.cols(), param.weight.to_f32().into_owned());
        param.weight = match param.weight.dtype() {
            Dtype::F32 => Weight::from_f32(rows, cols, numbers),
            Dtype::Bf16 => Weight::from_bytes(rows, cols, Dtype::Bf16, &to_bf16_bytes(&numbers)),
        };
    }
    model
}

/// The losses and the gradients of every adapter.
fn gradients(model: &Transformer) -> (Vec<f32>, Vec<f32>) {
    let (rows, ids) = ([0, 1, 4, 8], [5, 9, 2, 40]);
    let mut batch = Batch::pack([&IDS[..]]);
    batch.dropout_keys = Some((0..IDS.len() as u64).collect());
    let mut grads = model.zero_gradients();
    let pass = model.loss_and_gradients(&batch, Targets { rows: &rows, ids: &ids, weights: &[0.25; 4] }, &mut grads);
    (pass.nll, grads.iter().flatten().flat_map(|grad| grad.to_host().to_vec()).collect())
}

#[test]
fn gradients_are_those_of_the_dequantized_network() {
    for golden in FAMILIES {
        for (precision, double_quant) in [(Precision::F32, false), (Precision::F32, true), (Precision::Bf16, true)] {
            let mut model = quantized(golden, double_quant);
            model.config.precision = precision;
            let plain = dequantized(model.clone());
            let ((nll, grads), (expected_nll, expected)) = (gradients(&on_device(model)), gradients(&on_device(plain)));
            assert!(grads.iter().any(|x| *x != 0.0));
            assert_eq!(nll, expected_nll, "{} {precision}", golden.name);
            assert_eq!(grads, expected, "{} {precision}: the same numbers reach the same matmuls", golden.name);
        }
    }
}

#[test]
fn a_run_on_four_bits_trains_the_adapter_and_leaves_the_base() {
    let model = quantized(fixtures::LLADA, true);
    let before: Vec<Vec<f32>> =
        model.params.iter().filter(|p| !p.is_adapters()).map(|p| p.weight.to_f32().into_owned()).collect();
    let made = |model| {
        small_run::trainer(model, small_run::examples(), small_run::settings(), (Objective::default(), Padding::None))
    };
    let mut trainer = made(on_device(model));
    let losses: Vec<f64> = (0..9).map(|_| trainer.step().expect("the step works").loss).collect();
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    let trained = |model: &Transformer| -> Vec<Vec<f32>> {
        model.params.iter().filter(|p| p.is_adapters()).map(|p| p.weight.to_f32().into_owned()).collect()
    };
    assert!(trained(&trainer.model).iter().zip(trained(&quantized(fixtures::LLADA, true))).all(|(a, b)| *a != b));
    let after = trainer.model.params.iter().filter(|p| !p.is_adapters());
    assert!(after.zip(&before).all(|(p, before)| *p.weight.to_f32() == before[..]));
}

/// A recipe of a short run on the embedded base in 4 bits.
fn run_folder(name: &str) -> PathBuf {
    let folder = folder(name);
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..16).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\nquantize = \"nf4\"\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\n\
                  held_out_rows = 4\n[train]\noutput = \"run\"\nlr = 1e-3\nmicro_batch_size = 4\ncheckpoint_every = 2\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("it is there")).expect("it is JSON")
}

/// The message of a command that is refused.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_says_on_what_it_trained_and_resumes_bit_for_bit() {
    let folder = run_folder("run");
    let told = stdout(&folder, &["train", "recipe.toml"]);
    assert!(told.contains("--quantize nf4"), "the question is asked of the same base: {told}");
    let adapter = folder.join("run/adapter");
    let config = json_of(&adapter.join("adapter_config.json"));
    assert_eq!(config["base_quantization"], serde_json::json!({ "quant_type": "nf4", "double_quant": true }));
    assert_eq!(config["base_model_name_or_path"], "tiny-base");
    let card = fs::read_to_string(adapter.join("README.md")).expect("there is a card");
    assert!(card.contains("linear layers in nf4") && card.contains("quantize = \"nf4\""), "{card}");
    let tensors = || fs::read(adapter.join("adapter_model.safetensors")).expect("it is there");
    let whole = tensors();
    // As a crash after three steps leaves it.
    for left in ["checkpoints/step-00000004", "adapter"] {
        fs::remove_dir_all(folder.join("run").join(left)).expect("it was there");
    }
    fs::remove_file(folder.join("run/results.json")).expect("it was there");
    stdout(&folder, &["train", "recipe.toml", "--resume"]);
    assert!(tensors() == whole, "the resumed run ends with the same adapter");
    // A run goes on only on the base that it began on.
    let told = refused(&folder, &["train", "recipe.toml", "--resume", "--set", "model.double_quant=false"]);
    assert!(told.contains("double_quant"), "{told}");
    // The adapter is trained further, asked and measured, on four bits and on the whole base.
    let more = ["train", "recipe.toml", "--set", "model.adapter=run/adapter", "--set", "train.output=more"];
    stdout(&folder, &more);
    for options in [&["--quantize", "nf4"][..], &["--quantize", "nf4", "--double-quant", "false"], &[]] {
        let asked = ["generate", "--model", "tiny-base", "--adapter", "run/adapter", "--prompt", "What is 3 + 1?"];
        stdout(&folder, &[&asked, options].concat());
    }
}

#[test]
fn an_adapter_is_merged_into_either_base() {
    let folder = run_folder("merge");
    stdout(&folder, &["train", "recipe.toml", "--set", "train.epochs=1"]);
    let merge = |out: &str, more: &[&str]| {
        let args = ["merge", "--model", "tiny-base", "--adapter", "run/adapter", "--out", out];
        stdout(&folder, &[&args, more].concat())
    };
    let told = [merge("original", &[]), merge("four-bits", &["--quantize", "nf4"])];
    assert!(told[0].contains("trained on a base in nf4") && told[0].contains("--quantize nf4"), "{}", told[0]);
    assert!(told[1].contains("dequantized"), "{}", told[1]);
    let [original, four_bits] = ["original", "four-bits"].map(|out| fixtures::load(&folder.join(out)));
    let differ = |part: &str| {
        let of = |model: &Transformer| -> Vec<Vec<f32>> {
            model.params.iter().filter(|p| p.name.contains(part)).map(|p| p.weight.to_f32().into_owned()).collect()
        };
        of(&original) != of(&four_bits)
    };
    assert!(differ("blocks.0.q_proj") && differ("blocks.0.ff_out") && !differ("wte"), "only layers were in four bits");
    assert!(!original.params.iter().chain(&four_bits.params).any(|p| p.weight.is_quantized()));
}

#[test]
fn a_base_in_four_bits_is_planned_and_stays_frozen() {
    let folder = run_folder("plan");
    let recipe = fs::read_to_string(folder.join("recipe.toml")).expect("it is there");
    fs::write(folder.join("plain.toml"), recipe.replace("quantize = \"nf4\"\n", "")).expect("it is written");
    let weights = |recipe: &str, more: &[&str]| {
        let plan = stdout(&folder, &[&["plan", recipe, "--json", "--device", "cpu"], more].concat());
        let plan: Value = serde_json::from_str(&plan).expect("it is JSON");
        let parts = plan["parts"].as_array().expect("a list").clone();
        let of = |part: &Value| (part["name"] == "weights").then(|| part["bytes"].as_u64().expect("a number"));
        parts.iter().find_map(of).expect("there are weights")
    };
    let double = weights("recipe.toml", &[]);
    let single = weights("recipe.toml", &["--set", "model.double_quant=false"]);
    assert!(double < single && single < weights("plain.toml", &[]));
    assert_eq!(weights("plain.toml", &["--quantize", "nf4"]), double);
    let told = refused(&folder, &["train", "recipe.toml", "--set", "model.trainable=full"]);
    assert!(told.contains("model.quantize = \"nf4\" does not go with model.trainable = \"full\""), "{told}");
    let told = refused(&folder, &["generate", "--model", "tiny-base", "--quantize", "fp4", "--prompt", "x"]);
    assert!(told.contains("nf4"), "{told}");
}
