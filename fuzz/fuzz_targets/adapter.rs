//! adapter_config.json and adapter_model.safetensors on a small base; what loads, computes.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft::model::batch::Batch;
use weft::model::block::Transformer;
use weft::model::checkpoint::fresh;
use weft::model::config::ModelConfig;
use weft::model::lora;
use weft_fuzz::{check, cut, folder, write};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("adapter"));
/// As small as seeds.py's checkpoints.
static BASE: LazyLock<Transformer> = LazyLock::new(|| {
    let config = include_str!("../small_config.json");
    let config = ModelConfig::parse(config, Path::new("small_config.json")).expect("it is a configuration");
    let mut model = fresh(&config, 1);
    model.params.iter_mut().for_each(|p| p.trainable = false);
    model
});

fuzz_target!(|data: &[u8]| {
    let (config, tensors) = cut(data);
    write(&FOLDER.join("adapter_config.json"), config);
    write(&FOLDER.join("adapter_model.safetensors"), tensors);
    let mut model = BASE.clone();
    match lora::load(&FOLDER, &mut model) {
        Ok(_) => model.for_each_logits(&Batch::pack([&[0, 1][..]]), &[0, 1], |_, _| ()),
        Err(error) => check(&error),
    }
});
