//! A training checkpoint: state.json and state.safetensors; a run that goes on from it takes a step or says why not.
#![no_main]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use weft::data::Example;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::family::{ModelConfig, fresh};
use weft::model::lora::{LoraConfig, attach_fresh};
use weft::objective::Objective;
use weft::train::resolved::Resolved;
use weft::train::settings::TrainTable;
use weft::train::{Job, Trainer, checkpoint};
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
    let adapter = LoraConfig::new(1, 1.0, 0.0, vec!["q_proj".to_owned()], false);
    attach_fresh(&mut model, &adapter, 1).expect("the layer is there");
    let example = |id| Example { prompt_ids: vec![id], answer_ids: vec![2, 3, 4] };
    let job = Job {
        examples: vec![example(0), example(1)],
        mixture: Mixture::default(),
        objective: Objective { entropy_every: 3, ..Objective::default() },
        padding: Padding::None,
        eos_token_id: 4,
        settings: TrainTable { epochs: 8, ..TrainTable::default() },
    };
    Trainer::new(model, job)
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
