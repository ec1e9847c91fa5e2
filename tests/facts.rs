//! What config.json doesn't say of a checkpoint: the mask token and the shift are found in the documented order and told
//! with their source.

mod fixtures;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{QWEN3, load, stdout, weft};
use scratch::folder;
use serde_json::{Value, json};
use weft::base::Base;
use weft::model::config::ModelConfig;
use weft::model::facts::{MASK_TOKENS, Overrides};

/// A config.json that names no mask token, with some fields changed.
fn config(changes: Value) -> String {
    let mut fields = json!({
        "model_type": "a2d-qwen3", "vocab_size": 160, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1,
        "num_attention_heads": 4, "head_dim": 16,
    });
    fields.as_object_mut().expect("a literal object").extend(changes.as_object().expect("an object").clone());
    fields.to_string()
}

/// A folder of files, each a JSON value; config.json is the one above with these changes.
fn files(changes: Value, others: &[(&str, Value)]) -> PathBuf {
    let folder = folder("facts");
    fs::write(folder.join("config.json"), config(changes)).expect("written");
    others.iter().for_each(|(name, value)| fs::write(folder.join(name), value.to_string()).expect("written"));
    folder
}

fn open(folder: &Path, overrides: Overrides) -> Result<ModelConfig, String> {
    ModelConfig::open(folder, overrides).map_err(|e| e.to_string().replace(&folder.display().to_string(), "DIR"))
}

/// The mask token and its source.
fn mask(folder: &Path) -> (u32, String) {
    let facts = open(folder, Overrides::default()).unwrap_or_else(|e| panic!("{e}")).facts().clone();
    (facts.mask_token_id.value, facts.mask_token_id.source)
}

fn found(id: u32, source: &str) -> (u32, String) {
    (id, source.to_owned())
}

fn given(mask_token_id: u32) -> Overrides {
    Overrides { mask_token_id: Some(mask_token_id), ..Overrides::default() }
}

/// A tokenizer.json of three words and some added tokens.
fn tokenizer(added: &[(u32, &str)]) -> (&'static str, Value) {
    let added: Vec<Value> = added.iter().map(|(id, content)| json!({ "id": id, "content": content })).collect();
    let vocab = json!({ "a": 5, "b": 6, "word": 7 });
    ("tokenizer.json", json!({ "added_tokens": added, "model": { "vocab": vocab, "merges": [["a", "b"]] } }))
}

#[test]
fn a_mask_token_is_found_in_every_place() {
    let end = (150, "<|endoftext|>");
    let special = tokenizer(&[end, (151, "<mine>"), (152, "<other>")]);
    let tokens = |value: Value| ("tokenizer_config.json", json!({ "mask_token": value }));
    let map = |value: Value| ("special_tokens_map.json", json!({ "mask_token": value }));
    let by_role = |file: &str| found(151, &format!("mask_token \"<mine>\" of {file}"));
    for (what, others, expected) in [
        ("text", vec![special.clone(), tokens(json!("<mine>"))], by_role("tokenizer_config.json")),
        (
            "an object",
            vec![special.clone(), tokens(json!({ "content": "<mine>", "lstrip": false }))],
            by_role("tokenizer_config.json"),
        ),
        ("the map", vec![special.clone(), map(json!("<mine>"))], by_role("special_tokens_map.json")),
        (
            "the map's object",
            vec![special.clone(), tokens(Value::Null), map(json!({ "content": "<mine>" }))],
            by_role("special_tokens_map.json"),
        ),
        (
            "the first of two",
            vec![special.clone(), tokens(json!("<mine>")), map(json!("<other>"))],
            by_role("tokenizer_config.json"),
        ),
        (
            "a word of the vocabulary",
            vec![tokenizer(&[end]), tokens(json!("word"))],
            found(7, "mask_token \"word\" of tokenizer_config.json"),
        ),
        (
            "a role that no list knows",
            vec![tokenizer(&[end, (151, "<|mask|>")]), tokens(json!("<absent>"))],
            found(151, "the tokenizer's added token \"<|mask|>\""),
        ),
    ] {
        assert_eq!(mask(&files(json!({}), &others)), expected, "{what}");
    }
    assert_eq!(mask(&files(json!({ "mask_token_id": 159 }), &[])), found(159, "config.json"));
    assert_eq!(MASK_TOKENS, ["<|mask|>", "<|MASK|>", "[MASK]", "<M>", "<|mdm_mask|>", "<[MASK]>", "|<MASK>|"]);
    for name in MASK_TOKENS {
        let expected = found(152, &format!("the tokenizer's added token {name:?}"));
        let decoder = json!({ "added_tokens_decoder": { "150": { "content": end.1 }, "152": { "content": name } } });
        let added = json!({ end.1: end.0, name: 152 });
        for others in [
            vec![tokenizer(&[end, (152, name)])],
            vec![tokenizer(&[end]), ("tokenizer_config.json", decoder.clone())],
            vec![("vocab.json", json!({ "a": 5 })), ("added_tokens.json", added.clone())],
            // Each list has it: still one token.
            vec![tokenizer(&[end, (152, name)]), ("tokenizer_config.json", decoder), ("added_tokens.json", added)],
        ] {
            assert_eq!(mask(&files(json!({}), &others)), expected, "{others:?}");
        }
    }
}

