//! Adapters as PEFT and its users write them: patterns of ranks, scales and layers compute what the same adapter written
//! out in full computes; what Weft doesn't compute is refused with what to do about it.

mod fixtures;
mod scratch;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{Golden, LLADA, Tensor, assert_close, load, logits, read, write};
use scratch::folder;
use serde_json::{Value, json};
use weft::merge;
use weft::model::lora;

const PREFIX: &str = "base_model.model.";

fn golden_tensors() -> HashMap<String, Tensor> {
    read(&fs::read(LLADA.path().join("lora/adapter/adapter_model.safetensors")).expect("it is there"))
}

/// The golden adapter with other tensors, and with some fields of its configuration changed.
fn adapter(name: &str, tensors: &HashMap<String, Tensor>, changes: Value) -> PathBuf {
    let folder = folder(name);
    configure(&folder, changes);
    write(&folder.join("adapter_model.safetensors"), tensors);
    folder
}

fn configure(folder: &Path, changes: Value) {
    let text = fs::read_to_string(LLADA.path().join("lora/adapter/adapter_config.json")).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    let fields = config.as_object_mut().expect("it is an object");
    fields.extend(changes.as_object().expect("the changes are an object").clone());
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("it is written");
}

fn of(folder: &Path) -> Vec<f32> {
    let mut model = LLADA.load();
    lora::load(folder, &mut model).unwrap_or_else(|e| panic!("{e}"));
    logits(&model)
}

fn refused(folder: &Path) -> String {
    let error = lora::load(folder, &mut LLADA.load()).expect_err("the adapter is refused").to_string();
    error.replace(&folder.display().to_string(), "DIR")
}

/// The tensors without those of the layers of which `is_left_out` is true, and all of them with these layers' B at zero.
fn without(is_left_out: impl Fn(&str) -> bool) -> [HashMap<String, Tensor>; 2] {
    let (mut fewer, mut zeroed) = (golden_tensors(), golden_tensors());
    fewer.retain(|name, _| !is_left_out(name));
    assert!(!fewer.is_empty() && fewer.len() < zeroed.len());
    for (_, (_, numbers)) in zeroed.iter_mut().filter(|(name, _)| is_left_out(name) && name.contains("lora_B")) {
        numbers.fill(0.0);
    }
    [fewer, zeroed]
}

#[test]
fn starts_that_leave_the_base_unchanged_are_history() {
    let whole = of(&LLADA.path().join("lora/adapter"));
    for start in [json!(true), json!(false), json!(null), json!("gaussian"), json!("orthogonal"), json!("eva")] {
        let changes = json!({ "init_lora_weights": start, "eva_config": { "rho": 2.0 } });
        assert_eq!(of(&adapter("start", &golden_tensors(), changes)), whole, "{start}");
    }
    for start in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"] {
        let told = refused(&adapter("start", &golden_tensors(), json!({ "init_lora_weights": start })));
        let why = format!("init_lora_weights = \"{start}\" is not supported: it changes the base's weights too; load");
        assert!(told.starts_with(&format!("DIR/adapter_config.json: {why}")), "{told}");
    }
}

#[test]
fn fields_of_many_versions_are_read() {
    let whole = of(&LLADA.path().join("lora/adapter"));
    let old = json!({ "enable_lora": null, "merge_weights": false, "lora_dropout": null, "use_rslora": null });
    assert_eq!(of(&adapter("old", &golden_tensors(), old)), whole);
    let new = json!({ "lora_bias": null, "use_qalora": null, "layer_replication": null, "target_parameters": [] });
    assert_eq!(of(&adapter("new", &golden_tensors(), new)), whole);
}

#[test]
fn absent_targets_are_told_with_those_of_the_tensors() {
    let folder = adapter("null", &golden_tensors(), json!({ "target_modules": null }));
    let told = refused(&folder);
    let expected = "DIR/adapter_config.json: target_modules is null, so the file doesn't say which layers are adapted; the \
                    tensors beside it are those of \"target_modules\": [\"k_proj\",\"q_proj\",\"v_proj\"]";
    assert_eq!(told, expected);
    let (_, named) = told.rsplit_once("\"target_modules\": ").expect("they are named");
    configure(&folder, json!({ "target_modules": serde_json::from_str::<Value>(named).expect("it is JSON") }));
    assert_eq!(of(&folder), of(&LLADA.path().join("lora/adapter")), "the fix works");
}

