//! What other programs call it: keys, tables, options, commands, files and folders. Each is answered by one sentence whose
//! fix works.

mod fixtures;
mod scratch;

use std::fs;
use std::path::Path;

use fixtures::weft;
use scratch::folder;
use weft::recipe::Recipe;
use weft::settings::other_names::{SYNONYMS, Take, WITHOUT_TWIN};

/// The error's one line, after exit status 2.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    let lines: Vec<&str> = text.lines().collect();
    let [line] = lines[..] else { panic!("{args:?} takes more than a line: {text}") };
    line.trim_start_matches("error: ").to_owned()
}

fn parse(text: &str, settings: &[String]) -> Result<Recipe, String> {
    let data = if text.contains("[data]") { "" } else { "[data]\ntrain = \"a.jsonl\"\n" };
    Recipe::parse(&format!("{text}\n{data}"), Path::new("r.toml"), settings).map_err(|e| e.to_string())
}

#[test]
fn every_key_of_another_program_leads_to_one_that_works() {
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    for (name, place, take) in SYNONYMS {
        let (table, key) = place.split_once('.').expect("a place is table.key");
        assert!(default[table].get(key).is_some(), "{name} leads to {place}, which is no key");
        if default[table].get(*name).is_some() {
            continue;
        }
        // In the table where the key belongs, the hint names it.
        let error = parse("", &[format!("{table}.{name}=1")]).expect_err(name);
        assert!(error.starts_with(&format!("--set: unknown key {table}.{name}; set ")), "{error}");
        assert!(error.contains(place), "{error}");
        if let Take::Value(value) = take {
            assert!(error.ends_with(&format!("set {place} = {value}")), "{error}");
            let set = format!("{place}={value}");
            parse("", &[set]).unwrap_or_else(|e| panic!("{name}: the fix doesn't work: {e}"));
        }
    }
}

#[test]
fn every_key_without_a_counterpart_says_why() {
    let default = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    for (name, why) in WITHOUT_TWIN {
        let is_key = default.as_object().expect("a table").values().any(|keys| keys.get(*name).is_some());
        assert!(!is_key && SYNONYMS.iter().all(|(known, ..)| known != name), "{name} has a counterpart");
        let error = parse(&format!("[train]\n{name} = true"), &[]).expect_err(name);
        assert_eq!(error, format!("r.toml: unknown key train.{name}; leave it out: {why}"));
        let error = parse(&format!("{name} = true"), &[]).expect_err(name);
        assert_eq!(error, format!("r.toml: unknown key {name}; leave it out: {why}"));
        // What the sentence names is there.
        for word in why.split(|c: char| !(c.is_ascii_alphanumeric() || "._/-".contains(c))) {
            let word = word.trim_end_matches('.');
            if let Some((table, key)) = word.split_once('.').filter(|(table, _)| default.get(table).is_some()) {
                assert!(default[table].get(key).is_some(), "{why}: {word} is no key");
            }
            let is_page = word.starts_with("docs/") && word.ends_with(".md");
            assert!(!is_page || Path::new(env!("CARGO_MANIFEST_DIR")).join(word).exists(), "{why}: {word} is no page");
        }
    }
}

