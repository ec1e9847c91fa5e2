//! Models by their ids, from a hub on this machine: what is fetched and what is asked again, transfers that are cut, the
//! token, and a disk that is full. Which texts are ids, and what can't be had, is `hub_ids`'s.
#![cfg(feature = "hub")]

mod fixtures;
mod hub_server;
mod scratch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixtures::LLADA;
use hub_server::{COMMIT, Fault, Files, Hub, ask, hash, refused, repository, run, snapshot, stderr, told, weft};
use scratch::{folder, names};
use serde_json::json;

/// The golden checkpoint with a tokenizer, in two shards; and the same as a repository with files nobody needs.
fn sharded(name: &str) -> (PathBuf, Files) {
    let path = LLADA.with_text(name, &LLADA.path());
    fs::remove_file(path.join("model.safetensors")).expect("it is there");
    let tensors: BTreeMap<_, _> = LLADA.tensors().into_iter().collect();
    let (mut shards, mut map) = ([const { BTreeMap::new() }; 2], serde_json::Map::new());
    for (i, (tensor, content)) in tensors.into_iter().enumerate() {
        map.insert(tensor.clone(), json!(format!("model-0000{}-of-00002.safetensors", i % 2 + 1)));
        shards[i % 2].insert(tensor, content);
    }
    for (shard, i) in shards.into_iter().zip(1..) {
        let shard = shard.into_iter().collect();
        fixtures::write(&path.join(format!("model-0000{i}-of-00002.safetensors")), &shard);
    }
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(path.join("model.safetensors.index.json"), index).expect("it is written");
    let files = Files::of(&path).with("README.md", b"# A model\n").with("onnx/config.json", b"{}");
    (path, files)
}

#[test]
fn a_model_is_fetched_once_and_then_used_without_the_hub() {
    let (home, hub) = (folder("hub-once"), Hub::start());
    let (local, files) = sharded("hub-once-model");
    hub.serve("models/tiny/llada", files);
    let expected = told(run(weft(&home, &hub.endpoint, &ask(&local.display().to_string(), &[]))));
    assert_eq!(hub.requests(), [], "a folder needs no hub");
    let first = run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[])));
    assert!(stderr(&first).starts_with("fetching "), "{}", stderr(&first));
    assert_eq!(told(first), expected);
    let asked: Vec<String> = hub.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked.iter().filter(|path| path.contains("/revision/main")).count(), 1, "{asked:?}");
    assert!(
        asked.iter().all(|path| !path.contains("README") && !path.contains("onnx") && !path.ends_with(".bin")),
        "{asked:?}"
    );
    // The layout is huggingface_hub's.
    let wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&snapshot(&home, "models--tiny--llada")), wanted);
    let root = repository(&home, "models--tiny--llada");
    assert_eq!(fs::read_to_string(root.join("refs/main")).expect("a ref"), COMMIT);
    for name in wanted {
        let (here, there) = (snapshot(&home, "models--tiny--llada").join(name), local.join(name));
        let content = fs::read(there).expect("there");
        assert_eq!(fs::read(&here).expect("here"), content, "{name}");
        #[cfg(unix)]
        assert_eq!(fs::read_link(&here).expect("a link"), Path::new("../../blobs").join(hash(name, &content)));
    }
    assert!(names(&root.join("blobs")).iter().all(|name| !name.contains("incomplete")));
    // Neither the second run nor one that must not ask needs the hub.
    assert_eq!(told(run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[])))), expected);
    assert_eq!(told(run(weft(&home, &hub.endpoint, &ask("hf://tiny/llada@main", &[])))), expected);
    assert_eq!(hub.requests(), []);
    drop(hub);
    let mut offline = weft(&home, "http://127.0.0.1:9", &ask("tiny/llada", &[]));
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(told(run(offline)), expected);
}

