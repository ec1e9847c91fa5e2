//! config.json's fields beyond sizes and constants: those that would change the numbers are refused by their names, those
//! without effect are passed over, and those of which nothing is known are told.

mod fixtures;
mod scratch;

use std::fs;
use std::path::Path;
use std::process::Command;

use fixtures::{DREAM, FAMILIES, Golden, LLADA, QWEN3, load, logits};
use scratch::folder;
use serde_json::{Value, json};
use weft::model::config::ModelConfig;

fn parse(golden: Golden, changes: Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(&golden.config(changes), Path::new("config.json")).map_err(|e| e.to_string())
}

#[test]
fn fields_that_change_the_numbers_are_refused_by_name() {
    for golden in FAMILIES {
        for (field, value, only) in [
            ("clip_qkv", json!(8.0), "null"),
            ("final_logit_softcapping", json!(30.0), "null"),
            ("attn_logit_softcapping", json!(50.0), "null"),
            ("query_pre_attn_scalar", json!(256), "null"),
            ("residual_multiplier", json!(0.22), "1.0"),
            ("embedding_multiplier", json!(12), "1.0"),
            ("attention_multiplier", json!(0.0078125), "null"),
            ("logits_scaling", json!(8.0), "1.0"),
            ("logit_scale", json!(0.0625), "1.0"),
            ("no_rope_layers", json!([1, 0]), "null"),
            ("no_rope_layer_interval", json!(4), "null"),
            ("lm_head_bias", json!(true), "null"),
            ("quantization_config", json!({"quant_method": "gptq"}), "null"),
        ] {
            let told = parse(golden, json!({ field: value })).expect_err(field);
            assert_eq!(told, format!("config.json: {field} = {value} is not supported; only {only} is"));
            // The fix: the one value that is supported.
            let only: Value = serde_json::from_str(only).expect("it is JSON");
            parse(golden, json!({ field: only })).expect(field);
        }
    }
    let told = |golden, changes| parse(golden, changes).expect_err("it is refused");
    let yarn = json!({"type": "yarn", "factor": 4.0});
    assert!(told(LLADA, json!({ "rope_scaling": yarn })).contains("rope_scaling = {\"type\":\"yarn\""));
    assert!(told(LLADA, json!({ "qk_layernorm": true })).contains("qk_layernorm = true is not supported"));
    parse(QWEN3, json!({ "qk_layernorm": true })).expect("Qwen3 has these norms");
    assert_eq!(
        told(DREAM, json!({ "head_dim": 24 })),
        "config.json: head_dim = 24 is not supported; only hidden_size / num_attention_heads = 16 is"
    );
    assert_eq!(
        told(LLADA, json!({ "head_dim": 24 })),
        "config.json: head_dim = 24 is not supported; only d_model / n_heads = 16 is"
    );
    parse(DREAM, json!({ "head_dim": 16 })).expect("these are its features per head");
}

#[test]
fn neutral_values_and_fields_change_nothing() {
    let neutral = json!({
        "clip_qkv": null,
        "attn_logit_softcapping": null,
        "residual_multiplier": 1.0,
        "logits_scaling": 1,
        "query_pre_attn_scalar": 16,
        "no_rope_layers": [1, 1],
        "no_rope_layer_interval": 4,
        "qk_layernorm": false,
        "pruned_heads": {},
        "id2label": { "0": "LABEL_0" },
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "transformers_version": "4.46.2",
        "auto_map": { "AutoModel": "modeling.Model" },
    });
    for golden in [LLADA, DREAM] {
        let folder = golden.checkpoint("neutral", neutral.clone(), &golden.tensors());
        assert_eq!(logits(&load(&folder)), logits(&golden.load()));
        assert_eq!(parse(golden, neutral.clone()).expect("they are neutral").unknown_fields(), [""; 0]);
    }
    for golden in FAMILIES {
        assert_eq!(parse(golden, json!({})).expect("it is whole").unknown_fields(), [""; 0], "{}", golden.name);
    }
}

#[test]
fn the_plan_tells_unknown_fields() {
    let changes = json!({ "some_gate": true, "my_note": "x", "empty": null });
    assert_eq!(parse(LLADA, changes.clone()).expect("they are known").unknown_fields(), ["some_gate", "my_note"]);
    let folder = folder("plan");
    let base = LLADA.with_text("told", &LLADA.checkpoint("told-base", changes, &LLADA.tensors()));
    fs::write(folder.join("rows.jsonl"), "{\"prompt\": \"a b\", \"response\": \"c d\"}\n".repeat(8)).expect("written");
    let recipe = format!("[model]\npath = {:?}\n[data]\ntrain = \"rows.jsonl\"\n", base.display().to_string());
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .current_dir(&folder)
        .args(["plan", "recipe.toml"])
        .output()
        .expect("weft starts");
    let told = String::from_utf8_lossy(&output.stdout);
    let line = "fields of config.json that Weft doesn't know: some_gate, my_note";
    assert_eq!(told.lines().filter(|of| *of == line).count(), 1, "{told}{}", String::from_utf8_lossy(&output.stderr));
}
