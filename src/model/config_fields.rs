//! What is known of the fields of config.json besides sizes and constants: those that change a model's numbers and that
//! Weft doesn't compute, and those without effect on them. All other fields are reported.

use serde_json::{Map, Value};

use super::bitsandbytes;
use super::config::BLOCK_LENGTHS;
use super::family::Family;

/// Fields that change the numbers in some model, each with the values, as JSON, that leave them as Weft computes them. An
/// absent field, null, false and a list or object without entries leave them so too.
///
/// # Source
/// The modelling code beside LLaDA-8B, and that of OLMo, Gemma 2, Granite, Cohere, MiniCPM, Llama 4, SmolLM 3, Phi, GPT-NeoX,
/// Falcon and Nemotron in transformers.
const CHANGING: [(&str, &[&str]); 41] = [
    ("clip_qkv", &[]),
    ("final_logit_softcapping", &[]),
    ("attn_logit_softcapping", &[]),
    ("query_pre_attn_scalar", &[]),
    ("residual_multiplier", &["1.0", "1"]),
    ("embedding_multiplier", &["1.0", "1"]),
    ("attention_multiplier", &[]),
    ("logits_scaling", &["1.0", "1"]),
    ("logit_scale", &["1.0", "1"]),
    ("scale_emb", &["1.0", "1"]),
    ("scale_depth", &[]),
    ("dim_model_base", &[]),
    ("no_rope_layers", &[]),
    ("no_rope_layer_interval", &[]),
    ("rope_interleaved", &[]),
    ("rope_local_base_freq", &[]),
    ("rotary_pct", &["1.0", "1"]),
    ("rotary_emb_fraction", &["1.0", "1"]),
    ("qk_layernorm", &[]),
    ("use_parallel_residual", &[]),
    ("parallel_attn", &[]),
    ("parallel_block", &[]),
    ("use_alibi", &[]),
    ("lm_head_bias", &[]),
    ("use_bias", &[]),
    ("attention_out_bias", &[]),
    ("attn_temperature_tuning", &[]),
    ("attention_chunk_size", &[]),
    ("cross_layer_sharing", &[]),
    ("dual_chunk_attention_config", &[]),
    ("use_dynamic_ntk", &[]),
    ("use_logn_attn", &[]),
    ("rope_ratio", &["1.0", "1"]),
    ("sliding_window_pattern", &[]),
    ("apply_residual_connection_post_layernorm", &[]),
    ("zero_centered_gamma", &[]),
    ("norm_after", &[]),
    ("pruned_heads", &[]),
    ("is_encoder_decoder", &[]),
    ("add_cross_attention", &[]),
    ("quantization_config", &[]),
];

/// Fields without effect on a model's numbers, those that Weft reads elsewhere, and those of layouts that are checked by
/// themselves.
const NEUTRAL: [&str; 62] = [
    "_name_or_path",
    "alibi_bias_max",
    "architectures",
    "attention_bias",
    "attention_layer_norm_with_affine",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "flash_attention",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "head_dim",
    "id2label",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "layer_types",
    "logits_shifted",
    "mask_token_id",
    "max_position_embeddings",
    "max_sequence_length",
    "max_window_layers",
    "model_type",
    "num_experts",
    "num_experts_per_tok",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "partial_rotary_factor",
    "precision",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sep_token_id",
    "sliding_window",
    "suppress_tokens",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
    "vocab_size",
];

/// Refuses fields that change the numbers in a way that Weft doesn't compute.
pub(super) fn check(fields: &Map<String, Value>, family: &Family) -> Result<(), String> {
    for (field, neutral) in CHANGING {
        let Some(value) = fields.get(field).filter(|value| !is_off(value)) else { continue };
        if neutral.contains(&&*value.to_string()) || is_own_value(field, value, fields, family) {
            continue;
        }
        if field == "quantization_config" {
            bitsandbytes::check_config(value)?;
            continue;
        }
        let only = neutral.first().unwrap_or(&"null");
        return Err(format!("{field} = {value} is not supported; only {only} is"));
    }
    Ok(())
}

/// Whether a field has the value that the layout has anyway, in terms of other fields.
fn is_own_value(field: &str, value: &Value, fields: &Map<String, Value>, family: &Family) -> bool {
    match field {
        // Attention divides by this number's root, which is otherwise that of the features per head.
        "query_pre_attn_scalar" => {
            let number = |key: &str| fields.get(key).and_then(Value::as_f64);
            let of_width = number(family.keys.width).zip(number(family.keys.heads)).map(|(width, heads)| width / heads);
            let own = number("head_dim").or(family.head_dim.map(|dim| dim as f64)).or(of_width);
            own.is_some() && value.as_f64() == own
        }
        // Llama 4 and SmolLM 3 write 1 for each layer with RoPE.
        "no_rope_layers" => value.as_array().is_some_and(|layers| layers.iter().all(|layer| *layer == 1)),
        // Only `no_rope_layers`, which is written beside it, is read.
        "no_rope_layer_interval" => fields.get("no_rope_layers").is_some_and(|layers| !is_off(layers)),
        "qk_layernorm" => family.qk_norm,
        _ => false,
    }
}

/// The fields of which nothing is known, in the file's order.
pub(super) fn unknown<'a>(fields: &'a Map<String, Value>, family: &Family) -> Vec<&'a str> {
    let keys = family.keys;
    let sizes = [keys.layers, keys.width, keys.heads, keys.kv_heads, keys.mlp_hidden_size, keys.tied];
    let is_known = |field: &str| {
        NEUTRAL.contains(&field)
            || sizes.contains(&field)
            || keys.dropouts.contains(&field)
            || keys.rows == Some(field)
            || keys.mlp_ratio.is_some_and(|(key, _)| key == field)
            || keys.required.iter().any(|(key, _)| *key == field)
            || BLOCK_LENGTHS.contains(&field)
            || CHANGING.iter().any(|(key, _)| *key == field)
    };
    fields
        .iter()
        .filter(|(field, value)| !value.is_null() && !is_known(field))
        .map(|(field, _)| field.as_str())
        .collect()
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