#[test]
fn a_name_with_two_meanings_is_taken_by_its_table() {
    let told = |text: &str| parse(text, &[]).expect_err("it is refused");
    assert_eq!(told("[train]\nsteps = 9"), "r.toml: unknown key train.steps; set train.max_steps");
    assert_eq!(told("[sampler]\nsteps = 9"), "r.toml: unknown key sampler.steps; set sampler.diffusion_steps");
    assert_eq!(
        told("steps = 9"),
        "r.toml: steps is outside of every table; set train.max_steps or sampler.diffusion_steps"
    );
    assert_eq!(
        told("[train]\nwarmup_ratio = 0.1"),
        "r.toml: unknown key train.warmup_ratio; set train.warmup_steps, a number of steps"
    );
    assert_eq!(told("[train]\nbf16 = true"), "r.toml: unknown key train.bf16; set model.precision = \"bf16\"");
    for (key, place) in [
        ("data.path", "data.train"),
        ("data.train_file", "data.train"),
        ("data.val", "data.held_out"),
        ("train.num_epochs", "train.epochs"),
        ("model.name", "model.path"),
        ("train.name", "train.output, a folder with the run's name, such as \"runs/NAME\""),
        ("objective.loss", "objective.kind, \"weft\", \"sft\", \"cart\", \"token_weight\" or \"lift\""),
    ] {
        let error = parse("", &[format!("{key}=\"a\"")]).expect_err(key);
        assert_eq!(error, format!("--set: unknown key {key}; set {place}"));
    }
    assert_eq!(
        told("[train]\nresume = true"),
        "r.toml: unknown key train.resume; leave it out: the option --resume continues a run from its newest checkpoint"
    );
    // The tables of other programs, beside ours or within it.
    let lora = "[lora]\nr = 8\nalpha = 16\nlora_dropout = 0.1\nbias = \"none\"\ntarget_linear = true";
    let (set, why) =
        ("set model.lora_rank = 8; set model.lora_alpha = 16; set model.lora_dropout = 0.1", "adapters have no biases");
    for (text, table) in [(lora.to_owned(), "lora"), (lora.replace("[lora]", "[model.lora]"), "model.lora")] {
        let error = told(&format!("[model]\npath = \"tiny-base\"\n{text}"));
        let start = format!("r.toml: unknown table {table}; ");
        let fixes = error.strip_prefix(&start).unwrap_or_else(|| panic!("{error}"));
        assert!(set.split("; ").all(|fix| fixes.contains(fix)), "{error}");
        assert!(fixes.contains(&format!("unknown key model.bias; leave it out: {why}")), "{error}");
    }
    parse("", &["model.lora_rank=8".to_owned(), "model.lora_alpha=16".to_owned()]).expect("the fix works");
    assert_eq!(told("[lora]"), "r.toml: unknown table lora; write [model]");
    assert_eq!(told("[trainer]\nbf16 = true"), "r.toml: unknown table trainer; set model.precision = \"bf16\"");
    assert_eq!(
        parse("", &["lora.r=8".to_owned()]).expect_err("refused"),
        "--set: unknown table lora; set model.lora_rank = 8"
    );
    assert_eq!(told("[train]\nlearning-rate = 1"), "r.toml: unknown key train.learning-rate; set train.lr");
}

#[test]
fn an_error_of_a_setting_names_the_option() {
    let told = |text: &str, settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        parse(text, &settings).expect_err("it is refused")
    };
    assert_eq!(told("", &["train.lr=fast"]), "--set train.lr = \"fast\": give a number");
    assert_eq!(told("", &["train.epochs=0"]), "--set train.epochs = 0; give at least 1");
    assert_eq!(told("", &["trian.lr=1"]), "--set: unknown table trian; the nearest known one is train");
    assert_eq!(
        told("", &["wandb=true"]).split(": ").next(),
        Some("--set \"wandb=true\" is not table.key=value; leave it out")
    );
    assert_eq!(
        told("[train]\nepochs = 0", &["train.lr=-1"]),
        "the recipe has 2 problems:\n  r.toml: train.epochs = 0; give at least 1\n  --set train.lr = -1 is not a positive \
         number"
    );
    // A setting is not blamed for a key whose name begins like its own.
    assert_eq!(told("[train]\nlr_schedule = 1", &["train.lr=1e-3"]), told("[train]\nlr_schedule = 1", &[]));
}

