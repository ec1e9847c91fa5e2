//! `weft serve` gives the answers of `weft generate`, token for token: alone and in a batch, whole and streamed, by the base
//! and by adapters. `serve_faults.rs` has what goes wrong.
#![cfg(unix)]

mod scratch;
mod server;

use std::fs;
use std::path::PathBuf;

use scratch::folder;
use serde_json::{Value, json};
use server::{Server, generated, question, read, text, weft};
use weft::base::Base;
use weft::model::lora::{self, LoraConfig};

const GREEDY: [&str; 2] = ["--gen-length", "16"];

/// An adapter that changes answers: fresh ones don't. With a block length it says that it was trained by block diffusion.
fn adapter(name: &str, seed: u64, block_length: Option<usize>) -> PathBuf {
    let mut base = Base::open("tiny-base".as_ref()).expect("it is embedded");
    base.model.config.block_length = block_length;
    let targets = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
    let config = LoraConfig::new(4, 16.0, 0.0, targets, false);
    lora::attach_fresh(&mut base.model, &config, seed).expect("there are such layers");
    for (i, param) in
        base.model.params.iter_mut().enumerate().filter(|(_, param)| param.name.ends_with("lora_B.weight"))
    {
        let (rows, cols) = (param.weight.rows(), param.weight.cols());
        let number = |j: usize| ((i * 31 + j * 17 + seed as usize * 7) % 23) as f32 / 40.0 - 0.28;
        param.weight = weft_kernels::weight::Weight::from_f32(rows, cols, (0..rows * cols).map(number).collect());
    }
    let folder = folder(name);
    lora::save(&folder, &base.model, &config, "tiny-base").expect("it is saved");
    folder
}

/// The texts of a stream, joined by choice.
fn joined(events: &[Value], choices: usize) -> Vec<String> {
    let mut texts = vec![String::new(); choices];
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default();
        texts[choice["index"].as_u64().expect("an index") as usize].push_str(text);
    }
    texts
}

#[test]
fn answers_are_those_of_generate() {
    let server = Server::start(&[]);
    let prompt = ["--prompt", "What is 7 + 5?"];
    // 1. Chats: greedy, drawn, with a system turn.
    let reply = server.chat(&question("What is 7 + 5?", json!({})));
    assert_eq!(text(&reply, 0), generated(&[&prompt[..], &GREEDY].concat()));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("tiny-base")));
    let drawn =
        json!({ "temperature": 1.0, "seed": 7, "remasking": "random", "diffusion_steps": 4, "block_length": 8 });
    let options =
        ["--temperature", "1", "--seed", "7", "--remasking", "random", "--diffusion-steps", "4", "--block-length", "8"];
    let of_generate = generated(&[&prompt[..], &GREEDY, &options].concat());
    assert_eq!(text(&server.chat(&question("What is 7 + 5?", drawn.clone())), 0), of_generate);
    let system =
        json!({ "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hello" }] });
    let of_generate = generated(&[&["--prompt", "Hello", "--system", "Be brief."][..], &GREEDY].concat());
    assert_eq!(text(&server.chat(&question("", system)), 0), of_generate);
    // 2. Choices are the rows of a file.
    let rows = folder("rows");
    let row = json!({ "prompt": "What is 7 + 5?" });
    fs::write(rows.join("in.jsonl"), format!("{row}\n{row}\n{row}\n")).expect("the rows are written");
    let paths = ["in.jsonl", "out.jsonl"].map(|name| rows.join(name).display().to_string());
    let data = ["generate", "--model", "tiny-base", "--data", &paths[0], "--out", &paths[1], "--device", "cpu"];
    weft(&[&data[..], &GREEDY, &options].concat());
    let written = fs::read_to_string(&paths[1]).expect("answers are written");
    let of_generate: Vec<String> = (written.lines())
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["generation"].as_str().expect("text").to_owned())
        .collect();
    let mut three = question("What is 7 + 5?", drawn);
    three["n"] = json!(3);
    let reply = server.chat(&three);
    let texts: Vec<String> = (0..3).map(|choice| text(&reply, choice)).collect();
    assert_eq!(texts, of_generate);
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "the draws differ: {texts:?}");
    // 3. Texts that go on, as texts and as tokens.
    let of_generate = generated(&["--raw", "--prompt", "7 + 5 =", "--gen-length", "8"]);
    let body = json!({ "model": "tiny-base", "prompt": ["7 + 5 =", "Hello"], "max_tokens": 8 });
    let reply = server.post("/v1/completions", &body).value();
    assert_eq!(text(&reply, 0), of_generate);
    assert_eq!(text(&reply, 1), generated(&["--raw", "--prompt", "Hello", "--gen-length", "8"]));
    let base = Base::open("tiny-base".as_ref()).expect("it is embedded");
    let ids = base.text.encode("7 + 5 =").expect("it is encoded");
    let by_ids = json!({ "model": "tiny-base", "prompt": ids, "max_tokens": 8 });
    let reply = server.post("/v1/completions", &by_ids).value();
    assert_eq!((text(&reply, 0), &reply["object"]), (of_generate, &json!("text_completion")));
    assert_eq!(reply["usage"]["prompt_tokens"], ids.len());
}

