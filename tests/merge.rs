//! Merged checkpoints: they compute what base and adapter compute together, keep everything else of the base, and appear
//! whole in a new folder or not at all.

mod fixtures;
mod scratch;

use std::fs;
use std::path::Path;

use fixtures::{DREAM, FAMILIES, assert_close, disturb, load, logits, read};
use safetensors::{Dtype, SafeTensors};
use scratch::folder;
use serde_json::json;
use weft::base::Base;
use weft::merge;
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::model::lora::{self, LoraConfig};

/// A base with a disturbed adapter on some layers.
fn adapted(folder: &Path, targets: &[&str]) -> Base {
    let mut base = Base::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    lora::attach_fresh(&mut base.model, &LoraConfig::new(3, 6.0, 0.0, targets, true), 5)
        .expect("the targets are there");
    disturb(&mut base.model);
    base
}

#[test]
fn a_merged_checkpoint_computes_what_base_and_adapter_compute() {
    for golden in FAMILIES {
        let head = golden.head.rsplit('.').next().expect("a name has an end");
        let base = adapted(&golden.with_text("base", &golden.path()), &["q_proj", "v_proj", head, "up_proj"]);
        let out = folder(&format!("{}-merged", golden.name));
        merge::write(&base, &out).expect("an empty folder is free");
        assert_close(&logits(&load(&out)), &logits(&base.model), 1e-5);
        assert_ne!(logits(&load(&out)), logits(&golden.load()), "the adapter does something");
        let (old, new) = (golden.tensors(), read(&fs::read(out.join("model.safetensors")).expect("there")));
        let untied = usize::from(!old.contains_key(&format!("{}.weight", golden.head)));
        assert_eq!(new.len(), old.len() + untied, "every tensor, a head that is no longer tied, and no adapter's");
        for (name, (shape, numbers)) in &old {
            assert_eq!(&new[name].0, shape);
            let is_adapted = ["q_proj.weight", "v_proj.weight", "up_proj.weight", &format!("{head}.weight")]
                .iter()
                .any(|part| name.ends_with(part));
            assert_eq!(&new[name].1 != numbers, is_adapted, "{name}");
        }
        let mut files: Vec<String> = fs::read_dir(&out)
            .expect("the folder is there")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let expected = ["config.json", "model.safetensors", "modeling.py", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(files, expected, "the code and the tokenizer, no other weights");
    }
}

#[test]
fn bf16_stays_bf16_and_what_the_model_does_not_read_stays() {
    for golden in FAMILIES {
        let config = ModelConfig::parse(&golden.config(json!({})), Path::new("config.json")).expect("it is a config");
        let stored = folder(&format!("{}-stored", golden.name));
        checkpoint::save(&stored, &golden.load(), &config, weft_kernels::weight::Dtype::Bf16).expect("saved");
        let base = adapted(&golden.with_text("base-bf16", &stored), &["all-linear"]);
        let out = folder(&format!("{}-merged-bf16", golden.name)).join("deep/new");
        merge::write(&base, &out).expect("a new folder is free");
        let bytes = fs::read(out.join("model.safetensors")).expect("there");
        let file = SafeTensors::deserialize(&bytes).expect("whole");
        assert!(file.tensors().iter().all(|(_, t)| t.dtype() == Dtype::BF16));
        assert_close(&logits(&load(&out)), &logits(&base.model), 3e-2);

        let mut tensors = golden.tensors();
        tensors.insert("rotary.inv_freq".to_owned(), (vec![2], vec![0.5, 0.25]));
        let more = golden.checkpoint("more", json!({}), &tensors);
        let base = adapted(&golden.with_text("base-more", &more), &["q_proj"]);
        let out = folder(&format!("{}-merged-more", golden.name));
        merge::write(&base, &out).expect("an empty folder is free");
        let new = read(&fs::read(out.join("model.safetensors")).expect("there"));
        assert_eq!(new["rotary.inv_freq"].1, [0.5, 0.25]);
    }
}

#[test]
fn a_tied_head_with_an_adapter_is_tied_no_longer() {
    let [tied, _] = DREAM.tied_and_copied("merge");
    let base = adapted(&DREAM.with_text("base-tied", &tied), &["lm_head", "q_proj"]);
    let out = folder("merged-tied");
    merge::write(&base, &out).expect("an empty folder is free");
    assert_close(&logits(&load(&out)), &logits(&base.model), 1e-5);
    let new = read(&fs::read(out.join("model.safetensors")).expect("there"));
    assert_ne!(new["lm_head.weight"], new["model.embed_tokens.weight"]);
    let config = fs::read_to_string(out.join("config.json")).expect("there");
    assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
    // Without an adapter on the head it stays tied.
    let base = adapted(&DREAM.with_text("base-tied-2", &tied), &["q_proj"]);
    let out = folder("merged-tied-2");
    merge::write(&base, &out).expect("an empty folder is free");
    let new = read(&fs::read(out.join("model.safetensors")).expect("there"));
    assert!(!new.contains_key("lm_head.weight") && load(&out).has_tied_head());
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let golden = DREAM;
    let base = adapted(&golden.with_text("base-busy", &golden.path()), &["q_proj"]);
    let out = folder("busy");
    fs::write(out.join("mine"), "x").expect("written");
    let message = merge::write(&base, &out).expect_err("it holds a file").to_string();
    assert_eq!(message, format!("{} is not empty; name a new folder", out.display()));
    assert_eq!(fs::read(out.join("mine")).expect("still there"), b"x");
    // A base that is damaged meanwhile leaves nothing behind.
    let broken = golden.with_text("base-broken", &golden.path());
    let base = adapted(&broken, &["q_proj"]);
    fs::remove_file(broken.join("model.safetensors")).expect("removed");
    let out = folder("parent").join("merged");
    assert!(merge::write(&base, &out).is_err());
    assert_eq!(fs::read_dir(out.parent().expect("it has one")).expect("there").count(), 0);
}
