//! Both families through the command: an adapter and a whole model are trained, merged, asked and compared with PyTorch.

mod fixtures;
mod scratch;

use std::fs;
use std::path::Path;

use fixtures::{FAMILIES, Golden, logits, stdout, weft};
use weft::model::{checkpoint, lora};

/// A folder with a base, rows and a recipe.
fn run_folder(golden: Golden, name: &str) -> std::path::PathBuf {
    let folder = golden.with_text(name, &golden.path());
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..12).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\npath = \".\"\nlora_rank = 2\nlora_targets = [\"all-linear\"]\nuse_rslora = true\n\
                  [data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\n\
                  [train]\noutput = \"run\"\nmicro_batch_size = 4\nlr = 1e-2\nepochs = 4\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

/// The held-out loss before and after a run.
fn losses(output: &str) -> [f64; 2] {
    let line = output.lines().find(|l| l.starts_with("held-out loss") && l.contains("->")).expect("it is told");
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    [(); 2].map(|()| numbers.next().expect("two losses"))
}

#[test]
fn an_adapter_is_trained_merged_and_asked() {
    for golden in FAMILIES {
        let folder = run_folder(golden, "lora");
        let [before, after] = losses(&stdout(&folder, &["train", "recipe.toml"]));
        assert!(after < before, "{}: {before} -> {after}", golden.name);
        stdout(&folder, &["merge", "--model", ".", "--adapter", "run/adapter", "--out", "merged"]);
        let mut adapted = golden.load();
        lora::load(&folder.join("run/adapter"), &mut adapted).expect("the adapter loads");
        let merged = checkpoint::load(&folder.join("merged")).expect("the merged checkpoint loads");
        fixtures::assert_close(&logits(&merged), &logits(&adapted), 1e-5);
        let ask = |model: &[&str]| {
            let asked = ["--prompt", "What is 3 + 1?", "--gen-length", "8", "--block-length", "8"];
            stdout(&folder, &[&["generate"], model, &asked, &["--diffusion-steps", "8"]].concat())
        };
        assert_eq!(ask(&["--model", "merged"]), ask(&["--model", ".", "--adapter", "run/adapter"]));
        let again = weft(&folder, &["merge", "--model", ".", "--adapter", "run/adapter", "--out", "merged"]);
        assert_eq!(again.status.code(), Some(2));
        let error = String::from_utf8_lossy(&again.stderr).into_owned();
        assert_eq!(error, "error: merged is not empty; name a new folder\n");
    }
}

#[test]
fn every_weight_is_trained_and_saved() {
    for golden in FAMILIES {
        let folder = run_folder(golden, "full");
        let settings = ["--set", "model.trainable=full", "--set", "train.lr=1e-3"];
        let [before, after] = losses(&stdout(&folder, &[&["train", "recipe.toml"], &settings[..]].concat()));
        assert!(after < before, "{}: {before} -> {after}", golden.name);
        let (old, saved) = (golden.tensors(), fs::read(folder.join("run/checkpoint/model.safetensors")));
        let new = fixtures::read(&saved.expect("the checkpoint is there"));
        assert_eq!(new.len(), old.len());
        for (name, (shape, numbers)) in &old {
            assert_eq!(&new[name].0, shape, "{name}");
            assert_ne!(&new[name].1, numbers, "{name} is trained");
        }
        let trained = checkpoint::load(&folder.join("run/checkpoint")).expect("the checkpoint loads");
        assert_ne!(logits(&trained), logits(&golden.load()));
    }
}

#[test]
fn parity_covers_both_families() {
    for golden in FAMILIES {
        let file = |name: &str| golden.path().join(name).display().to_string();
        let whole = ["parity", "--model", &file(""), "--reference", &file("objectives.safetensors")];
        let sampling = ["--sampling", &file("sampling.safetensors"), "--cases", &file("sampling.json")];
        let text = stdout(Path::new("."), &[&whole[..], &sampling].concat());
        assert!(text.contains("0.output") && text.contains("sft.grad (all parameters)"), "{text}");
        let adapter = ["--adapter", &file("lora/adapter"), "--reference", &file("lora/objectives.safetensors")];
        stdout(Path::new("."), &[&["parity", "--model", &file("")], &adapter[..]].concat());
        // An output with one token changed is past any tolerance.
        let mut bytes = fs::read(golden.path().join("sampling.safetensors")).expect("the file is there");
        let last = bytes.len() - 8;
        bytes[last] ^= 1;
        let corrupted = scratch::folder(&format!("{}-parity", golden.name)).join("corrupted.safetensors");
        fs::write(&corrupted, bytes).expect("the file is written");
        let corrupted = corrupted.display().to_string();
        let sampling = ["--sampling", &corrupted, "--cases", &file("sampling.json")];
        let failed = weft(Path::new("."), &[&["parity", "--model", &file("")], &sampling[..]].concat());
        assert_eq!(failed.status.code(), Some(1));
    }
}

#[test]
fn parity_in_bf16_has_a_tolerance_of_its_own() {
    for golden in FAMILIES {
        let file = |name: &str| golden.path().join(name).display().to_string();
        let whole = vec![file("objectives.safetensors")];
        let adapted = vec![file("lora/objectives.safetensors"), "--adapter".to_owned(), file("lora/adapter")];
        for reference in [whole, adapted] {
            let reference: Vec<&str> = reference.iter().map(String::as_str).collect();
            let model = file("");
            let common = [&["parity", "--dtype", "bf16", "--model", &model, "--reference"][..], &reference].concat();
            let text = stdout(Path::new("."), &common);
            assert!(text.contains("every quantity is within 1e-1, gradients 3e-1, rates and masks 1e-4"), "{text}");
            // The matmuls are rounded indeed: f32's tolerance is far too narrow.
            let strict = weft(Path::new("."), &[&common[..], &["--tolerance", "1e-4"]].concat());
            assert_eq!(strict.status.code(), Some(1));
        }
        let sampling = ["--sampling", &file("sampling.safetensors"), "--cases", &file("sampling.json")];
        let refused =
            weft(Path::new("."), &[&["parity", "--dtype", "bf16", "--model", &file("")], &sampling[..]].concat());
        assert_eq!(refused.status.code(), Some(2));
    }
}

#[test]
fn a_samplers_settings_reach_it_and_idle_ones_are_told() {
    let folder = run_folder(fixtures::DREAM, "generate");
    let ask = |more: &[&str]| {
        let plain = ["generate", "--model", ".", "--prompt", "a", "--gen-length", "9", "--diffusion-steps", "5"];
        weft(&folder, &[&plain, more].concat())
    };
    let drawn = ["--temperature", "0.9", "--top-p", "0.9", "--top-k", "30", "--alg-temp", "0.5"];
    for remasking in ["origin", "maskgit_plus", "topk_margin", "entropy"] {
        let output = ask(&[&["--remasking", remasking], &drawn[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let warned = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = "warning: alg_temp has no effect with remasking origin\n";
        assert_eq!(warned, if remasking == "origin" { expected } else { "" });
    }
    let llada = ask(&["--remasking", "low_confidence", "--block-length", "9", "--top-k", "3"]);
    let warned = String::from_utf8_lossy(&llada.stderr).into_owned();
    assert_eq!(warned, "warning: top_k has no effect with remasking low_confidence\n", "Dream's model in LLaDA's loop");
    assert!(llada.status.success());
    let none = ask(&["--remasking", "maskgit"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("the known values are low_confidence, random, origin"));
    assert_eq!(ask(&["--top-p", "1.5"]).status.code(), Some(2));
}