#[test]
fn a_batch_changes_no_answer() {
    let server = Server::start(&["--batch-size", "6"]);
    let prompts: Vec<String> =
        (0..12).map(|i| format!("What is {i} + {}?{}", i * i, " Think.".repeat(i % 4))).collect();
    let settings = |i: usize| match i % 3 {
        0 => json!({ "temperature": 0.8, "stream": true }),
        1 => json!({ "temperature": 0.8 }),
        _ => json!({ "temperature": 0.8, "max_tokens": 24 }),
    };
    // All of them wait while the first is answered, so that they are batched.
    let mut streams: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, p)| server.ask("/v1/chat/completions", &question(p, settings(i))))
        .collect();
    for (i, (stream, prompt)) in streams.iter_mut().zip(&prompts).enumerate() {
        let reply = read(stream).expect("there is a reply");
        let got = if i % 3 == 0 { joined(&reply.events(), 1).remove(0) } else { text(&reply.value(), 0) };
        let length = if i % 3 == 2 { "24" } else { "16" };
        assert_eq!(got, generated(&["--prompt", prompt, "--gen-length", length, "--temperature", "0.8"]), "{prompt}");
    }
}

#[test]
fn streams_join_to_the_whole() {
    let server = Server::start(&[]);
    let whole = question("What is 7 + 5?", json!({ "max_tokens": 32, "block_length": 8, "n": 2, "temperature": 0.7 }));
    let mut stream = whole.clone();
    (stream["stream"], stream["stream_options"]) = (json!(true), json!({ "include_usage": true }));
    let (whole, reply) = (server.chat(&whole), server.post("/v1/chat/completions", &stream));
    assert!(reply.headers.contains("content-type: text/event-stream"), "{}", reply.headers);
    let events = reply.events();
    assert_eq!(joined(&events, 2), [text(&whole, 0), text(&whole, 1)]);
    assert!(events[..2].iter().all(|event| event["choices"][0]["delta"]["role"] == "assistant"));
    let ends: Vec<&Value> = events.iter().filter(|event| event["choices"][0]["finish_reason"].is_string()).collect();
    assert_eq!(ends.len(), 2, "each choice ends once");
    assert!(events.len() > 6, "there is a delta for each finished block: {events:?}");
    let (last, before) = events.split_last().expect("there are events");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(before.iter().all(|event| event["usage"].is_null() && event["object"] == "chat.completion.chunk"));
    // A text that goes on.
    let mut body = json!({ "model": "tiny-base", "prompt": "7 + 5 =", "max_tokens": 16, "block_length": 8 });
    let whole = server.post("/v1/completions", &body).value();
    body["stream"] = json!(true);
    assert_eq!(joined(&server.post("/v1/completions", &body).events(), 1)[0], text(&whole, 0));
}

