//! What goes wrong at `weft serve`: malformed requests, clients that leave, full queues, keys, other sites, and the end.
#![cfg(unix)]

mod server;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use server::damage::{below, damaged};
use server::{Reply, Server, question, read, text};
use weft::serve::door::{Door, Endpoint, Head};
use weft::serve::request;

/// A request that takes minutes.
fn long() -> Value {
    question(
        "What is 7 + 5?",
        json!({ "max_tokens": 4096, "block_length": 8, "diffusion_steps": 4096, "whole_canvas": true }),
    )
}

/// Waits until the server does nothing but what was sent before.
fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

#[track_caller]
fn refused(reply: &Reply, status: u16, words: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert!(reply.error().contains(words), "{words:?} in {}", reply.body);
}

#[test]
fn a_thousand_malformed_requests_are_refused_in_a_sentence_each() {
    let server = Server::start(&[]);
    let (mut silent, mut told) = (0, 0);
    for case in 0..1000 {
        let json = "Content-Type: application/json\r\n";
        let bytes = match case % 8 {
            0 => (0..1 + below(300, case, 0)).map(|i| below(256, case, 1 + i as u32) as u8).collect(),
            1 => {
                let mut bytes = server.request("POST", "/v1/chat/completions", json, &damaged(case));
                let at = below(40, case, 90);
                bytes[at] = [0, b' ', b'\r', b'\n', 0xff, b':'][below(6, case, 91)];
                bytes
            }
            2 => server.request(["PUT", "get", "OPTIONS", "X"][below(4, case, 0)], "/v1/completions", json, b"{}"),
            3 => server.request(
                "POST",
                ["/v1", "/v1/models/x", "/%00", "//", "/v1/chat"][below(5, case, 0)],
                json,
                b"{}",
            ),
            _ => {
                let path = ["/v1/chat/completions", "/v1/completions", "/api/denoise"][below(3, case, 99)];
                server.request("POST", path, json, &damaged(case))
            }
        };
        // A client that closes its side has left, but only that ends bytes that may lack a part of a request.
        let reply = if case % 8 < 2 { server.raw(&bytes) } else { read(&mut server.send(&bytes)) };
        match reply {
            None => {
                assert!(case % 8 < 2, "{case}: a whole request has a reply");
                silent += 1;
            }
            // A damaged request may still be a good one: a changed letter of the question, for example.
            Some(reply) if reply.status == 200 => {}
            Some(reply) => {
                assert!((400..500).contains(&reply.status), "{case}: {reply:?}");
                assert!(!reply.error().is_empty());
                told += 1;
            }
        }
    }
    assert!(told > 750, "{told} were told, {silent} were not whole");
    assert_eq!(server.get("/health").status, 200);
    assert!(!text(&server.chat(&question("What is 7 + 5?", json!({}))), 0).is_empty());
}

proptest! {
    /// The fuzzers' property (fuzz/fuzz_targets/request.rs), on fewer inputs: a refusal is a sentence that blames the client.
    #[test]
    fn any_bytes_are_read_or_refused(body in any::<Vec<u8>>(), method in ".{0,8}", target in "(/v1/|/)?.{0,20}", text in ".{0,20}") {
        let body = [b"{\"model\": \"m\", \"messages\": ".as_slice(), &body].concat();
        let text = Some(text.as_str());
        let door = Door { is_loopback: body.len() % 2 == 0, api_key: Some("a".to_owned()) };
        let head = Head { method: &method, target: &target, host: text, origin: text, fetch_site: text, authorization: text, content_type: text };
        let refusals = [door.route(&head).err(), request::read(Endpoint::Chat, &body).err(), request::read(Endpoint::Completions, &body[27..]).err()];
        for refusal in refusals.into_iter().flatten() {
            prop_assert!((400..500).contains(&refusal.status), "{refusal:?}");
            prop_assert!(!refusal.message.is_empty() && !refusal.message.contains(['\n', '\r']), "{refusal:?}");
        }
    }
}