#[test]
fn names_of_other_wrappers_are_told() {
    let renamed = |from: &str, to: &str| -> HashMap<String, Tensor> {
        golden_tensors().into_iter().map(|(name, tensor)| (name.replacen(from, to, 1), tensor)).collect()
    };
    let wanted = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight is missing, and it has ";
    let compiled = refused(&adapter("compiled", &renamed(PREFIX, "_orig_mod.base_model.model."), json!({})));
    assert!(
        compiled.starts_with(&format!("DIR/adapter_model.safetensors: {wanted}_orig_mod.base_model.")),
        "{compiled}"
    );
    assert!(compiled.ends_with("save what it wraps, model._orig_mod.save_pretrained(DIR)"), "{compiled}");
    let dict = refused(&adapter("dict", &renamed(".weight", ".default.weight"), json!({})));
    assert!(
        dict.contains(wanted) && dict.contains(".lora_A.default.weight; the names hold the adapter's own"),
        "{dict}"
    );
    let other = refused(&adapter("other", &renamed("blocks.0", "blocks.7"), json!({})));
    assert!(other.ends_with("is it the adapter of this base?"), "{other}");
}

#[test]
fn what_only_peft_computes_is_refused_with_what_to_do() {
    let fix = "load the adapter on its base in PEFT and save the merged model, which is read as a base: \
               model.merge_and_unload().save_pretrained(DIR)";
    for (field, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["wte"])),
        ("bias", json!("lora_only")),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("LOHA")),
        ("layer_replication", json!([[0, 1]])),
    ] {
        let told = refused(&adapter("no-lora", &golden_tensors(), json!({ field: value })));
        assert!(told.starts_with(&format!("DIR/adapter_config.json: {field} = {value} is not supported")), "{told}");
        assert!(told.ends_with(fix), "{told}");
    }
    // What PEFT's merge gives is a base like this one.
    let base = weft::base::Base::open(Path::new("tiny-base")).expect("it is there");
    let out = folder("merged").join("out");
    merge::write(&base, &out).expect("it is merged");
    load(&out);
}

#[test]
fn ranks_and_scales_of_single_layers_are_those_of_the_written_out_adapter() {
    let fields = json!({
        "rank_pattern": { "q_proj": 4, "model.transformer.blocks.1.k_proj": 2 },
        "alpha_pattern": { "blocks.0.q_proj": 32, ".*\\.1\\.v_proj": 8.0 },
    });
    // Rank and scale of each layer, against rank 8 and scale 2 of the rest.
    let of_layer = |name: &str| match name {
        _ if name.contains("0.q_proj") => (4, 32.0 / 4.0),
        _ if name.contains("1.q_proj") => (4, 16.0 / 4.0),
        _ if name.contains("1.k_proj") => (2, 16.0 / 2.0),
        _ if name.contains("1.v_proj") => (8, 8.0 / 8.0),
        _ => (8, 2.0),
    };
    let (mut short, mut full) = (golden_tensors(), golden_tensors());
    for (name, (shape, numbers)) in &mut short {
        let ((rank, scale), written) = (of_layer(name), full.get_mut(name).expect("both have it"));
        let is_a = name.contains("lora_A");
        let row = if is_a { shape[1] } else { 8 };
        let kept = |i: usize| if is_a { i / row < rank } else { i % row < rank };
        written.1.iter_mut().enumerate().filter(|(i, _)| !kept(*i)).for_each(|(_, x)| *x = 0.0);
        if !is_a {
            written.1.iter_mut().for_each(|x| *x *= scale / 2.0);
        }
        *numbers = numbers.iter().enumerate().filter(|(i, _)| kept(*i)).map(|(_, x)| *x).collect();
        shape[usize::from(!is_a)] = rank;
    }
    let short = adapter("short", &short, fields);
    let [of_short, of_full] = [&short, &adapter("full", &full, json!({}))].map(|folder| of(folder));
    assert_close(&of_short, &of_full, 1e-6);
    assert_ne!(of_short, of(&LLADA.path().join("lora/adapter")));

    // The configuration comes back from a folder that Weft has written.
    let mut model = LLADA.load();
    let config = lora::load(&short, &mut model).expect("it loads");
    let again = folder("again");
    lora::save(&again, &model, &config, "base").expect("it is saved");
    assert_eq!(of(&again), of_short);
    assert_eq!(lora::named_base(&again).as_deref(), Some("base"));

    configure(&short, json!({ "rank_pattern": { "q_proj": 0 } }));
    assert!(refused(&short).ends_with("rank_pattern.q_proj = 0 is not a valid rank; give at least 1"));
    configure(&short, json!({ "alpha_pattern": { "q_proj": "x" } }));
    assert!(refused(&short).ends_with("alpha_pattern.q_proj = \"x\" is no number"));
}

