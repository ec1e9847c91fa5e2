//! Checkpoints and adapters as files: every layout that means the same computes the same, what Weft doesn't compute is
//! refused by its name, and damaged files are errors, never panics.

mod fixtures;
mod scratch;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use fixtures::{DREAM, FAMILIES, Golden, IDS, LLADA, assert_close, disturb, load, logits, write};
use scratch::folder;
use serde_json::{Value, json};
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::model::lora::{self, LoraConfig};
use weft::model::new_config::{Sizes, new_llada};
use weft_kernels::weight::Dtype;

#[test]
fn shards_are_one_checkpoint() {
    for golden in FAMILIES {
        let folder = folder(&format!("{}-shards", golden.name));
        fs::copy(golden.path().join("config.json"), folder.join("config.json")).expect("the config is copied");
        let (mut shards, mut map) = ([HashMap::new(), HashMap::new()], HashMap::new());
        for (i, (name, tensor)) in golden.tensors().into_iter().enumerate() {
            map.insert(name.clone(), format!("model-{}.safetensors", i % 2));
            shards[i % 2].insert(name, tensor);
        }
        for (i, shard) in shards.iter().enumerate() {
            write(&folder.join(format!("model-{i}.safetensors")), shard);
        }
        let index = folder.join("model.safetensors.index.json");
        fs::write(&index, json!({ "weight_map": map }).to_string()).expect("the index is written");
        assert_eq!(logits(&load(&folder)), logits(&golden.load()));
        let outside = json!({ "weight_map": { "x": "../../etc/passwd" } }).to_string();
        fs::write(&index, outside).expect("the index is written");
        assert!(error(&folder).contains("lies outside the folder"));
    }
}

#[test]
fn grouped_heads_equal_repeated_ones() {
    for golden in FAMILIES {
        let (mut grouped, mut repeated) = (golden.tensors(), golden.tensors());
        for (name, (shape, numbers)) in golden.tensors() {
            let part = name.trim_end_matches(".weight").trim_end_matches(".bias");
            if !golden.kv.iter().any(|kv| part.ends_with(kv)) {
                continue;
            }
            // Two key/value heads, each of which serves 2 of the 4 query heads.
            let (dim, cols) = (golden.head_dim, shape.get(1).copied().unwrap_or(1));
            let half = numbers[..2 * dim * cols].to_vec();
            let heads: Vec<f32> = half.chunks(dim * cols).flat_map(|head| [head, head].concat()).collect();
            let sized = |rows: usize| [&[rows], &shape[1..]].concat();
            grouped.insert(name.clone(), (sized(2 * dim), half));
            repeated.insert(name, (sized(4 * dim), heads));
        }
        let [grouped, repeated] = [("grouped", 2, grouped), ("repeated", 4, repeated)]
            .map(|(name, heads, tensors)| golden.checkpoint(name, json!({ golden.kv_heads_field: heads }), &tensors));
        assert_close(&logits(&load(&grouped)), &logits(&load(&repeated)), 1e-5);
    }
}

#[test]
fn tied_weights_equal_a_copied_head_and_sum_its_gradient() {
    for golden in FAMILIES {
        let [mut tied, mut copied] = golden.tied_and_copied("equal").map(|folder| load(&folder));
        assert_eq!(logits(&tied), logits(&copied));
        let gradients = |model: &mut Transformer| {
            model.params.iter_mut().for_each(|p| p.trainable = true);
            let mut grads = model.zero_gradients();
            let targets = Targets { rows: &[2, 5], ids: &[7, 8], weights: &[0.5, 1.5] };
            model.loss_and_gradients(&Batch::pack([&IDS[..]]), targets, &mut grads);
            grads
        };
        let (of_tied, of_copied) = (gradients(&mut tied), gradients(&mut copied));
        let of = |id: usize| of_copied[id].as_ref().expect("everything is trained").to_host();
        let sum: Vec<f32> =
            of(copied.embedding).iter().zip(of(copied.head.weight).iter()).map(|(a, b)| a + b).collect();
        assert_close(&of_tied[tied.embedding].as_ref().expect("everything is trained").to_host(), &sum, 1e-5);
    }
}

