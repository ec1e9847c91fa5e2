//! Layouts of which no golden checkpoint exists, as random models: each computes what a plain network in f64 computes,
//! and has the gradients of its loss.

mod fixtures;
mod plain;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{IDS, assert_close, disturb, load, logits, read};
use plain::random;
use scratch::folder;
use serde_json::{Value, json};
use weft::base::Base;
use weft::merge;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::checkpoint::{self, load_with};
use weft::model::facts::Overrides;
use weft::model::lora::{self, LoraConfig};
use weft::train::optimizer::Optimizer;
use weft::train::settings::TrainTable;
use weft_kernels::precision::Precision;
use weft_kernels::weight::Dtype;

/// How far f32 may lie from f64, as a share of the largest number.
const TOLERANCE: f32 = 1e-4;

/// Fields of a config.json of two layers, with some changed; null takes a field away.
fn fields(model_type: &str, changes: Value) -> Value {
    let mut fields = json!({
        "model_type": model_type, "vocab_size": 160, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "tie_word_embeddings": false, "mask_token_id": 159, "eos_token_id": 157, "pad_token_id": 156,
        "hidden_act": "silu", "torch_dtype": "float32",
    });
    let own = fields.as_object_mut().expect("a literal object");
    for (key, value) in changes.as_object().expect("the changes are an object").clone() {
        if value.is_null() {
            own.remove(&key);
        } else {
            own.insert(key, value);
        }
    }
    fields
}

/// A random model's folder, stored as f32.
fn stored(name: &str, fields: &Value) -> PathBuf {
    let (folder, (model, config)) = (folder(name), random(fields));
    checkpoint::save(&folder, &model, &config, Dtype::F32).expect("the checkpoint is saved");
    folder
}

/// Negative log-likelihoods and entropy of a row of logits.
fn of_logits(logits: &[f64]) -> (Vec<f64>, f64) {
    let total: f64 = logits.iter().map(|z| z.exp()).sum();
    let nll: Vec<f64> = logits.iter().map(|z| total.ln() - z).collect();
    let entropy = nll.iter().map(|nll| nll * (-nll).exp()).sum();
    (nll, entropy)
}

const ROWS: [usize; 3] = [0, 2, 5];
const TARGETS: [u32; 3] = [9, 7, 8];
const WEIGHTS: [f32; 3] = [1.0, 0.5, 1.5];

fn plain_loss(model: &Transformer) -> f64 {
    let pass = plain::forward(model, &IDS, 0..IDS.len(), None);
    let nll = ROWS.iter().zip(TARGETS).map(|(row, id)| of_logits(&pass.logits[*row]).0[id as usize]);
    nll.zip(WEIGHTS).map(|(nll, weight)| nll * f64::from(weight)).sum()
}

/// Holds logits, entropies, nll and the gradient of every trainable parameter against the plain network.
fn assert_plain(what: &str, model: &mut Transformer) {
    let batch = Batch::pack([&IDS[..]]);
    let rows: Vec<usize> = (0..IDS.len()).collect();
    let pass = plain::forward(model, &IDS, 0..IDS.len(), None);
    let mut own = vec![];
    model.for_each_logits(&batch, &rows, |_, chunk| own.extend_from_slice(chunk));
    let expected: Vec<f32> = pass.logits.concat().iter().map(|z| *z as f32).collect();
    let spread = expected.iter().fold(0.0f32, |m, z| m.max(z.abs()));
    assert!(spread > 0.5, "{what}: the logits say something: {spread}");
    assert_close(&own, &expected, TOLERANCE);
    let entropies: Vec<f32> = pass.logits.iter().map(|z| of_logits(z).1 as f32).collect();
    assert_close(&model.entropy(&batch, &rows), &entropies, TOLERANCE);
    let mut grads = model.zero_gradients();
    let targets = Targets { rows: &ROWS, ids: &TARGETS, weights: &WEIGHTS };
    let nll = model.loss_and_gradients(&batch, targets, &mut grads).nll;
    let plain: Vec<f32> =
        ROWS.iter().zip(TARGETS).map(|(row, id)| of_logits(&pass.logits[*row]).0[id as usize] as f32).collect();
    assert_close(&nll, &plain, TOLERANCE);
    for (id, grad) in grads.iter().enumerate().filter_map(|(id, grad)| Some((id, grad.as_ref()?.to_host()))) {
        let largest = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).expect("numbers");
        for at in [largest, 0, grad.len() / 2, grad.len() - 1] {
            let numeric = central_difference(model, id, at);
            let bound = 2e-3 * f64::from(grad[largest]).abs() + 1e-6;
            let name = &model.params[id].name;
            assert!((numeric - f64::from(grad[at])).abs() <= bound, "{what}: {name}[{at}]: {numeric}, {}", grad[at]);
        }
    }
}

