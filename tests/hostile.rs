//! Models as hostile files: sizes that no model has, safetensors and shards that lie, adapters and tokenizers that don't
//! fit. Each is refused in one sentence, before anything is allocated by what it says.

mod fixtures;
mod scratch;

use std::fs;
use std::path::Path;

use fixtures::{FAMILIES, Golden, LLADA, logits};
use scratch::folder;
use serde_json::{Value, json};
use weft::base::Base;
use weft::error::Result;
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::model::facts::Overrides;
use weft::model::lora;

/// An error with its folder as DIR; it has to be one line.
fn told<T>(result: Result<T>, folder: &Path) -> String {
    let error = result.err().expect("it is refused").to_string().replace(&folder.display().to_string(), "DIR");
    assert!(!error.contains('\n'), "{error}");
    error
}

fn config_error(golden: Golden, changes: Value) -> String {
    let parsed = ModelConfig::parse(&golden.config(changes), Path::new("DIR/config.json"));
    told(parsed, Path::new("DIR"))
}

/// What a family calls its layers, width, heads, key/value heads, MLP and rows.
fn sizes(golden: Golden) -> [&'static str; 6] {
    match golden.name {
        "llada" => ["n_layers", "d_model", "n_heads", "n_kv_heads", "mlp_hidden_size", "embedding_size"],
        _ => {
            let [heads, kv_heads] = ["num_attention_heads", "num_key_value_heads"];
            ["num_hidden_layers", "hidden_size", heads, kv_heads, "intermediate_size", "vocab_size"]
        }
    }
}

#[test]
fn sizes_that_no_model_has_are_refused_by_field_value_and_bound() {
    for golden in FAMILIES {
        for (field, bits) in sizes(golden).into_iter().zip([10, 20, 20, 20, 20, 24]) {
            let most = 1_u64 << bits;
            for value in [0, most + 1, 2_000_000_000, 1 << 32, 1 << 62, u64::MAX] {
                let error = config_error(golden, json!({ field: value }));
                match (field, value) {
                    ("embedding_size", 0) => {
                        assert!(error.ends_with("embedding_size 0 is smaller than vocab_size 160"))
                    }
                    _ => assert_eq!(
                        error,
                        format!(
                            "DIR/config.json: {field} {value} lies outside 1 to {most}; give the model's own config.json"
                        )
                    ),
                }
            }
            for (value, kind) in
                [(json!(-1), "integer `-1`"), (json!(1e30), "floating point"), (json!("4"), "string \"4\"")]
            {
                let error = config_error(golden, json!({ field: value }));
                assert!(error.starts_with("DIR/config.json: invalid ") && error.contains(kind), "{error}");
            }
        }
        let [layers, width, heads, kv_heads, mlp, rows] = sizes(golden);
        let large = json!({ layers: 1024, width: 1 << 20, heads: 64, kv_heads: 64, mlp: 1 << 20, rows: 1 << 24 });
        let told = config_error(golden, large);
        // A head_dim of its own makes the projections narrower than the width.
        let parameters = if golden.head_dim == 24 { "3419481162383360" } else { "7916483719987200" };
        let expected = format!(
            "DIR/config.json: {layers} 1024 and {width} 1048576 with the other sizes make {parameters} parameters, more \
             than the 17592186044416 that are read; give the model's own config.json"
        );
        assert_eq!(told, expected);
        for (field, value) in
            [("rope_theta", 0.0), ("rope_theta", -1.0), ("rms_norm_eps", 1e300), ("rms_norm_eps", -1e-5)]
        {
            let told = config_error(golden, json!({ field: value }));
            assert!(told.contains(&format!("{field} = ")) && told.contains(" is not a positive number; "), "{told}");
        }
    }
    let ratio = config_error(LLADA, json!({ "mlp_hidden_size": null, "mlp_ratio": u64::MAX }));
    assert!(ratio.starts_with("DIR/config.json: mlp_ratio * d_model 18446744073709551615 lies outside 1 to 1048576"));
    let rows = config_error(LLADA, json!({ "embedding_size": null, "vocab_size": u64::MAX }));
    assert!(rows.starts_with("DIR/config.json: vocab_size 18446744073709551615 lies outside 1 to 16777216"), "{rows}");
}

