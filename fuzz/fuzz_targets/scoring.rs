//! Generations of every task: question, answer and truth are any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft::eval::answer::{boxed, is_equivalent, number};
use weft::eval::arithmetic::evaluate;
use weft::eval::{Task, score};
use weft_fuzz::cut;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (generation, rest) = cut(text.as_bytes());
    let (question, truth) = cut(rest);
    let [generation, question, truth] =
        [generation, question, truth].map(|part| std::str::from_utf8(part).expect("a border lies between characters"));
    let truth = serde_json::from_str(truth).unwrap_or_else(|_| Value::from(truth));
    for task in Task::ALL {
        let score = score(task, question, generation, &truth);
        assert!(score.correct <= score.total);
    }
    evaluate(generation);
    number(generation);
    boxed(generation);
    assert_eq!(is_equivalent(generation, question), is_equivalent(question, generation));
});
