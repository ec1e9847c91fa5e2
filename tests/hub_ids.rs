//! Ids of the hub: which texts are ones, what of a data set is fetched, adapters, the name that a run leaves behind, and
//! one sentence for whatever can't be had.
#![cfg(feature = "hub")]

mod fixtures;
mod hub_server;
mod scratch;

use std::fs;

use fixtures::LLADA;
use hub_server::{COMMIT, Files, Hub, ask, refused, repository, run, snapshot, told, weft};
use scratch::{folder, names};
use serde_json::{Value, json};

#[test]
fn what_cannot_be_had_is_one_sentence() {
    let (home, hub) = (folder("hub-refused"), Hub::start());
    let files = Files::of(&LLADA.with_text("hub-refused-model", &LLADA.path()));
    for name in ["gated", "closed", "broken"] {
        hub.serve(&format!("models/tiny/{name}"), files.clone());
    }
    hub.serve("models/tiny/empty", Files::default().with("README.md", b"# Nothing"));
    let torch = Files::default().with("config.json", b"{}").with("tokenizer.json", b"{}");
    hub.serve("models/tiny/torch", torch.clone());
    hub.serve("models/tiny/pickled", torch.with("pytorch_model.bin", b"PK"));
    hub.refuse("/tiny/gated/resolve", 401, "GatedRepo");
    hub.refuse("models/tiny/private", 401, "RepoNotFound");
    hub.refuse("models/tiny/closed/", 403, "GatedRepo");
    hub.refuse("models/tiny/broken/", 500, "");
    hub.refuse("revision/none", 404, "RevisionNotFound");
    let endpoint = &hub.endpoint;
    let cache = repository(&home, "models--tiny");
    let cache = cache.display();
    let error = |model: &str, token: &str| {
        refused(&run({
            let mut command = weft(&home, endpoint, &ask(model, &["--quiet"]));
            command.env("HF_TOKEN", token);
            command
        }))
    };
    let expect = |model: &str, token: &str, sentence: &str| {
        assert_eq!(error(model, token), format!("error: {model}: {sentence}"))
    };
    let log_in = "log in (\"hf auth login\", or HF_TOKEN)";
    let nothing = format!(
        "there is no such file or folder, and {endpoint} shows no model of that name; check the spelling, or {log_in} if it is private"
    );
    expect("tiny/absent", "", &nothing);
    expect("tiny/private", "hf_x", &nothing);
    expect("tiny/gated", "", &format!("the model is gated: ask for access on {endpoint}/tiny/gated, then {log_in}"));
    expect(
        "tiny/closed",
        "hf_x",
        &format!("the model is gated, and your token's account has no access: ask for it on {endpoint}/tiny/closed"),
    );
    expect(
        "tiny/empty@none",
        "",
        &format!("the model has no branch, tag or commit \"none\"; {endpoint}/tiny/empty lists them"),
    );
    expect("tiny/empty", "", "it has no config.json");
    let no_weights = "it has no model.safetensors, the format that Weft reads; name a revision that has it (@REVISION)";
    expect("tiny/torch", "", no_weights);
    let pickled = "the weights are pickled, which Weft doesn't read; load them in Python and save them as safetensors: \
                   model.save_pretrained(DIR, safe_serialization=True)";
    expect("tiny/pickled", "", &format!("{no_weights}; {pickled}"));
    let hint = "where there is a network and bring that folder here, or pass a folder";
    expect(
        "tiny/broken",
        "",
        &format!(
            "there is no such file or folder; cannot fetch {endpoint}/api/models/tiny/broken/revision/main?blobs=true: it answers 500, and {cache}--broken isn't \
         enough: none of its files is there; run \"hf download tiny/broken\" {hint}"
        ),
    );
    let mut offline = weft(&home, endpoint, &ask("hf://tiny/none@v1", &[]));
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(
        refused(&run(offline)),
        format!(
            "error: hf://tiny/none@v1: HF_HUB_OFFLINE is set, and {cache}--none isn't enough: none of its files is there; run \
         \"hf download tiny/none --revision v1\" {hint}"
        )
    );
}

