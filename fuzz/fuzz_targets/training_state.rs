//! A training checkpoint: state.json and state.safetensors; a run that goes on from it takes a step or says why not.
#![no_main]

#[path = "../../tests/small_state/mod.rs"]
mod small_state;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use weft::model::checkpoint::fresh;
use weft::model::config::ModelConfig;
use weft::train::resolved::Resolved;
use weft::train::{Trainer, checkpoint};
use weft_fuzz::{check, cut, folder, write};

static RUN: LazyLock<PathBuf> = LazyLock::new(|| folder("training_state"));

thread_local! {
    static TRAINER: RefCell<Trainer> = RefCell::new(trainer());
}

fn trainer() -> Trainer {
    let config = include_str!("../small_config.json");
    let config = ModelConfig::parse(config, Path::new("small_config.json")).expect("it is a configuration");
    let mut model = fresh(&config, 1);
    model.params.iter_mut().for_each(|p| p.trainable = false);
    small_state::trainer(model, 1, 8)
}

fuzz_target!(|data: &[u8]| {
    let (state, tensors) = cut(data);
    let folder = RUN.join("checkpoints/step-00000001");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    write(&folder.join("state.json"), state);
    write(&folder.join("state.safetensors"), tensors);
    let recipe = Resolved::from(json!({}));
    TRAINER.with_borrow_mut(|trainer| match checkpoint::load_newest(&RUN, trainer, &recipe) {
        Ok(_) => {
            trainer.entropy_drift();
            if trainer.step < trainer.num_steps() {
                drop(trainer.step().map_err(|error| check(&error)));
            }
        }
        Err(error) => check(&error),
    });
});
