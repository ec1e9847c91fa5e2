//! Files that lie where others are expected: Git LFS pointers, unfinished downloads, pickles and other dtypes. Each is named
//! as what it is, and what the sentence says to do is done here: the file is read then.

mod fixtures;
mod recast;
mod scratch;

use std::fs;
use std::path::Path;

use fixtures::{DREAM, Golden, LLADA, load, logits, read};
use recast::{halved, recast};
use safetensors::Dtype;
use scratch::folder;
use serde_json::json;
use weft::data::chat_template::TextModel;
use weft::data::sources::Source;
use weft::model::checkpoint;
use weft::model::facts::Overrides;
use weft::model::lora;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
                       oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

const IS_POINTER: &str =
    "it is a Git LFS pointer, not the file; run `git lfs pull` in its folder, or download it with `hf download`";

/// A golden checkpoint's folder as a copy.
fn copy(golden: Golden, name: &str) -> std::path::PathBuf {
    let to = folder(name);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.path().join(file), to.join(file)).expect("the file is copied");
    }
    to
}

fn refused(folder: &Path) -> String {
    let error = checkpoint::load(folder).expect_err("the checkpoint is refused").to_string();
    error.replace(&folder.display().to_string(), "DIR")
}

/// A golden adapter's folder as a copy.
fn adapter(name: &str) -> std::path::PathBuf {
    let to = folder(name);
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(LLADA.path().join("lora/adapter").join(file), to.join(file)).expect("the file is copied");
    }
    to
}

fn refused_adapter(folder: &Path) -> String {
    let error = lora::load(folder, &mut LLADA.load()).expect_err("the adapter is refused").to_string();
    error.replace(&folder.display().to_string(), "DIR")
}

#[test]
fn git_lfs_pointers_are_named_wherever_a_file_is_expected() {
    let base = copy(LLADA, "pointer");
    for file in ["model.safetensors", "config.json"] {
        let whole = fs::read(base.join(file)).expect("it is there");
        fs::write(base.join(file), POINTER).expect("it is written");
        assert_eq!(refused(&base), format!("DIR/{file}: {IS_POINTER}"));
        fs::write(base.join(file), whole).expect("it is written");
        load(&base);
    }
    let tensors: Vec<String> = LLADA.tensors().into_keys().collect();
    let map: serde_json::Map<_, _> = tensors.into_iter().map(|name| (name, json!("model-1.safetensors"))).collect();
    fs::write(base.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).expect("written");
    fs::write(base.join("model-1.safetensors"), POINTER).expect("it is written");
    assert_eq!(refused(&base), format!("DIR/model-1.safetensors: {IS_POINTER}"));

    let adapter = adapter("pointer-adapter");
    fs::write(adapter.join("adapter_model.safetensors"), POINTER).expect("it is written");
    assert_eq!(refused_adapter(&adapter), format!("DIR/adapter_model.safetensors: {IS_POINTER}"));

    let text = LLADA.with_text("pointer-text", &LLADA.path());
    fs::write(text.join("tokenizer.json"), POINTER).expect("it is written");
    let told = TextModel::open(&text).err().expect("there is no tokenizer").to_string();
    assert_eq!(told, format!("{}: {IS_POINTER}", text.join("tokenizer.json").display()));

    for name in ["train.jsonl", "train.json", "train-00000-of-00001.parquet", "train.txt"] {
        let rows = folder("pointer-rows");
        fs::write(rows.join(name), POINTER).expect("it is written");
        for source in [Source::at(&rows, "train"), Source::at(&rows.join(name), "train")] {
            let told = rows_error(&source).replace(&rows.display().to_string(), "DIR");
            assert_eq!(told, format!("DIR/{name}: {IS_POINTER}"));
        }
    }
}

fn rows_error(source: &Source) -> String {
    let rows = source.rows().and_then(|mut rows| rows.try_for_each(|row| row.map(|_| ())));
    rows.expect_err("the rows are refused").to_string()
}

