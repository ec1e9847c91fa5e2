//! Bases in f16: they compute what their numbers compute in f32, every command that reads a base reads them, and what is
//! written from them keeps their format.

mod fixtures;
mod recast;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{DREAM, FAMILIES, Golden, disturb, load, logits, read, stdout, weft};
use recast::{halved, recast};
use safetensors::{Dtype, SafeTensors};
use scratch::folder;
use serde_json::json;
use weft::base::Base;
use weft::merge;
use weft::model::checkpoint;
use weft::model::facts::Overrides;
use weft::model::lora::{self, LoraConfig};
use weft_kernels::weight::Dtype as Held;

/// A checkpoint of numbers that f16 has, in f32 and in f16, with a tokenizer.
fn pair(golden: Golden, name: &str) -> [PathBuf; 2] {
    let mut tensors = golden.tensors();
    tensors.values_mut().flat_map(|(_, numbers)| numbers).for_each(|x| *x = halved(*x));
    [("wide", Dtype::F32), ("half", Dtype::F16)].map(|(kind, dtype)| {
        let made = golden.checkpoint(&format!("{name}-{kind}-made"), json!({}), &tensors);
        if dtype == Dtype::F16 {
            recast(&made.join("model.safetensors"), dtype);
        }
        golden.with_text(&format!("{name}-{kind}"), &made)
    })
}

fn dtypes(folder: &Path) -> Vec<Dtype> {
    let bytes = fs::read(folder.join("model.safetensors")).expect("it is there");
    let mut dtypes: Vec<Dtype> =
        SafeTensors::deserialize(&bytes).expect("whole").tensors().into_iter().map(|(_, t)| t.dtype()).collect();
    dtypes.dedup();
    dtypes
}

#[test]
fn a_base_in_f16_computes_what_its_numbers_compute_in_f32() {
    for golden in FAMILIES {
        let [wide, half] = pair(golden, &format!("{}-load", golden.name));
        assert_eq!(logits(&load(&half)), logits(&load(&wide)), "{}", golden.name);
        let overrides = Overrides { rounds_halves: true, ..Overrides::default() };
        let (rounded, _) = checkpoint::load_with(&half, overrides).expect("it loads");
        assert!(rounded.params.iter().all(|param| param.weight.dtype() == Held::Bf16));
        for (overrides, dtype) in [(overrides, Held::Bf16), (Overrides::default(), Held::F32)] {
            let (meta, _) = checkpoint::load_meta(&half, overrides).expect("it loads");
            assert!(
                meta.params.iter().all(|param| param.weight.dtype() == dtype),
                "the plan counts what the run holds"
            );
        }
        let base = Base::open(&half).expect("it opens");
        assert!(base.told().ends_with("; the F16 weights are widened to f32, which takes 4 bytes for each"));
        assert_eq!(Base::open(&wide).expect("it opens").told_of_halves(), None);
    }
}

#[test]
fn shards_and_tied_heads_may_be_in_f16() {
    let golden = DREAM;
    let [wide, half] = pair(golden, "shards");
    let numbers = logits(&load(&wide));
    // One shard of f16 and one of f32.
    let names: Vec<String> = golden.tensors().into_keys().collect();
    let shard_of = |i: usize| format!("model-{}.safetensors", i % 2);
    let map: serde_json::Map<_, _> =
        names.iter().enumerate().map(|(i, name)| (name.clone(), json!(shard_of(i)))).collect();
    let tensors = read(&fs::read(wide.join("model.safetensors")).expect("it is there"));
    for shard in 0..2 {
        let own = names.iter().enumerate().filter(|(i, _)| i % 2 == shard);
        let own = own.map(|(_, name)| (name.clone(), tensors[name].clone())).collect();
        fixtures::write(&half.join(shard_of(shard)), &own);
    }
    recast(&half.join(shard_of(1)), Dtype::F16);
    fs::remove_file(half.join("model.safetensors")).expect("it is removed");
    fs::write(half.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).expect("written");
    assert_eq!(logits(&load(&half)), numbers);
    assert!(Base::open(&half).expect("it opens").is_half());

    for folder in DREAM.tied_and_copied("halves") {
        recast(&folder.join("model.safetensors"), Dtype::F16);
        let (meta, _) = checkpoint::load_meta(&folder, Overrides::default()).expect("it loads");
        assert_eq!(meta.has_tied_head(), load(&folder).has_tied_head());
    }
}

