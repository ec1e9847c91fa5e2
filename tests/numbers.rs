//! Numbers gone wrong: what a run says of them, what it passes over, and that nothing is left of such a step.

mod fixtures;
mod scratch;
mod small_run;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fixtures::LLADA;
use scratch::folder;
use serde_json::{Value, json};
use small_run::{BEGIN, RESUME, go_on, settings};
use weft::data::packing::Padding;
use weft::error::Error;
use weft::objective::{Kind, Objective};
use weft::train::guard::{LEAST, MOST_IN_A_ROW, OnNonFinite, Reason, Skipped};
use weft::train::resolved::Resolved;
use weft::train::settings::TrainTable;
use weft::train::{Trainer, checkpoint, run};
use weft_kernels::precision::Precision;

/// A token that example 5 alone has.
const RARE: u32 = 151;

fn trainer(settings: TrainTable, kind: Kind) -> Trainer {
    let (mut model, mut examples) = (LLADA.load(), small_run::examples());
    small_run::adapt(&mut model, 0.1);
    examples[5].prompt_ids[1] = RARE;
    let objective = Objective { kind, entropy_every: 2, ..Objective::default() };
    small_run::trainer(model, examples, settings, (objective, Padding::None))
}

fn skipping() -> TrainTable {
    TrainTable { on_non_finite: OnNonFinite::Skip, ..settings() }
}

/// Makes the embedding of [`RARE`] no number.
fn poison(mut trainer: Trainer) -> Trainer {
    let id = trainer.model.embedding;
    let weight = &mut trainer.model.params[id].weight;
    let width = weight.cols();
    weight.make_trainable()[RARE as usize * width..][..width].fill(f32::NAN);
    trainer
}

/// Everything that a step changes but its number.
fn state(trainer: &Trainer) -> (Vec<u32>, Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    let bits = trained.flat_map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect();
    let moments = [&trainer.optimizer.m, &trainer.optimizer.v];
    let [m, v] = moments.map(|all| all.iter().map(|x| x.to_host().into_owned()).collect());
    (bits, m, v)
}

fn stopped(trainer: &mut Trainer) -> String {
    let before = (state(trainer), trainer.step, trainer.guard.clone());
    let error = trainer.step().expect_err("the step must fail");
    assert!(matches!(error, Error::NonFinite(_)) && !error.is_users(), "{error:?}");
    assert_eq!((state(trainer), trainer.step, trainer.guard.clone()), before, "all is as before the step");
    error.to_string()
}

fn param(trainer: &Trainer, part: &str) -> usize {
    let found = trainer.model.params.iter().position(|p| p.name.contains(part));
    found.unwrap_or_else(|| panic!("no {part}"))
}

#[test]
fn a_weight_that_is_no_number_is_named_with_its_layer() {
    for (kind, told) in [(Kind::Sft, "its forward isn't finite "), (Kind::Weft, "its entropies aren't finite, ")] {
        for (part, place) in [
            ("wte", "the token embedding"),
            ("blocks.0.ff_norm", "layer 0"),
            ("blocks.1.q_proj.lora_B", "layer 1"),
            ("ln_f", "the norm before the head"),
        ] {
            let mut trainer = trainer(settings(), kind);
            let id = param(&trainer, part);
            trainer.model.params[id].weight.make_trainable().fill(f32::NAN);
            let (message, name) = (stopped(&mut trainer), trainer.model.params[id].name.clone());
            assert!(message.contains("step 1: loss "), "{message}");
            assert!(message.contains(" 4 of its 4 examples (example "), "{message}");
            assert!(message.contains(&format!("{told}from {place} on (its weight {name} isn't finite)")), "{message}");
        }
    }
}

#[test]
fn the_example_that_goes_wrong_is_named_with_its_time() {
    for kind in Kind::ALL {
        let mut trainer = poison(trainer(settings(), kind));
        let message = loop {
            if let Err(error) = trainer.step() {
                break error.to_string();
            }
        };
        // The first epoch has it once, alone among four.
        assert!(trainer.step < 3 && message.contains("; 1 of its "), "{message}");
        let (_, told) =
            message.split_once(" examples is at fault, example 5 (t 0.").unwrap_or_else(|| panic!("{message}"));
        assert!(told.contains("from the token embedding"), "{message}");
        assert!(message.ends_with("an objective.rate_floor above 0 avoids them in a new run"), "{message}");
    }
}

#[test]
fn a_gradient_that_goes_wrong_in_the_backward_is_named() {
    // A forward of ordinary size through factors of 1e-40 and 3e38: going back, the large one comes first.
    let mut trainer = trainer(TrainTable { micro_batch_size: 4, grad_accum_steps: 1, ..settings() }, Kind::Sft);
    let [a, b] = ["A", "B"].map(|ab| param(&trainer, &format!("blocks.1.v_proj.lora_{ab}")));
    trainer.model.config.lora_dropout = 0.0;
    trainer.model.params[a].weight.make_trainable().fill(1e-40);
    trainer.model.params[b].weight.make_trainable().fill(3e38);
    trainer.model.config.lora_scale = 64.0;
    let message = stopped(&mut trainer);
    let name = &trainer.model.params[a].name;
    let told = format!("its forward is finite; in the backward {name} is the first whose gradient is not");
    assert!(message.contains(&told), "{message}");
}

