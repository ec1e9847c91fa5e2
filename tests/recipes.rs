//! The recipes that come with the program are read as their users would read them.

use std::path::Path;

use weft::data::formats::Form;
use weft::data::hold_out::HeldOut;
use weft::data::paths::Paths;
use weft::model::settings::Trainable;
use weft::objective::{Kind, Normalizer, Objective};
use weft::recipe::Recipe;
use weft::reproduce::arms::ARMS;
use weft::reproduce::study::{ReproduceTable, Study};
use weft::sampler::generate::{Attention, Sampling};
use weft::sampler::remasking::Remasking;
use weft::train::pretrain::PretrainRecipe;

#[test]
fn every_recipe_is_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("there are recipes") {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        match &*name {
            "tiny-base.toml" => drop(PretrainRecipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"))),
            "reproduce.toml" => {
                let study = Study::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(study.runs.len(), 360, "nine arms, four settings, ten seeds");
            }
            "reproduce-blocks.toml" => {
                let study = Study::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(study.runs.len(), 240, "six arms, four settings, ten seeds");
                assert!(study.runs.iter().all(|run| run.also.len() == study.table.also_score.len()));
                assert!(study.warnings.is_empty(), "{:?}", study.warnings);
            }
            "reproduce-entropy.toml" => {
                let study = Study::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(study.runs.len(), 180, "nine arms, two settings, ten seeds");
                assert!(study.warnings.is_empty(), "{:?}", study.warnings);
            }
            _ => {
                let recipe = Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                assert!(recipe.warnings().is_empty(), "{:?}", recipe.warnings());
            }
        }
        count += 1;
    }
    assert!(count >= 14, "{count} recipes");
}

/// The lines of recipes/every-key.toml: table, key, value, what stands behind it, and whether the value is a default.
fn every_key() -> Vec<(String, String, String, String, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/every-key.toml");
    let text = std::fs::read_to_string(path).expect("it is there");
    let mut table = String::new();
    let mut keys = vec![];
    for line in text.lines() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            table = name.to_owned();
        } else if let Some((key, rest)) = line.trim_start_matches("# ").split_once(" = ").filter(|_| !table.is_empty())
        {
            let (value, words) = rest.split_once('#').unwrap_or((rest, ""));
            let field = |text: &str| text.trim().to_owned();
            keys.push((table.clone(), field(key), field(value), field(words), !line.starts_with('#')));
        }
    }
    keys
}

#[test]
fn every_key_of_a_recipe_is_printed_with_its_default_and_its_values() {
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let told = every_key();
    for (table, keys) in default.as_object().expect("a recipe is a table") {
        for (key, value) in keys.as_object().expect("a table has keys") {
            let [(_, _, written, words, is_default)] =
                &told.iter().filter(|(t, k, ..)| (t, k) == (table, key)).collect::<Vec<_>>()[..]
            else {
                panic!("{table}.{key} doesn't stand there once");
            };
            // An example is none but for the data, which have no default.
            assert_eq!(*is_default, !value.is_null() || key == "train", "{table}.{key}");
            let set = |value: &str| {
                let has_data = ["train", "generate", "sources"].contains(&&**key);
                let data = if has_data { vec![] } else { vec!["data.train=a.jsonl".to_owned()] };
                let settings = [data, vec![format!("{table}.{key}={value}")]].concat();
                Recipe::parse("", Path::new("r"), &settings)
            };
            if *is_default && key != "train" {
                let recipe = serde_json::to_value(set(written).unwrap_or_else(|e| panic!("{e}"))).expect("JSON");
                assert_eq!(&recipe[table][key], value, "{table}.{key}");
            } else if !["train", "sources"].contains(&&**key) {
                set(written).unwrap_or_else(|e| panic!("{e}"));
            }
            // A name that is none brings the names that are.
            let error = set("\"?\"").err().map(|e| e.to_string()).unwrap_or_default();
            let names = error.split_once("the known values are ").map_or("", |(_, names)| names);
            for name in names.split(';').next().unwrap_or_default().split(", ") {
                assert!(words.contains(name), "{table}.{key} doesn't tell {name:?}: {words}");
            }
        }
    }
    let count: usize =
        default.as_object().expect("a table").values().map(|t| t.as_object().map_or(0, |t| t.len())).sum();
    let of_runs = told.iter().filter(|(table, ..)| table != "reproduce").count();
    assert_eq!(of_runs, count, "keys that are none");
}