const NONE: &str = "DIR/config.json: no mask token: neither config.json has mask_token_id nor does the tokenizer name \
                    one; give its id by --mask-token-id N, or model.mask_token_id in a recipe, or turn an autoregressive \
                    checkpoint into a diffusion one by weft convert";

#[test]
fn no_mask_token_is_refused_with_how_to_give_it() {
    let role = json!({ "mask_token": Value::Null });
    for others in [
        vec![],
        vec![tokenizer(&[(150, "<|endoftext|>"), (151, "<|masked|>")]), ("tokenizer_config.json", role)],
        // Two names: neither is the one.
        vec![tokenizer(&[(151, "<|mask|>"), (152, "[MASK]")])],
    ] {
        let folder = files(json!({ "mask_token_id": Value::Null }), &others);
        assert_eq!(open(&folder, Overrides::default()).expect_err("no mask token"), NONE, "{others:?}");
        let facts = open(&folder, given(158)).expect("it is given").facts().clone();
        assert_eq!(facts.mask_token_id.source, "the setting");
        assert_eq!(facts.mask_token_id.value, 158);
    }
}

#[test]
fn illadas_is_known_by_class_or_type() {
    let class = |model_type: &str| json!({ "model_type": model_type, "architectures": ["ILLaDAForCausalLM"] });
    let source = "its family, iLLaDA";
    for changes in [class("illada"), class("llama"), class("something"), json!({ "model_type": "illada" })] {
        // There id 5 is a word, and that is as its authors chose it: from the family, from a saved config.json, or given.
        let folder = files(changes.clone(), &[tokenizer(&[(0, "<bos>")])]);
        assert_eq!(mask(&folder), found(5, source), "{changes}");
        assert_eq!(open(&folder, given(5)).expect("it is the same").mask_token_id(), 5);
        let error = open(&folder, given(6)).expect_err("a word");
        assert!(error.contains("mask_token_id 6, from the setting, is the ordinary token \"b\""), "{error}");
        let mut saved = changes;
        saved["mask_token_id"] = json!(5);
        assert_eq!(mask(&files(saved, &[tokenizer(&[])])), found(5, "config.json"));
    }
    // What its own files say comes before what is known of the family.
    let own = files(class("illada"), &[tokenizer(&[(150, "<|mask|>")])]);
    assert_eq!(mask(&own), found(150, "the tokenizer's added token \"<|mask|>\""));
}