#[test]
fn a_step_that_is_passed_over_leaves_nothing_but_its_count() {
    for kind in Kind::ALL {
        let mut trainer = poison(trainer(skipping(), kind));
        let mut skipped = vec![];
        for step in 0..9 {
            let before = state(&trainer);
            let report = trainer.step().expect("such steps are passed over");
            assert_eq!((report.step, trainer.step), (step + 1, step + 1));
            assert_eq!(report.skipped.is_some(), state(&trainer) == before, "step {step}");
            if let Some(skip) = report.skipped {
                assert_eq!(skip.reason, Reason::NonFinite);
                assert!(skip.examples.contains(&5) && skip.why.contains("example 5 (t 0."), "{skip:?}");
                skipped.push(step / 3);
            }
            assert_eq!(report.skipped_steps, skipped.len() as u64);
        }
        assert_eq!(skipped, [0, 1, 2], "{kind:?}: once an epoch");
        assert_eq!(trainer.guard.skipped, Skipped { non_finite: 3, spikes: 0 });
        assert!(state(&trainer).0.iter().all(|bits| f32::from_bits(*bits).is_finite()));
    }
}

#[test]
fn a_run_of_nothing_else_ends() {
    let mut trainer = trainer(TrainTable { epochs: 9, ..skipping() }, Kind::Weft);
    let norm = trainer.model.final_norm;
    trainer.model.params[norm].weight.make_trainable()[0] = f32::NAN;
    for _ in 1..MOST_IN_A_ROW {
        assert!(trainer.step().expect("such steps are passed over").skipped.is_some());
    }
    let message = stopped(&mut trainer);
    assert!(message.starts_with("step 8: loss NaN, gradient norm NaN; 4 of its 4 examples ("), "{message}");
    assert!(message.contains("isn't finite); the 7 steps before it were skipped too; "), "{message}");
    let advice =
        "skipping them does not help, and --resume would come to the same steps: start over in another train.output";
    assert!(message.contains(advice) && !message.contains("on_non_finite=skip"), "{message}");
}

#[test]
fn a_resumed_run_passes_over_the_same_steps() {
    let start = || poison(trainer(TrainTable { checkpoint_every: 1, spike_factor: 1e3, ..skipping() }, Kind::Weft));
    let recipe = Resolved::from(json!({ "train": { "lr": 1e-2 } }));
    let mut whole = start();
    let of_whole = folder("whole");
    let summary = run::train(&mut whole, (&[], &of_whole), &recipe, BEGIN, go_on).expect("the run works");
    assert_eq!(summary.skipped, Skipped { non_finite: 3, spikes: 0 });
    let lines = |output: &Path| -> Vec<(Value, Value, bool)> {
        let text = fs::read_to_string(output.join("metrics.jsonl")).expect("there are metrics");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
        lines.map(|l| (l["step"].clone(), l["skipped_steps"].clone(), l["skipped"]["reason"] == "non_finite")).collect()
    };
    for stop in 1..9 {
        let output = folder("resumed");
        let mut killed = start();
        for _ in 0..stop {
            killed.step().expect("the step works");
        }
        checkpoint::save(&output, &killed, &recipe).expect("the checkpoint is saved");
        let mut resumed = start();
        let summary = run::train(&mut resumed, (&[], &output), &recipe, RESUME, go_on).expect("the run resumes");
        assert_eq!((summary.first_step, summary.skipped), (stop, Skipped { non_finite: 3, spikes: 0 }));
        assert_eq!((state(&resumed), &resumed.guard), (state(&whole), &whole.guard), "resumed at step {stop}");
        assert_eq!(lines(&output), lines(&of_whole)[stop as usize..]);
    }
    assert_eq!(lines(&of_whole).iter().filter(|(.., is_skipped)| *is_skipped).count(), 3);
}

/// Trains 24 steps; before one of them the head's weights are 64 times their size, which is undone after it.
fn with_spike(spike_factor: f64, spike: Option<u64>) -> (Trainer, Vec<u64>) {
    let settings = TrainTable { epochs: 8, spike_factor, ..settings() };
    let mut trainer = trainer(settings, Kind::Sft);
    let head = trainer.model.head.weight;
    let mut skipped = vec![];
    for step in 1..=24 {
        let scale = |trainer: &mut Trainer, by: f32| {
            trainer.model.params[head].weight.make_trainable().iter_mut().for_each(|x| *x *= by);
        };
        let is_spike = spike == Some(step);
        if is_spike {
            scale(&mut trainer, 64.0);
        }
        let before = state(&trainer);
        let report = trainer.step().expect("the step works");
        if let Some(skip) = report.skipped {
            assert_eq!(skip.reason, Reason::Spike);
            assert!(skip.why.starts_with(&format!("step {step}: the gradient norm ")), "{skip:?}");
            assert!(state(&trainer) == before, "nothing is left of the step");
            skipped.push(step);
        }
        if is_spike {
            scale(&mut trainer, 1.0 / 64.0);
        }
    }
    (trainer, skipped)
}