#[test]
fn every_key_of_a_comparison_is_printed_with_its_default() {
    let default = serde_json::to_value(ReproduceTable::default()).expect("a table is JSON");
    let default = default.as_object().expect("it is a table");
    let told: Vec<_> = every_key().into_iter().filter(|(table, ..)| table == "reproduce").collect();
    assert_eq!(told.len(), default.len());
    for (_, key, written, words, is_default) in told {
        assert!(is_default && !words.is_empty(), "{key}");
        let table: toml::Table = toml::from_str(&format!("value = {written}")).expect("it is TOML");
        let value = serde_json::to_value(&table["value"]).expect("TOML values are JSON values");
        assert_eq!(default.get(&key), Some(&value), "{key}");
        if key == "arms" {
            ARMS.iter().for_each(|arm| assert!(words.contains(arm.name), "{} isn't named: {words}", arm.name));
        }
    }
    // The whole file is a comparison, once it has held-out rows.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/every-key.toml");
    let study = Study::read(&path, &["data.held_out=a.jsonl".to_owned()]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(study.table.seeds as usize * study.table.arms.len(), study.runs.len());
    assert!(study.warnings.is_empty(), "{:?}", study.warnings);
}

fn recipe(name: &str) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(format!("{name}.toml"));
    Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_papers_recipes_have_its_settings() {
    for name in [
        "llada-8b-s1k-sft-lora",
        "llada-8b-s1k-weft-lora",
        "llada-8b-s1k-weft-full",
        "dream-7b-s1k-sft-lora",
        "dream-7b-s1k-weft-lora",
    ] {
        let Recipe { model, data, objective, train, .. } = recipe(name);
        let is_full = name.ends_with("-full");
        assert_eq!(model.trainable, if is_full { Trainable::Full } else { Trainable::Lora }, "{name}");
        if !is_full {
            assert_eq!((model.lora_rank, model.lora_alpha), (128, 256.0), "{name}");
            assert_eq!(model.lora_targets, ["q_proj", "k_proj", "v_proj"], "{name}");
        }
        let ids = ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"];
        assert_eq!(model.path, Path::new(ids[usize::from(name.starts_with("dream"))]), "{name}");
        assert_eq!(objective.kind, if name.contains("-sft-") { Kind::Sft } else { Kind::Weft }, "{name}");
        assert_eq!(
            objective,
            Objective { kind: objective.kind, normalizer: objective.normalizer, ..Objective::default() }
        );
        assert_eq!((train.lr, train.epochs, data.max_seq_len.0), (1e-5, 20, 4096), "{name}");
        assert_eq!((train.weight_decay, train.max_grad_norm), (0.1, 1.0), "{name}");
        assert_eq!(train.global_batch_size(), 8, "{name}");
        assert_eq!(
            (data.train.as_ref().and_then(Paths::as_one), data.format),
            (Some(Path::new("simplescaling/s1K")), Some(Form::S1k)),
            "{name}"
        );
    }
}

#[test]
fn illadas_recipe_is_lladas_for_another_base() {
    let [mut illada, llada] = ["illada", "llada"].map(|family| recipe(&format!("{family}-8b-s1k-weft-lora")));
    assert_eq!(illada.model.path, Path::new("GSAI-ML/iLLaDA-8B-Instruct"));
    assert_ne!(illada.train.output, llada.train.output);
    illada.model.path = llada.model.path.clone();
    illada.train.output = llada.train.output.clone();
    assert_eq!(illada, llada);
}

#[test]
fn the_small_models_recipes_have_dllms_settings() {
    for (name, path, kind) in [
        ("qwen3-0.6b-gsm8k-sft-lora", "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", Kind::Sft),
        ("qwen3-0.6b-gsm8k-weft-lora", "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", Kind::Weft),
        ("qwen2.5-coder-0.5b-own-rows", "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1", Kind::Weft),
    ] {
        let Recipe { model, data, objective, train, .. } = recipe(name);
        assert_eq!(model.path, Path::new(path), "{name}");
        // Both facts are found in the checkpoint's files.
        assert_eq!((model.mask_token_id, model.logits_shifted), (None, None), "{name}");
        assert_eq!(model.trainable, Trainable::Lora, "{name}");
        assert_eq!((model.lora_rank, model.lora_alpha, model.lora_dropout), (32, 64.0, 0.05), "{name}");
        assert_eq!(model.lora_targets, ["all-linear"], "{name}");
        let default = Objective::default();
        assert_eq!(objective, Objective { kind, normalizer: Some(Normalizer::Answer), ..default }, "{name}");
        assert_eq!(train.lr, 1e-4, "{name}");
        let is_own = name.ends_with("-own-rows");
        let rows = if is_own { "rows.jsonl" } else { "hf://datasets/openai/gsm8k/main" };
        let held_out = data.held_out.as_ref().and_then(HeldOut::files);
        let paths = [data.train.as_ref(), held_out].map(|paths| paths.and_then(Paths::as_one));
        assert_eq!(paths, [Some(Path::new(rows)); 2]);
        let sizes = (data.max_seq_len.0, train.global_batch_size());
        assert_eq!(sizes, if is_own { (1024, 8) } else { (512, 16) }, "{name}");
        // Rows of one file are split between training and the held-out loss; GSM8K's splits are files of their own.
        assert_eq!(data.train_rows.is_some(), is_own, "{name}");
    }
}

#[test]
fn the_comparisons_recipes_differ_in_the_objective_alone() {
    // Said in each recipe: the kinds' own divisors would differ.
    for (run, normalizer) in [
        ("llada-8b-s1k", Normalizer::Masked),
        ("dream-7b-s1k", Normalizer::Masked),
        ("qwen3-0.6b-gsm8k", Normalizer::Answer),
    ] {
        let [sft, mut weft] = ["sft", "weft"].map(|kind| recipe(&format!("{run}-{kind}-lora")));
        assert_ne!(sft.train.output, weft.train.output);
        weft.train.output = sft.train.output.clone();
        assert_eq!((sft.objective.kind, weft.objective.kind), (Kind::Sft, Kind::Weft), "{run}");
        weft.objective.kind = Kind::Sft;
        assert_eq!(sft, weft);
        assert_eq!(sft.objective.normalizer, Some(normalizer), "{run}");
    }
}

#[test]
fn settings_without_effect_are_told() {
    let warnings = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse("[data]\ntrain = \"a.jsonl\"\n", Path::new("r.toml"), &settings).expect("it is whole").warnings()
    };
    let entropy = ["objective.transform=cbrt", "objective.reference=batch", "objective.entropy_every=2"];
    let entropy = [&entropy[..], &["objective.entropy_precision=bf16", "train.micro_batch_size=2"]].concat();
    for (kind, asks) in [("weft", true), ("token_weight", true), ("sft", false), ("cart", false)] {
        let kind = format!("objective.kind={kind}");
        let told = warnings(&[&[kind.as_str()][..], &entropy].concat());
        assert_eq!(told.len(), if asks { 0 } else { 4 }, "{told:?}");
    }
    assert_eq!(
        warnings(&["objective.kind=cart", "objective.transform=identity", "objective.geo_p=0.3"]),
        ["objective.transform has no effect: objective.kind is cart, which uses no entropies"]
    );
    assert_eq!(
        warnings(&["objective.kind=token_weight", "objective.weighting=elbo", "objective.geo_p=0.3"]),
        [
            "objective.weighting has no effect: objective.kind is token_weight, not weft",
            "objective.geo_p has no effect: objective.kind is token_weight, not cart",
        ]
    );
    let lora = ["model.lora_rank=4", "model.lora_alpha=1", "model.lora_dropout=0.5", "model.use_rslora=true"];
    let lora = [&lora[..], &["model.lora_targets=[\"all-linear\"]"]].concat();
    assert!(warnings(&lora).is_empty());
    assert_eq!(warnings(&[&lora[..], &["model.trainable=full", "model.save_dtype=f32"]].concat()).len(), 5);
    assert_eq!(
        warnings(&["model.save_dtype=f32"]),
        ["model.save_dtype has no effect: model.trainable is lora, and adapters are saved in f32"]
    );
    assert_eq!(
        warnings(&["data.split=extra", "data.held_out=b", "data.held_out_split=dev"]),
        ["data.split has no effect: data.train is a file"]
    );
    assert_eq!(
        warnings(&["train.eval_every=5", "eval.task=sudoku"]),
        [
            "train.eval_every has no effect: there is no data.held_out",
            "eval.task has no effect: there is no data.held_out",
        ]
    );
}