#[test]
fn bf16_is_f32_rounded() {
    for golden in FAMILIES {
        let config = ModelConfig::parse(&golden.config(json!({})), Path::new("config.json")).expect("it is a config");
        let folder = folder(&format!("{}-bf16", golden.name));
        checkpoint::save(&folder, &golden.load(), &config, Dtype::Bf16).expect("the checkpoint is saved");
        let mut rounded = golden.tensors();
        for (_, numbers) in rounded.values_mut() {
            numbers.iter_mut().for_each(|x| *x = half_rounded(*x));
        }
        assert_eq!(logits(&load(&folder)), logits(&load(&golden.checkpoint("rounded", json!({}), &rounded))));
    }
}

/// Round to nearest even at 16 bits.
fn half_rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn a_fresh_adapter_computes_its_base_and_comes_back_from_disk() {
    for golden in FAMILIES {
        let head = golden.head.rsplit('.').next().expect("a name has an end");
        let block = format!("{}.1.{}", golden.blocks.rsplit('.').next().expect("a name has an end"), golden.kv[1]);
        for (name, targets) in [("all", vec!["all-linear"]), ("head", vec![head]), ("qv", vec!["q_proj", &block])] {
            let base = golden.load();
            let mut model = base.clone();
            let config = LoraConfig::new(3, 6.0, 0.0, targets.iter().map(|t| (*t).to_owned()).collect(), true);
            assert_eq!(config.scale(), (6.0 / f64::sqrt(3.0)) as f32, "rsLoRA");
            lora::attach_fresh(&mut model, &config, 5).expect("the targets are there");
            assert_eq!(logits(&model), logits(&base), "{name}: B is zero");
            disturb(&mut model);
            let folder = folder(&format!("{}-adapter-{name}", golden.name));
            lora::save(&folder, &model, &config, "base").expect("the adapter is saved");
            let mut again = base.clone();
            lora::load(&folder, &mut again).expect("the adapter loads");
            assert_eq!(logits(&again), logits(&model), "{name}: save and load are inverse");
            assert_ne!(logits(&again), logits(&base), "{name}: the adapter does something");
            check_gradients(&mut model);
        }
    }
}

#[test]
fn full_training_has_the_gradients_of_biases_and_of_a_first_token() {
    for golden in FAMILIES {
        let mut model = golden.load();
        model.params.iter_mut().for_each(|p| p.trainable = true);
        check_gradients(&mut model);
        // With shifted logits the first row predicts the first token and the second.
        check_gradients_of(&mut model, &[0, 1, 5]);
    }
}

#[test]
fn names_choose_layers_as_peft_does() {
    let adapted = |golden: Golden, target: &str| {
        let mut model = golden.load();
        lora::attach_fresh(&mut model, &LoraConfig::new(2, 2.0, 0.0, vec![target.to_owned()], false), 1)
            .map(|()| model.params.iter().filter(|p| p.trainable).count() / 2)
            .map_err(|e| e.to_string())
    };
    assert_eq!(adapted(LLADA, "ff_out"), Ok(3), "two blocks and the head");
    assert_eq!(adapted(DREAM, "down_proj"), Ok(2), "two blocks");
    assert_eq!(adapted(DREAM, "lm_head"), Ok(1), "the head");
    for golden in FAMILIES {
        assert_eq!(adapted(golden, "all-linear"), Ok(14), "seven layers of two blocks, not the head");
        let embedding = golden.embedding.rsplit('.').next().expect("a name has an end");
        let message = format!("name the embedding {}", golden.embedding);
        assert!(adapted(golden, embedding).is_err_and(|e| e.contains(&message)));
        assert!(adapted(golden, "f_out").is_err_and(|e| e.contains("name no layer of the model")));
    }
}

