//! tokenizer.json and tokenizer_config.json; what is read encodes and decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft::data::chat_template::TextModel;
use weft::data::{Conversation, Message};
use weft_fuzz::{check, cut};

fuzz_target!(|data: &[u8]| {
    let (tokenizer, config) = cut(data);
    let Ok(config) = std::str::from_utf8(config) else { return };
    let text = match TextModel::from_bytes(tokenizer, config) {
        Ok(text) => text,
        Err(error) => return check(&error),
    };
    let prompt =
        vec![Message { role: "user".to_owned(), content: "What is 7 + 5?\n\n aaaaaaaaaaaaaaaa!\u{e9}".to_owned() }];
    match text.example(&Conversation { prompt, answer: "It's 12.".to_owned() }) {
        Ok(example) => {
            text.decode_answer(&example.answer_ids);
            text.decode_canvas(&[example.prompt_ids, vec![0, u32::MAX]].concat());
        }
        Err(error) => check(&error),
    }
});
