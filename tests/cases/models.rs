//! Checkpoints that people have: their config.json, their files, their tokenizers and chat templates.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use weft::data::chat_template::TextModel;
use weft::data::{Message, tokenizer};
use weft::model::checkpoint;
use weft::model::config::ModelConfig;

use super::program::{Case, GENERATE, pairs, recipe, refused, works};
use crate::fixtures::{DREAM, Golden, LLADA, logits as logits_of};
use crate::scratch::folder;

pub const CASES: &[Case] = &[
    ("M1", ropes_base),
    ("M3", git_lfs_pointers),
    ("M5", markers),
    ("T1", generation_tags),
    ("also 1", fields_that_change_the_numbers),
    ("also 4", the_same_sentence_each_time),
];

fn ropes_base() {
    let text = fs::read_to_string(LLADA.path().join("config.json")).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config.as_object_mut().expect("an object").remove("rope_theta");
    let parse = |config: &Value| ModelConfig::parse(&config.to_string(), Path::new("config.json"));
    // Both places of the base give the same logits, and others than another base.
    let logits = |name: &str, config: &Value| {
        let folder = folder(name);
        fs::copy(LLADA.path().join("model.safetensors"), folder.join("model.safetensors")).expect("it is copied");
        fs::write(folder.join("config.json"), config.to_string()).expect("it is written");
        logits_of(&checkpoint::load(&folder).expect("it loads"))
    };
    config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500_000.0 });
    let nested = logits("nested", &config);
    let mut beside = config.clone();
    beside.as_object_mut().expect("an object").remove("rope_parameters");
    beside["rope_theta"] = 500_000.0.into();
    assert_eq!(nested, logits("beside", &beside));
    beside["rope_theta"] = 10_000.0.into();
    assert_ne!(nested, logits("other", &beside));
    config["rope_parameters"]["rope_type"] = "yarn".into();
    let told = parse(&config).expect_err("it is refused").to_string();
    assert!(told.contains("rope_parameters") && told.contains("yarn"), "{told}");
}

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22ead\nsize 12345\n";

fn git_lfs_pointers() {
    let told =
        "is a Git LFS pointer, not the file; run `git lfs pull` in its folder, or download it with `hf download`";
    let base = LLADA.with_text("pointer", &LLADA.path());
    fs::write(base.join("model.safetensors"), POINTER).expect("it is written");
    refused(&base, &["generate", "--model", ".", "--prompt", "a"], &["model.safetensors", told]);
    let folder = recipe("pointer", &pairs(1));
    for file in ["train.jsonl", "x.parquet"] {
        fs::write(folder.join(file), POINTER).expect("it is written");
        let train = format!("data.train={file}");
        refused(&folder, &["data", "recipe.toml", "--set", &train], &[file, told]);
    }
}

/// The embedded base with another chat template and one more special token.
fn base_with(name: &str, template: &str, token: &str) -> std::path::PathBuf {
    let folder = folder(name);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
    for file in ["config.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(assets.join(file), folder.join(file)).expect("it is copied");
    }
    let text = fs::read_to_string(assets.join("tokenizer.json")).expect("it is there");
    let mut json: Value = serde_json::from_str(&text).expect("it is JSON");
    if !token.is_empty() {
        // A token of the vocabulary that is made a special one.
        let id = json["model"]["vocab"][token].clone();
        let added = json["added_tokens"].as_array_mut().expect("a list");
        added.push(json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }));
    }
    fs::write(folder.join("tokenizer.json"), json.to_string()).expect("it is written");
    if !template.is_empty() {
        fs::write(folder.join("chat_template.jinja"), template).expect("it is written");
    }
    folder
}

fn markers() {
    // The embedded base answers a sum in digits; each of them is a marker here.
    let plain = base_with("plain", "", "");
    let ask = |base: &Path, more: &[&str]| -> String {
        let args =
            ["generate", "--model", ".", "--gen-length", "64", "--block-length", "8", "--prompt", "What is 7 + 5?"];
        works(base, &[&args[..], more].concat()).trim().to_owned()
    };
    let answer = ask(&plain, &[]);
    let digit = answer.chars().find(char::is_ascii_digit).expect("the base answers in digits").to_string();
    let marked = base_with("marked", "", &digit);
    assert!(!ask(&marked, &[]).contains(&digit), "special tokens aren't part of an answer");
    assert!(
        ask(&marked, &["--keep-special-tokens"]).starts_with(&answer),
        "but they are shown where that is asked for"
    );
}

fn generation_tags() {
    let tagged = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% endgeneration %}{% else %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endif %}|{% endfor %}";
    let plain = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{{ m.content }}{% else %}\
                 {#- -#} {{ m.content }} {#- -#}{% endif %}|{% endfor %}";
    let messages = ["user", "assistant"].map(|role| Message { role: role.to_owned(), content: "4".to_owned() });
    let [tagged, plain] = [tagged, plain].map(|template| {
        let folder = folder("tags");
        tokenizer::train(&folder, &["a".to_owned()], 300).expect("it trains");
        fs::write(folder.join("chat_template.jinja"), template).expect("it is written");
        TextModel::open(&folder).and_then(|text| text.render(&messages, false)).expect("it renders")
    });
    assert_eq!(tagged, plain);
    let base = base_with(
        "tagged",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "",
    );
    works(
        &base,
        &["generate", "--model", ".", "--gen-length", "4", "--diffusion-steps", "2", "--prompt", "What is 7 + 5?"],
    );
}

fn fields_that_change_the_numbers() {
    let refuses = |golden: Golden, field: &str, value: Value| {
        let told = ModelConfig::parse(&golden.config(json!({ field: value })), Path::new("config.json"));
        let told = told.err().unwrap_or_else(|| panic!("{field} isn't computed")).to_string();
        assert!(told.contains(field), "{told}");
    };
    refuses(LLADA, "rope_scaling", json!({ "type": "yarn", "factor": 4.0 }));
    refuses(LLADA, "clip_qkv", json!(8.0));
    refuses(DREAM, "head_dim", json!(24));
    refuses(DREAM, "partial_rotary_factor", json!(0.5));
    refuses(DREAM, "layer_types", json!(["sliding_attention", "full_attention"]));
}

/// A sentence names the same tensor from run to run, and calls no sound file damaged.
fn the_same_sentence_each_time() {
    let mut tensors = LLADA.tensors();
    tensors.retain(|name, _| !name.contains("q_proj") && !name.contains("ff_out"));
    let base = LLADA.with_text("missing", &LLADA.checkpoint("missing", json!({}), &tensors));
    let told = || crate::fixtures::weft(&base, &["generate", "--model", ".", "--prompt", "a"]);
    let first = told();
    assert_eq!(first.status.code(), Some(2));
    (0..4).for_each(|_| assert_eq!(told().stderr, first.stderr));
    let sound = base_with("sound", "{% for m in messages %}{{ m.content | nothing }}{% endfor %}", "");
    let args = [&["generate", "--model", "."], &GENERATE[3..], &["--prompt", "a"]].concat();
    let told = String::from_utf8_lossy(&crate::fixtures::weft(&sound, &args).stderr).into_owned();
    assert!(told.contains("chat_template.jinja") && told.contains("nothing"), "{told}");
    assert!(!told.contains("damaged") && !told.contains("fetch"), "{told}");
}