#[test]
fn an_ordinary_token_is_refused_by_its_name() {
    let others = [tokenizer(&[(150, "<|mask|>")])];
    let own = ", 150 by the tokenizer's added token \"<|mask|>\"";
    let refused = |source: &str, own: &str| {
        format!(
            "DIR/config.json: mask_token_id 7, from {source}, is the ordinary token \"word\" of the tokenizer; give the \
             mask token's own id{own}"
        )
    };
    let folder = files(json!({ "mask_token_id": 7 }), &others);
    assert_eq!(open(&folder, Overrides::default()).expect_err("a word"), refused("config.json", own));
    assert_eq!(open(&folder, given(7)).expect_err("a word"), refused("the setting", own));
    let unnamed = files(json!({ "mask_token_id": 7 }), &[tokenizer(&[])]);
    assert_eq!(open(&unnamed, Overrides::default()).expect_err("a word"), refused("config.json", ""));
    let lists = [("vocab.json", json!({ "word": 7 }))];
    let error = open(&files(json!({ "mask_token_id": 7 }), &lists), Overrides::default()).expect_err("a word");
    assert_eq!(error, refused("config.json", ""));
    // A vocabulary as a list, as Unigram's files have it.
    let unigram = json!({ "model": { "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -1.5]] } });
    let folder = files(json!({ "mask_token_id": 2 }), &[("tokenizer.json", unigram)]);
    assert!(open(&folder, Overrides::default()).is_err_and(|e| e.contains("is the ordinary token \"b\"")));
    // A token between the words and the rows is nobody's: a free row may be the mask token's.
    assert_eq!(mask(&files(json!({ "mask_token_id": 159 }), &[tokenizer(&[])])), found(159, "config.json"));
    let tiny = Base::open_with(Path::new("tiny-base"), given(100)).map(|_| ()).expect_err("a word").to_string();
    assert!(tiny.contains("mask_token_id 100, from the setting, is the ordinary token"), "{tiny}");
}

#[test]
fn contradictions_are_told_and_ids_past_the_rows_refused() {
    let others = [tokenizer(&[(150, "<|mask|>")])];
    let against = "against 150, the tokenizer's added token \"<|mask|>\"";
    let folder = files(json!({ "mask_token_id": 151 }), &others);
    assert_eq!(mask(&folder), found(151, &format!("config.json, {against}")));
    let facts = open(&folder, given(152)).expect("it loads").facts().to_string();
    assert_eq!(
        facts,
        format!(
            "mask token 152 (from the setting, {against}); logits at the position they predict (from its family, A2D Qwen3)"
        )
    );
    assert_eq!(mask(&files(json!({ "mask_token_id": 150 }), &others)), found(150, "config.json"), "no contradiction");
    let past =
        |id: &str| format!("DIR/config.json: mask_token_id {id} lies outside the vocabulary of 160; set it below");
    assert_eq!(open(&folder, given(160)).expect_err("past the rows"), past("160"));
    let folder = files(json!({}), &[tokenizer(&[(161, "<|mask|>")])]);
    assert_eq!(open(&folder, Overrides::default()).expect_err("past the rows"), past("161"));
    for (value, printed) in [(json!(-1), "-1"), (json!("5"), "\"5\""), (json!(5_000_000_000u64), "5000000000")] {
        let error = open(&files(json!({ "mask_token_id": value }), &[]), Overrides::default());
        assert_eq!(error.expect_err("no id"), format!("DIR/config.json: mask_token_id = {printed} is no token's id"));
    }
}

#[test]
fn the_shift_is_found_by_setting_file_or_family() {
    let shift = |changes: Value, own: Option<bool>| {
        let overrides = Overrides { mask_token_id: Some(159), logits_shifted: own, ..Overrides::default() };
        let found = open(&files(changes, &[]), overrides).expect("it is a config").facts().logits_shifted.clone();
        (found.value, found.source)
    };
    let of = |value: bool, source: &str| (value, source.to_owned());
    for (model_type, name, shifted) in [
        ("Dream", "Dream", true),
        ("illada", "iLLaDA", false),
        ("a2d-qwen2", "A2D Qwen2", false),
        ("a2d-qwen3", "A2D Qwen3", false),
        ("a2d-llama", "A2D Llama", false),
        ("sdar", "SDAR", false),
        ("Fast_dLLM_Qwen", "Fast-dLLM v2", true),
        ("qwen2", "Qwen2", true),
        ("qwen3", "Qwen3", true),
        ("llama", "Llama", true),
    ] {
        let family = format!("its family, {name}");
        assert_eq!(shift(json!({ "model_type": model_type }), None), of(shifted, &family));
        let configured = json!({ "model_type": model_type, "logits_shifted": !shifted });
        assert_eq!(shift(configured.clone(), None), of(!shifted, "config.json"));
        assert_eq!(shift(configured, Some(shifted)), of(shifted, "the setting"));
    }
    let error = open(&files(json!({ "logits_shifted": "yes" }), &[]), given(159)).expect_err("no flag");
    assert_eq!(error, "DIR/config.json: logits_shifted = \"yes\" is neither true nor false");
}

/// The golden Qwen3 where nothing names the mask token, with rows and a recipe.
fn nameless() -> PathBuf {
    let folder = QWEN3.with_text("nameless", &QWEN3.path());
    fs::write(folder.join("config.json"), QWEN3.config(json!({ "mask_token_id": null }))).expect("written");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(folder.join(file)).expect("it is there");
        fs::write(folder.join(file), text.replace("<|mdm_mask|>", "<|spare|>")).expect("written");
    }
    let tokens: Value = serde_json::from_str(&fs::read_to_string(folder.join("tokenizer_config.json")).expect("there"))
        .expect("it is JSON");
    let mut tokens = tokens.as_object().expect("an object").clone();
    tokens.remove("mask_token");
    fs::write(folder.join("tokenizer_config.json"), Value::Object(tokens).to_string()).expect("written");
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..8).map(row).collect::<String>()).expect("written");
    let recipe = "[model]\npath = \".\"\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\n\
                  [train]\noutput = \"run\"\nmicro_batch_size = 4\nepochs = 1\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("written");
    folder
}

