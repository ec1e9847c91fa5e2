//! Configurations of the Qwen and Llama layouts that Weft doesn't compute: each is refused by the field's name and value,
//! and each lies one field away from one that is accepted.

use std::path::Path;

use serde_json::{Value, json};
use weft::model::config::ModelConfig;

/// A config.json of a family with some fields changed.
fn fields(model_type: &str, changes: &Value) -> Value {
    let mut fields = json!({
        "model_type": model_type, "vocab_size": 160, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-6, "mask_token_id": 159,
    });
    fields.as_object_mut().expect("a literal object").extend(changes.as_object().expect("an object").clone());
    fields
}

fn parse(fields: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(&fields.to_string(), Path::new("c")).map_err(|e| e.to_string())
}

fn accept(model_type: &str, changes: Value) {
    parse(&fields(model_type, &changes)).unwrap_or_else(|e| panic!("{model_type} with {changes}: {e}"));
}

/// Refuses the changes with this reason, also where no mask token is named: converting such a checkpoint is no remedy.
fn refuse(model_type: &str, changes: Value, reason: &str) {
    let mut fields = fields(model_type, &changes);
    for mask in [json!(159), Value::Null] {
        fields["mask_token_id"] = mask;
        assert_eq!(
            parse(&fields).map(|_| ()).expect_err(reason),
            format!("c: {reason}"),
            "{model_type} with {changes}"
        );
    }
}

const LAYOUTS: [&str; 9] =
    ["a2d-qwen2", "a2d-qwen3", "a2d-llama", "qwen2", "qwen3", "llama", "illada", "sdar", "Fast_dLLM_Qwen"];

#[test]
fn only_one_value_of_a_field_is_computed() {
    for model_type in LAYOUTS {
        let only = |field: &str, value: Value, only: &str| {
            let reason = format!("{field} = {value} is not supported; only {only} is");
            refuse(model_type, json!({ field: value }), &reason);
        };
        only("use_sliding_window", json!(true), "false");
        only("use_mrope", json!(true), "false");
        only("mlp_bias", json!(true), "false");
        only("layer_norm_eps", json!(1e-5), "null");
        only("hidden_act", json!("gelu"), "\"silu\"");
        refuse(
            model_type,
            json!({ "attention_dropout": 0.1 }),
            "attention_dropout = 0.1 is not supported; set it to 0",
        );
        let off = json!({
            "use_sliding_window": false, "use_mrope": false, "mlp_bias": false, "layer_norm_eps": null,
            "hidden_act": "silu", "attention_dropout": 0.0, "attention_bias": false,
        });
        accept(model_type, off);
        match model_type {
            // Their biases are the layout's own.
            "qwen2" | "a2d-qwen2" | "Fast_dLLM_Qwen" => accept(model_type, json!({ "attention_bias": true })),
            _ => only("attention_bias", json!(true), "false"),
        }
    }
}

#[test]
fn windows_are_refused() {
    for model_type in LAYOUTS {
        let all = json!({ "layer_types": ["full_attention", "full_attention"], "sliding_window": null });
        accept(model_type, all);
        let types = json!({ "layer_types": ["full_attention", "sliding_attention"] });
        let reason = "layer_types with \"sliding_attention\" is not supported; only \"full_attention\" is";
        refuse(model_type, types, reason);
        let off = json!({ "sliding_window": 4096, "max_window_layers": 1, "use_sliding_window": false });
        accept(model_type, off);
        let window = json!({ "sliding_window": 4096, "max_window_layers": 1 });
        match ["qwen", "Qwen", "sdar"].iter().any(|name| model_type.contains(name)) {
            // Their code looks at it only where use_sliding_window is true.
            true => accept(model_type, window),
            false => refuse(model_type, window, "sliding_window = 4096 is not supported; only null is"),
        }
    }
}