#[test]
fn refusals_name_the_field_and_the_fix() {
    let server = Server::start(&["--max-gen-length", "64", "--max-length", "100", "--gen-length", "16"]);
    let chat = |more: Value| server.post("/v1/chat/completions", &question("a", more));
    refused(&chat(json!({ "top_p": 0.5 })), 400, "top_p has no effect with remasking low_confidence");
    assert_eq!(chat(json!({ "top_p": 1.0, "temperature": 0 })).status, 200);
    refused(&chat(json!({ "max_tokens": 65 })), 400, "max_tokens 65 is more than 64");
    refused(&chat(json!({ "max_tokens": 0 })), 400, "gen_length 0");
    refused(&chat(json!({ "block_length": 5 })), 400, "gen_length 16 is not a multiple of block_length 5");
    refused(&chat(json!({ "temperature": -1 })), 400, "temperature -1 is negative");
    refused(&chat(json!({ "tools": [{}] })), 400, "tools is a list: answers aren't read for calls of tools");
    refused(&chat(json!({ "model": null })), 400, "model is missing");
    let name = json!({ "messages": [{ "role": "user", "content": "a", "name": "b" }] });
    refused(&chat(name), 400, "the chat template does not read messages[].name");
    let mask = json!({ "messages": [{ "role": "user", "content": "What is <|mdm_mask|>?" }] });
    refused(&chat(mask), 400, "the prompt contains the mask token <|mdm_mask|>");
    let long = json!({ "messages": [{ "role": "user", "content": "word ".repeat(200) }] });
    let reply = chat(long);
    refused(&reply, 400, "but this server takes 100; shorten the prompt, or lower max_tokens");
    assert!(reply.body.contains("context_length_exceeded"));
    let texts = |prompt: Value| server.post("/v1/completions", &json!({ "model": "tiny-base", "prompt": prompt }));
    refused(&texts(json!([99_999_999])), 400, "there is no token 99999999");
    refused(&texts(json!("")), 400, "prompt is \"\"");
    let typed = server.request("POST", "/v1/completions", "Content-Type: text/plain\r\n", b"{}");
    refused(&server.raw(&typed).expect("a reply"), 415, "Content-Type: application/json");
    let large = vec![b' '; (1 << 20) + 1];
    let large = server.request("POST", "/v1/completions", "Content-Type: application/json\r\n", &large);
    refused(&read(&mut server.send(&large)).expect("a reply"), 413, "the body is larger than 1048576 bytes");
    let head = server.request("GET", "/health", &format!("X: {}\r\n", "a".repeat(1 << 17)), b"");
    refused(&read(&mut server.send(&head)).expect("a reply"), 431, "the head of the request is too large");
}

