//! Converted checkpoints: they have the source's weights and files, byte for byte where nothing has to change, a mask
//! token that the tokenizer reads as one, and they appear whole in a new folder or not at all.

mod autoregressive;
mod scratch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use autoregressive::{EMBEDDING, HEAD, OTHERS, Source, TOKENS, WIDTH, write, write_tokenizer};
use safetensors::{Dtype, SafeTensors};
use scratch::{folder, names};
use serde_json::{Map, Value, json};
use weft::base::Base;
use weft::convert::convert;
use weft::data::chat_template::TextModel;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn parse(path: &Path) -> Value {
    serde_json::from_str(&read(path)).expect("it is JSON")
}

/// Every tensor of a folder with its shape and bytes. Each file begins with the metadata, aligned as it should be.
fn stored(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for file in names(folder).iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.join(file)).expect("it is there");
        let (length, _) = SafeTensors::read_metadata(&bytes).expect("it is whole");
        let metadata = br#"{"__metadata__":{"format":"pt","made_by":"a test"},"#;
        assert!(bytes[8..].starts_with(metadata) && length % 8 == 0);
        for (name, view) in SafeTensors::deserialize(&bytes).expect("it is whole").tensors() {
            all.insert(name, (view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

fn decoded(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let number = |b: &[u8]| match dtype {
        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Dtype::F16 => {
            let half = u32::from(u16::from_le_bytes([b[0], b[1]]));
            let is_zero = half & 0x7fff == 0;
            if is_zero { 0.0 } else { f32::from_bits(((half >> 15) << 31) | (((half & 0x7fff) << 13) + (112 << 23))) }
        }
        _ => f32::from_le_bytes([0, 0, b[0], b[1]]),
    };
    bytes.chunks(dtype.bitsize() / 8).map(number).collect()
}

fn error(model: &Path, out: &Path) -> String {
    convert(model, out).expect_err("it is refused").to_string()
}

/// Checks the weights; `is_extended` where a row was added.
fn check_weights(source: Source, model: &Path, out: &Path, is_extended: bool) {
    let (before, after) = (stored(model), stored(out));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{source:?}");
    for (name, (shape, bytes)) in &before {
        let (new_shape, new_bytes) = &after[name];
        let (kept, added) = new_bytes.split_at(bytes.len());
        assert_eq!(kept, bytes, "{source:?} {name}");
        if !is_extended || ![EMBEDDING, HEAD].contains(&name.as_str()) {
            assert_eq!((new_shape, added), (shape, &[][..]), "{source:?} {name}");
            continue;
        }
        assert_eq!(new_shape[..], [shape[0] + 1, shape[1]], "{source:?} {name}");
        let numbers = decoded(bytes, source.dtype());
        let mean = |col: usize| {
            let sum: f64 = numbers.iter().skip(col).step_by(WIDTH).map(|x| f64::from(*x)).sum();
            (sum / source.rows as f64) as f32
        };
        assert_eq!(decoded(added, source.dtype()), (0..WIDTH).map(mean).collect::<Vec<_>>(), "{source:?} {name}");
    }
    let loaded = Base::open(out).unwrap_or_else(|e| panic!("{source:?}: {e}"));
    let config = &loaded.model.config;
    assert_eq!((config.mask_token_id as usize, config.logits_shifted), (TOKENS, false), "{source:?}");
    assert_eq!(loaded.model.has_tied_head(), source.is_tied, "{source:?}");
}

/// Checks that config.json changed in the expected places alone, in the text too.
fn check_config(source: Source, model: &Path, out: &Path, rows: usize) {
    let family = ["llama", "qwen2", "qwen3"].iter().position(|f| *f == source.model_type).expect("one of them");
    let class = ["A2DLlamaLMHeadModel", "A2DQwen2LMHeadModel", "A2DQwen3LMHeadModel"][family];
    let expected = read(&model.join("config.json"))
        .replace("SomethingForCausalLM", class)
        .replace(&format!("\"{}\"", source.model_type), &format!("\"a2d-{}\"", source.model_type))
        .replace(
            &format!("\"vocab_size\": {}\n", source.rows),
            &format!("\"vocab_size\": {rows},\n  \"mask_token_id\": {TOKENS}\n"),
        );
    assert_eq!(read(&out.join("config.json")), expected);
    assert!(expected.contains("\"rms_norm_eps\": 1e-06,"), "numbers stay as they were written");
}

#[test]
fn every_layout_keeps_its_weights_and_files_and_gets_a_mask_token() {
    for model_type in ["llama", "qwen2", "qwen3"] {
        for bits in 0..8 {
            let [is_sharded, is_tied, has_spare] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
            let rows = if has_spare { TOKENS + 2 } else { TOKENS };
            let source = Source { model_type, is_sharded, is_tied, rows };
            let model = source.write(&format!("{model_type}-{bits}"));
            let out = folder(&format!("{model_type}-{bits}-out"));
            let converted = convert(&model, &out).unwrap_or_else(|e| panic!("{source:?}: {e}"));
            let new_rows = if has_spare { rows } else { rows + 1 };
            assert_eq!((converted.rows, converted.mask_token_id as usize), (new_rows, TOKENS));
            assert_eq!(converted.extended.len(), if has_spare { 0 } else { 2 - usize::from(is_tied) });
            assert_eq!(names(&out), names(&model), "{source:?}");
            check_weights(source, &model, &out, !has_spare);
            check_config(source, &model, &out, new_rows);
            for name in names(&model) {
                let is_same = fs::read(model.join(&name)).expect("there") == fs::read(out.join(&name)).expect("there");
                assert_eq!(is_same, !converted.edited.contains(&name), "{source:?} {name}");
            }
            assert!(OTHERS.iter().all(|name| !converted.edited.contains(*name)));
            assert_eq!(converted.edited.iter().any(|name| name.ends_with(".safetensors")), !has_spare);
            let text = TextModel::open(&out).expect("the tokenizer opens");
            assert_eq!(text.encode("w3 <|mask|><|mask|> w4").expect("it encodes"), [3, 64, 64, 4], "one token each");
            let message = error(&out, &folder("again"));
            let expected = "it is already a diffusion checkpoint; give it to weft train";
            assert!(message.contains("config.json: model_type \"a2d-") && message.ends_with(expected), "{message}");
        }
    }
}

#[test]
fn the_index_counts_the_added_rows() {
    let source = Source { is_sharded: true, is_tied: false, rows: TOKENS, ..Source::QWEN3 };
    let (model, out) = (source.write("index"), folder("index-out"));
    convert(&model, &out).expect("it is converted");
    let index = "model.safetensors.index.json";
    let total = parse(&model.join(index))["metadata"]["total_size"].as_u64().expect("a number");
    let added = 2 * 2 * WIDTH as u64;
    let expected = read(&model.join(index)).replace(&total.to_string(), &(total + added).to_string());
    assert_eq!(read(&out.join(index)), expected);
}

#[test]
fn tokenizer_files_change_only_where_the_mask_token_is_added() {
    let (model, out) = (Source::QWEN3.write("texts"), folder("texts-out"));
    convert(&model, &out).expect("it is converted");
    let flags = json!({ "content": "<|mask|>", "lstrip": false, "normalized": false, "rstrip": false,
        "single_word": false, "special": true });
    let mut expected = parse(&model.join("tokenizer.json"));
    let mut token = flags.clone();
    token["id"] = json!(TOKENS);
    expected["added_tokens"].as_array_mut().expect("a list").push(token);
    assert_eq!(parse(&out.join("tokenizer.json")), expected);
    let removed: Vec<String> = read(&model.join("tokenizer.json")).lines().map(str::to_owned).collect();
    let lines = read(&out.join("tokenizer.json"));
    let mut rest = lines.lines();
    // Every line is still there, in its order; the one before the new token got a comma.
    assert!(removed.iter().all(|line| rest.any(|new| new.trim_end_matches(',') == line.trim_end_matches(','))));
    assert_eq!(lines.lines().count(), removed.len() + 9, "one token of nine lines");
    let mut expected = parse(&model.join("tokenizer_config.json"));
    expected["added_tokens_decoder"][TOKENS.to_string()] = flags;
    expected["mask_token"] = json!("<|mask|>");
    assert_eq!(parse(&out.join("tokenizer_config.json")), expected);
    let map = "{\"eos_token\":\"<|endoftext|>\", \"mask_token\":\"<|mask|>\"}".replace(", ", ",");
    assert_eq!(read(&out.join("special_tokens_map.json")), map);
}

#[test]
fn a_tokenizer_of_vocabulary_and_merges_lists_the_token_in_its_configuration() {
    let model = Source::QWEN3.write("parts");
    let vocab: Map<String, Value> =
        (0..TOKENS - 2).map(|id| (char::from(b'0' + id as u8).to_string(), json!(id))).collect();
    fs::remove_file(model.join("tokenizer.json")).expect("it was there");
    write(&model, "vocab.json", Value::Object(vocab).to_string());
    write(&model, "merges.txt", "#version: 0.2\n0 1\n".replace("0 1\n", ""));
    write(&model, "added_tokens.json", "{\n  \"<|endoftext|>\": 62,\n  \"<|im_end|>\": 63\n}\n");
    let out = folder("parts-out");
    let converted = convert(&model, &out).expect("it is converted");
    let edited: Vec<&str> = converted.edited.iter().map(String::as_str).collect();
    assert_eq!(edited, ["added_tokens.json", "config.json", "special_tokens_map.json", "tokenizer_config.json"]);
    let added = "{\n  \"<|endoftext|>\": 62,\n  \"<|im_end|>\": 63,\n  \"<|mask|>\": 64\n}\n";
    assert_eq!(read(&out.join("added_tokens.json")), added);
    assert!(!out.join("tokenizer.json").exists());
    let text = TextModel::open(&out).expect("the tokenizer opens");
    assert_eq!(text.encode("4<|mask|>5").expect("it encodes"), [4, 64, 5]);
}

#[test]
fn a_mask_token_that_is_there_is_used() {
    for name in ["<|mask|>", "<|MASK|>", "[MASK]", "<M>", "<|mdm_mask|>", "<[MASK]>"] {
        let model = Source { rows: TOKENS, ..Source::QWEN3 }.write("has-mask");
        write_tokenizer(&model, &["<|endoftext|>", name], "w0");
        let out = folder("has-mask-out");
        let converted = convert(&model, &out).expect("it is converted");
        assert_eq!((&*converted.mask_token, converted.mask_token_id as usize), (name, TOKENS - 1));
        assert!(!converted.is_mask_new && converted.extended.is_empty());
        assert!(!converted.edited.contains("tokenizer.json") && !converted.edited.contains("model.safetensors"));
        assert_eq!(parse(&out.join("config.json"))["mask_token_id"], TOKENS - 1);
        assert_eq!(parse(&out.join("tokenizer_config.json"))["mask_token"], name);
    }
    // `mask_token` may name any added token, and comes before the known names.
    let model = Source::QWEN3.write("named");
    write_tokenizer(&model, &["<|endoftext|>", "[MASK]", "<hidden>"], "w0");
    let mut config = parse(&model.join("tokenizer_config.json"));
    config["mask_token"] = json!({ "content": "<hidden>" });
    write(&model, "tokenizer_config.json", config.to_string());
    let converted = convert(&model, &folder("named-out")).expect("it is converted");
    assert_eq!((&*converted.mask_token, converted.mask_token_id as usize), ("<hidden>", TOKENS - 1));
    assert!(!converted.edited.contains("tokenizer_config.json"), "it names the token already");
    config["mask_token"] = json!("w5");
    write(&model, "tokenizer_config.json", config.to_string());
    let message = error(&model, &folder("named-out"));
    assert!(message.contains("tokenizer_config.json: mask_token \"w5\" is no added token"), "{message}");
}

#[test]
fn a_checkpoint_that_could_not_be_trained_is_refused_by_its_field() {
    let model = Source::QWEN3.write("refused");
    let config = parse(&model.join("config.json"));
    for (key, value, expected) in [
        ("model_type", json!("llada"), "it is already a diffusion checkpoint; give it to weft train"),
        ("model_type", json!("Dream"), "model_type \"Dream\": it is already a diffusion checkpoint"),
        ("model_type", json!("gpt2"), "model_type \"gpt2\" can't be converted; give a checkpoint of model_type llama"),
        ("model_type", Value::Null, "model_type null can't be converted"),
        ("num_experts", json!(128), "num_experts = 128 makes model_type \"qwen3\" a mixture of experts"),
        ("num_local_experts", json!(8), "num_local_experts = 8 makes"),
        ("use_sliding_window", json!(true), "use_sliding_window = true is not supported"),
        ("layer_types", json!(["sliding_attention"]), "layer_types with \"sliding_attention\" is not supported"),
        (
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 8.0 }),
            "rope_scaling = {\"rope_type\":\"llama3\",\"factor\":8.0} is not supported",
        ),
        ("rope_scaling", json!({ "factor": 8.0 }), "rope_scaling.factor = 8.0 is not supported"),
        (
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "rope_parameters = {\"rope_type\":\"yarn\"} is not supported",
        ),
        ("attention_bias", json!(true), "attention_bias = true is not supported; only false is"),
        ("quantization_config", json!({ "bits": 4 }), "quantization_config: quantized weights can't be converted"),
        ("mask_token_id", json!(3), "mask_token_id 3 is not the tokenizer's mask token \"<|mask|>\", which is 64"),
        ("vocab_size", json!(70), "it has 66 rows, and vocab_size is 70"),
        ("tie_word_embeddings", json!(false), "lm_head.weight in"),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        write(&model, "config.json", changed.to_string());
        let out = folder("refused-out").join("new");
        let message = error(&model, &out);
        assert!(message.contains(expected), "{message}\nlacks {expected}");
        assert!(!out.exists());
    }
    for (key, value) in [
        ("rope_scaling", json!({ "type": "default" })),
        ("rope_parameters", json!({ "rope_theta": 1e6, "rope_type": "default" })),
        ("rope_parameters", json!({ "rope_theta": 1e6 })),
        ("num_local_experts", Value::Null),
        ("mask_token_id", Value::Null),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        write(&model, "config.json", changed.to_string());
        convert(&model, &folder("accepted-out")).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
}

#[test]
fn other_tokenizers_and_weights_are_refused() {
    // Rows for fewer tokens than the tokenizer has.
    let model = Source { rows: TOKENS - 1, ..Source::QWEN3 }.write("fewer");
    let message = error(&model, &folder("fewer-out"));
    assert!(message.contains("lies past the model's 63 rows by more than one"), "{message}");
    let model = Source::QWEN3.write("no-weights");
    fs::remove_file(model.join("model.safetensors")).expect("it was there");
    assert!(error(&model, &folder("no-weights-out")).contains("cannot read"));
    let message = error(Path::new("tiny-base"), &folder("tiny-out"));
    assert_eq!(message, "tiny-base: it is already a diffusion checkpoint; give it to weft train");
}

#[test]
fn weights_in_other_formats_and_folders_are_left_out() {
    let model = Source::QWEN3.write("more");
    for name in ["pytorch_model.bin", "consolidated.safetensors", "q4.gguf", "adapter_config.json"] {
        write(&model, name, "other");
    }
    fs::create_dir(model.join("original")).expect("it can be made");
    let mut config = parse(&model.join("config.json"));
    config["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_x.X" });
    write(&model, "config.json", config.to_string());
    let out = folder("more-out").join("deep/new");
    let converted = convert(&model, &out).expect("a new folder is free");
    let left_out: Vec<&str> = converted.left_out.iter().map(String::as_str).collect();
    assert_eq!(
        left_out,
        ["adapter_config.json", "consolidated.safetensors", "original", "pytorch_model.bin", "q4.gguf"]
    );
    assert!(left_out.iter().all(|name| !out.join(name).exists()));
    assert_eq!(parse(&out.join("config.json")).get("auto_map"), None, "it names the autoregressive classes");
    assert_eq!(converted.num_copied + converted.edited.len(), names(&out).len());
}

#[test]
fn a_conversion_that_fails_leaves_nothing_behind() {
    let out = folder("busy");
    write(&out, "mine", "x");
    let model = Source::QWEN3.write("free");
    assert_eq!(error(&model, &out), format!("{} is not empty; name a new folder", out.display()));
    assert_eq!(names(&out), ["mine"]);
    // The text of the mask token is an ordinary word here, which is seen once every file has been written.
    write_tokenizer(&model, &["<|endoftext|>", "<|im_end|>"], "<|mask|>");
    let parent = folder("parent");
    let message = error(&model, &parent.join("new"));
    let expected = "tokenizer.json: with \"<|mask|>\" added as token 64 it reads that text as [0]; add a mask token";
    assert!(message.contains(expected), "{message}");
    assert_eq!(names(&parent), [""; 0]);
    // What a killed conversion left is replaced.
    let model = Source::QWEN3.write("killed");
    fs::create_dir(parent.join("new.partial")).expect("it can be made");
    write(&parent.join("new.partial"), "model.safetensors", "half");
    convert(&model, &parent.join("new")).expect("it is converted");
    assert_eq!(names(&parent), ["new"]);
    check_weights(Source::QWEN3, &model, &parent.join("new"), false);
}

#[test]
fn the_command_says_what_it_did_and_what_comes_next() {
    let run = |source: Source, name: &str| {
        let (model, out) = (source.write(name), folder(&format!("{name}-parent")));
        let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
        let output = weft.current_dir(&out).arg("convert").arg("--model").arg(&model).args(["--out", "mine"]).output();
        let output = output.expect("weft starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it is text")
    };
    let text = run(Source::QWEN3, "said");
    for part in [
        "the converted checkpoint is in mine, with model_type a2d-qwen3\n",
        "<|mask|> with id 64, added to the tokenizer\n",
        "66 rows as before; the mask token takes a free one\n",
        "8 copied unchanged (",
        "edited: config.json, special_tokens_map.json, tokenizer.json, tokenizer_config.json\n",
        "train it before you ask it anything.\n",
        "weft plan recipes/continued-pretraining.toml --set model.path=mine\n",
        "weft train recipes/continued-pretraining.toml --set model.path=mine\n",
    ] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
    let text = run(Source { rows: TOKENS, is_tied: false, ..Source::QWEN3 }, "said-more");
    let expected =
        "65 rows, one more than before: the mean of the others, in model.embed_tokens.weight, lm_head.weight\n";
    assert!(text.contains(expected), "{text}");
}
