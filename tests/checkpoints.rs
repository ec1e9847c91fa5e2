//! A whole trained base as a checkpoint: its weights' bits, its config.json, the files beside them, and the command
//! that makes it.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scratch::{folder, names};
use serde_json::Value;
use weft::base::Base;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::error::Error;
use weft::files::write_folder_whole;
use weft::model::block::Transformer;
use weft::objective::Objective;
use weft::train::optimizer::train_everything;
use weft::train::settings::TrainTable;
use weft::train::{Job, Trainer};
use weft_kernels::weight::{Dtype, to_bf16_bytes};

/// The embedded base's files in a folder of their own, with others beside them.
fn base_folder(name: &str) -> PathBuf {
    let folder = folder(name);
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base")).expect("it is there") {
        let entry = entry.expect("the folder can be read");
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("the file is copied");
    }
    let code = ["modeling_llada.py", "generation_config.json", "special_tokens_map.json"];
    for other in code.iter().chain(&["README.md", "old.bin", "adapter_config.json"]) {
        fs::write(folder.join(other), format!("content of {other}")).expect("the file is written");
    }
    fs::create_dir(folder.join("a.json")).expect("a folder with such a name can be made");
    folder
}

/// A base whose every weight has been trained for a step.
fn trained(path: &Path) -> Base {
    let mut base = Base::open(path).expect("the base opens");
    train_everything(&mut base.model);
    let ids = |text| base.text.encode(text).expect("the text encodes");
    let example = weft::data::Example { prompt_ids: ids("What is 2 + 3?"), answer_ids: ids("5, it is 5.") };
    let job = Job {
        examples: vec![example],
        mixture: Mixture::default(),
        objective: Objective::default(),
        padding: Padding::None,
        eos_token_id: base.text.eos_token_id(),
        settings: TrainTable { lr: 1e-3, ..TrainTable::default() },
    };
    let mut trainer = Trainer::new(base.model, job);
    trainer.step().expect("the step works");
    base.model = trainer.model;
    base
}

fn bits(model: &Transformer) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let of = |p: &weft::model::block::Param| p.weight.to_f32().iter().map(|x| x.to_bits()).collect();
    model.params.iter().map(|p| (p.name.clone(), p.shape.clone(), of(p))).collect()
}

#[test]
fn a_trained_base_is_saved_with_its_bits_and_its_companions() {
    let path = base_folder("base");
    let base = trained(&path);
    assert_eq!(base.dtype, Dtype::Bf16, "the stored format is known although the weights are f32 by now");
    let out = folder("saved").join("checkpoint");
    base.save(&out, Dtype::F32).expect("the checkpoint is saved");
    let saved = Base::open(&out).expect("the checkpoint opens");
    assert_eq!(saved.dtype, Dtype::F32);
    assert_eq!(bits(&saved.model), bits(&base.model));
    assert_ne!(bits(&saved.model), bits(&Base::open(&path).expect("the base opens").model), "it was trained");
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_llada.py",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&out), expected);
    for file in ["modeling_llada.py", "tokenizer.json"] {
        assert_eq!(fs::read(out.join(file)).expect("it is there"), fs::read(path.join(file)).expect("it is there"));
    }
    // Saved again over itself, in bf16: rounded to nearest, and config.json says so.
    base.save(&out, Dtype::Bf16).expect("the checkpoint is saved");
    let rounded = Base::open(&out).expect("the checkpoint opens");
    assert_eq!(rounded.dtype, Dtype::Bf16);
    for (rounded, param) in rounded.model.params.iter().zip(&base.model.params) {
        assert_eq!(to_bf16_bytes(&rounded.weight.to_f32()), to_bf16_bytes(&param.weight.to_f32()), "{}", param.name);
    }
    assert_eq!(names(&out), expected);
}

#[test]
fn config_json_changes_in_its_dtype_alone() {
    let path = base_folder("config");
    let read = |folder: &Path| -> Value {
        let text = fs::read_to_string(folder.join("config.json")).expect("it is there");
        serde_json::from_str(&text).expect("it is JSON")
    };
    let original = read(&path);
    for (keys, expected) in [
        (&["torch_dtype"][..], &["torch_dtype"][..]),
        (&["dtype"], &["dtype"]),
        (&["dtype", "torch_dtype"], &["dtype", "torch_dtype"]),
        (&[], &["torch_dtype"]),
    ] {
        let mut fields = original.clone();
        fields.as_object_mut().expect("an object").shift_remove("torch_dtype");
        let with = |value: &str, keys: &[&str]| {
            let mut fields = fields.clone();
            keys.iter().for_each(|key| fields[key] = Value::from(value));
            fields
        };
        fs::write(path.join("config.json"), with("bfloat16", keys).to_string()).expect("it is written");
        let out = folder("config-saved").join("checkpoint");
        Base::open(&path).expect("the base opens").save(&out, Dtype::F32).expect("the checkpoint is saved");
        assert_eq!(read(&out), with("float32", expected), "{keys:?}");
    }
}

