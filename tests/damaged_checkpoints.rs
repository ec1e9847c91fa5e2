//! Checkpoints that a disk has changed: none is trained on, and the last good one stays until another is there.

mod scratch;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use scratch::{folder, names};
use serde_json::json;
use weft::data::Example;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::checkpoint::load;
use weft::model::lora::{self, LoraConfig};
use weft::objective::Objective;
use weft::train::resolved::Resolved;
use weft::train::settings::TrainTable;
use weft::train::{Job, Trainer, checkpoint};

fn trainer() -> Trainer {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut model = load(&golden).expect("the golden checkpoint loads");
    let config = LoraConfig::new(1, 2.0, 0.0, vec!["q_proj".to_owned()], false);
    lora::attach_fresh(&mut model, &config, 3).expect("there are layers");
    let example = |i: u32| Example { prompt_ids: vec![i, i + 1], answer_ids: vec![i + 2, i + 3, i + 4] };
    let settings = TrainTable { epochs: 8, lr: 1e-2, ..TrainTable::default() };
    let job = Job {
        examples: (0..4).map(example).collect(),
        mixture: Mixture::default(),
        objective: Objective { entropy_every: 3, ..Objective::default() },
        padding: Padding::None,
        eos_token_id: 157,
        settings,
    };
    Trainer::new(model, job)
}

fn recipe() -> Resolved {
    Resolved::from(json!({ "train": { "lr": 1e-2 } }))
}

fn state(trainer: &Trainer) -> (u64, Vec<u32>) {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    let bits = trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    (trainer.step, bits.collect())
}

/// Trains to a step and saves it: what the trainer is then.
fn save_at(output: &Path, trainer: &mut Trainer, step: u64) -> (u64, Vec<u32>) {
    while trainer.step < step {
        trainer.step().expect("the step works");
    }
    checkpoint::save(output, trainer, &recipe()).expect("the checkpoint is saved");
    state(trainer)
}

fn loaded(output: &Path) -> (u64, Vec<u32>) {
    let mut fresh = trainer();
    assert!(checkpoint::load_newest(output, &mut fresh, &recipe()).expect("one is whole"));
    state(&fresh)
}

#[test]
fn no_byte_of_a_checkpoint_can_change_unnoticed() {
    let output = folder("bytes");
    let mut trainer = trainer();
    let [before, newest] = [2, 4].map(|step| save_at(&output, &mut trainer, step));
    assert_eq!(loaded(&output), newest);
    let paths =
        ["state.safetensors", "state.json", "checksums"].map(|f| output.join("checkpoints/step-00000004").join(f));
    let whole = paths.clone().map(|path| fs::read(path).expect("it is there"));
    let changes = (0..paths.len(), any::<prop::sample::Index>(), 0u8..=255, any::<bool>());
    let changed = |(file, at, xor, is_cut): (usize, prop::sample::Index, u8, bool)| {
        let mut bytes = whole[file].clone();
        let at = at.index(bytes.len());
        match is_cut || xor == 0 {
            true => bytes.truncate(at),
            false => bytes[at] ^= xor,
        }
        fs::write(&paths[file], bytes).expect("it is written");
        let state = loaded(&output);
        fs::write(&paths[file], &whole[file]).expect("it is written");
        prop_assert_eq!(&state, &before);
        Ok(())
    };
    TestRunner::default().run(&changes, changed).expect("each change is noticed");
    assert_eq!(loaded(&output), newest, "the bytes are back");
    // An earlier version wrote no checksums.
    fs::remove_file(&paths[2]).expect("it is removed");
    assert_eq!(loaded(&output), newest);
}

#[test]
fn the_last_good_checkpoint_stays_until_there_is_another() {
    let output = folder("good");
    let mut first = trainer();
    let states = [2, 4, 6].map(|step| {
        let state = save_at(&output, &mut first, step);
        // The oldest is put aside before it is dropped for the third.
        let [from, to] = [output.join("checkpoints/step-00000002"), output.join("second")];
        if step == 4 {
            fs::rename(from, to).expect("it is renamed");
        }
        state
    });
    fs::rename(output.join("second"), output.join("checkpoints/step-00000002")).expect("it is renamed");
    for step in ["00000004", "00000006"] {
        fs::write(output.join(format!("checkpoints/step-{step}/state.json")), "{}").expect("it is written");
    }
    // A crash left these beside them.
    fs::create_dir(output.join("checkpoints/step-00000006.earlier")).expect("it is made");
    fs::create_dir(output.join("checkpoints/step-00000008.partial")).expect("it is made");
    let mut resumed = trainer();
    assert!(checkpoint::load_newest(&output, &mut resumed, &recipe()).expect("one is whole"));
    assert_eq!(state(&resumed), states[0]);
    assert_eq!(
        names(&output.join("checkpoints")),
        ["step-00000002", "step-00000004", "step-00000006"],
        "what a crash left is gone"
    );
    let third = save_at(&output, &mut resumed, 3);
    assert_eq!(
        names(&output.join("checkpoints")),
        ["step-00000002", "step-00000003", "step-00000004", "step-00000006"]
    );
    assert_eq!(loaded(&output), third);
    // The damaged ones are replaced when their steps come again.
    assert_eq!(save_at(&output, &mut resumed, 4), states[1]);
    assert_eq!(save_at(&output, &mut resumed, 6), states[2]);
    assert_eq!(names(&output.join("checkpoints")), ["step-00000004", "step-00000006"]);
}
