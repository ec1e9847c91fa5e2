//! config.json and model.safetensors of a checkpoint; what loads, computes.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::model::batch::Batch;
use weft::model::checkpoint;
use weft_fuzz::{check, cut, folder, write};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("checkpoint"));

fuzz_target!(|data: &[u8]| {
    let (config, tensors) = cut(data);
    write(&FOLDER.join("config.json"), config);
    write(&FOLDER.join("model.safetensors"), tensors);
    match checkpoint::load(&FOLDER) {
        Ok(model) => model.for_each_logits(&Batch::pack([&[0, 0][..]]), &[0, 1], |_, _| ()),
        Err(error) => check(&error),
    }
});
