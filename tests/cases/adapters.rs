//! Adapters that people have, and targets that they name.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use weft::model::lora;

use super::program::{Case, pairs, recipe, refused, set, trains};
use crate::fixtures::{DREAM, LLADA, Tensor, logits, read, write};
use crate::scratch::folder;

pub const CASES: &[Case] = &[
    ("A1", names_of_another_family),
    ("A2", all_linear_and_the_head),
    ("A4", f16),
    ("A5", pickles),
    ("A7", no_targets),
    ("A8", eva),
    ("A10", other_wrappers),
    ("A11", old_and_new_fields),
    ("also 6", names_that_match_nothing),
];

fn tensors() -> HashMap<String, Tensor> {
    read(&fs::read(LLADA.path().join("lora/adapter/adapter_model.safetensors")).expect("it is there"))
}

/// The golden adapter with other tensors and some fields of its configuration changed.
fn adapter(tensors: &HashMap<String, Tensor>, changes: Value) -> PathBuf {
    let folder = folder("adapter");
    let text = fs::read_to_string(LLADA.path().join("lora/adapter/adapter_config.json")).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("it is written");
    write(&folder.join("adapter_model.safetensors"), tensors);
    folder
}

fn logits_with(folder: &std::path::Path) -> Vec<f32> {
    let mut model = LLADA.load();
    lora::load(folder, &mut model).unwrap_or_else(|e| panic!("{e}"));
    logits(&model)
}

#[track_caller]
fn is_refused(folder: &std::path::Path, parts: &[&str]) {
    let told = lora::load(folder, &mut LLADA.load()).expect_err("the adapter is refused").to_string();
    parts.iter().for_each(|part| assert!(told.contains(part), "{part:?} is missing: {told}"));
}

fn names_of_another_family() {
    let folder = recipe("names", &pairs(2));
    let names =
        "model.lora_targets=[\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\"]";
    let parts = [
        "\"o_proj\", \"gate_proj\", \"down_proj\"",
        "name no layer",
        "o_proj is attn_out, gate_proj is ff_proj, down_proj is ff_out",
    ];
    refused(&folder, &[&["train", "recipe.toml"][..], &set(&[names])].concat(), &parts);
    let own = names.replace("o_proj", "attn_out").replace("gate_proj", "ff_proj").replace("down_proj", "ff_out");
    trains(&folder, &set(&[&own]));
}

fn all_linear_and_the_head() {
    let folder = recipe("all-linear", &pairs(2));
    let named = ["all-linear", "give it alone, or list the layers, the head model.transformer.ff_out among them"];
    let args = [&["train", "recipe.toml"][..], &set(&["model.lora_targets=[\"all-linear\", \"ff_out\"]"])].concat();
    refused(&folder, &args, &named);
    trains(&folder, &set(&["model.lora_targets=[\"all-linear\"]"]));
    let config = lora::LoraConfig::new(2, 4.0, 0.0, vec!["all-linear".to_owned(), "lm_head".to_owned()], false);
    let told = lora::attach_fresh(&mut DREAM.load(), &config, 1).expect_err("they are refused").to_string();
    assert!(told.contains("give it alone, or list the layers, the head lm_head among them"), "{told}");
}

fn f16() {
    // Numbers that f16 has too.
    let mut rounded = tensors();
    rounded.values_mut().flat_map(|(_, numbers)| numbers).for_each(|x| *x = (*x * 64.0).round() / 64.0);
    let wide = adapter(&rounded, json!({}));
    let narrow = adapter(&rounded, json!({}));
    let half = |x: f32| -> u16 {
        let (sign, exponent, fraction) = (x.to_bits() >> 31, x.to_bits() >> 23 & 0xff, x.to_bits() >> 13 & 0x3ff);
        if x == 0.0 { (sign << 15) as u16 } else { (sign << 15 | (exponent - 112) << 10 | fraction) as u16 }
    };
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        rounded.iter().map(|(n, (s, x))| (n, s, x.iter().flat_map(|x| half(*x).to_le_bytes()).collect())).collect();
    let views = bytes.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(Dtype::F16, s.to_vec(), b).expect("whole")));
    let file = safetensors::serialize(views, None).expect("names are unique");
    fs::write(narrow.join("adapter_model.safetensors"), file).expect("it is written");
    assert_eq!(logits_with(&narrow), logits_with(&wide));
}

fn pickles() {
    let told = ["the weights are pickled", "save them as safetensors", "safe_serialization=True"];
    let folder = adapter(&tensors(), json!({}));
    fs::rename(folder.join("adapter_model.safetensors"), folder.join("adapter_model.bin")).expect("it is renamed");
    is_refused(&folder, &told);
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let base = LLADA.with_text("pickled", &LLADA.path());
        fs::remove_file(base.join("pytorch_model.bin")).expect("it was there");
        fs::rename(base.join("model.safetensors"), base.join(name)).expect("it is renamed");
        refused(&base, &["generate", "--model", ".", "--prompt", "a"], &[&told[..], &[name]].concat());
    }
}

fn no_targets() {
    is_refused(
        &adapter(&tensors(), json!({ "target_modules": null })),
        &["adapter_config.json: target_modules is null"],
    );
}

fn eva() {
    let plain = logits_with(&adapter(&tensors(), json!({})));
    assert_eq!(logits_with(&adapter(&tensors(), json!({ "init_lora_weights": "eva" }))), plain);
    for start in ["pissa", "olora", "corda", "loftq"] {
        let changed = adapter(&tensors(), json!({ "init_lora_weights": start }));
        is_refused(&changed, &[start, "it changes the base's weights too"]);
    }
}

fn other_wrappers() {
    let renamed = |from: &str, to: &str| -> HashMap<String, Tensor> {
        tensors().into_iter().map(|(name, tensor)| (name.replacen(from, to, 1), tensor)).collect()
    };
    let compiled = renamed("base_model.model.", "_orig_mod.base_model.model.");
    is_refused(&adapter(&compiled, json!({})), &["_orig_mod.base_model.", " is missing, and it has "]);
    let named = renamed(".weight", ".default.weight");
    is_refused(&adapter(&named, json!({})), &[".lora_A.default.weight", " is missing, and it has "]);
}

fn old_and_new_fields() {
    let plain = logits_with(&adapter(&tensors(), json!({})));
    let old = json!({ "enable_lora": null, "merge_weights": false });
    let new = json!({ "lora_bias": null, "use_qalora": null, "alora_invocation_tokens": null, "arrow_config": null,
        "corda_config": null, "eva_config": null, "ensure_weight_tying": false, "layer_replication": null,
        "megatron_config": null, "megatron_core": null, "qalora_group_size": 16, "target_parameters": null });
    for fields in [old, new] {
        assert_eq!(logits_with(&adapter(&tensors(), fields.clone())), plain, "{fields}");
    }
}

/// In a recipe such names are a mistake (A1); in a finished adapter they are history.
fn names_that_match_nothing() {
    let names = json!({ "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "nothing"] });
    assert_eq!(logits_with(&adapter(&tensors(), names)), logits_with(&adapter(&tensors(), json!({}))));
}