#[test]
fn values_without_sense_are_refused() {
    let error = |setting: &str| {
        let parsed = Recipe::parse("[data]\ntrain = \"a.jsonl\"\n", Path::new("r.toml"), &[setting.to_owned()]);
        parsed.expect_err("the value is refused").to_string()
    };
    assert_eq!(error("objective.geo_p=0"), "--set objective.geo_p = 0 lies outside (0, 1]");
    assert_eq!(error("objective.geo_p=1.5"), "--set objective.geo_p = 1.5 lies outside (0, 1]");
    assert!(error("objective.kind=dream").contains("the known values are gift, weft, sft, cart, token_weight"));
    assert!(error("model.trainable=all").contains("the known values are lora, full"));
    assert!(error("model.save_dtype=f16").contains("the known values are f32, bf16"));
    assert!(error("model.lora_rank=0").contains("is not a valid rank"));
    let wrong = error("train.on_non_finite=ignore");
    assert!(wrong.contains("stop") && wrong.contains("skip"), "{wrong}");
    for factor in ["1", "0.5", "-2"] {
        let told = format!("train.spike_factor = {factor} would skip ordinary steps; give more than 1, or 0 for none");
        assert_eq!(error(&format!("train.spike_factor={factor}")), format!("--set {told}"));
    }
    let full = ["model.lora_rank=0".to_owned(), "model.trainable=full".to_owned()];
    assert!(Recipe::parse("[data]\ntrain = \"a.jsonl\"\n", Path::new("r.toml"), &full).is_ok());
}