#[test]
fn the_largest_sizes_have_a_meta_model() {
    for golden in FAMILIES {
        let folder = folder(&format!("{}-largest", golden.name));
        let [layers, width, _, _, mlp, rows] = sizes(golden);
        let large = json!({ layers: 1024, width: 1 << 15, mlp: 1 << 16, rows: 1 << 24 });
        fs::write(folder.join("config.json"), golden.config(large)).expect("it is written");
        let (meta, _) =
            checkpoint::load_meta(&folder, Overrides::default()).expect("nothing is allocated by its sizes");
        assert_eq!(meta.blocks.len(), 1024);
    }
}

/// A safetensors file of a header and so many bytes.
fn file(header: &str, bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; bytes]].concat()
}

#[test]
fn headers_that_lie_are_errors() {
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\": \"{dtype}\", \"shape\": {shape}, \"data_offsets\": [{from}, {to}]}}")
    };
    let one = |dtype: &str, shape: &str, from, to| format!("{{\"a\": {}}}", tensor(dtype, shape, from, to));
    let two = |a: String, b: String| format!("{{\"a\": {a}, \"b\": {b}}}");
    let four = |from, to| tensor("F32", "[4]", from, to);
    let cases = [
        ("a header of 2^63 bytes", (1_u64 << 63).to_le_bytes().to_vec()),
        ("a header as long as it may be, which isn't there", 100_000_000_u64.to_le_bytes().to_vec()),
        ("an empty header", file("", 0)),
        ("nothing but a list", file("[]", 0)),
        ("no text", [&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("deep nesting", file(&"[".repeat(100_000), 0)),
        ("deep nesting within", file(&format!("{{\"a\": {}", "[".repeat(100_000)), 0)),
        ("an end before its start", file(&one("F32", "[4]", 16, 0), 16)),
        ("a start past the file", file(&one("F32", "[4]", 1 << 40, (1 << 40) + 16), 16)),
        ("an end past the file", file(&one("F32", "[8]", 0, 32), 16)),
        ("all of 64 bits", file(&one("U8", "[18446744073709551615]", 0, u64::MAX), 16)),
        ("a size of more than 64 bits", file(&one("F32", "[18446744073709551616]", 0, 16), 16)),
        ("a matmul that overflows to 4", file(&one("F32", "[4611686018427387905, 4]", 0, 16), 16)),
        ("bytes that overflow to 16", file(&one("F32", "[4611686018427387908]", 0, 16), 16)),
        ("a negative size", file(&one("F32", "[-4]", 0, 16), 16)),
        ("tensors over each other", file(&two(four(0, 16), four(8, 24)), 24)),
        ("one range for two", file(&two(four(0, 16), four(0, 16)), 16)),
        ("a hole between tensors", file(&two(four(0, 16), four(20, 36)), 36)),
        ("more bytes than tensors", file(&one("F32", "[4]", 0, 16), 17)),
        ("one name for two", file(&format!("{{\"a\": {}, \"a\": {}}}", four(0, 16), four(16, 32)), 32)),
        ("a dtype that nobody knows", file(&one("F33", "[4]", 0, 16), 16)),
        ("half a byte", file(&one("F4", "[3]", 0, 1), 1)),
        ("no size", file(&one("F32", "[]", 0, 4), 4)),
        ("three sizes", file(&one("F32", "[1, 2, 2]", 0, 16), 16)),
        ("metadata that is none", file("{\"__metadata__\": 3}", 0)),
    ];
    for golden in FAMILIES {
        let folder = folder(&format!("{}-lying", golden.name));
        fs::copy(golden.path().join("config.json"), folder.join("config.json")).expect("it is copied");
        for (what, bytes) in &cases {
            fs::write(folder.join("model.safetensors"), bytes).expect("it is written");
            let told = told(checkpoint::load(&folder), &folder);
            assert!(told.starts_with("DIR/model.safetensors is damaged or in another format: "), "{what}: {told}");
        }
        // A whole file of other tensors.
        for (header, bytes) in [("{}".to_owned(), 0), (one("F32", "[0, 9223372036854775807]", 0, 0), 0)] {
            fs::write(folder.join("model.safetensors"), file(&header, bytes)).expect("it is written");
            let told = told(checkpoint::load(&folder), &folder);
            assert!(told.starts_with("tensor model.") && told.contains(" in DIR: missing; "), "{told}");
        }
    }
}

#[test]
fn shards_that_lie_are_errors() {
    let folder = folder("shards");
    let path = |name: &str| folder.join(name);
    fs::copy(LLADA.path().join("config.json"), path("config.json")).expect("it is copied");
    let tensors = LLADA.tensors();
    let [(name, tensor), (other, _)] = [0, 1].map(|i| tensors.iter().nth(i).expect("there are some"));
    fixtures::write(&path("a.safetensors"), &tensors);
    fixtures::write(&path("b.safetensors"), &[(name.clone(), tensor.clone())].into());
    let index = |map: Value| fs::write(path("model.safetensors.index.json"), map.to_string()).expect("it is written");
    let outside = ["/etc/passwd", "../a.safetensors", "x/../../a.safetensors", "./a.safetensors"];
    for shard in outside {
        index(json!({ "weight_map": { "x": shard } }));
        let told = told(checkpoint::load(&folder), &folder);
        assert!(told.contains(&format!("the shard {shard:?} lies outside the folder")), "{told}");
    }
    for (map, expected) in [
        (json!({ "weight_map": { "x": "c.safetensors" } }), "cannot read DIR/c.safetensors: No such file"),
        (json!({ "weight_map": { "x": "" } }), "cannot read DIR/: "),
        (
            json!({ "weight_map": { "x": "b.safetensors" } }),
            "DIR/model.safetensors.index.json is damaged or in another format: x isn't in b.safetensors, \
             although the index says so; ",
        ),
        (json!({ "weight_map": { name: "b.safetensors" } }), " in DIR: missing; "),
        (
            json!({ "weight_map": { name: "b.safetensors", other: "b.safetensors" } }),
            "isn't in b.safetensors, although the index says so; ",
        ),
        (
            json!({ "weight_map": { name: "b.safetensors", other: "a.safetensors" } }),
            "DIR/b.safetensors is damaged or in another format: ",
        ),
        (json!({ "weight_map": [] }), "DIR/model.safetensors.index.json is damaged or in another format: "),
        (json!({ "weight_map": { "x": 3 } }), "DIR/model.safetensors.index.json is damaged or in another format: "),
        (json!({}), "DIR/model.safetensors.index.json is damaged or in another format: "),
    ] {
        index(map);
        let told = told(checkpoint::load(&folder), &folder);
        assert!(told.contains(expected), "{told}");
    }
    index(json!({ "weight_map": { name: "a.safetensors" } }));
    assert_eq!(logits(&fixtures::load(&folder)), logits(&LLADA.load()), "a shard may hold more than the index says");
}

#[test]
fn adapters_that_lie_are_errors() {
    let folder = folder("adapter");
    let adapter = LLADA.path().join("lora/adapter");
    fs::copy(adapter.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).expect("copied");
    let text = fs::read_to_string(adapter.join("adapter_config.json")).expect("it is there");
    let load = |text: &str| {
        fs::write(folder.join("adapter_config.json"), text).expect("it is written");
        told(lora::load(&folder, &mut LLADA.load()), &folder)
    };
    let nested = format!("{}{}", "(".repeat(5000), ")".repeat(5000));
    let large = "(?:(?:x{1000}){1000}){1000}";
    for (field, value, expected) in [
        ("r", json!(0), "DIR/adapter_config.json: r = 0 is not a valid rank; give at least 1"),
        ("r", json!(u64::MAX), "expected [18446744073709551615, 64], got [8, 64]"),
        ("r", json!(-1), "DIR/adapter_config.json is damaged or in another format: invalid value"),
        ("lora_alpha", json!(1e300), "lora_alpha = 1"),
        ("lora_alpha", json!("x"), "invalid type: string"),
        ("lora_dropout", json!(1.0), "lora_dropout = 1 lies outside [0, 1)"),
        ("lora_dropout", json!(-0.1), "lora_dropout = -0.1 lies outside [0, 1)"),
        ("rank_pattern", json!({ "q_proj": 1_u64 << 62 }), "expected [4611686018427387904, 64], got [8, 64]"),
        ("rank_pattern", json!({ "q_proj": -1 }), "rank_pattern.q_proj = -1 is not a valid rank; give at least 1"),
        ("rank_pattern", json!({ "(": 1 }), "rank_pattern \"(\" is not a regular expression that Weft can parse"),
        ("alpha_pattern", json!({ "q_proj": 1e300 }), "alpha_pattern.q_proj = 1e+300 gives no finite scale"),
        ("alpha_pattern", json!([1]), "alpha_pattern = [1] is not supported"),
        ("layers_to_transform", json!([-1]), "layers_to_transform = [-1] isn't numbers of layers"),
        ("layers_to_transform", json!([u64::MAX]), "name no layer of the model"),
        ("exclude_modules", json!("("), "exclude_modules \"(\" is not a regular expression that Weft can parse"),
        ("exclude_modules", json!(3), "exclude_modules = 3 is not supported"),
        // A lookahead makes the engine backtrack, which it gives up at a limit.
        ("target_modules", json!("(?!x)(.*.*)*(?!y)(.*.*)*z"), "takes too long to match; name the layers instead"),
        ("target_modules", json!([]), "the targets [] (lora_targets, target_modules) name no layer of the model"),
        ("target_modules", json!([""]), "target_modules"),
        ("target_modules", json!(nested), "is not a regular expression that Weft can parse"),
        ("target_modules", json!(large), "is not a regular expression that Weft can parse"),
        // The pattern that takes exponential time where patterns are tried by backtracking.
        ("target_modules", json!("(x+x+)+y|(a|a)*b|(.*)*q"), "name no layer of the model"),
        ("target_modules", json!({ "q_proj": true }), "DIR/adapter_config.json is damaged or in another format: "),
    ] {
        let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
        config[field] = value;
        let told = load(&config.to_string());
        assert!(told.contains(expected), "{field}: {told}");
    }
    for text in
        ["{\"lora_alpha\": NaN}", "{\"lora_alpha\": 1e999}", "", "[", &"[".repeat(100_000), &"{\"a\":".repeat(100_000)]
    {
        assert!(load(text).starts_with("DIR/adapter_config.json is damaged or in another format: "));
    }
    fs::write(folder.join("adapter_model.safetensors"), file("{}", 0)).expect("it is written");
    assert!(load(&text).ends_with(".q_proj.lora_A.weight is missing, as is every other tensor"));
}

#[test]
fn a_tokenizer_of_more_tokens_than_the_models_rows_is_refused_by_everyone() {
    for golden in FAMILIES {
        let whole = golden.with_text("tokens", &golden.path());
        let tokenizer = whole.join("tokenizer.json");
        let json: Value = serde_json::from_slice(&fs::read(&tokenizer).expect("it is there")).expect("it is JSON");
        let mut more = json.clone();
        for id in 0..200 {
            more["model"]["vocab"][format!("token-{id}")] = json!(1000 + id);
        }
        let count = more["model"]["vocab"].as_object().expect("a map").len();
        let mut far = json.clone();
        far["model"]["vocab"]["far"] = json!(160);
        let mut farthest = json.clone();
        farthest["model"]["vocab"]["far"] = json!(u32::MAX);
        let own = "use the model's own tokenizer";
        for (json, expected) in [
            (more, format!("its {count} tokens are more than the model's 160; {own}")),
            (far, format!("its token 160 lies past the model's 160; {own}")),
            (farthest, format!("its token {} lies past the model's 160; {own}", u32::MAX)),
        ] {
            fs::write(&tokenizer, json.to_string()).expect("it is written");
            let expected = format!("DIR/tokenizer.json: {expected}");
            assert_eq!(told(Base::open(&whole), &whole), expected);
            assert_eq!(told(Base::open_text(&whole, Overrides::default()), &whole), expected);
            assert_eq!(told(Base::open_meta(&whole, Overrides::default()), &whole), expected);
        }
    }
}
