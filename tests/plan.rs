//! Plans against runs: the parts are the whole, what is planned lies near what a process then used, and a run that can't
//! fit is refused with settings that make it fit.

mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use scratch::folder;
use serde_json::Value;
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft_kernels::weight::Dtype;

/// How far a plan may lie from a run.
const TOLERANCE: f64 = 0.15;

fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).args(["--threads", "2"]).stdin(Stdio::null());
    // Tokens that were kept would take another way into memory.
    command.env("WEFT_CACHE", "").output().expect("weft starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

/// 64 rows of some 150 tokens on the embedded base, all in one micro-batch.
fn large_batches(folder: &Path) {
    let numbers: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", numbers.join(" "));
    fs::write(folder.join("rows.jsonl"), (0..64).map(row).collect::<String>()).expect("the rows are written");
    let recipe = "[model]\nlora_rank = 8\n[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\n\
                  held_out_rows = 4\n[train]\noutput = \"run\"\nepochs = 2\nmicro_batch_size = 64\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
}

fn bytes(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number of bytes"))
}

fn assert_near(planned: f64, measured: f64, what: &str) {
    let ratio = planned / measured;
    assert!(
        (ratio - 1.0).abs() < TOLERANCE,
        "{what}: {planned:.0} bytes were planned, {measured:.0} used ({ratio:.3})"
    );
}

#[test]
fn the_parts_are_the_whole_and_a_run_uses_what_was_planned() {
    let folder = folder("run");
    large_batches(&folder);
    let output = weft(&folder, &["plan", "recipe.toml", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let plan = json(&output);
    let parts = plan["parts"].as_array().expect("a plan has parts");
    let whole: f64 = parts.iter().map(|part| bytes(&part["bytes"])).sum();
    assert_eq!(whole, bytes(&plan["peak_bytes"]));
    let of = |name: &str| {
        let part = parts.iter().find(|part| part["name"] == name).unwrap_or_else(|| panic!("{name} in {plan}"));
        bytes(&part["bytes"])
    };
    let activations = of("saved of each layer") + of("saved matmul results") + of("layer or head at work");
    assert!(activations > 0.5 * whole, "activations are most of it: {plan}");
    assert_eq!((&plan["steps"], &plan["fits"]), (&2.into(), &true.into()));
    assert!(plan["step_seconds"].as_f64().is_some_and(|s| s > 0.0 && s.is_finite()), "{plan}");
    assert!(!folder.join("run").exists(), "a plan writes nothing");

    let output = weft(&folder, &["train", "recipe.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("peak memory ")).expect("a run tells its memory");
    let measured: f64 = line.split(' ').next().and_then(|gb| gb.parse().ok()).expect("in GB");
    if measured > 0.0 {
        assert_near(whole, measured * 1e9, "the run");
    }
}

#[test]
fn steps_of_every_kind_use_what_was_planned() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base").display().to_string();
    for (dtype, trainable, shape) in [
        ("f32", "lora", ["8", "512"]),
        ("bf16", "lora", ["8", "512"]),
        ("f32", "full", ["4", "512"]),
        ("bf16", "full", ["1", "2048"]),
    ] {
        let [sequences, tokens] = shape;
        let mut args = vec!["bench", "--shape", &base, "--dtype", dtype, "--trainable", trainable, "--json"];
        args.extend(["--objective", "weft", "--sequences", sequences, "--tokens", tokens]);
        let measured = json(&weft(Path::new("."), &[&args[..], &["--steps", "1", "--warm-up", "1"]].concat()));
        let (planned, peak) = (bytes(&measured["planned_rss_bytes"]), bytes(&measured["peak_rss_bytes"]));
        if peak > 0.0 {
            assert_near(planned, peak, &format!("{dtype} {trainable}, {sequences} x {tokens} tokens"));
        }
    }
}

#[test]
fn norms_of_queries_and_keys_are_planned() {
    let folder = folder("qwen3");
    let config = serde_json::json!({
        "model_type": "a2d-qwen3", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 640,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64,
        "tie_word_embeddings": true, "mask_token_id": 2047,
    });
    let config = ModelConfig::parse(&config.to_string(), Path::new("config.json")).expect("it is a configuration");
    checkpoint::save(&folder, &checkpoint::fresh(&config, 1), &config, Dtype::Bf16).expect("it is saved");
    let shape = folder.display().to_string();
    for (dtype, trainable) in [("f32", "lora"), ("bf16", "lora"), ("f32", "full"), ("bf16", "full")] {
        let mut args = vec!["bench", "--shape", &shape, "--dtype", dtype, "--trainable", trainable, "--json"];
        args.extend(["--objective", "weft", "--sequences", "12", "--tokens", "512", "--steps", "1", "--warm-up", "1"]);
        let measured = json(&weft(Path::new("."), &args));
        let (planned, peak) = (bytes(&measured["planned_rss_bytes"]), bytes(&measured["peak_rss_bytes"]));
        if peak > 0.0 {
            let ratio = planned / peak;
            assert!((ratio - 1.0).abs() < 0.06, "{dtype} {trainable}: {planned:.0} bytes planned, {peak:.0} used");
        }
    }
}

#[test]
fn several_ranks_have_linear_layers_in_bf16_and_split_their_f32_weights() {
    let folder = folder("split");
    large_batches(&folder);
    let plan = |ranks: &str, settings: &[&str]| {
        let mut args = vec!["plan", "recipe.toml", "--json", "--set", "model.trainable=full", "--ranks", ranks];
        settings.iter().for_each(|s| args.extend(["--set", s]));
        let plan = json(&weft(&folder, &args));
        let weights = plan["parts"].as_array().and_then(|parts| parts.iter().find(|p| p["name"] == "weights").cloned());
        bytes(&weights.expect("there are weights")["bytes"])
    };
    let (bf16, exact) = ("model.precision=bf16", "objective.entropy_precision=f32");
    let whole = plan("1", &[]);
    for (ranks, settings) in [("1", &[bf16][..]), ("4", &[]), ("4", &[bf16, exact]), ("2", &[bf16])] {
        assert_eq!(plan(ranks, settings), whole, "{ranks} ranks, {settings:?}");
    }
    // Four layers of width 192 and MLPs of 512, and a head of 610 rows: 2 + 4 / 4 bytes a number instead of 4.
    let linear = 4 * (4 * 192 * 192 + 3 * 192 * 512) + 610 * 192;
    assert_eq!(whole - plan("4", &[bf16]), f64::from(linear));
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_settings_that_make_it_fit() {
    let folder = folder("refusal");
    large_batches(&folder);
    let whole = bytes(&json(&weft(&folder, &["plan", "recipe.toml", "--json"]))["peak_bytes"]);
    let limit = format!("{:.4}", 0.5 * whole / 1e9);
    let output = weft(&folder, &["plan", "recipe.toml", "--memory-gb", &limit, "--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let (plan, told) = (json(&output), stderr(&output));
    // The fixture's rows are trained on and held out, which is warned of first.
    let (shared, sentence) = told.split_once('\n').expect("a warning and the error");
    assert!(shared.contains("held-out examples are trained on too"), "{shared}");
    assert_eq!(plan["fits"], false);
    assert!(sentence.starts_with("error: the run needs ") && sentence.lines().count() == 1, "{sentence}");
    let remedies = plan["remedies"].as_array().expect("a list").clone();
    assert!(!remedies.is_empty(), "{plan}");
    for remedy in &remedies {
        let settings: Vec<&str> =
            remedy["settings"].as_array().expect("a list").iter().map(|s| s.as_str().expect("a text")).collect();
        assert!(sentence.contains(&settings.join(" ")), "{sentence}\nlacks {settings:?}");
        let mut args = vec!["plan", "recipe.toml", "--memory-gb", &limit, "--json"];
        settings.iter().for_each(|s| args.extend(["--set", s]));
        let output = weft(&folder, &args);
        assert!(output.status.success(), "{settings:?}: {}", stderr(&output));
        assert_near(bytes(&json(&output)["peak_bytes"]), bytes(&remedy["peak_bytes"]), "planned again");
    }
    let batches = remedies.iter().find(|r| r["settings"][0].as_str().is_some_and(|s| s.contains("micro_batch_size")));
    let batches = &batches.unwrap_or_else(|| panic!("a smaller micro-batch is enough: {plan}"))["settings"];
    let number = |i: usize| batches[i].as_str().and_then(|s| s.split_once('=')?.1.parse::<usize>().ok());
    assert_eq!(number(0).zip(number(1)).map(|(size, steps)| size * steps), Some(64), "the step is the same");

    let refused = weft(&folder, &["train", "recipe.toml", "--memory-gb", &limit]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("the run needs ") && stderr(&refused).contains("--skip-plan"),
        "{}",
        stderr(&refused)
    );
    assert!(!folder.join("run").exists(), "nothing has begun");
    let short = ["--set", "train.max_steps=1", "--memory-gb", &limit, "--skip-plan"];
    let output = weft(&folder, &[&["train", "recipe.toml"][..], &short].concat());
    assert!(output.status.success(), "{}", stderr(&output));

    let output = weft(&folder, &["plan", "recipe.toml", "--memory-gb", "0.001"]);
    assert!(
        stderr(&output).contains("and fewer samples don't make it fit; take a smaller model"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_lower_rank_of_the_same_scale_is_named() {
    let folder = folder("rank");
    large_batches(&folder);
    let wide = ["plan", "recipe.toml", "--json", "--set", "train.micro_batch_size=1", "--set", "model.lora_rank=192"];
    let plan = |more: &[&str]| {
        let all = [&wide, ["--set", "model.lora_alpha=384"].as_slice(), more].concat();
        json(&weft(&folder, &all))
    };
    // The program's own part differs a little from process to process.
    let limit = format!("{:.6}", 0.94 * bytes(&plan(&[])["peak_bytes"]) / 1e9);
    let remedies = plan(&["--memory-gb", &limit])["remedies"].clone();
    let expected = serde_json::json!(["model.lora_rank=96", "model.lora_alpha=192"]);
    let found = remedies.as_array().expect("a list").iter().any(|remedy| remedy["settings"] == expected);
    assert!(found, "{remedies}");
}

#[test]
fn several_settings_are_named_where_no_single_one_is_enough() {
    let folder = folder("combination");
    large_batches(&folder);
    let plan = |settings: &[&str]| {
        let mut args = vec!["plan", "recipe.toml", "--json"];
        settings.iter().for_each(|s| args.extend(["--set", s]));
        weft(&folder, &args)
    };
    let one = ["train.micro_batch_size=1", "train.grad_accum_steps=64"];
    let peak = |trainable: &str| bytes(&json(&plan(&[&one[..], &[trainable]].concat()))["peak_bytes"]);
    // Between the two: neither the adapter nor small micro-batches are enough alone.
    let limit = format!("{:.4}", (peak("model.trainable=full") + peak("model.trainable=lora")) / 2e9);
    let args = ["plan", "recipe.toml", "--json", "--set", "model.trainable=full", "--memory-gb", &limit];
    let refused = json(&weft(&folder, &args));
    let remedies = refused["remedies"].as_array().expect("a list");
    let [remedy] = &remedies[..] else { panic!("one combination: {refused}") };
    let settings: Vec<&str> =
        remedy["settings"].as_array().expect("a list").iter().map(|s| s.as_str().expect("a text")).collect();
    assert_eq!(settings.len(), 3, "micro-batch, accumulation and adapter, nothing of no need: {settings:?}");
    assert!(
        settings[0].starts_with("train.micro_batch_size=") && settings[2] == "model.trainable=lora",
        "{settings:?}"
    );
    let fits = plan(&[&["model.trainable=full"], &settings[..]].concat());
    assert!(bytes(&json(&fits)["peak_bytes"]) / 1e9 <= limit.parse().expect("a number"), "{settings:?}");
}

#[test]
fn settings_that_no_run_could_have_are_refused_and_large_numbers_end() {
    let folder = folder("absurd");
    large_batches(&folder);
    let plan = |settings: &[&str]| {
        let mut args = vec!["plan", "recipe.toml", "--json"];
        settings.iter().for_each(|s| args.extend(["--set", s]));
        weft(&folder, &args)
    };
    for settings in [
        &["sampler.diffusion_steps=0", "sampler.remasking=origin"][..],
        &["sampler.gen_length=0"],
        &["sampler.block_length=0"],
        &["sampler.gen_length=9223372036854775807", "sampler.diffusion_steps=1"],
    ] {
        let output = plan(&[&["eval.samples=2"], settings].concat());
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("sampler"), "{settings:?}: {}", stderr(&output));
        assert!(plan(settings).status.success(), "nothing is sampled: {settings:?}");
    }
    let many = json(&plan(&["train.epochs=1000000000"]));
    assert_eq!(many["steps"], 1_000_000_000u64);
    let large = ["train.micro_batch_size=1000000000000"];
    assert_eq!(json(&plan(&large))["largest_micro_batch"], json(&plan(&[]))["largest_micro_batch"]);

    // Answers for the report alone can be what takes it.
    let samples = [
        "eval.samples=4",
        "sampler.gen_length=2048",
        "sampler.block_length=2048",
        "sampler.diffusion_steps=1",
        "train.micro_batch_size=1",
    ];
    let peak = |more: &[&str]| bytes(&json(&plan(&[&samples[..], more].concat()))["peak_bytes"]);
    let limit = (peak(&[]) + peak(&["eval.samples=1"])) / 2e9;
    let mut args = vec!["plan".to_owned(), "recipe.toml".to_owned(), "--memory-gb".to_owned(), limit.to_string()];
    samples.iter().for_each(|s| args.extend(["--set".to_owned(), (*s).to_owned()]));
    let refused = weft(&folder, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(stderr(&refused).contains("with eval.samples="), "{}", stderr(&refused));
}

#[test]
fn a_step_on_a_gpu_that_is_not_here_is_predicted_from_its_data_sheet() {
    let folder = folder("gpu");
    large_batches(&folder);
    let plan = |args: &[&str]| weft(&folder, &[&["plan", "recipe.toml", "--json"], args].concat());
    let seconds = |gpu: &str| {
        let planned = json(&plan(&["--gpu", gpu]));
        assert_eq!(planned["is_prediction"], true, "{planned}");
        bytes(&planned["step_seconds"])
    };
    let [slow, fast] = ["rtx-3090", "h200"].map(seconds);
    assert!(0.0 < fast && fast < slow, "{fast} s on an H200, {slow} s on an RTX 3090");
    // A sixteenth of its memory is left alone.
    let planned = json(&plan(&["--gpu", "l40s"]));
    assert_eq!(bytes(&planned["available_bytes"]), 45e9);
    for (args, words) in [
        (&["--gpu", "h300"][..], "the known GPUs are a100-40gb"),
        (&["--gpu", "h200", "--device", "cpu"], "leave one out"),
    ] {
        let output = plan(args);
        assert!(output.status.code() == Some(2) && stderr(&output).contains(words), "{}", stderr(&output));
    }
    // A GPU of which the memory alone is known has no time.
    let planned = json(&plan(&["--device", "cuda", "--memory-gb", "80"]));
    assert!(planned["step_seconds"].is_null() && planned["fits"] == true, "{planned}");
}

#[test]
fn a_base_whose_weights_are_not_there_yet_can_be_planned() {
    let folder = folder("absent");
    large_batches(&folder);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
    let base = folder.join("base");
    fs::create_dir(&base).expect("the folder can be made");
    let plan = |files: &[&str]| {
        for file in files {
            fs::copy(assets.join(file), base.join(file)).expect("the file is copied");
        }
        let output = weft(&folder, &["plan", "recipe.toml", "--set", "model.path=base", "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let plan = json(&output);
        let weights = plan["parts"].as_array().and_then(|parts| parts.iter().find(|p| p["name"] == "weights").cloned());
        weights.map_or(0.0, |part| bytes(&part["bytes"]))
    };
    let without = plan(&["config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert!(without > 1e6);
    assert_eq!(plan(&["model.safetensors"]), without, "config.json names the format that they are stored in");
}
