//! A chat template, with the embedded base's tokenizer.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::data::Message;
use weft::data::chat_template::TextModel;
use weft_fuzz::{check, folder, repository, write};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = folder("chat_template");
    write(
        &folder.join("tokenizer.json"),
        &fs::read(repository("fuzz/corpus/small-tokenizer.json")).expect("seeds.py made it"),
    );
    write(&folder.join("tokenizer_config.json"), br#"{"eos_token": "<eos>", "bos_token": "<bos>"}"#);
    folder
});

fuzz_target!(|data: &[u8]| {
    write(&FOLDER.join("chat_template.jinja"), data);
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let messages = [message("system", "Be brief."), message("user", " a <b> "), message("assistant", "c\n")];
    let rendered = TextModel::open(&FOLDER).and_then(|text| {
        text.render(&messages, false)?;
        text.render(&messages[..2], true)
    });
    if let Err(error) = rendered {
        check(&error);
    }
});