#[test]
fn a_merged_checkpoint_stays_in_f16() {
    for golden in FAMILIES {
        let [wide, half] = pair(golden, &format!("{}-merge", golden.name));
        let [of_wide, of_half] = [wide, half].map(|folder| {
            let mut base = Base::open(&folder).expect("it opens");
            let config = LoraConfig::new(3, 6.0, 0.0, vec!["q_proj".to_owned(), "v_proj".to_owned()], false);
            lora::attach_fresh(&mut base.model, &config, 5).expect("the targets are there");
            disturb(&mut base.model);
            let out = folder.with_extension("merged");
            let _ = fs::remove_dir_all(&out);
            merge::write(&base, &out).expect("a new folder is free");
            out
        });
        assert_eq!(dtypes(&of_half), [Dtype::F16]);
        let [wide, half] =
            [&of_wide, &of_half].map(|folder| fs::read(folder.join("model.safetensors")).expect("it is there"));
        let wide = read(&wide);
        let file = SafeTensors::deserialize(&half).expect("whole");
        for (name, (_, numbers)) in wide {
            let bytes = file.tensor(&name).expect("it has the same tensors").data().to_vec();
            let got = bytes.chunks_exact(2).map(|pair| widened(u16::from_le_bytes([pair[0], pair[1]])));
            for (got, expected) in got.zip(&numbers) {
                let step = expected.abs().max(2f32.powi(-14)) * 2f32.powi(-11);
                assert!((got - expected).abs() <= step, "{name}: {got} is not the nearest to {expected}");
            }
        }
    }
}

/// The number of an f16, by the definition.
fn widened(half: u16) -> f32 {
    let (sign, exponent, fraction) = (half >> 15, i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    };
    if sign == 1 { -size } else { size }
}

#[test]
fn sums_beyond_f16_are_refused() {
    let [_, half] = pair(DREAM, "beyond");
    let mut base = Base::open(&half).expect("it opens");
    let config = LoraConfig::new(3, 6.0, 0.0, vec!["q_proj".to_owned()], false);
    lora::attach_fresh(&mut base.model, &config, 5).expect("the targets are there");
    disturb(&mut base.model);
    for param in base.model.params.iter_mut().filter(|param| param.is_adapters()) {
        let large = param.weight.to_f32().iter().map(|x| x * 1e4).collect();
        param.weight = weft_kernels::weight::Weight::from_f32(param.weight.rows(), param.weight.cols(), large);
    }
    let out = folder("beyond-merged").join("new");
    let told = merge::write(&base, &out).expect_err("it is refused").to_string();
    assert!(told.contains("the merged weights have numbers beyond 65504, the largest of F16"), "{told}");
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn every_command_reads_a_base_in_f16() {
    let [_, half] = pair(DREAM, "commands");
    let here = folder("commands-here");
    let rows = "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"b\", \"response\": \"a\"}\n";
    fs::write(here.join("rows.jsonl"), rows).expect("it is written");
    let recipe = format!(
        "[model]\npath = {:?}\nlora_rank = 2\n[data]\ntrain = \"rows.jsonl\"\n[train]\nmax_steps = 1\noutput = \"run\"\n",
        half.display().to_string()
    );
    fs::write(here.join("recipe.toml"), recipe).expect("it is written");
    let planned = stdout(&here, &["plan", "recipe.toml"]);
    let rounded = stdout(&here, &["plan", "recipe.toml", "--set", "model.precision=bf16"]);
    assert_ne!(planned, rounded, "f32 takes more");
    let trained = stdout(&here, &["train", "recipe.toml"]);
    assert!(trained.contains("; the F16 weights are widened to f32"), "{trained}");
    let trained =
        stdout(&here, &["train", "recipe.toml", "--set", "model.precision=bf16", "--set", "train.output=run2"]);
    assert!(trained.contains("; the F16 weights are rounded to bf16, which has 3 bits fewer"), "{trained}");
    let model = half.display().to_string();
    let merge = ["merge", "--model", &model, "--adapter", "run/adapter", "--out", "merged"];
    stdout(&here, &merge);
    assert_eq!(dtypes(&here.join("merged")), [Dtype::F16]);
    let asked = ["generate", "--model", "merged", "--prompt", "a", "--gen-length", "4", "--precision", "bf16"];
    let told = String::from_utf8_lossy(&weft(&here, &asked).stderr).into_owned();
    assert!(told.contains("note: the F16 weights are rounded to bf16"), "{told}");
}