fn central_difference(model: &mut Transformer, id: usize, at: usize) -> f64 {
    let before = model.params[id].weight.make_trainable()[at];
    let mut moved = |x: f32| {
        model.params[id].weight.make_trainable()[at] = x;
        plain_loss(model)
    };
    let (above, below) = (before + 1e-3, before - 1e-3);
    let slope = (moved(above) - moved(below)) / f64::from(above - below);
    moved(before);
    slope
}

fn train_everything(model: &mut Transformer) {
    model.params.iter_mut().for_each(|param| param.trainable = true);
}

/// Layouts by name.
fn layouts() -> Vec<(&'static str, Value)> {
    vec![
        ("qwen3", fields("qwen3", json!({ "num_key_value_heads": 3, "head_dim": 20, "tie_word_embeddings": true }))),
        ("a2d-qwen3", fields("a2d-qwen3", json!({ "num_key_value_heads": 3, "head_dim": 20 }))),
        ("qwen3-128", fields("a2d-qwen3", json!({ "num_attention_heads": 2, "head_dim": null }))),
        ("odd", fields("a2d-qwen2", json!({ "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1 }))),
        ("odd-qwen3", fields("qwen3", json!({ "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 6 }))),
        ("a2d-llama", fields("a2d-llama", json!({ "tie_word_embeddings": true }))),
        ("sdar", fields("sdar", json!({ "num_key_value_heads": 3, "head_dim": 20 }))),
        ("fast-dllm-v2", fields("Fast_dLLM_Qwen", json!({ "num_key_value_heads": 3, "tie_word_embeddings": true }))),
        ("llama", fields("llama", json!({ "num_key_value_heads": 3, "head_dim": 12 }))),
        ("qwen2", fields("qwen2", json!({ "num_key_value_heads": 3 }))),
        ("qwen2-same", fields("qwen2", json!({ "num_key_value_heads": 3, "logits_shifted": false }))),
        ("qwen2-head-dim", fields("a2d-qwen2", json!({ "num_key_value_heads": 3, "head_dim": 10 }))),
        ("nested", {
            let nested = json!({ "rope_type": "default", "rope_theta": 1e6 });
            fields("a2d-qwen3", json!({ "rope_theta": null, "rope_parameters": nested, "head_dim": 20 }))
        }),
    ]
}

#[test]
fn every_layout_is_the_plain_network() {
    for (name, fields) in layouts() {
        let folder = stored(name, &fields);
        let mut model = load(&folder);
        assert_eq!(logits(&model), logits(&random(&fields).0), "{name}: save and load are inverse");
        train_everything(&mut model);
        assert_plain(name, &mut model);
    }
}

#[test]
fn a_layout_has_the_tensors_of_its_switches() {
    let shape = |name: &str, part: &str| {
        let fields = layouts().into_iter().find(|(of, _)| *of == name).expect("it is one of them").1;
        let (model, _) = random(&fields);
        let found = model.params.iter().find(|param| param.name == part);
        found.map(|param| param.shape.clone())
    };
    let layer = |part: &str| format!("model.layers.1.{part}");
    assert_eq!(shape("qwen3", &layer("self_attn.q_proj.weight")), Some(vec![120, 48]));
    assert_eq!(shape("qwen3", &layer("self_attn.k_proj.weight")), Some(vec![60, 48]));
    assert_eq!(shape("qwen3", &layer("self_attn.o_proj.weight")), Some(vec![48, 120]));
    assert_eq!(shape("qwen3", &layer("self_attn.k_norm.weight")), Some(vec![20]));
    assert_eq!(shape("qwen3", &layer("self_attn.q_proj.bias")), None);
    assert_eq!(shape("qwen3", "lm_head.weight"), None);
    assert_eq!(shape("qwen3-128", &layer("self_attn.q_norm.weight")), Some(vec![128]));
    assert_eq!(shape("qwen2", &layer("self_attn.v_proj.bias")), Some(vec![24]));
    assert_eq!(shape("qwen2", &layer("self_attn.o_proj.bias")), None);
    assert_eq!(shape("llama", &layer("self_attn.q_norm.weight")), None);
    assert_eq!(shape("llama", "lm_head.weight"), Some(vec![160, 48]));
}

#[test]
fn the_shift_is_the_familys_unless_it_is_said() {
    let folder = stored("shift", &fields("qwen2", json!({})));
    let own = load(&folder);
    assert!(own.config.logits_shifted);
    let overrides = Overrides { logits_shifted: Some(false), ..Overrides::default() };
    let (mut same, _) = load_with(&folder, overrides).expect("the checkpoint loads");
    // Logits of the rows 0, 1, 4 and 8; a shifted model's second one is the other's first.
    let [shifted, same_place] = [logits(&own), logits(&same)];
    assert_eq!(shifted[160..320], same_place[..160]);
    assert_ne!(shifted[320..480], same_place[320..480]);
    train_everything(&mut same);
    assert_plain("not shifted", &mut same);
}

#[test]
fn theta_counts_wherever_it_stands() {
    let nested =
        |theta: f64| json!({ "rope_theta": null, "rope_parameters": { "rope_type": "default", "rope_theta": theta } });
    let of = |changes: Value| logits(&random(&fields("a2d-qwen3", changes)).0);
    assert_eq!(of(nested(1e6)), of(json!({ "rope_theta": 1e6 })));
    assert_ne!(of(nested(1e6)), of(json!({})));
    let scaling = json!({ "rope_theta": null, "rope_scaling": { "rope_type": "default", "rope_theta": 1e6 } });
    assert_eq!(of(scaling), of(json!({ "rope_theta": 1e6 })), "the older name of the object");
}

#[test]
fn bf16_storage_is_the_plain_network_of_rounded_numbers() {
    for (name, fields) in layouts().into_iter().take(4) {
        let (folder, (model, config)) = (folder(&format!("{name}-bf16")), random(&fields));
        checkpoint::save(&folder, &model, &config, Dtype::Bf16).expect("the checkpoint is saved");
        let mut rounded = load(&folder);
        assert!(rounded.params.iter().all(|param| param.weight.dtype() == Dtype::Bf16), "{name}");
        assert_ne!(logits(&rounded), logits(&model));
        assert_plain(name, &mut rounded);
    }
}

/// A tied model's folder, and the same with its embedding's numbers, changed by `change`, as a head.
fn with_head(name: &str, change: impl Fn(&mut Vec<f32>)) -> [PathBuf; 2] {
    let fields = fields("a2d-qwen3", json!({ "tie_word_embeddings": true, "head_dim": 20 }));
    let [tied, copied] = [name.to_owned(), format!("{name}-copied")].map(|name| stored(&name, &fields));
    let file = copied.join("model.safetensors");
    let mut tensors = read(&fs::read(&file).expect("there"));
    let (shape, mut numbers) = tensors["model.embed_tokens.weight"].clone();
    change(&mut numbers);
    tensors.insert("lm_head.weight".to_owned(), (shape, numbers));
    fixtures::write(&file, &tensors);
    [tied, copied].map(|folder| fixtures::DREAM.with_text(name, &folder))
}

fn ties(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("config.json")).expect("there is a config");
    serde_json::from_str::<Value>(&text).expect("it is JSON")["tie_word_embeddings"].clone()
}

fn adapted(folder: &Path, targets: &[&str]) -> Base {
    let mut base = Base::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    lora::attach_fresh(&mut base.model, &LoraConfig::new(3, 6.0, 0.0, targets, true), 5).expect("they are there");
    disturb(&mut base.model);
    base
}

#[test]
fn an_equal_head_in_the_file_is_the_tied_one() {
    let [tied, copied] = with_head("tied", |_| {});
    let [a, b] = [&tied, &copied].map(|folder| Base::open(folder).expect("it opens"));
    assert!(a.model.has_tied_head() && b.model.has_tied_head());
    assert_eq!(logits(&a.model), logits(&b.model));
    assert_eq!(a.model.params.len(), b.model.params.len());
    assert!(!b.told().contains("the head is its own"), "{}", b.told());
    let saved = folder("tied-saved");
    b.save(&saved, Dtype::F32).expect("it is saved");
    assert_eq!((logits(&load(&saved)), ties(&saved)), (logits(&a.model), json!(true)));
    assert!(load(&saved).has_tied_head());
    for (targets, is_tied) in [(&["q_proj"][..], true), (&["q_proj", "lm_head"], false)] {
        let base = adapted(&copied, targets);
        let out = folder("tied-merged");
        merge::write(&base, &out).expect("an empty folder is free");
        assert_close(&logits(&load(&out)), &logits(&base.model), 1e-5);
        assert_eq!((load(&out).has_tied_head(), ties(&out)), (is_tied, json!(is_tied)), "{targets:?}");
    }
}

#[test]
fn another_head_in_the_file_counts() {
    let [tied, own] = with_head("own-head", |head| head.iter_mut().step_by(3).for_each(|x| *x += 0.05));
    let base = Base::open(&own).expect("it opens");
    assert!(!base.model.has_tied_head() && base.told().contains("the head is its own"), "{}", base.told());
    assert_ne!(logits(&base.model), logits(&load(&tied)));
    let mut model = base.model.clone();
    train_everything(&mut model);
    assert_plain("a head of its own", &mut model);
    let saved = folder("own-head-saved");
    base.save(&saved, Dtype::F32).expect("it is saved");
    assert_eq!((logits(&load(&saved)), ties(&saved)), (logits(&base.model), json!(false)));
    for targets in [&["q_proj"][..], &["q_proj", "lm_head"]] {
        let base = adapted(&own, targets);
        let out = folder("own-head-merged");
        merge::write(&base, &out).expect("an empty folder is free");
        assert_close(&logits(&load(&out)), &logits(&base.model), 1e-5);
        assert_eq!((load(&out).has_tied_head(), ties(&out)), (false, json!(false)), "{targets:?}");
    }
}

#[test]
fn rslora_adapts_the_head_tied_or_not() {
    let [tied, copied] = with_head("rslora", |head| head.iter_mut().step_by(3).for_each(|x| *x += 0.05));
    for (folder, is_tied) in [(tied, true), (copied, false)] {
        let mut base = adapted(&folder, &["lm_head", "k_proj"]);
        assert_eq!(base.model.has_tied_head(), is_tied);
        assert_eq!(base.model.config.lora_scale, (6.0 / f64::sqrt(3.0)) as f32);
        assert_ne!(logits(&base.model), logits(&load(&folder)));
        assert_plain("rsLoRA", &mut base.model);
        let config = LoraConfig::new(3, 6.0, 0.0, ["lm_head", "k_proj"].map(str::to_owned).to_vec(), true);
        let adapter = scratch::folder("rslora-adapter");
        lora::save(&adapter, &base.model, &config, "base").expect("it is saved");
        let mut again = load(&folder);
        lora::load(&adapter, &mut again).expect("it loads");
        assert_eq!(logits(&again), logits(&base.model));
        let out = scratch::folder("rslora-merged");
        merge::write(&base, &out).expect("an empty folder is free");
        assert_close(&logits(&load(&out)), &logits(&base.model), 1e-5);
        assert!(!load(&out).has_tied_head());
    }
}

#[test]
fn norms_of_queries_and_keys_are_trained_and_not_decayed() {
    let (mut model, _) = random(&fields("a2d-qwen3", json!({ "head_dim": 20 })));
    train_everything(&mut model);
    let before = model.clone();
    let mut optimizer = Optimizer::new(&mut model);
    let settings = TrainTable { weight_decay: 0.5, max_grad_norm: 0.0, ..TrainTable::default() };
    optimizer.update(&mut model, &before.zero_gradients(), 0.0, (0, 0.1), &settings);
    for (old, new) in before.params.iter().zip(&model.params) {
        let is_matrix = old.shape.len() == 2;
        let rate = if is_matrix { 1.0 - 0.1 * 0.5 } else { 1.0 };
        let expected: Vec<f32> = old.weight.to_f32().iter().map(|x| x * rate).collect();
        assert_close(&new.weight.to_f32(), &expected, if is_matrix { 1e-6 } else { 0.0 });
    }
    let mut grads = model.zero_gradients();
    let targets = Targets { rows: &ROWS, ids: &TARGETS, weights: &WEIGHTS };
    model.loss_and_gradients(&Batch::pack([&IDS[..]]), targets, &mut grads);
    let before = model.clone();
    optimizer.update(&mut model, &grads, 1.0, (1, 0.1), &settings);
    let is_norm = |name: &str| name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight");
    let norms = before.params.iter().zip(&model.params).filter(|(old, _)| is_norm(&old.name));
    let moved: Vec<bool> = norms.map(|(old, new)| old.weight.to_f32() != new.weight.to_f32()).collect();
    assert_eq!(moved, [true; 4]);
}

#[test]
fn a_parameter_that_is_trained_alone_has_the_gradient_it_has_among_all() {
    let gradients = |model: &Transformer| {
        let mut grads = model.zero_gradients();
        let targets = Targets { rows: &ROWS, ids: &TARGETS, weights: &WEIGHTS };
        model.loss_and_gradients(&Batch::pack([&IDS[..]]), targets, &mut grads);
        grads
    };
    for (name, fields) in layouts().into_iter().filter(|(name, _)| ["a2d-qwen3", "qwen2"].contains(name)) {
        let (mut model, _) = random(&fields);
        train_everything(&mut model);
        let all = gradients(&model);
        for id in 0..model.params.len() {
            model.params.iter_mut().enumerate().for_each(|(other, param)| param.trainable = other == id);
            let alone = gradients(&model);
            assert_eq!(alone.iter().flatten().count(), 1, "{name}");
            let [alone, among] = [&alone, &all].map(|grads| grads[id].as_ref().expect("it is trained").to_host());
            assert_close(&alone, &among, 1e-5);
        }
    }
}

#[test]
fn what_is_saved_for_backward_changes_no_bit_of_a_gradient() {
    for (name, fields) in layouts().into_iter().filter(|(name, _)| ["qwen3", "odd-qwen3", "qwen2"].contains(name)) {
        for precision in [Precision::F32, Precision::Bf16] {
            let gradients = |activation_bytes: usize| {
                let (mut model, _) = random(&fields);
                train_everything(&mut model);
                (model.config.precision, model.config.activation_bytes) = (precision, activation_bytes);
                let mut grads = model.zero_gradients();
                let targets = Targets { rows: &ROWS, ids: &TARGETS, weights: &WEIGHTS };
                model.loss_and_gradients(&Batch::pack([&IDS[..]]), targets, &mut grads);
                grads.iter().flatten().map(|grad| grad.to_host().into_owned()).collect::<Vec<_>>()
            };
            assert!(gradients(0) == gradients(usize::MAX), "{name} {precision}");
            assert!(gradients(0) == gradients(12_000), "{name} {precision}: one of two layers");
        }
    }
}