#[test]
fn options_of_other_programs_lead_to_ours() {
    let here = folder("other-options");
    for file in ["rows.jsonl", "rows.csv", "question.txt"] {
        fs::write(here.join(file), "").expect("the file is written");
    }
    for (args, expected) in [
        (&["train", "--lr", "1e-4"][..], "weft train has no --lr; write --set train.lr=1e-4"),
        (&["train", "--learning_rate=1e-4"], "weft train has no --learning_rate; write --set train.lr=1e-4"),
        (&["train", "--num-train-epochs", "3"], "weft train has no --num-train-epochs; write --set train.epochs=3"),
        (&["train", "--steps", "9"], "weft train has no --steps; write --set train.max_steps=9"),
        (&["train", "--iters", "9"], "weft train has no --iters; write --set train.max_steps=9"),
        (&["train", "--bf16"], "weft train has no --bf16; write --set model.precision=bf16"),
        (&["train", "--output_dir", "runs/a"], "weft train has no --output_dir; write --set train.output=runs/a"),
        (&["train", "--resume_from_checkpoint"], "weft train has no --resume_from_checkpoint; write --resume"),
        (
            &["train", "--config", "a.toml"],
            "weft train has no --config; give the recipe's path alone: weft train a.toml",
        ),
        (&["plan", "-c", "a.toml"], "weft plan has no -c; give the recipe's path alone: weft plan a.toml"),
        (&["train", "a.toml", "--dry-run"], "weft train has no --dry-run; weft plan RECIPE predicts"),
        (
            &["train", "--deepspeed", "ds.json"],
            "weft train has no --deepspeed; leave it out: torchrun (on GPUs) or mpirun starts ranks",
        ),
        (&["generate", "--max-new-tokens", "48"], "weft generate has no --max-new-tokens; write --gen-length 48"),
        (&["generate", "--steps", "48"], "weft generate has no --steps; write --diffusion-steps 48"),
        (&["generate", "-m", "tiny-base"], "weft generate has no -m; write --model tiny-base"),
        (&["generate", "-p", "What is it?"], "weft generate has no -p; write --prompt 'What is it?'"),
        (&["generate", "--temp", "0.5"], "weft generate has no --temp; write --temperature 0.5"),
        (&["generate", "--bf16"], "weft generate has no --bf16; write --precision bf16"),
        (&["generate", "--adapter-path", "a"], "weft generate has no --adapter-path; write --adapter a"),
        (&["likelihood", "--mc-num", "8"], "weft likelihood has no --mc-num; write --mc-samples 8"),
        (&["eval", "--tasks", "gsm8k"], "weft eval has no --tasks; write --task gsm8k"),
        (&["train", "--model", "x/y"], "weft train has no --model; write --set model.path=x/y"),
        (&["train", "--data", "a.jsonl"], "weft train has no --data; write --set data.train=a.jsonl"),
        (&["train", "-o", "runs/a"], "weft train has no -o; write --set train.output=runs/a"),
        (&["plan", "--out", "runs/a"], "weft plan has no --out; write --set train.output=runs/a"),
        (
            &["train", "--adapter", "runs/a/adapter"],
            "weft train has no --adapter; write --set model.adapter=runs/a/adapter",
        ),
        (&["train", "--limit", "9"], "weft train has no --limit; write --set eval.limit=9"),
        (&["train", "--batch-size", "8"], "weft train has no --batch-size; write --set train.micro_batch_size=8"),
        (&["data", "-n", "5"], "weft data has no -n; write --examples 5"),
        (&["data", "--limit", "5"], "weft data has no --limit; write --examples 5"),
        (
            &["eval", "--config", "a.toml"],
            "weft eval has no --config; it takes no recipe, but options (--help lists them); a recipe's eval.task scores",
        ),
        (
            &["eval", "--batch-size", "8"],
            "weft eval has no --batch-size; leave it out: batches are formed by the tokens of their rows",
        ),
        (
            &["generate", "What is it?"],
            "weft generate takes no argument \"What is it?\" by itself; write --prompt 'What is it?'",
        ),
        (&["likelihood", "a.jsonl"], "weft likelihood takes no argument \"a.jsonl\" by itself; write --data a.jsonl"),
        (&["generate", "--json"], "weft generate has no --json; --data FILE --out FILE writes answers as JSONL"),
        (
            &["generate", "--greedy"],
            "weft generate has no --greedy; answers are greedy unless --temperature is above 0",
        ),
        (&["train", "--top-p", "0.9"], "weft train has no --top-p; write --set sampler.top_p=0.9"),
        (&["finetune", "a.toml"], "weft has no command finetune; write weft train"),
        (&["infer"], "weft has no command infer; write weft generate"),
        (&["version"], "weft has no command version; weft --version prints it"),
        (&["list"], "weft has no command list; a model is a folder or an id of the hub (--model ORG/NAME)"),
        (&["help-me"], "weft has no command help-me; weft --help lists the commands"),
        // Settings as Hydra and others take them.
        (&["train", "--train.lr=1e-3"], "weft train has no --train.lr; write --set train.lr=1e-3"),
        (
            &["train", "--train.learning_rate", "1e-3"],
            "weft train has no --train.learning_rate; write --set train.lr=1e-3",
        ),
        (
            &["train", "a.toml", "train.lr=1e-3"],
            "weft train takes no argument \"train.lr=1e-3\" by itself; write --set train.lr=1e-3",
        ),
        (
            &["train", "a.toml", "++train.lr=1e-3"],
            "weft train takes no argument \"++train.lr=1e-3\" by itself; write --set train.lr",
        ),
        (
            &["train", "a.toml", "lr=1e-3"],
            "weft train takes no argument \"lr=1e-3\" by itself; write --set train.lr=1e-3",
        ),
        (&["train", "train.lr=1e-3"], "there is no recipe train.lr=1e-3; write --set train.lr=1e-3"),
        (&["train", "++lr=1e-3"], "there is no recipe ++lr=1e-3; write --set train.lr=1e-3"),
        (
            &["train", "a.toml", "--set", "train.lr", "1e-3"],
            "weft train takes no argument \"1e-3\" by itself; write --set train.lr=1e-3",
        ),
        (&["train", "--set", "train.lr", "1e-3"], "there is no recipe 1e-3; write --set train.lr=1e-3"),
        (
            &["train", "--set", "train.lr", "=", "1e-3"],
            "weft train takes no argument \"1e-3\" by itself; write --set train.lr=1e-3",
        ),
        (&["train", "--set", "train.lr"], "--set \"train.lr\" is not table.key=value; write train.lr=VALUE"),
        (
            &["generate", "sampler.temperature=0.5"],
            "weft generate takes no argument \"sampler.temperature=0.5\" by itself; write --temperature 0.5",
        ),
        (
            &["train", "--system-prompt", "Be brief."],
            "weft train has no --system-prompt; leave it out: each row has its own: a turn",
        ),
        (&["train", "--zzz"], "weft train has no --zzz; weft train --help lists its options"),
        (&["train", "--epohcs=3"], "weft train has no --epohcs; write --set train.epochs=3"),
        (&["generate", "--temprature", "1"], "weft generate has no --temprature; write --temperature 1"),
        (&["train", "--objective", "SFT"], "weft train has no --objective; write --set objective.kind=sft"),
        (&["reproduce", "a.toml", "--seeds", "2"], "weft reproduce has no --seeds; write --set reproduce.seeds=2"),
        // Where a hint ends in an option, the command takes it.
        (&["train", "--set", "train.lr=1e-4", "absent.toml"], "cannot read absent.toml"),
        // Files of prompts.
        (
            &["generate", "--input", "rows.jsonl"],
            "weft generate has no --input; write --data rows.jsonl --out answers.jsonl",
        ),
        (
            &["generate", "--input-file", "rows.csv"],
            "weft generate has no --input-file; write --data rows.csv --out answers.jsonl",
        ),
        (
            &["generate", "--input", "question.txt"],
            "weft generate has no --input; give its text on standard input: < question.txt",
        ),
        (&["generate", "--input", "What is it?"], "weft generate has no --input; write --prompt 'What is it?'"),
        (&["recipe", "my.toml"], "weft recipe takes no argument \"my.toml\" by itself; write weft recipe > my.toml"),
        (&["recipe", "-o", "my.toml"], "weft recipe has no -o; write weft recipe > my.toml"),
        // What is missing.
        (&["generate", "--data", "rows.jsonl"], "weft generate needs --model DIR and --out FILE; weft generate --help"),
        (&["merge", "--model", "a", "--out", "b"], "weft merge needs --adapter DIR; weft merge --help describes it"),
        // Rows for a command that runs the quick start where no recipe is given.
        (
            &["train", "--data", "rows.jsonl"],
            "weft train has no --data; write --set data.train=rows.jsonl after the path of a recipe, such as one of weft recipe",
        ),
        (
            &["train", "--set", "data.train=rows.jsonl"],
            "--set data.train=rows.jsonl: the quick start, which runs where no recipe is given, generates its own rows",
        ),
        // Values that clap's own words say little about.
        (&["generate", "--temperature", "-1", "--model", "tiny-base"], "temperature -1 is negative or not a number"),
        (&["generate", "--temperature", "hot"], "--temperature hot: give a number"),
        (
            &["generate", "--gen-length", "0", "--diffusion-steps", "4", "--model", "tiny-base"],
            "gen_length 0 must be at least 1",
        ),
        (&["generate", "--gen-length", "-8"], "--gen-length -8: give a number of 0 or above"),
        (&["generate", "--gen-length", "long"], "--gen-length long: give a whole number, 0 or above"),
        (&["generate", "--precision", "fp16"], "--precision fp16: the known values are f32, bf16, bf16x3 and auto"),
        (&["generate", "--logits-shifted", "yes"], "--logits-shifted yes: give true or false"),
        (
            &["generate", "--confidence-threshold", "90", "--model", "tiny-base"],
            "confidence_threshold 90 lies outside (0, 1]; write 0.9",
        ),
        (
            &["generate", "--confidence-threshold", "0", "--model", "tiny-base"],
            "confidence_threshold 0 lies outside (0, 1]; 0.9 is a good start",
        ),
    ] {
        let told = refused(&here, args);
        assert!(told.starts_with(expected), "{args:?}: {told}");
    }
}

