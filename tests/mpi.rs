//! Ranks under a real `mpirun`, over the program: as many as share a step, so many bits are the same; unequal ends,
//! resuming with other numbers of ranks, evaluations and comparisons that are dealt. It skips loudly where there is no
//! `mpirun`.
#![cfg(feature = "mpi")]

#[macro_use]
mod ranks;
mod scratch;

use std::fs;
use std::path::Path;

use ranks::{RECIPE, adapter, checkpoint, essence, start, stderr, steps, trained, weft};
use serde_json::Value;

#[test]
fn adapters_have_the_same_bits_on_1_2_and_4_ranks() {
    needs_mpirun!();
    for (name, objective) in
        [("weft", ""), ("reused", "[objective]\nentropy_every = 2\n"), ("sft", "[objective]\nkind = \"sft\"\n")]
    {
        let recipe = format!("{RECIPE}{objective}");
        let run = |ranks: usize, accum: &str| {
            let folder = start(&format!("{name}-{ranks}"), &recipe);
            trained(ranks, &folder, &[accum]);
            folder
        };
        let one = run(1, "train.grad_accum_steps=4");
        assert_eq!(steps(&one).len(), 8, "the last step of an epoch is smaller");
        for (ranks, accum) in [(2, "train.grad_accum_steps=2"), (4, "train.grad_accum_steps=1")] {
            let several = run(ranks, accum);
            assert_eq!(essence(&several), essence(&one), "{name}, {ranks} ranks");
            assert!(adapter(&several) == adapter(&one), "{name}: {ranks} ranks make other bits");
        }
    }
}

#[test]
fn ranks_draw_the_same_answers_and_skip_the_same_rows() {
    needs_mpirun!();
    let recipe = "[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\ntrain_on = \"drawn\"\non_bad_row = \"skip\"\n\
                  on_long_prompt = \"skip\"\non_long_answer = \"skip\"\nmax_seq_len = 64\n[train]\noutput = \"run\"\n\
                  lr = 1e-3\nepochs = 3\n[model]\nlora_rank = 2\n";
    let turn = |role: &str, text: String| format!("{{\"role\": \"{role}\", \"content\": \"{text}\"}}");
    let chat = |i: usize| match i % 5 {
        4 => "{".to_owned(),
        answers => {
            let turns = (0..=answers).flat_map(|k| {
                [turn("user", format!("{i} + {k}?")), turn("assistant", "1 ".repeat(1 + 60 * usize::from(k == 2)))]
            });
            format!("{{\"messages\": [{}]}}", turns.collect::<Vec<_>>().join(","))
        }
    };
    let rows: Vec<String> = (0..15).map(chat).collect();
    let [one, two, four] = [(1, 4), (2, 2), (4, 1)].map(|(ranks, accum)| {
        let folder = start(&format!("drawn-{ranks}"), recipe);
        fs::write(folder.join("rows.jsonl"), rows.join("\n")).expect("the rows are written");
        trained(ranks, &folder, &[&format!("train.grad_accum_steps={accum}")]);
        folder
    });
    assert_eq!(steps(&one).len(), 9, "three epochs of twelve chats");
    for several in [two, four] {
        assert_eq!(essence(&several), essence(&one));
        assert!(adapter(&several) == adapter(&one));
    }
}

#[test]
fn three_ranks_equal_one_though_some_have_nothing_in_the_last_step() {
    needs_mpirun!();
    let recipe = RECIPE.replace("train_rows = 26", "train_rows = 8");
    let [one, three] = [(1, "train.grad_accum_steps=3"), (3, "train.grad_accum_steps=1")].map(|(ranks, accum)| {
        let folder = start(&format!("three-{ranks}"), &recipe);
        trained(ranks, &folder, &[accum]);
        folder
    });
    // Steps of 6 and of 2 examples: in the second two ranks have none.
    assert_eq!(steps(&one).len(), 4);
    assert_eq!(essence(&three), essence(&one));
    assert!(adapter(&three) == adapter(&one));
}