#[test]
fn a_setting_replaces_the_recipes() {
    let text = "[data]\ntrain = \"a.jsonl\"\n[train]\nlr = 1e-3\n";
    let settings = ["train.lr=5e-4", "data.train=b c.jsonl", "objective.normalizer=sequence", "train.max_steps=7"];
    let settings = settings.map(str::to_owned);
    let recipe = Recipe::parse(text, Path::new("r.toml"), &settings).expect("the recipe is whole");
    assert_eq!((recipe.train.lr, recipe.train.max_steps), (5e-4, Some(7)));
    assert_eq!(recipe.data.train.as_ref().and_then(Paths::as_one), Some(Path::new("b c.jsonl")));
    assert_eq!(recipe.objective.normalizer(), weft::objective::Normalizer::Sequence);
    let error = Recipe::parse(text, Path::new("r.toml"), &["lr=3".to_owned()]).expect_err("no table");
    assert_eq!(error.to_string(), "--set \"lr=3\" is not table.key=value; write train.lr=3");
}

#[test]
fn sources_are_tables_whose_keys_are_checked() {
    let parse = |text: &str| Recipe::parse(text, Path::new("r.toml"), &[]);
    let two = "[data]\nformat = \"s1k\"\nsplit = \"extra\"\n[[data.sources]]\npath = \"a\"\nweight = 2\nrows = 5000\n\
               [[data.sources]]\npath = \"b.json\"\nformat = \"open-r1\"\nsplit = \"train\"\nrows = \"10%:\"\n";
    let sources = parse(two).expect("the recipe is whole").data.training();
    let shown: Vec<String> = sources.iter().map(|s| serde_json::to_string(s).expect("a source is JSON")).collect();
    assert_eq!(
        shown,
        [
            r#"{"path":"a","split":"extra","rows":5000,"format":"s1k","weight":2.0}"#,
            r#"{"path":"b.json","split":"train","rows":"10%:","format":"open-r1","weight":1.0}"#,
        ]
    );
    let error = |text: &str| parse(text).expect_err("it is refused").to_string();
    let wrong = error(
        "[data]\ntrain = \"b.jsonl\"\ntrain_rows = 3\n[[data.sources]]\npath = \"a\"\nwieght = 2\nweight = 0\n[[data.sources]]\nweight = 1e9\n",
    );
    for part in [
        "the recipe names training rows in 2 ways; set data.train to a file or folder of rows, data.sources to several, ",
        "data.train_rows belongs to data.train; set the rows of each of data.sources instead",
        "unknown key data.sources[0].wieght; the nearest known one is data.sources[0].weight",
        "data.sources[0].weight = 0 lies outside (0, 1000]",
        "data.sources[1].path is missing; name a file or folder of rows",
        "data.sources[1].weight = 1000000000 lies outside (0, 1000]",
    ] {
        assert!(wrong.contains(part), "{wrong}\nlacks {part}");
    }
    let wrong = error("[data]\ntrain = \"a.jsonl\"\nformat = \"s1\"\ntrain_rows = \"9:x\"\n");
    assert!(wrong.contains("data.format = \"s1\": the known values are messages, sharegpt"), "{wrong}");
    assert!(
        wrong.contains("data.train_rows = \"9:x\": \"9:x\" is not a range of rows; give the number of first rows"),
        "{wrong}"
    );
    let wrong = error("[data]\ngenerate = \"sudoku\"\nheld_out_rows = \"10%:\"\n");
    assert!(wrong.contains("data.held_out_rows is a slice; give the number of rows to generate"), "{wrong}");
    let set = ["data.sources=[{ path = \"a.jsonl\" }]".to_owned()];
    assert_eq!(Recipe::parse("", Path::new("r.toml"), &set).expect("it is whole").data.training().len(), 1);
}