#[test]
fn a_tied_head_is_adapted_where_it_is_a_module() {
    let adapt = |golden: Golden, target: &str| {
        let mut model = load(&golden.tied_and_copied("head")[0]);
        let config = LoraConfig::new(2, 2.0, 0.0, vec![target.to_owned()], false);
        lora::attach_fresh(&mut model, &config, 1).map(|()| model)
    };
    let mut dream = adapt(DREAM, "lm_head").expect("Dream's head is a module even where it is tied");
    let names: Vec<&str> = dream.params.iter().filter(|p| p.trainable).map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["base_model.model.lm_head.lora_A.weight", "base_model.model.lm_head.lora_B.weight"]);
    disturb(&mut dream);
    check_gradients(&mut dream);
    let llada = adapt(LLADA, "ff_out").expect("the down projections are there");
    assert_eq!(llada.params.iter().filter(|p| p.trainable).count(), 4, "LLaDA's tied network has no head module");
}

/// The trained parameters' gradients against central differences of the loss.
fn check_gradients(model: &mut Transformer) {
    check_gradients_of(model, &[2, 5]);
}

fn check_gradients_of(model: &mut Transformer, rows: &[usize]) {
    let batch = Batch::pack([&IDS[..]]);
    let (ids, weights) = (&[7, 8, 9][..rows.len()], &[0.5, 1.5, 1.0][..rows.len()]);
    let mut grads = model.zero_gradients();
    model.loss_and_gradients(&batch, Targets { rows, ids, weights }, &mut grads);
    let loss = |model: &Transformer| -> f64 {
        model.nll(&batch, rows, ids).iter().zip(weights).map(|(nll, w)| f64::from(*nll) * f64::from(*w)).sum()
    };
    for (i, grad) in grads.iter().enumerate().filter_map(|(i, g)| g.as_ref().map(|g| (i, g.to_host()))) {
        let largest = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).expect("numbers");
        let step = 1e-2;
        let mut at = |delta: f32| {
            model.params[i].weight.make_trainable()[largest] += delta;
            let loss = loss(model);
            model.params[i].weight.make_trainable()[largest] -= delta;
            loss
        };
        let (numeric, exact) = ((at(step) - at(-step)) / (2.0 * f64::from(step)), f64::from(grad[largest]));
        assert!((numeric - exact).abs() <= 0.02 * exact.abs() + 1e-4, "{}: {numeric}, {exact}", model.params[i].name);
    }
}

#[test]
fn a_new_models_config_is_one_that_loads() {
    let sizes = Sizes {
        width: 16,
        layers: 1,
        heads: 2,
        mlp_hidden_size: 24,
        vocab_size: 160,
        max_seq_len: 64,
        mask_token_id: 159,
        eos_token_id: 157,
    };
    let (config, folder) = (new_llada(sizes).expect("the sizes are a model's"), folder("new"));
    checkpoint::save(&folder, &checkpoint::fresh(&config, 3), &config, Dtype::Bf16).expect("the model is saved");
    assert_eq!(logits(&load(&folder)).len(), 4 * 160);
    let sizes = Sizes { heads: 3, ..sizes };
    assert!(new_llada(sizes).is_err_and(|e| e.to_string().contains("n_heads 3")), "16 is no multiple of 6");
}

fn error(folder: &Path) -> String {
    checkpoint::load(folder)
        .expect_err("the checkpoint is refused")
        .to_string()
        .replace(&folder.display().to_string(), "DIR")
}