#[test]
fn what_huggingface_hub_fetched_is_used() {
    let home = folder("hub-theirs");
    let (local, _) = sharded("hub-theirs-model");
    // Files alone, without the list that Weft keeps.
    let theirs = snapshot(&home, "models--tiny--llada");
    fs::create_dir_all(&theirs).expect("a folder can be made");
    for name in names(&local) {
        fs::copy(local.join(&name), theirs.join(&name)).expect("it is copied");
    }
    fs::create_dir_all(repository(&home, "models--tiny--llada").join("refs")).expect("a folder can be made");
    fs::write(repository(&home, "models--tiny--llada").join("refs/main"), COMMIT).expect("it is written");
    let mut offline = weft(&home, "http://127.0.0.1:9", &ask("tiny/llada", &[]));
    let expected = told(run(weft(&home, "http://127.0.0.1:9", &ask(&local.display().to_string(), &[]))));
    let unreachable = run(weft(&home, "http://127.0.0.1:9", &ask("tiny/llada", &[])));
    let warning = "warning: cannot fetch http://127.0.0.1:9/api/models/tiny/llada/revision/";
    assert!(stderr(&unreachable).starts_with(warning), "{}", stderr(&unreachable));
    assert_eq!(told(unreachable), expected);
    offline.env("HF_HUB_OFFLINE", "yes");
    assert_eq!(told(run(offline)), expected);
    fs::remove_file(theirs.join("model-00002-of-00002.safetensors")).expect("it is there");
    let mut offline = weft(&home, "http://127.0.0.1:9", &ask("tiny/llada", &[]));
    offline.env("HF_HUB_OFFLINE", "1");
    let error = refused(&run(offline));
    assert!(error.starts_with("error: tiny/llada: HF_HUB_OFFLINE is set, and "), "{error}");
    assert!(error.contains("models--tiny--llada isn't enough: it has no model-00002-of-00002.safetensors; run \"hf download tiny/llada\""), "{error}");
}

#[test]
fn a_transfer_that_is_cut_goes_on() {
    let (home, hub) = (folder("hub-cut"), Hub::start());
    let local = LLADA.with_text("hub-cut-model", &LLADA.path());
    hub.serve("models/tiny/llada", Files::of(&local));
    let weights = "model.safetensors";
    let content = fs::read(local.join(weights)).expect("there");
    let check = |home: &Path, faults: &[Fault], ranges: &[Option<&str>]| {
        hub.fail(weights, faults);
        told(run(weft(home, &hub.endpoint, &ask("tiny/llada", &[]))));
        let asked = hub.requests().into_iter().filter(|request| request.path.starts_with("/store/"));
        assert_eq!(
            asked.map(|request| request.range).collect::<Vec<_>>(),
            ranges.iter().map(|r| r.map(str::to_owned)).collect::<Vec<_>>()
        );
        assert!(fs::read(snapshot(home, "models--tiny--llada").join(weights)).expect("fetched") == content);
        let _ = fs::remove_dir_all(home.join("hf"));
    };
    check(&home, &[Fault::Cut(1000), Fault::Cut(500)], &[None, Some("bytes=1000-"), Some("bytes=1500-")]);
    check(&home, &[Fault::Cut(1000), Fault::Whole], &[None, Some("bytes=1000-")]);
    check(&home, &[Fault::Cut(1000), Fault::Garbage], &[None, Some("bytes=1000-"), None]);
    // Five attempts that bring nothing are the last.
    hub.fail(weights, &[&[Fault::Cut(777)][..], &[Fault::Cut(0); 5]].concat());
    let error = refused(&run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[]))));
    assert!(
        error.contains("/resolve/") && error.ends_with("; try again; the part already downloaded is kept"),
        "{error}"
    );
    hub.requests();
    check(&home, &[], &[Some("bytes=777-")]);
    // A content that stays another is told.
    hub.fail(weights, &[Fault::Garbage; 2]);
    let error = refused(&run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[]))));
    assert!(error.contains("sent content other than model.safetensors's: its hash is "), "{error}");
    hub.requests();
    check(&home, &[], &[None]);
}