#[test]
fn full_training_with_sharded_moments_equals_one_rank() {
    needs_mpirun!();
    let recipe = format!("{RECIPE}trainable = \"full\"\nsave_dtype = \"f32\"\n").replace("lora_dropout = 0.1\n", "");
    let run = |ranks: usize, accum: usize| {
        let folder = start(&format!("full-{ranks}"), &recipe);
        let accum = format!("train.grad_accum_steps={accum}");
        let settings = ["--set", &accum, "--set", "train.weight_decay=0.1", "--overlap", "on"];
        let args = [&["train", "recipe.toml", "--threads", "1"], &settings[..]].concat();
        let output = weft(ranks, &folder, &args).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        folder
    };
    let one = run(1, 4);
    for ranks in [2, 4] {
        let several = run(ranks, 4 / ranks);
        // A rank adds its matmuls one to the other where ranks add finished gradients: the last bits differ.
        for (a, b) in steps(&one).iter().zip(steps(&several)) {
            assert_eq!(a["masked_share"], b["masked_share"]);
            let [a, b] = [a["loss"].as_f64(), b["loss"].as_f64()].map(|x| x.expect("a number"));
            assert!((a - b).abs() <= 2e-3 * a, "{a} and {b}");
        }
        let (expected, got) = (checkpoint(&one), checkpoint(&several));
        for (name, bits) in expected {
            let far = bits.iter().zip(&got[&name]).map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
            assert!(far.fold(0.0, f32::max) < 5e-3, "{name}");
        }
    }
}

/// One micro-batch a step: of four ranks three hand over zeros, beside their backward or after it.
fn full_recipe(model: &str) -> String {
    let recipe = RECIPE.replace("lora_dropout = 0.1", &format!("trainable = \"full\"\nsave_dtype = \"f32\"\n{model}"));
    recipe.replace("train_rows = 26", "train_rows = 2").replace("epochs = 2", "epochs = 4\ncheckpoint_every = 2")
}

/// The file of a run's newest checkpoint's numbers: f32 weights and moments.
fn newest_state(folder: &Path) -> Vec<u8> {
    let folder = folder.join("run/checkpoints");
    let newest = scratch::names(&folder).pop().expect("there are checkpoints");
    fs::read(folder.join(newest).join("state.safetensors")).expect("there are tensors")
}

#[test]
fn full_training_has_the_same_bits_where_each_rank_has_one_micro_batch() {
    needs_mpirun!();
    // In bf16 ranks split the f32 weights, unless entropies are computed in f32.
    for (name, model) in [
        ("f32", ""),
        ("bf16", "precision = \"bf16\"\n"),
        ("mixed", "precision = \"bf16\"\n[objective]\nentropy_precision = \"f32\"\n"),
    ] {
        let recipe = full_recipe(model);
        let run = |ranks: usize, overlap: &str| {
            let folder = start(&format!("full-{name}-{ranks}"), &recipe);
            let args = ["train", "recipe.toml", "--threads", "1", "--overlap", overlap];
            let output = weft(ranks, &folder, &args).output().expect("it starts");
            assert!(output.status.success(), "{}", stderr(&output));
            folder
        };
        let one = run(1, "auto");
        for (ranks, overlap) in [(4, "on"), (4, "off"), (3, "on")] {
            let several = run(ranks, overlap);
            assert_eq!(essence(&several), essence(&one), "{name}, {ranks} ranks, overlap {overlap}");
            assert!(checkpoint(&several) == checkpoint(&one), "{name}, {ranks} ranks, overlap {overlap}");
            assert!(
                newest_state(&several) == newest_state(&one),
                "{name}: the checkpoint has weights and moments whole"
            );
            assert_eq!(held_out(&several), held_out(&one));
        }
        let bits = checkpoint(&one);
        let is_rounded = |bits: &Vec<u32>| bits.iter().all(|bits| bits & 0xffff == 0);
        assert!(!bits.values().any(is_rounded), "{name}: what is saved is f32");
    }
}

/// The held-out losses as the metrics have them.
fn held_out(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter_map(|line| line.get("held_out_nll_bound").map(Value::to_string)).collect()
}

