//! SDAR and Fast-dLLM v2, which are trained by block diffusion: what their files leave open is known of the family, and their
//! layouts are held against the plain network. There are no PyTorch numbers of their own classes; SDAR's layout is that of
//! A2D Qwen3, so its numbers hold here too.

mod fixtures;
mod plain;
mod scratch;

use std::fs;
use std::path::PathBuf;

use fixtures::{QWEN2, QWEN3, stdout};
use serde_json::{Value, json};
use weft::model::batch::{AttentionKind, Batch};
use weft::model::block::Transformer;
use weft::model::config::ModelConfig;
use weft::model::facts::Overrides;
use weft::sampler::generate::{Attention, Prompt, Sampling, generate};
use weft::sampler::remasking::Remasking;

/// A config.json as JetLM's checkpoints have it, in small.
fn sdar() -> Value {
    json!({
        "architectures": ["SDARForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": { "AutoConfig": "configuration_sdar.SDARConfig", "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM" },
        "bos_token_id": 151_643, "eos_token_id": 151_643, "head_dim": 24, "hidden_act": "silu", "hidden_size": 48,
        "initializer_range": 0.02, "intermediate_size": 80, "max_position_embeddings": 32768, "max_window_layers": 2,
        "model_type": "sdar", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.52.3", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 160,
    })
}

/// A config.json as NVIDIA's checkpoints have it, in small.
fn fast_dllm() -> Value {
    json!({
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig", "AutoModel": "modeling.Fast_dLLM_QwenModel",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": 32, "bos_token_id": 151_643, "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 48,
        "initializer_range": 0.02, "intermediate_size": 80, "layer_types": ["full_attention", "full_attention"],
        "max_position_embeddings": 32768, "max_window_layers": 2, "model_type": "Fast_dLLM_Qwen", "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1_000_000.0, "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.53.1", "use_cache": false, "use_sliding_window": false, "vocab_size": 160,
    })
}

fn with(mut fields: Value, changes: Value) -> Value {
    let own = fields.as_object_mut().expect("a literal object");
    for (key, value) in changes.as_object().expect("the changes are an object").clone() {
        own.insert(key, value);
    }
    fields
}

/// A folder with this config.json and a tokenizer whose one added token is the mask.
fn folder(fields: &Value, mask: Option<(u32, &str)>) -> PathBuf {
    let folder = scratch::folder("family");
    fs::write(folder.join("config.json"), fields.to_string()).expect("written");
    if let Some((id, content)) = mask {
        let added = json!({ "added_tokens": [{ "id": id, "content": content }], "model": { "vocab": {} } });
        fs::write(folder.join("tokenizer.json"), added.to_string()).expect("written");
    }
    folder
}

fn open(fields: &Value, mask: Option<(u32, &str)>) -> ModelConfig {
    ModelConfig::open(&folder(fields, mask), Overrides::default()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_their_files_leave_open_is_known_of_the_family() {
    let whole = json!({ "vocab_size": 151_936 });
    for (fields, name, mask, token, length, shift) in [
        (sdar(), "SDAR", 151_669, "<|MASK|>", 4, "at the position they predict"),
        (fast_dllm(), "Fast-dLLM v2", 151_665, "|<MASK>|", 32, "shifted: those at i-1 predict i"),
    ] {
        let fields = with(fields, whole.clone());
        let none = with(fields.clone(), json!({ "bd_size": null }));
        let told = open(&none, None).told(true);
        let family = format!("its family, {name}");
        assert_eq!(
            told,
            format!(
                "{name}; mask token {mask} (from {family}); logits {shift} (from {family}); a token attends to its block of \
                 {length} and those before it in sampling (from {family})"
            )
        );
        // What the files say comes first.
        let told = open(&with(none, json!({ "block_size": 8 })), Some((151_700, token))).told(true);
        assert!(told.contains(&format!("mask token 151700 (from the tokenizer's added token {token:?})")), "{told}");
        assert!(told.ends_with("its block of 8 and those before it in sampling (from config.json)"), "{told}");
        // The class decides, whatever model_type says; no field is unknown.
        let other = with(fields, json!({ "model_type": "qwen2" }));
        let other = open(&other, None);
        assert_eq!((other.family().name, other.unknown_fields()), (name, vec![]));
    }
    // Their mixtures of experts are refused.
    let experts = with(sdar(), json!({ "model_type": "sdar_moe", "num_experts": 128 }));
    let error = ModelConfig::open(&folder(&experts, None), Overrides::default()).map(|_| ()).expect_err("experts");
    assert!(error.to_string().contains("a mixture of experts, which is not supported"), "{error}");
}

/// A random model of these fields.
fn random(fields: &Value) -> Transformer {
    plain::random(&with(fields.clone(), json!({ "mask_token_id": 159 }))).0
}

#[test]
fn each_has_the_tensors_of_its_layout() {
    let [sdar, fast] = [sdar(), fast_dllm()].map(|fields| random(&fields));
    let has = |model: &Transformer, part: &str| model.params.iter().any(|param| param.name.ends_with(part));
    assert!(
        has(&sdar, "self_attn.q_norm.weight") && !has(&sdar, "self_attn.q_proj.bias") && has(&sdar, "lm_head.weight")
    );
    assert!(!has(&fast, "self_attn.q_norm.weight") && has(&fast, "self_attn.q_proj.bias"));
    assert!(!has(&fast, "lm_head.weight"), "its head is the embedding");
    assert_eq!((sdar.config.head_dim, fast.config.head_dim), (24, 12));
}

#[test]
fn block_diffusion_is_the_plain_networks() {
    for (fields, name) in [(sdar(), "SDAR"), (fast_dllm(), "Fast-dLLM v2")] {
        let model = random(&fields);
        let own = model.config.block_length.expect("it is known");
        for (len, block_length) in [(14, own), (40, own), (17, 8), (6, 1)] {
            let clean: Vec<u32> = (0..len).map(|i| ((i * 37 + 5) % 150) as u32).collect();
            let masked: Vec<usize> = (0..len).filter(|i| i % 3 != 1).collect();
            let mut noised = clean.clone();
            masked.iter().for_each(|i| noised[*i] = 159);
            let kind = AttentionKind::BlockDiffusion { block_length };
            let batch = Batch::pack_as(kind, [[noised.as_slice(), &clean]]);
            let ids: Vec<u32> = masked.iter().map(|i| clean[*i]).collect();
            let logits = plain::block_diffusion(&model, [&noised, &clean], block_length);
            for ((i, id), got) in masked.iter().zip(&ids).zip(model.nll(&batch, &masked, &ids)) {
                let total: f64 = logits[*i].iter().map(|z| z.exp()).sum();
                let expected = total.ln() - logits[*i][*id as usize];
                assert!((f64::from(got) - expected).abs() < 1e-3, "{name} {len} {block_length} {i}: {got}, {expected}");
            }
        }
    }
}

#[test]
fn sampling_is_block_causal_with_the_familys_blocks() {
    for (fields, name, length) in [(sdar(), "SDAR", 4), (fast_dllm(), "Fast-dLLM v2", 32)] {
        let model = random(&fields);
        let asked = Sampling { gen_length: 20, diffusion_steps: 20, ..Sampling::default() };
        let sampling = asked.for_model(&model.config);
        assert_eq!((sampling.attention, sampling.block_length), (Some(Attention::BlockCausal), length), "{name}");
        assert_eq!(sampling.remasking, Some(Remasking::LowConfidence), "{name}");
        for prompt_len in [1, 6, 33] {
            let prompt: Vec<u32> = (0..prompt_len).map(|i| ((i * 41 + 3) % 150) as u32).collect();
            let own =
                generate(&model, &[Prompt { ids: &prompt, example: 0 }], &sampling).expect("it samples").remove(0);
            assert_eq!(own.ids, plain::denoise_in_blocks(&model, &prompt, &sampling), "{name} {prompt_len}");
        }
        // The user may want otherwise.
        let other = Sampling { attention: Some(Attention::Bidirectional), ..asked }.for_model(&model.config);
        assert!(!other.is_block_causal(), "{name}");
    }
}

/// A golden checkpoint as one of these families, with a small tokenizer.
fn disguised(golden: fixtures::Golden, changes: &Value) -> PathBuf {
    let folder = golden.with_text("disguised", &golden.path());
    let fields: Value = serde_json::from_str(&golden.config(changes.clone())).expect("it is JSON");
    fs::write(folder.join("config.json"), fields.to_string()).expect("written");
    folder
}

#[test]
fn every_command_takes_their_blocks() {
    let sdar = json!({ "model_type": "sdar", "architectures": ["SDARForCausalLM"] });
    let fast = json!({ "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8 });
    for (golden, changes, told) in [(QWEN3, sdar, "its block of 4"), (QWEN2, fast, "its block of 8")] {
        let folder = disguised(golden, &changes);
        fs::write(folder.join("rows.jsonl"), "{\"prompt\": \"What is 1?\", \"response\": \"one, or two\"}\n".repeat(4))
            .expect("the rows are written");
        let recipe = "[model]\npath = \".\"\nlora_rank = 2\nlora_targets = [\"all-linear\"]\n[data]\ntrain = \"rows.jsonl\"\n\
                      [objective]\nblocks = \"bd3lm\"\nblock_length = 4\n[train]\noutput = \"run\"\nlr = 1e-2\nepochs = 2\n";
        fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
        let plan = stdout(&folder, &["plan", "recipe.toml"]);
        assert!(plan.contains(told), "{plan}");
        stdout(&folder, &["train", "recipe.toml"]);
        let ask = |more: &[&str]| {
            let asked =
                ["generate", "--model", ".", "--prompt", "What is 1?", "--gen-length", "9", "--diffusion-steps", "9"];
            stdout(&folder, &[&asked[..], more].concat())
        };
        let length = told.rsplit(' ').next().expect("a number");
        assert_eq!(ask(&[]), ask(&["--attention", "block-causal", "--block-length", length]));
        // The adapter was trained in blocks of 4, and says so.
        let adapted = ask(&["--adapter", "run/adapter"]);
        let in_blocks = ["--adapter", "run/adapter", "--attention", "block-causal", "--block-length", "4"];
        assert_eq!(adapted, ask(&in_blocks));
        fs::write(folder.join("answer.txt"), "one, or two").expect("the text is written");
        stdout(&folder, &["inspect", "--model", ".", "--text", "answer.txt", "--prompt", "What is 1?"]);
        let page = fs::read_to_string(folder.join("entropy.html")).expect("there is a page");
        assert!(page.contains(&format!("each block of {length} tokens is given the blocks before it")), "{page:.900}");
    }
    // A2D Qwen3's numbers from PyTorch are those of SDAR's layout.
    let folder = disguised(QWEN3, &json!({ "model_type": "sdar", "architectures": ["SDARForCausalLM"] }));
    let reference = QWEN3.path().join("bd3lm.safetensors").display().to_string();
    let asked = ["--model", ".", "--reference", &reference, "--blocks", "bd3lm", "--block-length", "8"];
    stdout(&folder, &[&["parity"][..], &asked].concat());
}