#[test]
fn what_weft_does_not_compute_is_refused_by_its_name() {
    let only = |field: &str, value: &str, only: &str| {
        format!("DIR/config.json: {field} = {value} is not supported; only {only} is")
    };
    let shape = "is this the checkpoint that config.json describes?";
    let both = |golden: Golden| {
        vec![
            (
                json!({"model_type": "gpt2"}),
                "DIR/config.json: model_type \"gpt2\" is not supported; give a checkpoint of model_type llada, Dream, illada, \
                 a2d-qwen2, a2d-qwen3, a2d-llama, qwen2, qwen3 or llama"
                    .to_owned(),
            ),
            (
                json!({"attention_dropout": 0.1}),
                "DIR/config.json: attention_dropout = 0.1 is not supported; set it to 0".to_owned(),
            ),
            (
                json!({"mask_token_id": 160}),
                "DIR/config.json: mask_token_id 160 lies outside the vocabulary of 160; set it below".to_owned(),
            ),
            (
                json!({ golden.tie_field: "no" }),
                format!("DIR/config.json: invalid type: string \"no\", expected a boolean, in {}", golden.tie_field),
            ),
        ]
    };
    let llada = [
        (json!({"include_qkv_bias": true}), only("include_qkv_bias", "true", "false")),
        (json!({"alibi": true}), only("alibi", "true", "false")),
        (
            json!({"n_heads": 3}),
            "DIR/config.json: d_model 64, n_heads 3 and n_kv_heads 4 do not divide into even heads".to_owned(),
        ),
        (
            json!({"embedding_size": 100}),
            "DIR/config.json: embedding_size 100 is smaller than vocab_size 160".to_owned(),
        ),
        (
            json!({"mlp_hidden_size": 96}),
            format!(
                "tensor model.transformer.blocks.0.ff_proj.weight in DIR: expected [96, 64], got [160, 64]; {shape}"
            ),
        ),
        (json!({"n_layers": 3}), format!("tensor model.transformer.blocks.2.q_proj.weight in DIR: missing; {shape}")),
    ];
    let yarn = json!({"factor": 4.0, "type": "yarn"});
    let dream = [
        (json!({"hidden_act": "gelu"}), only("hidden_act", "\"gelu\"", "\"silu\"")),
        (json!({"use_sliding_window": true}), only("use_sliding_window", "true", "false")),
        (json!({"rope_scaling": yarn}), only("rope_scaling", &yarn.to_string(), "RoPE of type \"default\"")),
        (
            json!({"num_key_value_heads": 3}),
            "DIR/config.json: hidden_size 64, num_attention_heads 4 and num_key_value_heads 3 do not divide into even heads"
                .to_owned(),
        ),
        (
            json!({"intermediate_size": 96}),
            format!("tensor model.layers.0.mlp.gate_proj.weight in DIR: expected [96, 64], got [160, 64]; {shape}"),
        ),
        (
            json!({"num_hidden_layers": 3}),
            format!("tensor model.layers.2.self_attn.q_proj.weight in DIR: missing; {shape}"),
        ),
    ];
    for (golden, own) in [(LLADA, llada), (DREAM, dream)] {
        let folder = folder(&format!("{}-refused", golden.name));
        fs::copy(golden.path().join("model.safetensors"), folder.join("model.safetensors")).expect("copied");
        for (changes, expected) in both(golden).into_iter().chain(own) {
            fs::write(folder.join("config.json"), golden.config(changes)).expect("the config is written");
            assert_eq!(error(&folder), expected);
        }
        fs::remove_file(folder.join("config.json")).expect("the config is removed");
        assert!(error(&folder).starts_with("cannot read DIR/config.json: "));
    }
    let mut tensors = DREAM.tensors();
    tensors.remove("model.layers.1.self_attn.k_proj.bias");
    let folder = DREAM.checkpoint("unbiased", json!({}), &tensors);
    assert_eq!(error(&folder), format!("tensor model.layers.1.self_attn.k_proj.bias in DIR: missing; {shape}"));
}