#[test]
fn weights_that_ranks_have_parts_of_are_resumed_by_any_number_of_ranks() {
    needs_mpirun!();
    let recipe = full_recipe("precision = \"bf16\"\n");
    let whole = start("parts-whole", &recipe);
    trained(1, &whole, &["train.grad_accum_steps=4"]);
    let resumed = start("parts-resumed", &recipe);
    trained(4, &resumed, &[]);
    for (ranks, accum) in
        [(2, "train.grad_accum_steps=2"), (1, "train.grad_accum_steps=4"), (4, "train.grad_accum_steps=1")]
    {
        let folder = resumed.join("run/checkpoints");
        let newest = scratch::names(&folder).pop().expect("there are checkpoints");
        fs::remove_dir_all(folder.join(newest)).expect("it goes");
        fs::remove_dir_all(resumed.join("run/checkpoint")).expect("it goes");
        let args = ["train", "recipe.toml", "--threads", "1", "--resume", "--set", accum];
        let output = weft(ranks, &resumed, &args).output().expect("it starts");
        assert!(output.status.success() && stderr(&output).contains("resuming at step 2"), "{}", stderr(&output));
        assert!(checkpoint(&resumed) == checkpoint(&whole), "{ranks} ranks go on to other bits");
        assert!(newest_state(&resumed) == newest_state(&whole), "{ranks} ranks go on to other bits");
        assert_eq!(essence(&resumed), essence(&whole));
    }
}