#[test]
fn unfinished_downloads_are_named() {
    let again = "download it again (`hf download` goes on where it stopped)";
    let base = copy(LLADA, "unfinished");
    let whole = fs::read(base.join("model.safetensors")).expect("it is there");
    for (part, of) in [("model.safetensors.incomplete", "."), ("x.123.incomplete", ".cache/huggingface/download")] {
        let of = if of == "." { base.clone() } else { base.join(of) };
        fs::create_dir_all(&of).expect("it is made");
        fs::rename(base.join("model.safetensors"), of.join(part)).expect("it is renamed");
        let told = of.join(part).display().to_string().replace(&base.display().to_string(), "DIR");
        assert_eq!(
            refused(&base),
            format!("DIR/model.safetensors: its download isn't finished, {told} is the part that is there; {again}")
        );
        fs::rename(of.join(part), base.join("model.safetensors")).expect("it is renamed");
    }
    // A snapshot of the hub's cache, whose files are among the blobs.
    let cache = folder("cache");
    let snapshot = cache.join("snapshots/0123");
    fs::create_dir_all(&snapshot).and_then(|()| fs::create_dir(cache.join("blobs"))).expect("they are made");
    fs::copy(base.join("config.json"), snapshot.join("config.json")).expect("it is copied");
    assert!(refused(&snapshot).starts_with("cannot read DIR/model.safetensors: "));
    fs::write(cache.join("blobs/abc.incomplete"), "x").expect("it is written");
    assert!(refused(&snapshot).starts_with("DIR/model.safetensors: its download isn't finished, "));

    for (at, of) in [(whole.len() - 1, whole.len()), (4000, whole.len()), (100, 8 + header_len(&whole))] {
        fs::write(base.join("model.safetensors"), &whole[..at]).expect("it is written");
        let told = format!("it has {at} of the {of} bytes that it declares, as a download that isn't finished does");
        assert!(refused(&base).contains(&told), "{}", refused(&base));
    }
    fs::write(base.join("model.safetensors"), &whole).expect("it is written");
    load(&base);

    let rows = folder("unfinished-rows");
    fs::write(rows.join("train.jsonl.incomplete"), "{}\n").expect("it is written");
    let part = Source::at(&rows.join("train.jsonl.incomplete"), "train");
    assert!(rows_error(&part).ends_with("aren't read; it is a download that isn't finished, download it again"));
    let absent = rows_error(&Source::at(&rows.join("train.jsonl"), "train"));
    assert!(absent.contains("train.jsonl: its download isn't finished, "), "{absent}");
}

fn header_len(whole: &[u8]) -> usize {
    u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize
}

#[test]
fn pickles_are_named_with_what_makes_safetensors_of_them() {
    let told = "the weights are pickled, which Weft doesn't read; load them in Python and save them as safetensors: \
                model.save_pretrained(DIR, safe_serialization=True)";
    let base = copy(LLADA, "pickled");
    fs::rename(base.join("model.safetensors"), base.join("saved")).expect("it is renamed");
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"] {
        fs::write(base.join(name), "PK").expect("it is written");
        assert_eq!(refused(&base), format!("DIR/{name}: {told}"));
        checkpoint::load_meta(&base, Overrides::default()).expect_err("no run is planned that would be refused");
        fs::remove_file(base.join(name)).expect("it is removed");
    }
    assert!(refused(&base).starts_with("cannot read DIR/model.safetensors: "));
    fs::write(base.join("pytorch_model.bin"), "PK").expect("it is written");
    fs::rename(base.join("saved"), base.join("model.safetensors")).expect("it is renamed");
    load(&base);

    let adapter = adapter("pickled-adapter");
    fs::rename(adapter.join("adapter_model.safetensors"), adapter.join("saved")).expect("it is renamed");
    fs::write(adapter.join("adapter_model.bin"), "PK").expect("it is written");
    assert_eq!(refused_adapter(&adapter), format!("DIR/adapter_model.bin: {told}"));
    fs::rename(adapter.join("saved"), adapter.join("adapter_model.safetensors")).expect("it is renamed");
    lora::load(&adapter, &mut LLADA.load()).expect("the adapter loads");
}

#[test]
fn adapters_in_f16_are_widened() {
    let [wide, narrow] = ["rounded", "f16"].map(adapter);
    let path = wide.join("adapter_model.safetensors");
    let mut tensors = read(&fs::read(&path).expect("it is there"));
    tensors.values_mut().flat_map(|(_, numbers)| numbers).for_each(|x| *x = halved(*x));
    fixtures::write(&path, &tensors);
    fs::copy(&path, narrow.join("adapter_model.safetensors")).expect("it is copied");
    recast(&narrow.join("adapter_model.safetensors"), Dtype::F16);
    let [of_wide, of_narrow] = [wide, narrow].map(|folder| {
        let mut model = LLADA.load();
        lora::load(&folder, &mut model).expect("the adapter loads");
        logits(&model)
    });
    assert_eq!(of_narrow, of_wide);
    assert_ne!(of_narrow, logits(&LLADA.load()));
}

#[test]
fn other_dtypes_are_refused_by_name_and_not_as_damaged() {
    let fix = "and Weft reads F32, BF16 and F16; load the model in Python with torch_dtype=torch.bfloat16 and save it: \
               model.save_pretrained(DIR)";
    let base = copy(DREAM, "f64");
    let path = base.join("model.safetensors");
    recast(&path, Dtype::F64);
    let first = "lm_head.weight";
    for _ in 0..4 {
        assert_eq!(
            refused(&base),
            format!("DIR/model.safetensors: {first} is stored as F64, {fix}"),
            "always the first"
        );
    }
    let adapter = adapter("f64-adapter");
    recast(&adapter.join("adapter_model.safetensors"), Dtype::F64);
    let told = refused_adapter(&adapter);
    assert!(told.contains("blocks.0.k_proj.lora_A.weight is stored as F64, and Weft reads F32"), "{told}");
}

#[test]
fn names_of_a_compiled_model_are_told() {
    let compiled = LLADA.tensors().into_iter().map(|(name, tensor)| (format!("_orig_mod.{name}"), tensor)).collect();
    let told = refused(&LLADA.checkpoint("compiled", json!({}), &compiled));
    assert!(
        told.contains("wte.weight in DIR: missing, and others' names hold _orig_mod., as those of a model"),
        "{told}"
    );
}