#[test]
fn bytes_that_are_no_request_are_answered_too() {
    let server = Server::start(&[]);
    let get = "GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\n";
    let post =
        "POST /v1/completions HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let models = "GET /v1/models HTTP/1.1\r\nConnection: close\r\n";
    for (bytes, status, words) in [
        (format!("{models}\r\n"), 400, "the header Host is missing"),
        (format!("{get}Host: evil.example\r\n\r\n"), 400, "there are 2 headers host; send one"),
        (
            "GET http://evil.example/v1/models HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            403,
            "the host \"evil.example\"",
        ),
        ("GET /v1/models HTTP/1.0\r\n\r\n".to_owned(), 400, "the header Host is missing"),
        ("GET /\r\n\r\n".to_owned(), 400, "the request is not HTTP/1.1"),
        (
            "CONNECT evil.example:443 HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\n\r\n".to_owned(),
            404,
            "there is nothing at",
        ),
        ("TRACE / HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\n\r\n".to_owned(), 405, "not \"TRACE\""),
        (format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), 400, "the request is not HTTP/1.1"),
        (format!("{post}Content-Length: -2\r\n\r\n{{}}"), 400, "the request is not HTTP/1.1"),
        (format!("{post}Content-Length: {}\r\n\r\n{{}}", "9".repeat(30)), 400, "the request is not HTTP/1.1"),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n{{}}"), 400, "the request is not HTTP/1.1"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"), 400, "the body can't be read"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), 400, "model is missing"),
        (format!("{post}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{{}}"), 415, "the body is encoded by gzip"),
        (format!("{get}{}\r\n", "X: a\r\n".repeat(1000)), 431, "the head of the request is too large"),
        (format!("GET /{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "a".repeat(70_000)), 414, "the path is too long"),
    ] {
        refused(&read(&mut server.send(bytes.as_bytes())).expect("a reply"), status, words);
    }
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS";
    refused(&server.raw(hello).expect("a reply"), 400, "the request is not HTTP/1.1");
    for (header, status) in [("Origin: http://", 403), ("Authorization: Bearer ", 200)] {
        let bytes = [get.as_bytes(), header.as_bytes(), b"\xff\r\n\r\n"].concat();
        assert_eq!(server.raw(&bytes).expect("a reply").status, status, "{header}: no text");
    }
    let host = [models.as_bytes(), b"Host: \xff\r\n\r\n"].concat();
    assert_eq!(server.raw(&host).expect("a reply").status, 403, "a host that is no text is not this machine");
    // A body that is longer than it says is followed by bytes that are no request.
    let lie = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}no\r\n\r\n";
    let mut replies = String::new();
    server.send(lie.as_bytes()).read_to_string(&mut replies).expect("it is closed");
    assert!(replies.contains("model is missing") && replies.contains("the request is not HTTP/1.1"), "{replies}");
}

#[test]
fn large_requests_take_little_memory() {
    let server = Server::start(&[]);
    let texts = |prompt: String| server.post("/v1/completions", &json!({ "model": "tiny-base", "prompt": prompt }));
    for text in ["1", "a", "\na", " a"] {
        refused(&texts(text.repeat(250_000)), 400, "bytes, which no 512 tokens hold");
    }
    let turns = vec![json!({ "role": "user", "content": "a" }); 30_000];
    refused(
        &server.post("/v1/chat/completions", &question("", json!({ "messages": turns }))),
        400,
        "which no 512 tokens hold",
    );
    let blank =
        json!({ "messages": [{ "role": "user", "content": format!("{}What is 7 + 5?", " ".repeat(500_000)) }] });
    let reply = server.post("/v1/chat/completions", &question("", blank));
    assert!([200, 400].contains(&reply.status), "{}: a template may trim turns", reply.body);
    let reply = server.post("/v1/chat/completions", &question("a", json!({ ("k".repeat(900_000)): 1 })));
    refused(&reply, 400, "unknown field \"kkk");
    assert!(reply.body.len() < 1000, "{} bytes", reply.body.len());
    refused(
        &server.post("/v1/chat/completions", &question("a", json!({ "stop": "a".repeat(900_000) }))),
        400,
        "give at most 1000",
    );
    let nested = format!("{{\"model\": {}", "[".repeat(900_000));
    let nested = server.request("POST", "/v1/completions", "Content-Type: application/json\r\n", nested.as_bytes());
    refused(&read(&mut server.send(&nested)).expect("a reply"), 400, "recursion limit exceeded");
    if let Some(most) = server.most_memory() {
        assert!(most < 150, "{most} MiB");
    }
}

