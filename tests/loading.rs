//! Checkpoints and adapters as files: every layout that means the same computes the same, what Weft doesn't compute is
//! refused by its name, and damaged files are errors, never panics.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::llada::{self, LladaConfig, Sizes};
use weft::model::lora::{self, LoraConfig};

const IDS: [u32; 9] = [5, 9, 159, 3, 77, 159, 2, 40, 11];

/// A tensor's shape and numbers.
type Tensor = (Vec<usize>, Vec<f32>);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada")
}

/// A folder of this process that is empty at first.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("weft-loading-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a temporary folder can be made");
    folder
}

fn golden_tensors() -> HashMap<String, Tensor> {
    let bytes = fs::read(golden().join("model.safetensors")).expect("the golden checkpoint is there");
    let file = SafeTensors::deserialize(&bytes).expect("the golden checkpoint is whole");
    let numbers = |data: &[u8]| data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    file.tensors().into_iter().map(|(name, t)| (name, (t.shape().to_vec(), numbers(t.data())))).collect()
}

fn write(path: &Path, tensors: &HashMap<String, Tensor>) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(n, (s, x))| (n, s, x.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = bytes.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(Dtype::F32, s.to_vec(), b).expect("whole")));
    fs::write(path, safetensors::serialize(views, None).expect("names are unique")).expect("the file is written");
}

fn golden_config(changes: Value) -> String {
    let text = fs::read_to_string(golden().join("config.json")).expect("the golden config is there");
    let mut config: Value = serde_json::from_str(&text).expect("the golden config is JSON");
    let fields = config.as_object_mut().expect("the config is an object");
    fields.extend(changes.as_object().expect("the changes are an object").clone());
    config.to_string()
}

fn checkpoint(name: &str, changes: Value, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let folder = folder(name);
    fs::write(folder.join("config.json"), golden_config(changes)).expect("the config is written");
    write(&folder.join("model.safetensors"), tensors);
    folder
}

fn logits(model: &Transformer) -> Vec<f32> {
    let mut all = vec![];
    model.for_each_logits(&Batch::pack([&IDS[..]]), &[0, 4, 8], |_, chunk| all.extend_from_slice(chunk));
    all
}

fn load(folder: &Path) -> Transformer {
    llada::load(folder).unwrap_or_else(|e| panic!("{e}"))
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= tolerance * largest, "got {g}, expected {e}");
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = folder("shards");
    fs::copy(golden().join("config.json"), folder.join("config.json")).expect("the config is copied");
    let (mut shards, mut map) = ([HashMap::new(), HashMap::new()], HashMap::new());
    for (i, (name, tensor)) in golden_tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2));
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&folder.join(format!("model-{i}.safetensors")), shard);
    }
    let index = folder.join("model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": map }).to_string()).expect("the index is written");
    assert_eq!(logits(&load(&folder)), logits(&load(&golden())));
    fs::write(&index, json!({ "weight_map": { "x": "../../etc/passwd" } }).to_string()).expect("the index is written");
    assert!(error(&folder).contains("lies outside the folder"));
}

#[test]
fn grouped_heads_equal_repeated_ones() {
    let (mut grouped, mut repeated) = (golden_tensors(), golden_tensors());
    for block in 0..2 {
        for part in ["k_proj", "v_proj"] {
            let name = format!("model.transformer.blocks.{block}.{part}.weight");
            let half: Vec<f32> = grouped[&name].1[..2 * 16 * 64].to_vec();
            // Each of 2 key/value heads serves 2 query heads.
            let heads: Vec<f32> = half.chunks(16 * 64).flat_map(|head| [head, head].concat()).collect();
            grouped.insert(name.clone(), (vec![32, 64], half));
            repeated.insert(name, (vec![64, 64], heads));
        }
    }
    let grouped = load(&checkpoint("grouped", json!({ "n_kv_heads": 2 }), &grouped));
    let repeated = load(&checkpoint("repeated", json!({}), &repeated));
    assert_close(&logits(&grouped), &logits(&repeated), 1e-5);
}

