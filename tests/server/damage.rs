//! Damaged requests, by the number of the case.

use serde_json::json;
use weft_kernels::philox::philox;

use super::question;

/// A pseudo-random number below `n`.
pub fn below(n: usize, case: u64, draw: u32) -> usize {
    philox(7, [case as u32, draw, 0, 0])[0] as usize % n
}

/// The body of a request, damaged.
pub fn damaged(case: u64) -> Vec<u8> {
    let good = question("What is 7 + 5?", json!({ "temperature": 0.5, "stop": ["a"], "n": 1 }));
    let mut bytes = good.to_string().into_bytes();
    match case % 5 {
        0 => bytes.truncate(below(bytes.len(), case, 0)),
        1 => {
            let at = below(bytes.len(), case, 0);
            // Neither a digit nor within a string of JSON.
            bytes[at] = [0, 1, 0xff, b'\n', 0xc0][below(5, case, 1)];
        }
        2 => {
            let (keys, values) = (
                good.as_object().expect("an object"),
                [json!([[]]), json!({ "a": [1] }), json!(-3), json!(true), json!(u64::MAX), json!(1e300)],
            );
            let key = keys.keys().nth(below(keys.len(), case, 0)).expect("a key").clone();
            let mut bad = good.clone();
            bad[key] = values[below(6, case, 1)].clone();
            bytes = bad.to_string().into_bytes();
        }
        3 => {
            let names = ["max_token", "seeds", "\u{202e}", "logprobs", "tools", "a b", "__proto__"];
            let mut bad = good.clone();
            bad[names[below(7, case, 0)]] = json!([1]);
            bytes = bad.to_string().into_bytes();
        }
        _ => bytes = (0..below(400, case, 0)).map(|i| below(256, case, 2 + i as u32) as u8).collect(),
    }
    bytes
}