#[test]
fn an_id_is_told_from_a_path_by_its_form() {
    let home = folder("hub-form");
    let error = |args: &[&str]| {
        let mut command = weft(&home, "http://127.0.0.1:9", args);
        command.env("HF_HUB_OFFLINE", "1");
        refused(&run(command))
    };
    for id in
        ["org/name", "org/name@v1", "org/name@refs/pr/1", "Org-1/na.me_2", "hf://org/name", "hf://org/name@v1/folder"]
    {
        let error = error(&ask(id, &[]));
        let no_folder = if id.starts_with("hf://") { "" } else { "there is no such file or folder; " };
        assert!(error.starts_with(&format!("error: {id}: {no_folder}HF_HUB_OFFLINE is set, ")), "{error}");
        assert!(error.contains("/hf/hub/models--"), "{error}");
    }
    let long = format!("org/{}", "n".repeat(97));
    let paths = [
        "name",
        "a/b/c",
        "./a/b",
        "../a",
        "/a/b",
        "a/..",
        "a/.b",
        "a/b.git",
        "a/b--c",
        "a b/c",
        "a/b@",
        "a/b@../c",
        "runs/rows.jsonl",
        &long,
    ];
    for path in paths {
        let error = error(&ask(path, &[]));
        let sentence = "give one, or a model of the hub (ORG/NAME), or tiny-base";
        assert_eq!(error, format!("error: there is no folder {path}; {sentence}"));
    }
    let url = "https://hub.example/org/name";
    assert_eq!(
        error(&ask(url, &[])),
        format!("error: {url} begins with https://, which Weft doesn't fetch; write an id of the hub, hf://ORG/NAME")
    );
    fs::create_dir_all(home.join("org/name")).expect("a folder can be made");
    assert!(
        error(&ask("org/name", &[])).starts_with("error: cannot read org/name/config.json: "),
        "what is there is a path"
    );
    for wrong in ["hf://name", "hf://datasets/org/name", "hf://org/name/../x", "hf://o rg/name"] {
        let form = "write hf://ORG/NAME, then @REVISION and /FOLDER where needed";
        assert_eq!(error(&ask(wrong, &[])), format!("error: {wrong} is not the id of a model: {form}"));
    }
    fs::write(home.join("r.toml"), "[data]\ntrain = \"a/b\"\n").expect("it is written");
    let rows = |path: &str| error(&["train", "r.toml", "--set", &format!("data.train={path:?}")]);
    assert!(rows("org/rows").contains("datasets--org--rows isn't enough"), "{}", rows("org/rows"));
    assert!(rows("org/rows").contains("\"hf download org/rows --repo-type dataset\""));
    assert!(rows("rows/train.jsonl").starts_with("error: cannot read rows/train.jsonl: "));
    assert!(rows("hf://org/rows").contains("is not the id of a data set: write hf://datasets/ORG/NAME, then"));
}

/// Rows of a chat by the golden models' small vocabulary.
fn rows(from: usize) -> Vec<u8> {
    (from..from + 4)
        .map(|i| format!("{{\"prompt\": \"{i} + 1\", \"response\": \"{}\"}}\n", i + 1))
        .collect::<String>()
        .into_bytes()
}

#[test]
fn a_recipe_of_ids_trains() {
    let (home, hub) = (folder("hub-train"), Hub::start());
    let local = LLADA.with_text("hub-train-model", &LLADA.path());
    hub.serve("models/tiny/llada", Files::of(&local));
    let files = [
        ("data/train-00000-of-00002.jsonl", rows(0)),
        ("data/train-00001-of-00002.jsonl", rows(4)),
        ("data/test-00000-of-00001.jsonl", rows(8)),
        ("data/extra-00000-of-00001.jsonl", rows(12)),
        ("more rows/dev.jsonl", rows(16)),
        ("README.md", b"# Rows".to_vec()),
    ];
    let with = |all: Files, (name, content): &(&str, Vec<u8>)| all.with(name, content);
    hub.serve("datasets/tiny/rows", files.iter().fold(Files::default(), with));
    let recipe = "[model]\npath = \"tiny/llada@refs/pr/1\"\nlora_rank = 2\n[data]\ntrain = \"tiny/rows\"\nheld_out = \"tiny/rows\"\n\
                  [train]\noutput = \"run\"\n";
    fs::write(home.join("r.toml"), recipe).expect("it is written");
    // What the model will see of its rows needs no weights.
    let shown = told(run(weft(&home, &hub.endpoint, &["data", "r.toml", "--json"])));
    let shown: Value = serde_json::from_str(&shown).expect("it is JSON");
    let examples = |of: &Value| (of["name"].clone(), of["examples"].clone());
    assert_eq!(examples(&shown["sources"][0]), (json!("tiny/rows"), json!(8)));
    assert_eq!(examples(&shown["held_out"][0]), (json!("tiny/rows test"), json!(4)));
    // Nor does a plan.
    let plan = told(run(weft(&home, &hub.endpoint, &["plan", "r.toml", "--json"])));
    let plan: Value = serde_json::from_str(&plan).expect("it is JSON");
    assert_eq!((&plan["steps"], &plan["fits"]), (&json!(8), &json!(true)));
    let [model, data] = ["models--tiny--llada", "datasets--tiny--rows"].map(|name| snapshot(&home, name));
    assert!(!model.join("model.safetensors").exists());
    assert_eq!(names(&data), ["data"]);
    assert_eq!(
        names(&data.join("data")),
        ["test-00000-of-00001.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    );
    hub.requests();
    told(run(weft(&home, &hub.endpoint, &["train", "r.toml", "--quiet"])));
    let asked = hub.requests();
    assert!(asked.iter().all(|request| request.path.ends_with("/model.safetensors")) && asked.len() == 2, "{asked:?}");
    assert_eq!(
        fs::read_to_string(repository(&home, "models--tiny--llada").join("refs/refs/pr/1")).expect("a ref"),
        COMMIT
    );
    let config = fs::read(home.join("run/adapter/adapter_config.json")).expect("an adapter");
    let config: Value = serde_json::from_slice(&config).expect("it is JSON");
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!("tiny/llada"), &json!("refs/pr/1")));
    // Another folder of the data set, a file of it, and a split that there isn't.
    let data = |path: &str| {
        run(weft(
            &home,
            &hub.endpoint,
            &["data", "r.toml", "--json", "--set", &format!("data.train={path:?}"), "--set", "data.split=dev"],
        ))
    };
    for path in ["hf://datasets/tiny/rows@main/more rows", "hf://datasets/tiny/rows/more rows/dev.jsonl"] {
        let shown: Value = serde_json::from_str(&told(data(path))).expect("it is JSON");
        assert_eq!(shown["sources"][0]["examples"], 4);
    }
    let error = refused(&data("tiny/rows"));
    let lists = "nor has its data folder; it has extra, test, train; set the split; or name a folder (hf://datasets/ORG/NAME/FOLDER): data, more rows";
    assert!(error.starts_with("error: tiny/rows: it has no dev-*.parquet, ") && error.ends_with(lists), "{error}");
    let error = refused(&data("hf://datasets/tiny/rows/nowhere"));
    assert_eq!(error, "error: hf://datasets/tiny/rows/nowhere: it has no nowhere");
}