/// Decides by the name of a tensor.
type Choice<'a> = &'a dyn Fn(&str) -> bool;

#[test]
fn layers_are_chosen_and_left_out_as_peft_does() {
    let first = |name: &str| name.contains("blocks.0.");
    let values = |name: &str| name.contains("v_proj");
    let both = |name: &str| name.contains("blocks.0.") && name.contains("v_proj");
    let not_queries = |name: &str| !name.contains("q_proj");
    let names = json!(["q_proj", "k_proj", "v_proj"]);
    let cases: [(Value, Choice); 10] = [
        (json!({ "layers_to_transform": [1] }), &first),
        (json!({ "layers_to_transform": 1 }), &first),
        (json!({ "layers_to_transform": [1], "layers_pattern": "blocks" }), &first),
        (json!({ "layers_to_transform": [1], "layers_pattern": ["h", "blocks"] }), &first),
        (json!({ "exclude_modules": ["v_proj"] }), &values),
        (json!({ "exclude_modules": ".*v_proj" }), &values),
        (json!({ "exclude_modules": ["0.v_proj"] }), &both),
        (json!({ "target_modules": r".*\.(?!v_proj)[qkv]_proj" }), &values),
        (json!({ "target_modules": r".*\.[qkv]_proj(?<!0\.v_proj)" }), &both),
        (
            json!({ "target_modules": ["model.transformer.blocks.0.q_proj", "q_proj"], "layers_to_transform": [1] }),
            &not_queries,
        ),
    ];
    for (fields, is_left_out) in cases {
        let [fewer, zeroed] = without(is_left_out);
        let mut fields = fields;
        if fields.get("target_modules").is_none() {
            fields["target_modules"] = names.clone();
        }
        let [of_fewer, of_zeroed] =
            [adapter("fewer", &fewer, fields.clone()), adapter("zeroed", &zeroed, json!({}))].map(|folder| of(&folder));
        assert_close(&of_fewer, &of_zeroed, 1e-6);
        let told = refused(&adapter("more", &golden_tensors(), fields));
        assert!(told.contains("no layer of the model uses base_model."), "{told}");
    }
    let told = refused(&adapter("pattern", &golden_tensors(), json!({ "layers_pattern": "blocks" })));
    assert!(told.contains("layers_pattern = \"blocks\" needs layers_to_transform"), "{told}");
    let fields = json!({ "layers_to_transform": [1], "target_modules": "all-linear" });
    let told = refused(&adapter("pattern", &golden_tensors(), fields));
    assert!(told.contains("layers_to_transform = [1] doesn't go with target_modules = \"all-linear\""), "{told}");
}

#[test]
fn copies_of_the_bases_own_tensors_are_passed_over() {
    let with_copy = |golden: Golden, change: f32| {
        let mut tensors = golden_tensors();
        for name in [format!("{}.weight", golden.head), format!("{}.weight", golden.embedding)] {
            let (shape, mut numbers) = golden.tensors()[&name].clone();
            numbers[3] += change;
            tensors.insert(format!("{PREFIX}{name}"), (shape, numbers));
        }
        tensors
    };
    let whole = of(&LLADA.path().join("lora/adapter"));
    assert_eq!(of(&adapter("equal", &with_copy(LLADA, 0.0), json!({}))), whole);
    let told = refused(&adapter("other", &with_copy(LLADA, 0.5), json!({})));
    let expected = "DIR/adapter_model.safetensors: base_model.model.model.transformer.ff_out.weight isn't the base's own: the \
                    adapter replaces the whole of it, which Weft doesn't do; load the adapter";
    assert!(told.starts_with(expected), "{told}");
}