#[test]
fn tied_weights_equal_a_copied_head_and_sum_its_gradient() {
    let mut tensors = golden_tensors();
    let wte = tensors["model.transformer.wte.weight"].clone();
    tensors.insert("model.transformer.ff_out.weight".to_owned(), wte);
    let mut copied = load(&checkpoint("copied", json!({}), &tensors));
    tensors.remove("model.transformer.ff_out.weight");
    let mut tied = load(&checkpoint("tied", json!({ "weight_tying": true }), &tensors));
    assert_eq!(logits(&tied), logits(&copied));
    let gradients = |model: &mut Transformer| {
        model.params.iter_mut().for_each(|p| p.trainable = true);
        let mut grads = model.zero_gradients();
        let targets = Targets { rows: &[2, 5], ids: &[7, 8], weights: &[0.5, 1.5] };
        model.loss_and_gradients(&Batch::pack([&IDS[..]]), targets, &mut grads);
        grads
    };
    let (of_tied, of_copied) = (gradients(&mut tied), gradients(&mut copied));
    let of = |id: usize| of_copied[id].as_ref().expect("everything is trained");
    let sum: Vec<f32> = of(copied.embedding).iter().zip(of(copied.head.weight).iter()).map(|(a, b)| a + b).collect();
    assert_close(of_tied[tied.embedding].as_ref().expect("everything is trained"), &sum, 1e-5);
}

#[test]
fn bf16_is_f32_rounded() {
    let config =
        LladaConfig::parse(&golden_config(json!({})), Path::new("config.json")).expect("the config is LLaDA's");
    let folder = folder("bf16");
    llada::save(&folder, &load(&golden()), &config).expect("the checkpoint is saved");
    let mut rounded = golden_tensors();
    for (_, numbers) in rounded.values_mut() {
        numbers.iter_mut().for_each(|x| *x = half_rounded(*x));
    }
    assert_eq!(logits(&load(&folder)), logits(&load(&checkpoint("rounded", json!({}), &rounded))));
}

/// Round to nearest even at 16 bits.
fn half_rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn a_fresh_adapter_computes_its_base_and_comes_back_from_disk() {
    let base = load(&golden());
    for (name, targets) in
        [("all", vec!["all-linear"]), ("head", vec!["ff_out"]), ("qv", vec!["q_proj", "blocks.1.v_proj"])]
    {
        let mut model = base.clone();
        let config = LoraConfig::new(3, 6.0, 0.0, targets.iter().map(|t| (*t).to_owned()).collect(), true);
        lora::attach_fresh(&mut model, &config, 5).expect("the targets are there");
        assert_eq!(logits(&model), logits(&base), "{name}: B is zero");
        for (i, x) in
            model.params.iter_mut().filter(|p| p.trainable).flat_map(|p| p.weight.make_trainable()).enumerate()
        {
            *x += 1e-2 * (i % 7) as f32 - 3e-2;
        }
        let folder = folder(&format!("adapter-{name}"));
        lora::save(&folder, &model, &config, "base").expect("the adapter is saved");
        let mut again = base.clone();
        lora::load(&folder, &mut again).expect("the adapter loads");
        assert_eq!(logits(&again), logits(&model), "{name}: save and load are inverse");
        assert_ne!(logits(&again), logits(&base), "{name}: the adapter does something");
        check_gradients(&mut model);
    }
}

#[test]
fn ff_out_names_the_head_as_well_as_each_down_projection() {
    let adapted = |target: &str| {
        let mut model = load(&golden());
        lora::attach_fresh(&mut model, &LoraConfig::new(2, 2.0, 0.0, vec![target.to_owned()], false), 1)
            .map(|()| model.params.iter().filter(|p| p.trainable).count() / 2)
    };
    assert_eq!(adapted("ff_out"), Ok(3), "two blocks and the head");
    assert_eq!(adapted("all-linear"), Ok(14), "seven layers of two blocks, not the head");
    assert!(adapted("wte").is_err_and(|e| e.contains("name the embedding model.transformer.wte")));
    assert!(adapted("f_out").is_err_and(|e| e.contains("name no layer of the model")));
}