#[test]
fn clients_that_are_slow_are_not_waited_for() {
    let server = Server::start(&["--max-length", "8192"]);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let began = Instant::now();
    let mut short = server.send(format!("{head}Content-Length: 9999999999\r\n\r\n{{}}").as_bytes());
    let mut endless = server.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n").as_bytes());
    let mut half = server.send(&head.as_bytes()[..40]);
    // Requests without number, whose replies nobody reads.
    let mut unread = server.send(&"GET /playground.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(2000).into_bytes());
    assert_eq!(server.get("/health").status, 200, "the others are served");
    for stream in [&mut short, &mut endless] {
        refused(&read(stream).expect("a reply"), 408, "the body took more than 30 s");
    }
    let mut rest = vec![];
    assert_eq!(half.read_to_end(&mut rest).expect("it is closed"), 0);
    std::thread::sleep(Duration::from_secs(35).saturating_sub(began.elapsed()));
    let _ = unread.read_to_end(&mut rest);
    let script = server.get("/playground.js").body.len();
    assert!(rest.len() < 2000 * script, "the connection ended early: {} bytes", rest.len());
    assert!(began.elapsed() < Duration::from_secs(90));
}

#[test]
fn other_sites_and_keys() {
    let open = Server::start(&[]);
    let with =
        |server: &Server, headers: &str| read(&mut server.send(&server.request("GET", "/v1/models", headers, b"")));
    let status = |server: &Server, headers: &str| with(server, headers).expect("a reply").status;
    assert_eq!(status(&open, "Origin: http://evil.example\r\n"), 403);
    assert_eq!(status(&open, &format!("Origin: http://{}\r\n", open.address)), 200);
    let rebound = "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    refused(&open.raw(rebound.as_bytes()).expect("a reply"), 403, "the host \"evil.example\" is not this machine");
    let preflight = open.request("OPTIONS", "/v1/chat/completions", "Origin: http://evil.example\r\n", b"");
    let reply = open.raw(&preflight).expect("a reply");
    assert!(reply.status == 403 && !reply.headers.contains("access-control"), "{}", reply.headers);
    let locked = Server::start(&["--api-key", "secret "]);
    assert_eq!(status(&locked, ""), 401);
    assert_eq!(status(&locked, "Authorization: Bearer secre\r\n"), 401);
    assert_eq!(status(&locked, "Authorization: Bearer secret\r\n"), 200);
    assert_eq!(locked.get("/health").status, 200);
    let reply = locked.post("/v1/chat/completions", &question("a", json!({})));
    refused(&reply, 401, "the API key is missing");
    assert!(reply.body.contains("invalid_api_key"));
}

#[test]
fn clients_that_leave_are_not_waited_for() {
    let server = Server::start(&["--max-length", "8192"]);
    for streams in [false, true] {
        let mut body = long();
        body["stream"] = json!(streams);
        let leaver = server.ask("/v1/chat/completions", &body);
        settle();
        let mut waiter = server.ask("/v1/chat/completions", &question("What is 7 + 5?", json!({})));
        settle();
        drop(leaver);
        let began = Instant::now();
        assert!(!text(&read(&mut waiter).expect("a reply").value(), 0).is_empty());
        assert!(began.elapsed() < Duration::from_secs(60), "streams {streams}: the leaver is forgotten");
    }
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(&["--queue", "1", "--batch-size", "1", "--max-length", "8192"]);
    let running = server.ask("/v1/chat/completions", &long());
    settle();
    let waiting = server.ask("/v1/chat/completions", &question("a", json!({})));
    settle();
    let third = server.post("/v1/chat/completions", &question("b", json!({})));
    refused(&third, 429, "too many requests wait; try again in");
    assert!(third.headers.contains("retry-after: "), "{}", third.headers);
    refused(
        &server.post("/v1/chat/completions", &question("b", json!({ "n": 2 }))),
        400,
        "2 choices are more than the server's queue of 1",
    );
    drop(running);
    let mut waiting = waiting;
    assert_eq!(read(&mut waiting).expect("a reply").status, 200, "the queue goes on");
}

#[test]
fn a_signal_finishes_what_was_asked() {
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::start(&["--batch-size", "1"]);
        let some = json!({ "max_tokens": 256, "block_length": 8, "diffusion_steps": 256, "whole_canvas": true });
        let mut running = server.ask("/v1/chat/completions", &question("What is 7 + 5?", some));
        let mut waiting = server.ask("/v1/chat/completions", &question("What is 8 + 5?", json!({ "stream": true })));
        std::thread::sleep(Duration::from_millis(300));
        server.signal(signal);
        std::thread::sleep(Duration::from_millis(200));
        refused(&server.post("/v1/chat/completions", &question("a", json!({}))), 503, "the server is being stopped");
        assert_eq!(server.get("/health").status, 503);
        assert_eq!(read(&mut running).expect("a reply").status, 200, "{signal}: what runs is finished");
        assert!(!read(&mut waiting).expect("a reply").events().is_empty(), "{signal}: what waits is finished");
        assert_eq!(server.ends().code(), Some(0), "{signal}");
    }
}