#[test]
fn a_killed_download_goes_on() {
    let (home, hub) = (folder("hub-killed"), Hub::start());
    let local = LLADA.with_text("hub-killed-model", &LLADA.path());
    hub.serve("models/tiny/llada", Files::of(&local));
    let content = fs::read(local.join("model.safetensors")).expect("there");
    hub.fail("model.safetensors", &[Fault::Stall(1234)]);
    let mut child =
        weft(&home, &hub.endpoint, &ask("tiny/llada", &[])).stderr(Stdio::null()).spawn().expect("weft starts");
    let hash = hash("model.safetensors", &content);
    let partial = repository(&home, "models--tiny--llada").join(format!("blobs/{hash}.incomplete"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(&partial).map_or(0, |found| found.len()) < 1234 {
        assert!(Instant::now() < deadline, "the transfer never came to its middle");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("SIGKILL is sent");
    child.wait().expect("it is gone");
    assert!(!snapshot(&home, "models--tiny--llada").join("model.safetensors").exists());
    hub.requests();
    told(run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[]))));
    let asked = hub.requests();
    assert!(asked.iter().all(|request| request.range.as_deref() == Some("bytes=1234-")), "{asked:?}");
    assert_eq!(asked.len(), 2, "the file alone, and where it is: {asked:?}");
    assert!(fs::read(snapshot(&home, "models--tiny--llada").join("model.safetensors")).expect("fetched") == content);
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let (hub, store) = (Hub::start(), Hub::start());
    let files = Files::of(&LLADA.with_text("hub-token-model", &LLADA.path()));
    hub.serve("models/tiny/llada", files.clone());
    store.serve("models/tiny/llada", files);
    hub.keep_large_files_at(&store);
    let tokens = |home: &Path, change: &dyn Fn(&mut Command)| {
        let mut command = weft(home, &hub.endpoint, &ask("tiny/llada", &[]));
        change(&mut command);
        told(run(command));
        assert!(!store.requests().iter().any(|request| request.token.is_some()), "the token went elsewhere");
        let mut tokens: Vec<Option<String>> = hub.requests().into_iter().map(|request| request.token).collect();
        tokens.dedup();
        tokens
    };
    let home = folder("hub-token-none");
    assert_eq!(tokens(&home, &|_| ()), [None]);
    let home = folder("hub-token-variable");
    fs::create_dir_all(home.join("hf")).expect("a folder can be made");
    fs::write(home.join("hf/token"), "hf_file\n").expect("it is written");
    let variable = |c: &mut Command| {
        c.env("HF_TOKEN", "hf_variable");
    };
    assert_eq!(tokens(&home, &variable), [Some("Bearer hf_variable".to_owned())]);
    fs::remove_dir_all(home.join("hf/hub")).expect("it is there");
    assert_eq!(tokens(&home, &|_| ()), [Some("Bearer hf_file".to_owned())]);
    fs::remove_dir_all(home.join("hf/hub")).expect("it is there");
    fs::write(home.join("other"), "hf_other").expect("it is written");
    let elsewhere = |c: &mut Command| {
        c.env("HF_TOKEN_PATH", "other").env("HF_HUB_CACHE", "cache");
    };
    assert_eq!(tokens(&home, &elsewhere), [Some("Bearer hf_other".to_owned())]);
    assert_eq!(names(&home.join("cache")), [".locks", "models--tiny--llada"]);
    assert!(!home.join("hf/hub").exists());
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_told_and_keeps_what_has_come() {
    let (home, hub) = (folder("hub-disk"), Hub::start());
    let local = LLADA.with_text("hub-disk-model", &LLADA.path());
    hub.serve("models/tiny/llada", Files::of(&local));
    // A limit on the size of files fails a write as a full disk does; bash counts it in 1,024 bytes.
    let script = format!("trap '' XFSZ; ulimit -f 20; exec {} \"$@\"", env!("CARGO_BIN_EXE_weft"));
    let mut limited = weft(&home, &hub.endpoint, &[]);
    let environment: Vec<_> = limited.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    limited = Command::new("bash");
    limited.current_dir(&home).args(["-c", &script, "weft"]).args(ask("tiny/llada", &[])).stdin(Stdio::null());
    for (name, value) in environment {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let error = refused(&run(limited));
    assert!(
        error.starts_with("error: tiny/llada: cannot write ") && error.contains(".incomplete: File too large"),
        "{error}"
    );
    assert!(
        error.ends_with("; free some space or set HF_HOME to a folder with more; the part already downloaded is kept"),
        "{error}"
    );
    hub.requests();
    told(run(weft(&home, &hub.endpoint, &ask("tiny/llada", &[]))));
    assert!(hub.requests().iter().all(|request| request.range.as_deref() == Some("bytes=20480-")));
}