/// The adapters' gradients against central differences of the loss.
fn check_gradients(model: &mut Transformer) {
    let batch = Batch::pack([&IDS[..]]);
    let (rows, ids, weights) = ([2, 5], [7, 8], [0.5, 1.5]);
    let mut grads = model.zero_gradients();
    model.loss_and_gradients(&batch, Targets { rows: &rows, ids: &ids, weights: &weights }, &mut grads);
    let loss = |model: &Transformer| -> f64 {
        model.nll(&batch, &rows, &ids).iter().zip(weights).map(|(nll, w)| f64::from(*nll) * f64::from(w)).sum()
    };
    for (i, grad) in grads.iter().enumerate().filter_map(|(i, g)| g.as_ref().map(|g| (i, g))) {
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
    let (config, folder) = (LladaConfig::new(sizes), folder("new"));
    llada::save(&folder, &llada::fresh(&config, 3), &config).expect("the model is saved");
    assert_eq!(logits(&load(&folder)).len(), 3 * 160);
}

fn error(folder: &Path) -> String {
    llada::load(folder)
        .expect_err("the checkpoint is refused")
        .to_string()
        .replace(&folder.display().to_string(), "DIR")
}

#[test]
fn what_weft_does_not_compute_is_refused_by_its_name() {
    let folder = folder("refused");
    fs::copy(golden().join("model.safetensors"), folder.join("model.safetensors")).expect("the weights are copied");
    for (changes, expected) in [
        (
            json!({"model_type": "qwen2"}),
            "DIR/config.json: model_type \"qwen2\" is not supported; give a checkpoint of model_type llada",
        ),
        (json!({"include_qkv_bias": true}), "DIR/config.json: include_qkv_bias = true is not supported; only false is"),
        (json!({"alibi": true}), "DIR/config.json: alibi = true is not supported; only false is"),
        (json!({"attention_dropout": 0.1}), "DIR/config.json: attention_dropout = 0.1 is not supported; set it to 0"),
        (
            json!({"mask_token_id": 160}),
            "DIR/config.json: mask_token_id 160 lies outside the vocabulary of 160; set it below",
        ),
        (
            json!({"n_heads": 3}),
            "DIR/config.json: d_model 64, n_heads 3 and n_kv_heads 4 do not divide into even heads",
        ),
        (json!({"embedding_size": 100}), "DIR/config.json: embedding_size 100 is smaller than vocab_size 160"),
        (
            json!({"mlp_hidden_size": 96}),
            "tensor model.transformer.blocks.0.ff_proj.weight in DIR: expected [96, 64], got [160, 64]; is this the checkpoint that config.json describes?",
        ),
        (
            json!({"n_layers": 3}),
            "tensor model.transformer.blocks.2.q_proj.weight in DIR: missing; is this the checkpoint that config.json describes?",
        ),
    ] {
        fs::write(folder.join("config.json"), golden_config(changes)).expect("the config is written");
        assert_eq!(error(&folder), expected);
    }
    fs::remove_file(folder.join("config.json")).expect("the config is removed");
    assert!(error(&folder).starts_with("cannot read DIR/config.json: "));
}

#[test]
fn damaged_safetensors_are_errors() {
    let whole = fs::read(golden().join("model.safetensors")).expect("the golden checkpoint is there");
    let lying = |from: &str, to: &str| {
        let header = String::from_utf8_lossy(&whole[8..4000]).into_owned();
        let changed = header.replacen(from, to, 1);
        assert_ne!(header, changed, "the header holds {from}");
        [&whole[..8], changed.as_bytes(), &whole[4000..]].concat()
    };
    let folder = folder("damaged");
    fs::copy(golden().join("config.json"), folder.join("config.json")).expect("the config is copied");
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
        assert!(message.starts_with("DIR/model.safetensors is damaged or of another format: "), "{what}: {message}");
    }
}

#[test]
fn adapters_that_are_no_plain_lora_are_refused() {
    let folder = folder("no-lora");
    let adapter = golden().join("lora/adapter");
    fs::copy(adapter.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).expect("copied");
    let text = fs::read_to_string(adapter.join("adapter_config.json")).expect("the golden adapter is there");
    for (field, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("modules_to_save", json!(["wte"])),
        ("layers_to_transform", json!([0])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("IA3")),
        ("some_new_field", json!(1)),
    ] {
        let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
        config[field] = value.clone();
        fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
        let message = lora::load(&folder, &mut load(&golden())).expect_err(field).to_string();
        assert!(message.contains(&format!("{field} = {value} is not supported")), "{message}");
    }
    for (field, value, expected) in [
        ("r", json!(4), "expected [4, 64], got [8, 64]"),
        ("target_modules", json!(["q_proj"]), "no layer takes it"),
        ("target_modules", json!(["q_proj", "attn_out"]), "missing"),
        ("target_modules", json!("("), "is no regular expression"),
    ] {
        let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
        config[field] = value;
        fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
        let message = lora::load(&folder, &mut load(&golden())).expect_err(field).to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
    config["target_modules"] = json!(r".*\.[qkv]_proj");
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("the config is written");
    lora::load(&folder, &mut load(&golden())).expect("PEFT reads a text as a pattern of the whole name");
}