#[test]
fn what_takes_longer_than_a_shutdown_may_is_given_up() {
    let mut server = Server::start(&["--batch-size", "1", "--max-length", "8192", "--shutdown-seconds", "1"]);
    let mut running = server.ask("/v1/chat/completions", &long());
    let mut streamed = long();
    streamed["stream"] = json!(true);
    let mut waiting = server.ask("/v1/chat/completions", &streamed);
    settle();
    server.signal("-TERM");
    refused(
        &read(&mut running).expect("a reply"),
        503,
        "the server was stopped before the answer was finished; ask again",
    );
    let reply = read(&mut waiting).expect("a reply");
    assert!(reply.body.contains("the server was stopped before the answer was finished"), "{}", reply.body);
    assert_eq!(server.ends().code(), Some(0));
    // A second signal doesn't wait for anything.
    let mut server = Server::start(&["--max-length", "8192"]);
    let _running = server.ask("/v1/chat/completions", &long());
    settle();
    server.signal("-TERM");
    settle();
    server.signal("-TERM");
    assert_eq!(server.ends().code(), Some(130));
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start(&[]);
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let mut stream = server.send(request.repeat(3).as_bytes());
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while text.matches("HTTP/1.1 200 OK").count() < 3 {
        let count = stream.read(&mut bytes).expect("it answers");
        assert!(count > 0, "three replies: {text}");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
}

#[test]
fn what_cannot_be_served_is_told_before_a_weight_is_read() {
    let refused = |options: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_weft")).args(["serve", "--model", "tiny-base"]).args(options).output();
        let output = output.expect("weft starts");
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let server = Server::start(&[]);
    let port = server.address.rsplit(':').next().expect("a port");
    for (options, told) in [
        (&["--port", port][..], "error: cannot listen on 127.0.0.1, port "),
        (&["--port", "0", "--api-key", " "], "error: the API key is empty; give --api-key KEY, or unset WEFT_API_KEY"),
        (
            &["--port", "0", "--api-key", "schl\u{fc}ssel"],
            "error: the API key has a character that a header of HTTP can't have",
        ),
        (&["--port", "0", "--batch-size", "0"], "error: --batch-size 0: give at least 1"),
        (
            &["--port", "0", "--max-gen-length", "64"],
            "error: --gen-length 128 is more than --max-gen-length 64; raise that",
        ),
        (
            &["--port", "0", "--adapter", "tiny-base=a"],
            "error: --adapter tiny-base=a: \"tiny-base\" is the name of another model",
        ),
        (
            &["--port", "0", "--adapter", "a=/nowhere", "--adapter", "a=/elsewhere"],
            "error: --adapter a=/elsewhere: \"a\" is the name of another model; give --adapter NAME=/elsewhere",
        ),
        (&["--port", "0", "--adapter", "a=/nowhere"], "error: "),
    ] {
        assert!(refused(options).contains(told), "{told:?} in {}", refused(options));
    }
    // Others may come in without a key, but not unnoticed.
    let mut open = Command::new(env!("CARGO_BIN_EXE_weft"));
    open.args(["serve", "--model", "tiny-base", "--port", "0", "--host", "0.0.0.0"]).env_remove("WEFT_API_KEY");
    let mut open = open.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("weft starts");
    let mut line = String::new();
    BufReader::new(open.stderr.take().expect("it is piped")).read_line(&mut line).expect("it is read");
    open.kill().and_then(|()| open.wait()).expect("it ends");
    assert!(line.starts_with("warning: other machines can ask at 0.0.0.0:"), "{line}");
}