#[test]
fn scaled_positions_are_refused() {
    for model_type in LAYOUTS {
        let llama3 = json!({
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        for field in ["rope_scaling", "rope_parameters"] {
            for value in [
                json!({ "type": "linear", "factor": 2 }),
                json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768 }),
                json!({ "type": "dynamic", "factor": 2.0 }),
                json!({ "rope_type": "longrope" }),
                json!("default"),
                json!([]),
                llama3.clone(),
            ] {
                let reason = format!("{field} = {value} is not supported; only RoPE of type \"default\" is");
                refuse(model_type, json!({ field: value }), &reason);
            }
            let factor = json!({ field: { "rope_type": "default", "factor": 2.0 } });
            refuse(model_type, factor, &format!("{field}.factor = 2.0 is not supported; leave it out"));
            // One theta for each kind of layer.
            let kind = json!({ "rope_theta": 1e4 });
            let kinds = json!({ field: { "sliding_attention": kind } });
            refuse(model_type, kinds, &format!("{field}.sliding_attention = {kind} is not supported; leave it out"));
            accept(model_type, json!({ field: null, "rope_theta": 1e6 }));
            accept(model_type, json!({ field: { "rope_type": "default", "factor": 1.0, "rope_theta": 1e6 } }));
            accept(
                model_type,
                json!({ field: { "rope_type": "default", "rope_theta": 1e6 }, "rope_theta": 1_000_000 }),
            );
            refuse(
                model_type,
                json!({ field: { "rope_type": "default", "rope_theta": 1e6 }, "rope_theta": 1e4 }),
                &format!(
                    "rope_theta = 10000 contradicts {field}.rope_theta = 1000000; keep the one of the model's authors"
                ),
            );
            let word = json!({ field: { "rope_type": "default", "rope_theta": "1e6" } });
            refuse(model_type, word, &format!("{field}.rope_theta = \"1e6\" is no number"));
        }
        let [a, b] = [1e6, 1e5].map(|theta| json!({ "rope_type": "default", "rope_theta": theta }));
        refuse(
            model_type,
            json!({ "rope_scaling": a, "rope_parameters": b }),
            "rope_scaling.rope_theta = 1000000 contradicts rope_parameters.rope_theta = 100000; keep the one of the \
             model's authors",
        );
        refuse(
            model_type,
            json!({ "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor = 0.5 is not supported; only 1.0 is",
        );
    }
}

#[test]
fn experts_are_refused_whatever_the_model_calls_itself() {
    let moe = |key: &str, value: u64, model_type: &str| {
        format!(
            "{key} = {value} makes model_type \"{model_type}\" a mixture of experts, which is not supported; give a \
             dense checkpoint"
        )
    };
    // LLaDA-MoE-7B-A1B's config.json says `llada`.
    let llada_moe = json!({
        "architectures": ["LLaDAMoEModelLM"], "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024,
        "hidden_size": 2048, "partial_rotary_factor": 1, "qk_layernorm": true, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "rope_theta": 50_000, "vocab_size": 157_184,
    });
    refuse("llada", llada_moe, &moe("num_experts", 64, "llada"));
    refuse("llada2_moe", json!({ "num_experts": 256 }), &moe("num_experts", 256, "llada2_moe"));
    let qwen = json!({ "num_experts": 128, "moe_intermediate_size": 768 });
    refuse("qwen3_moe", qwen, &moe("num_experts", 128, "qwen3_moe"));
    for model_type in LAYOUTS {
        for key in
            ["num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"]
        {
            refuse(model_type, json!({ key: 8 }), &moe(key, 8, model_type));
            accept(model_type, json!({ key: null }));
            accept(model_type, json!({ key: 0 }));
        }
    }
    let known = "llada, Dream, illada, a2d-qwen2, a2d-qwen3, a2d-llama, sdar, Fast_dLLM_Qwen, qwen2, qwen3 or llama";
    for (model_type, what) in [
        ("llada2_moe", "is a mixture of experts, which is not supported"),
        ("qwen3_moe", "is a mixture of experts, which is not supported"),
        ("sdar_moe", "is a mixture of experts, which is not supported"),
        ("Fast_dLLM", "is not supported"),
        ("qwen2_vl", "is not supported"),
        ("LLADA", "is not supported"),
    ] {
        let reason = format!("model_type \"{model_type}\" {what}; give a checkpoint of model_type {known}");
        refuse(model_type, json!({}), &reason);
    }
}

#[test]
fn sizes_of_heads_are_checked() {
    let reason = |changes: Value| parse(&fields("a2d-qwen3", &changes)).map(|_| ()).expect_err("refused");
    let even = |dim: usize| {
        format!("c: head_dim {dim} with num_attention_heads 6 is not an even number from 2 to {}", (1 << 20) / 6)
    };
    assert_eq!(reason(json!({ "head_dim": 7 })), even(7));
    assert_eq!(reason(json!({ "head_dim": 0 })), even(0));
    assert_eq!(reason(json!({ "head_dim": 1_000_000 })), even(1_000_000));
    let divide = "c: hidden_size 48, num_attention_heads 6 and num_key_value_heads 4 do not divide into even heads";
    assert_eq!(reason(json!({ "num_key_value_heads": 4 })), divide);
    assert!(reason(json!({ "head_dim": -2 })).contains("head_dim"));
    for (heads, kv_heads) in [(5, 5), (5, 1), (7, 7), (9, 3)] {
        let heads = json!({ "num_attention_heads": heads, "num_key_value_heads": kv_heads });
        accept("qwen3", heads.clone());
        let uneven = parse(&fields("a2d-llama", &heads)).map(|_| ()).expect_err("48 is no multiple");
        assert!(uneven.ends_with("do not divide into even heads"), "{uneven}");
    }
    // 48 / 16 = 3 features can't be turned in pairs.
    assert!(parse(&fields("qwen2", &json!({ "num_attention_heads": 16, "num_key_value_heads": 16 }))).is_err());
    accept("qwen2", json!({ "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 4 }));
}