#[test]
fn an_answers_length_alone_finds_its_blocks() {
    const FILE: &str = "[data]\ntrain = \"a.jsonl\"\n";
    let fitted = |settings: &[&str]| {
        let settings: Vec<String> =
            settings.iter().chain(&["eval.samples=1"]).map(|&setting| setting.to_owned()).collect();
        let recipe = Recipe::parse(FILE, Path::new("r.toml"), &settings).unwrap_or_else(|e| panic!("{e}"));
        let fitted = recipe.sampler.fitted();
        (fitted.gen_length, fitted.block_length, fitted.diffusion_steps)
    };
    assert_eq!(fitted(&["sampler.gen_length=16"]), (16, 16, 64));
    assert_eq!(fitted(&["sampler.gen_length=48"]), (48, 24, 64));
    assert_eq!(fitted(&["sampler.gen_length=96"]), (96, 32, 66));
    // What the recipe says stays, and is refused where it can't be.
    assert_eq!(fitted(&["sampler.gen_length=48", "sampler.block_length=16", "sampler.diffusion_steps=6"]), (48, 16, 6));
    let dream = Sampling { remasking: Some(Remasking::Entropy), gen_length: 48, ..Sampling::default() };
    assert_eq!(dream.clone().fitted(), dream);
    let causal = Sampling { attention: Some(Attention::BlockCausal), gen_length: 48, ..Sampling::default() };
    assert_eq!(causal.clone().fitted(), causal);
    let settings =
        ["sampler.gen_length=48", "sampler.block_length=20", "sampler.remasking=low_confidence", "eval.samples=1"];
    let error =
        Recipe::parse(FILE, Path::new("r.toml"), &settings.map(str::to_owned)).expect_err("20 doesn't divide 48");
    assert!(
        error.to_string().contains("gen_length 48 is not a multiple of block_length 20; set gen_length 60"),
        "{error}"
    );
}