#[test]
fn commands_say_what_they_took_and_refuse_what_they_lack() {
    let folder = nameless();
    let told = "mask token 158 (from the setting); logits shifted: those at i-1 predict i (from the setting)";
    let flags = ["--mask-token-id", "158", "--logits-shifted", "true"];
    let settings = ["--set", "model.mask_token_id=158", "--set", "model.logits_shifted=true"];
    for command in ["data", "plan", "train"] {
        let none = weft(&folder, &[command, "recipe.toml"]);
        let error = String::from_utf8_lossy(&none.stderr).into_owned();
        assert!(!none.status.success() && error.contains("give its id by --mask-token-id N"), "{command}: {error}");
        for given in [flags, settings] {
            let text = stdout(&folder, &[&[command, "recipe.toml"], &given[..]].concat());
            // `data` prints it below its tables, the others at their beginning.
            let lines = if command == "data" { usize::MAX } else { 8 };
            let line = text.lines().take(lines).find(|line| line.starts_with("model")).expect("it is told");
            assert!(line.contains(told), "{command}: {line}");
            let _ = fs::remove_dir_all(folder.join("run"));
        }
    }
    let word = weft(&folder, &["plan", "recipe.toml", "--mask-token-id", "20"]);
    assert_eq!(word.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&word.stderr).contains("mask_token_id 20, from the setting, is the ordinary token")
    );
    let reference = QWEN3.path().join("objectives.safetensors").display().to_string();
    let parity = ["parity", "--model", ".", "--reference", &reference, "--mask-token-id"];
    stdout(&folder, &[&parity[..], &["159"]].concat());
    assert_eq!(weft(&folder, &[&parity[..], &["158"]].concat()).status.code(), Some(1), "another row is read");
    let shifted = weft(&folder, &[&parity[..], &["159", "--logits-shifted", "true"]].concat());
    assert_eq!(shifted.status.code(), Some(1));
}

#[test]
fn what_was_given_stays_with_what_is_saved() {
    let folder = nameless();
    let flags = ["--mask-token-id", "158", "--logits-shifted", "true"];
    let train = |more: &[&str]| stdout(&folder, &[&["train", "recipe.toml"], &flags[..], more].concat());
    let asked = |text: &str| text.lines().find_map(|line| line.strip_prefix("try it: ")).expect("told").to_owned();
    let question = asked(&train(&[]));
    assert!(question.contains(" --mask-token-id 158 --logits-shifted true "), "{question}");
    let words: Vec<&str> = question.split(' ').skip(1).take_while(|word| *word != "--prompt").collect();
    stdout(&folder, &[&words[..], &["--prompt", "What is 3 + 1?"]].concat());
    let merge = ["merge", "--model", ".", "--adapter", "run/adapter", "--out", "merged"];
    stdout(&folder, &[&merge[..], &flags].concat());
    fs::remove_dir_all(folder.join("run")).expect("removed");
    let question = asked(&train(&["--set", "model.trainable=full"]));
    assert!(!question.contains("--mask-token-id"), "{question}");
    for saved in ["merged", "run/checkpoint"] {
        let text = fs::read_to_string(folder.join(saved).join("config.json")).expect("there is a config");
        let fields: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!((&fields["mask_token_id"], &fields["logits_shifted"]), (&json!(158), &json!(true)), "{saved}");
        let model = load(&folder.join(saved));
        assert_eq!((model.config.mask_token_id, model.config.logits_shifted), (158, true), "{saved}");
    }
}
