//! A request to `weft serve`: the parts of its head, one a line, and its body. A refusal is one sentence with a status that
//! blames the client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft::serve::door::{Door, Endpoint, Head, Route};
use weft::serve::refusal::Refusal;
use weft::serve::request::{Asked, MOST_CHOICES, read};
use weft_fuzz::cut;

fn check(refusal: &Refusal) {
    assert!((400..500).contains(&refusal.status), "{refusal:?}");
    let sentence = &refusal.message;
    assert!(!sentence.trim().is_empty() && !sentence.contains(['\n', '\r']) && sentence.len() < 2000, "{sentence:?}");
    assert!(refusal.to_json()["error"]["message"].is_string());
}

fuzz_target!(|data: &[u8]| {
    let (head, body) = cut(data);
    let head = String::from_utf8_lossy(head);
    let parts: Vec<&str> = head.split('\n').collect();
    let part = |at: usize| parts.get(at).copied();
    let head = Head {
        method: part(0).unwrap_or_default(),
        target: part(1).unwrap_or_default(),
        host: part(2),
        origin: part(3),
        fetch_site: part(4),
        authorization: part(5),
        content_type: part(6),
    };
    let mut endpoint = None;
    for api_key in [None, Some("secret".to_owned())] {
        for is_loopback in [false, true] {
            match (Door { is_loopback, api_key: api_key.clone() }).route(&head) {
                Ok(Route::Answer(asked)) => endpoint = Some(asked),
                Ok(_) => {}
                Err(refusal) => check(&refusal),
            }
        }
    }
    for endpoint in [endpoint.unwrap_or(Endpoint::Chat), Endpoint::Completions] {
        match read(endpoint, body) {
            Ok(request) => {
                let prompts = if let Asked::Texts(texts) = &request.asked { texts.len() } else { 1 };
                assert!((1..=MOST_CHOICES).contains(&(request.n * prompts)) && request.stop.len() <= 4);
            }
            Err(refusal) => check(&refusal),
        }
    }
});
