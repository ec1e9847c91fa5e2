//! config.json of every family; what is read has a model on the meta device.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::model::checkpoint;
use weft::model::facts::Overrides;
use weft_fuzz::{check, folder, write};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("config"));

fuzz_target!(|data: &[u8]| {
    write(&FOLDER.join("config.json"), data);
    match checkpoint::load_meta(&FOLDER, Overrides::default()) {
        Ok((model, _)) => {
            let numbers: usize = model.params.iter().map(|p| p.weight.rows() * p.weight.cols()).sum();
            assert!(numbers <= 1 << 45 && !model.blocks.is_empty());
        }
        Err(error) => check(&error),
    }
});