#[test]
fn a_spike_is_passed_over_and_nothing_else() {
    let spike = LEAST as u64 + 4;
    let (guarded, skipped) = with_spike(16.0, Some(spike));
    assert_eq!((skipped, guarded.guard.skipped), (vec![spike], Skipped { non_finite: 0, spikes: 1 }));
    let (unguarded, skipped) = with_spike(0.0, Some(spike));
    assert!(skipped.is_empty() && state(&unguarded) != state(&guarded), "without the guard it is trained on");
    // Where it never fires it changes nothing.
    let [off, idle] = [0.0, 16.0].map(|factor| with_spike(factor, None));
    assert!(off.1.is_empty() && idle.1.is_empty());
    assert!(state(&off.0) == state(&idle.0));
    // Too early to tell.
    assert!(with_spike(16.0, Some(LEAST as u64)).1.is_empty());
}

#[test]
fn spikes_one_after_the_other_end_the_run() {
    let settings = TrainTable { epochs: 12, spike_factor: 16.0, ..settings() };
    let mut trainer = trainer(settings, Kind::Sft);
    (0..LEAST).for_each(|_| assert!(trainer.step().expect("the step works").skipped.is_none()));
    let head = trainer.model.head.weight;
    trainer.model.params[head].weight.make_trainable().iter_mut().for_each(|x| *x *= 1024.0);
    let told = (0..MOST_IN_A_ROW).find_map(|_| trainer.step().err()).expect("the run ends").to_string();
    assert!(told.starts_with(&format!("step {}: the gradient norm ", LEAST as u64 + MOST_IN_A_ROW)), "{told}");
    assert!(told.ends_with("raise train.spike_factor and add --resume, or start over with a lower train.lr"), "{told}");
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).env("WEFT_CACHE", "cache").args(["train", "recipe.toml"]).args(arguments);
    command.output().expect("weft starts")
}

#[test]
fn a_run_names_file_and_row_and_goes_on_without_them() {
    let (base, folder) = (fixtures::poisoned_base("~"), folder("run"));
    let row = |i: usize| {
        let what = if i == 6 { "~" } else { "" };
        format!("{{\"prompt\": \"What is {i}{what} + 1?\", \"response\": \"{}\"}}\n", i + 1)
    };
    // Blank lines are no rows.
    fs::write(folder.join("rows.jsonl"), format!("\n{}", (0..8).map(row).collect::<String>())).expect("written");
    let recipe = format!(
        "[model]\npath = {:?}\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmicro_batch_size = 4\n\
         epochs = 2\ncheckpoint_every = 1\n",
        base.display().to_string()
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let stopped = weft(&folder, &["--quiet"]);
    let told = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(1), "{told}");
    let saved = match told.contains("step 1: ") {
        true => "no checkpoint was saved before it",
        false => "the last checkpoint is unchanged",
    };
    assert!(told.contains(saved), "{told}");
    assert!(told.contains("; 1 of its 4 examples is at fault, example 6 (rows.jsonl:8, t 0."), "{told}");
    assert!(told.contains("--resume --set train.on_non_finite=skip skips such steps"), "{told}");
    let resumed = weft(&folder, &["--resume", "--set", "train.on_non_finite=skip"]);
    let (told, shown) = (String::from_utf8_lossy(&resumed.stderr), String::from_utf8_lossy(&resumed.stdout));
    assert!(resumed.status.success(), "{told}");
    assert!(told.contains("skipped step ") && told.contains("example 6 (t 0."), "{told}");
    assert!(shown.contains("; 2 of 4 steps skipped, not finite\n"), "{shown}");
    let report = fs::read_to_string(folder.join("run/report.html")).expect("there is a report");
    assert!(report.contains("Skipped steps") && report.contains("2 of 4 steps skipped"), "the report tells of them");
    let events = fs::read(folder.join("run/events.out.tfevents.weft")).expect("there are events");
    let tag = b"skipped_steps";
    assert_eq!(events.windows(tag.len()).filter(|bytes| bytes == tag).count(), 4, "one a step");
}

#[test]
fn the_forward_that_is_looked_through_is_the_one_that_is_trained() {
    let trainer = trainer(settings(), Kind::Sft);
    let batch = weft::model::batch::Batch::pack([&fixtures::IDS[..]]);
    assert_eq!(trainer.model.first_non_finite(&batch, &[1, 4], Precision::F32), None);
    assert_eq!(trainer.model.first_non_finite_gradient(&trainer.model.zero_gradients()), None);
}