#[test]
fn files_that_are_no_recipes_are_recognised() {
    let here = folder("other-files");
    let write = |name: &str, text: &str| fs::write(here.join(name), text).expect("the file is written");
    write("a.yaml", "# axolotl\nbase_model: x\nadapter: lora\n");
    write("b.toml", "---\nmodel_name: x\n");
    write("c.json", "{\"model\": \"x\"}");
    write("d.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n");
    write("e.toml", "[data]\ntrain = \"d.jsonl\"\n");
    let yaml = "it is YAML, and recipes are TOML: \"weft recipe > my.toml\" writes a recipe with every key";
    for (name, expected) in [
        ("a.yaml", format!("a.yaml: {yaml}")),
        ("b.toml", format!("b.toml: {yaml}")),
        ("c.json", "c.json: it is JSON, and recipes are TOML: ".to_owned()),
        ("d.jsonl", "d.jsonl: it is a file of rows, not a recipe; weft recipe > my.toml writes one, and ".to_owned()),
        ("e.tml", "there is no recipe e.tml, but there is e.toml".to_owned()),
        ("e", "there is no recipe e, but there is e.toml".to_owned()),
        (".", ".: it is a folder, and a recipe is a file (TOML); name the file".to_owned()),
    ] {
        let told = refused(&here, &["train", name]);
        assert!(told.starts_with(&expected), "{told}");
    }
    // A recipe is one whatever its name's ending.
    write("f.tml", "[data]\ntrain = \"absent.jsonl\"\n");
    assert!(refused(&here, &["train", "f.tml"]).starts_with("cannot read absent.jsonl"));
}