#[test]
fn a_checkpoint_of_four_ranks_goes_on_with_two_and_with_one() {
    needs_mpirun!();
    let recipe =
        format!("{RECIPE}[objective]\nentropy_every = 2\n").replace("epochs = 2", "epochs = 2\ncheckpoint_every = 2");
    let whole = start("whole", &recipe);
    trained(1, &whole, &["train.grad_accum_steps=4"]);
    let resumed = start("resumed", &recipe);
    trained(4, &resumed, &[]);
    let drop_newest = || {
        let folder = resumed.join("run/checkpoints");
        let newest = scratch::names(&folder).pop().expect("there are checkpoints");
        fs::remove_dir_all(folder.join(newest)).expect("it goes");
        let _ = fs::remove_dir_all(resumed.join("run/adapter"));
    };
    for (ranks, accum) in
        [(2, "train.grad_accum_steps=2"), (1, "train.grad_accum_steps=4"), (4, "train.grad_accum_steps=1")]
    {
        drop_newest();
        let args = ["train", "recipe.toml", "--threads", "1", "--resume", "--set", accum];
        let output = weft(ranks, &resumed, &args).output().expect("it starts");
        assert!(output.status.success() && stderr(&output).contains("resuming at step 6"), "{}", stderr(&output));
        assert!(adapter(&resumed) == adapter(&whole), "{ranks} ranks go on to other bits");
        assert_eq!(essence(&resumed), essence(&whole));
    }
    // Another global batch is another run.
    drop_newest();
    let output = weft(2, &resumed, &["train", "recipe.toml", "--resume"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let gathered = "rank 0: error: run/checkpoints/step-00000006/state.json: the run to resume has 8 examples in a step \
                (train.micro_batch_size 2, train.grad_accum_steps 1, ranks 4) and now it would have 4 (micro-batches of 2, \
                1 of them, ranks 2); set train.micro_batch_size=2 and train.grad_accum_steps=2\n";
    assert!(stderr(&output).contains(gathered), "{}", stderr(&output));
}

#[test]
fn the_first_rank_alone_prints_and_ranks_log_on_request() {
    needs_mpirun!();
    let folder = start("quiet", RECIPE);
    let output = weft(2, &folder, &["train", "recipe.toml", "--rank-logs"]).output().expect("it starts");
    let gathered = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    for once in ["base       tiny-base", "ranks      2", "trained 14 steps", "the adapter is in run/adapter"] {
        assert_eq!(gathered.matches(once).count(), 1, "{once}: {gathered}");
    }
    for rank in 0..2 {
        let log = fs::read_to_string(folder.join(format!("run/ranks/rank-{rank}.jsonl"))).expect("there is a log");
        assert_eq!(log.lines().count(), 14);
        assert!(log.lines().all(|line| line.contains(&format!("\"rank\":{rank}"))));
    }
}

#[test]
fn what_is_sent_is_what_was_planned() {
    needs_mpirun!();
    let recipe = RECIPE.replace("train_rows = 26", "train_rows = 32");
    // Of every weight in bf16 updated numbers take half.
    let full = recipe.replace("lora_dropout = 0.1", "trainable = \"full\"\nprecision = \"bf16\"");
    let updates = [("lora", recipe), ("full", full)].map(|(name, recipe)| {
        let folder = start(&format!("sent-{name}"), &recipe);
        let output = weft(4, &folder, &["train", "recipe.toml", "--rank-logs"]).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        // A small model's parts are uneven, so that one rank sends more than another.
        let logs = (0..4).map(|rank| fs::read_to_string(folder.join(format!("run/ranks/rank-{rank}.jsonl"))));
        let lines: Vec<String> =
            logs.flat_map(|log| log.expect("there is a log").lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        assert_eq!(lines.len(), 4 * 8);
        let of_line =
            |line: &String| serde_json::from_str::<Value>(line).expect("a line is JSON")["sent_bytes"].as_f64();
        let sent = lines.iter().map(|line| of_line(line).expect("a number")).sum::<f64>() / 32.0;
        let output = weft(1, &folder, &["plan", "recipe.toml", "--ranks", "4", "--json"]).output().expect("it starts");
        let plan: Value = serde_json::from_slice(&output.stdout).expect("a plan is JSON");
        assert_eq!(plan["steps"], 8, "{plan}");
        let parts = ["gradient_bytes", "update_bytes", "gathered_bytes"]
            .map(|key| plan["communication"][key].as_f64().expect("a number"));
        let planned: f64 = parts.into_iter().sum();
        assert!((sent / planned - 1.0).abs() < 0.01, "{name}: {sent} bytes a step were sent, {planned} planned");
        assert!(plan["communication"]["imbalance"].as_f64().is_some_and(|x| (1.0..4.0).contains(&x)), "{plan}");
        parts[1] / parts[0]
    });
    assert!(updates[0] == 1.0 && (0.5..0.6).contains(&updates[1]), "{updates:?}");
}

#[test]
fn an_evaluation_is_shared() {
    needs_mpirun!();
    let folder = start("eval", RECIPE);
    trained(1, &folder, &["train.max_steps=1"]);
    let eval = |ranks: usize| {
        let out = format!("{ranks}.json");
        let args =
            ["eval", "--model", "tiny-base", "--task", "sudoku", "--data", "run/data/held-out.jsonl", "--gen-length"];
        let more = ["32", "--diffusion-steps", "8", "--json", "--threads", "1", "--out", &out];
        // Prompts are repeated so that there are several batches.
        let output = weft(ranks, &folder, &[&args[..], &more[..]].concat()).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        (output.stdout, fs::read_to_string(folder.join(&out)).expect("there are generations"))
    };
    let rows = fs::read_to_string(folder.join("run/data/held-out.jsonl")).expect("there are rows");
    fs::write(folder.join("run/data/held-out.jsonl"), rows.repeat(20)).expect("they are written");
    assert_eq!(eval(3), eval(1));
}

#[test]
fn a_comparison_is_dealt_and_comes_to_the_same_report() {
    needs_mpirun!();
    const STUDY: &str = "[model]\nlora_rank = 4\n[data]\ntrain_rows = 32\nheld_out_rows = 6\ngenerate = \"sudoku\"\n\
                         [train]\noutput = \"study\"\nseed = 3\nmicro_batch_size = 4\nlr = 1e-3\nmax_steps = 3\n\
                         [eval]\nlimit = 2\ntask = \"sudoku\"\n[sampler]\ngen_length = 8\nblock_length = 8\n\
                         diffusion_steps = 2\n[reproduce]\nseeds = 2\nevaluations = 1\ntiming_rounds = 0\n\
                         arms = [\"sft-masked\", \"weft-masked\"]\n";
    let report = |ranks: usize| {
        let folder = start(&format!("study-{ranks}"), STUDY);
        let output = weft(ranks, &folder, &["reproduce", "recipe.toml", "--threads", "1"]).output().expect("it starts");
        assert!(output.status.success(), "{}", stderr(&output));
        // One rank prints the table and where the report lies.
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        (fs::read_to_string(folder.join("study/report.json")).expect("there is a report"), shown)
    };
    assert_eq!(report(3), report(1));
}