#[test]
fn damaged_safetensors_are_errors() {
    let whole = fs::read(LLADA.path().join("model.safetensors")).expect("the golden checkpoint is there");
    let lying = |from: &str, to: &str| {
        let header = String::from_utf8_lossy(&whole[8..4000]).into_owned();
        let changed = header.replacen(from, to, 1);
        assert_ne!(header, changed, "the header holds {from}");
        [&whole[..8], changed.as_bytes(), &whole[4000..]].concat()
    };
    let folder = folder("damaged");
    fs::copy(LLADA.path().join("config.json"), folder.join("config.json")).expect("the config is copied");
    for (what, bytes) in [
        ("empty", vec![]),
        ("header cut", whole[..5].to_vec()),
        ("header length past the end", [&u64::MAX.to_le_bytes(), &whole[8..]].concat()),
        ("data cut", whole[..whole.len() - 1].to_vec()),
        ("shape that lies", lying("[160,64]", "[161,64]")),
        ("dtype that lies", lying("\"F32\"", "\"F64\"")),
        ("no JSON", [&whole[..8], &b"}"[..], &whole[9..]].concat()),
    ] {
        fs::write(folder.join("model.safetensors"), bytes).expect("the file is written");
        let message = error(&folder);
        assert!(message.starts_with("DIR/model.safetensors is damaged or in another format: "), "{what}: {message}");
    }
}

#[test]
fn adapters_that_are_no_plain_lora_are_refused() {
    let folder = folder("no-lora");
    let adapter = LLADA.path().join("lora/adapter");
    fs::copy(adapter.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).expect("copied");
    let text = fs::read_to_string(adapter.join("adapter_config.json")).expect("the golden adapter is there");
    for (field, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["wte"])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("IA3")),
        ("some_new_field", json!(1)),
    ] {
        let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
        config[field] = value.clone();
        fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
        let message = lora::load(&folder, &mut LLADA.load()).expect_err(field).to_string();
        assert!(message.contains(&format!("{field} = {value} is not supported")), "{message}");
    }
    for (field, value, expected) in [
        ("r", json!(4), "expected [4, 64], got [8, 64]"),
        ("rank_pattern", json!({"q_proj": 4}), "expected [4, 64], got [8, 64]"),
        (
            "target_modules",
            json!(["q_proj"]),
            "no layer of the model uses base_model.model.model.transformer.blocks.0.k_proj.lora_A.weight",
        ),
        ("target_modules", json!(["q_proj", "attn_out"]), "missing"),
        ("target_modules", json!("("), "is not a regular expression"),
    ] {
        let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
        config[field] = value;
        fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
        let message = lora::load(&folder, &mut LLADA.load()).expect_err(field).to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
    config["target_modules"] = json!(r".*\.[qkv]_proj");
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
    lora::load(&folder, &mut LLADA.load()).expect("PEFT reads a text as a pattern of the whole name");
}

#[test]
fn targets_of_another_family_are_refused_with_the_layers_own_names() {
    let attach = |golden: Golden, targets: &[&str]| {
        let config = LoraConfig::new(2, 4.0, 0.0, targets.iter().map(|t| (*t).to_owned()).collect(), false);
        lora::attach_fresh(&mut golden.load(), &config, 1).expect_err("they are refused").to_string()
    };
    let qwens = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(
        attach(LLADA, &qwens),
        "the targets \"o_proj\", \"gate_proj\", \"down_proj\" (lora_targets, target_modules) name no layer of the model; \
         here o_proj is attn_out, gate_proj is ff_proj, down_proj is ff_out"
    );
    let told = attach(DREAM, &["q_proj", "attn_out", "ff_proj", "c_attn"]);
    assert!(told.contains("\"attn_out\", \"ff_proj\", \"c_attn\""), "{told}");
    assert!(told.ends_with("here attn_out is o_proj, ff_proj is gate_proj"), "{told}");
    let told = attach(DREAM, &["all-linear", "lm_head"]);
    assert!(told.contains("give it alone, or list the layers, the head lm_head among them"), "{told}");
}