#[test]
fn a_checkpoint_as_an_adapter_and_the_reverse_are_told() {
    let here = folder("other-folders");
    let checkpoint = fixtures::LLADA.with_text("other-folders-model", &fixtures::LLADA.path());
    let checkpoint = checkpoint.display().to_string();
    let adapter = fixtures::LLADA.path().join("lora/adapter").display().to_string();
    let ask = ["--prompt", "hi", "--gen-length", "8", "--block-length", "8", "--diffusion-steps", "4"];
    let generate = |more: &[&str]| refused(&here, &[&["generate"][..], &ask, more].concat());
    let told = generate(&["--model", &checkpoint, "--adapter", &checkpoint]);
    assert!(
        told.ends_with(
            ": it is a checkpoint, and not an adapter; give it as the model (--model, or model.path in a recipe)"
        ),
        "{told}"
    );
    // A run that trained every weight has no adapter.
    fs::create_dir_all(here.join("full/checkpoint")).expect("the folder is made");
    fs::write(here.join("full/checkpoint/config.json"), "{}").expect("the file is written");
    assert_eq!(
        generate(&["--model", &checkpoint, "--adapter", "full"]),
        "full: it is a run folder whose run trained every weight and has no adapter; leave the adapter out and give \
         full/checkpoint as the model (--model, or model.path in a recipe)"
    );
    // A step that a run saved to resume from, and the folder of all of them.
    let steps = here.join("run/checkpoints");
    fs::create_dir_all(steps.join("step-1")).expect("the folder is made");
    fs::write(steps.join("step-1/state.safetensors"), "").expect("the file is written");
    for saved in ["run/checkpoints/step-1", "run/checkpoints"] {
        for args in [["--model", &checkpoint, "--adapter", saved].as_slice(), &["--model", saved]] {
            assert_eq!(
                generate(args),
                format!(
                    "{saved}: it is for weft train --resume, which finishes the run and then writes what was trained into run"
                )
            );
        }
    }
    fs::create_dir(here.join("run/adapter")).expect("the folder is made");
    assert_eq!(
        generate(&["--model", &checkpoint, "--adapter", "run/checkpoints/step-1"]),
        "run/checkpoints/step-1: it is for weft train --resume; what its run trained is in run/adapter"
    );
    let told = generate(&["--model", &checkpoint, "--adapter", "run/adapter"]);
    assert!(told.starts_with("run/adapter: it has no adapter_config.json; give an adapter's folder"), "{told}");
    let told = generate(&["--model", &adapter]);
    assert!(
        told.contains(": it is an adapter; give its base")
            && told.ends_with("and the adapter as --adapter (model.adapter in a recipe)"),
        "{told}"
    );
    // The fix works.
    let fixed = [&["generate", "--model", &checkpoint, "--adapter", &adapter][..], &ask].concat();
    let output = weft(&here, &fixed);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