#[test]
fn a_kept_list_is_asked_for_anew_before_a_file_is_missed() {
    let (home, hub) = (folder("hub-renewed"), Hub::start());
    let whole = Files::of(&LLADA.with_text("hub-renewed-model", &LLADA.path()));
    let text_alone = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    let part = text_alone.iter().fold(Files::default(), |part, name| part.with(name, whole.content(name)));
    hub.serve("models/tiny/new", part);
    let asked = || run(weft(&home, &hub.endpoint, &ask("tiny/new", &[])));
    assert!(refused(&asked()).starts_with("error: tiny/new: it has no model.safetensors, "));
    hub.serve("models/tiny/new", whole);
    told(asked());
}

#[test]
fn variables_without_sense_are_named() {
    let home = folder("hub-variables");
    let error = |endpoint: &str, token: &str| {
        let mut command = weft(&home, endpoint, &ask("tiny/a", &[]));
        command.env("HF_TOKEN", token);
        refused(&run(command))
    };
    assert_eq!(
        error("nonsense", ""),
        "error: tiny/a: HF_ENDPOINT is \"nonsense\"; write a URL as https://huggingface.co, or unset it"
    );
    assert!(error("http://127.0.0.1:9", "a\u{1}b").contains("has characters that no token has"));
}

#[test]
fn an_adapter_is_fetched_for_its_base() {
    let (home, hub) = (folder("hub-adapter"), Hub::start());
    let model = LLADA.with_text("hub-adapter-model", &LLADA.path()).display().to_string();
    let adapter = LLADA.path().join("lora/adapter");
    hub.serve("models/tiny/adapter", Files::of(&adapter).with("optimizer.bin", b"x"));
    let expected = told(run(weft(&home, &hub.endpoint, &ask(&model, &["--adapter", &adapter.display().to_string()]))));
    assert_eq!(told(run(weft(&home, &hub.endpoint, &ask(&model, &["--adapter", "tiny/adapter"])))), expected);
    assert_eq!(names(&snapshot(&home, "models--tiny--adapter")), ["adapter_config.json", "adapter_model.safetensors"]);
    let error = refused(&run(weft(&home, &hub.endpoint, &ask("tiny/adapter", &[]))));
    assert_eq!(
        error,
        "error: tiny/adapter: it is an adapter; give its base as the model, and the adapter as --adapter (model.adapter in a \
         recipe)"
    );
}

#[test]
fn what_a_hub_says_is_not_believed() {
    let (home, hub) = (folder("hub-evil"), Hub::start());
    let files = Files::of(&LLADA.with_text("hub-evil-model", &LLADA.path()));
    hub.serve("models/tiny/outside", files.clone().with("../../../../../outside.json", b"{}"));
    told(run(weft(&home, &hub.endpoint, &ask("tiny/outside", &[]))));
    let index = json!({ "weight_map": { "a": "../../x.safetensors" } }).to_string();
    hub.serve("models/tiny/index", files.with("model.safetensors.index.json", index.as_bytes()));
    let error = refused(&run(weft(&home, &hub.endpoint, &ask("tiny/index", &[]))));
    assert!(error.contains("the shard \"../../x.safetensors\" lies outside the folder"), "{error}");
    let asked = hub.requests();
    assert!(asked.iter().all(|request| !request.path.contains("outside.json")), "{asked:?}");
}