#[test]
fn answers_end_at_stop_strings() {
    let server = Server::start(&[]);
    let body = question("What is 7 + 5?", json!({ "max_tokens": 32, "block_length": 8, "forbid_eos": true }));
    let whole = server.chat(&body);
    let full = text(&whole, 0);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 32);
    assert!(full.len() > 4, "there is a text to cut: {full:?}");
    let middle = full.char_indices().nth(full.chars().count() / 2).expect("a middle").0;
    let stop = full[middle..].chars().next().expect("a character").to_string();
    let at = full.find(&stop).expect("it is there");
    for stops in [json!(stop), json!(["never there", stop])] {
        for streams in [false, true] {
            let mut body = body.clone();
            (body["stop"], body["stream"]) = (stops.clone(), json!(streams));
            let reply = server.post("/v1/chat/completions", &body);
            let (got, reason) = match streams {
                false => (text(&reply.value(), 0), reply.value()["choices"][0]["finish_reason"].clone()),
                true => {
                    let events = reply.events();
                    let last = events.last().expect("an end")["choices"][0]["finish_reason"].clone();
                    (joined(&events, 1).remove(0), last)
                }
            };
            assert_eq!((got.as_str(), reason), (&full[..at], json!("stop")));
        }
    }
    // An end token ends an answer, too.
    let ended = server.chat(&question("What is 7 + 5?", json!({ "max_tokens": 64 })));
    let tokens = ended["usage"]["completion_tokens"].as_u64().expect("a count");
    assert_eq!(ended["choices"][0]["finish_reason"] == "stop", tokens < 64, "{ended}");
}

#[test]
fn adapters_are_models_over_one_base() {
    let adapters = [adapter("one", 1, None), adapter("two", 2, Some(4))];
    let [one, two] = adapters.map(|folder| folder.display().to_string());
    let server = Server::start(&["--adapter", &format!("first={one}"), "--adapter", &two]);
    let models = server.get("/v1/models").value();
    let names: Vec<&str> =
        models["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    let second = two.rsplit('/').next().expect("a name");
    assert_eq!(names, ["tiny-base", "first", second]);
    assert_eq!(server.get(&format!("/v1/models/{second}")).value()["parent"], "tiny-base");
    let asked = ["--prompt", "What is 7 + 5?", "--gen-length", "16"];
    let expected = [
        generated(&asked),
        generated(&[&asked[..], &["--adapter", &one]].concat()),
        generated(&[&asked[..], &["--adapter", &two]].concat()),
    ];
    assert!(expected[0] != expected[1] && expected[1] != expected[2], "the adapters change the answer: {expected:?}");
    let two_by = |attention: &[&str]| generated(&[&asked[..], &["--adapter", &two, "--attention"], attention].concat());
    assert_eq!(expected[2], two_by(&["block-causal", "--block-length", "4"]), "the adapter names its blocks");
    assert_ne!(expected[2], two_by(&["bidirectional"]));
    // They take turns, in any order.
    for index in [1, 0, 2, 2, 1, 0] {
        let reply = server.chat(&question("What is 7 + 5?", json!({ "model": names[index] })));
        assert_eq!((text(&reply, 0), &reply["model"]), (expected[index].clone(), &json!(names[index])));
    }
    let unknown = server.post("/v1/chat/completions", &question("a", json!({ "model": "third" })));
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.error().contains("there is no model \"third\"; there are \"tiny-base\", \"first\""),
        "{}",
        unknown.body
    );
}

#[test]
fn the_playground_is_told_every_step() {
    let server = Server::start(&[]);
    let body = question("What is 7 + 5?", json!({ "max_tokens": 16, "diffusion_steps": 16, "block_length": 8 }));
    let events = server.post("/api/denoise", &body).events();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!((of("start").len(), of("tokens").len(), of("done").len()), (1, 1, 1));
    assert_eq!(of("done")[0]["text"], text(&server.chat(&body), 0));
    let mut found = 0;
    for (step, event) in (1..).zip(of("step")) {
        assert_eq!(event["step"], step);
        let [tokens, entropies] = ["found", "entropy"].map(|key| event[key].as_array().expect("a list"));
        assert!(entropies.iter().all(|pair| pair[1].as_f64().is_some_and(|h| (0.0..12.0).contains(&h))), "{event}");
        assert!(tokens.iter().all(|token| token[2].as_f64().is_some_and(|p| p > 0.0 && p <= 1.0)), "{event}");
        assert_eq!(entropies.len(), 16 - found, "those that were masked before the step");
        found += tokens.len() + event["filled"].as_array().expect("a list").len();
    }
    assert_eq!(found, 16);
    for (path, kind) in [("/", "text/html"), ("/playground.css", "text/css"), ("/playground.js", "text/javascript")] {
        let file = server.get(path);
        assert!(file.status == 200 && file.headers.contains(kind), "{}", file.headers);
        assert!(
            file.headers.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{}",
            file.headers
        );
        assert!(
            !file.body.contains("http://") && !file.body.contains("https://"),
            "{path} loads nothing from elsewhere"
        );
    }
}