#[test]
fn a_folder_is_whole_or_as_it_was() {
    let folder = folder("whole");
    let target = folder.join("checkpoint");
    let write = |content: &'static str, then: Result<(), &'static str>| {
        write_folder_whole(&target, |partial| {
            fs::write(partial.join(content), content).expect("the file is written");
            then.map_err(|reason| Error::Usage(reason.to_owned()))
        })
    };
    write("first", Ok(())).expect("the folder is written");
    // What a crash leaves is no obstacle.
    fs::create_dir(folder.join("checkpoint.partial")).expect("the folder can be made");
    fs::write(folder.join("checkpoint.partial/half"), "half").expect("the file is written");
    assert_eq!(write("second", Err("no")).expect_err("it fails").to_string(), "no");
    assert_eq!((names(&folder), names(&target)), (vec!["checkpoint".to_owned()], vec!["first".to_owned()]));
    write("third", Ok(())).expect("the folder is written");
    assert_eq!((names(&folder), names(&target)), (vec!["checkpoint".to_owned()], vec!["third".to_owned()]));
    // A crash between its two renames: the earlier folder is aside, the new one not yet in its place.
    fs::rename(&target, folder.join("checkpoint.earlier")).expect("the folder can be renamed");
    fs::create_dir(folder.join("checkpoint.partial")).expect("the folder can be made");
    assert_eq!(write("fourth", Err("no")).expect_err("it fails").to_string(), "no");
    assert_eq!((names(&folder), names(&target)), (vec!["checkpoint".to_owned()], vec!["third".to_owned()]));
    // And one after them.
    fs::create_dir(folder.join("checkpoint.earlier")).expect("the folder can be made");
    write("fifth", Ok(())).expect("the folder is written");
    assert_eq!((names(&folder), names(&target)), (vec!["checkpoint".to_owned()], vec!["fifth".to_owned()]));
}

#[test]
fn a_full_run_ends_with_a_checkpoint_that_answers() {
    let folder = folder("run");
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..8).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\ntrainable = \"full\"\nlora_rank = 4\n[data]\ntrain = \"rows.jsonl\"\n[objective]\n\
                  kind = \"token_weight\"\n[train]\noutput = \"run\"\nlr = 1e-3\nmicro_batch_size = 4\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let weft = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(&folder).args(args).output();
        let output = output.expect("weft starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, err) = weft(&["train", "recipe.toml"]);
    assert!(out.contains("million parameters, all trained)"), "{out}");
    assert!(out.contains("objective  token_weight, loss divided by the batch's masked tokens"), "{out}");
    assert!(out.contains("the checkpoint is in run/checkpoint"), "{out}");
    assert!(
        err.contains("warning: model.lora_rank has no effect: model.trainable is full, without an adapter"),
        "{err}"
    );
    assert_eq!(Base::open(&folder.join("run/checkpoint")).expect("it opens").dtype, Dtype::Bf16, "as the base");
    assert!(!folder.join("run/adapter").exists());
    let checkpoint = || fs::read(folder.join("run/checkpoint/model.safetensors")).expect("it is there");
    let first = checkpoint();
    // What a crash at the very end left is written anew, the same.
    fs::remove_file(folder.join("run/results.json")).expect("there are results");
    weft(&["train", "recipe.toml", "--resume"]);
    assert_eq!(first, checkpoint());
    let generate = ["generate", "--prompt", "What is 7 + 5?", "--gen-length", "32", "--diffusion-steps", "8"];
    let answer = |model: &str| weft(&[&generate[..], &["--model", model]].concat()).0;
    assert!(!answer("run/checkpoint").is_empty());
    // The checkpoint is a base like any other.
    weft(&[
        "train",
        "recipe.toml",
        "--set",
        "model.path=run/checkpoint",
        "--set",
        "train.output=again",
        "--set",
        "model.save_dtype=f32",
    ]);
    assert_eq!(Base::open(&folder.join("again/checkpoint")).expect("it opens").dtype, Dtype::F32);
}
