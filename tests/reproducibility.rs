//! The same recipe gives the same adapter: at any number of threads and from any checkpoint byte for byte, at any split of
//! the global batch with the same masks and weights that differ by the rounding of sums alone. Answers are the same at
//! any batch size.

mod fixtures;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scratch::folder;
use weft::base::Base;
use weft::data::Message;
use weft::experiment::Experiment;
use weft::files::content_hash;
use weft::model::batch::Batch;
use weft::model::lora;
use weft::recipe::Recipe;
use weft::sampler::generate::{Prompt, Sampling, generate};
use weft::sampler::remasking::Remasking;
use weft::train::checkpoint;
use weft_kernels::precision::Precision;

const ADAPTER: &str = "run/adapter/adapter_model.safetensors";
const STEPS: u64 = 6;

/// A run of six steps over twelve rows of different lengths, with dropout, entropies that are reused, and a checkpoint
/// every second step.
fn recipe(folder: &Path, more: &str) -> String {
    let row = |i: usize| {
        let (sum, prompt) = (7 * i + 5, "Please add up what follows. ".repeat(i % 3));
        format!(
            "{{\"prompt\": \"{prompt}{i} + {} =\", \"response\": \"{}\"}}\n",
            6 * i + 5,
            sum.to_string().repeat(1 + i % 4)
        )
    };
    let rows = folder.join("rows.jsonl");
    fs::write(&rows, (0..12).map(row).collect::<String>()).expect("the rows are written");
    format!(
        "[model]\nlora_rank = 4\nlora_dropout = 0.1\nlora_targets = [\"all-linear\"]\n{more}\n[data]\ntrain = {rows:?}\n\
         [objective]\nentropy_every = 2\n[train]\noutput = {:?}\nlr = 2e-3\nepochs = 2\nmicro_batch_size = 4\n\
         checkpoint_every = 2\n",
        folder.join("run")
    )
}

/// Runs `weft train`; the adapter's file.
fn train(folder: &Path, recipe: &str, arguments: &[&str]) -> PathBuf {
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).env("WEFT_CACHE", folder.join("cache"));
    let output = command.args(["train", "recipe.toml", "--quiet"]).args(arguments).output().expect("weft starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join(ADAPTER)
}

fn hash(file: &Path) -> u128 {
    content_hash(file).expect("there is an adapter")
}

#[test]
fn threads_change_no_byte_of_an_adapter() {
    for more in ["", "precision = \"bf16\""] {
        let of_threads = |threads: &str| {
            let folder = folder("threads");
            hash(&train(&folder, &recipe(&folder, more), &["--threads", threads]))
        };
        let one = of_threads("1");
        assert_eq!(one, of_threads("2"), "{more}");
        assert_eq!(one, of_threads("4"), "{more}");
    }
}

#[test]
fn no_point_of_a_run_changes_a_byte_where_it_is_resumed() {
    let whole = folder("whole");
    let whole = hash(&train(&whole, &recipe(&whole, ""), &["--threads", "2"]));
    for step in 1..STEPS {
        let folder = folder("resumed");
        let text = recipe(&folder, "");
        let experiment = Recipe::parse(&text, Path::new("recipe.toml"), &[]).and_then(Experiment::open);
        let (experiment, base) = experiment.expect("the recipe is whole");
        let (mut trainer, _) = experiment.trainer(base.model, &base.text).expect("there are layers");
        (0..step).for_each(|_| drop(trainer.step().expect("the step works")));
        checkpoint::save(&folder.join("run"), &trainer, &experiment.resolved()).expect("the checkpoint is saved");
        let threads = if step % 2 == 0 { "1" } else { "4" };
        assert_eq!(hash(&train(&folder, &text, &["--resume", "--threads", threads])), whole, "resumed at step {step}");
    }
}

/// Each step's masks, token for token, and losses.
fn masks(recipe: &str, split: [usize; 2]) -> Vec<(Vec<Vec<bool>>, f64)> {
    let [micro, accumulated] = split;
    let set = [format!("train.micro_batch_size={micro}"), format!("train.grad_accum_steps={accumulated}")];
    let recipe = Recipe::parse(recipe, Path::new("recipe.toml"), &set).expect("the recipe is whole");
    let (experiment, base) = Experiment::open(recipe).expect("base and rows are there");
    let (mut trainer, _) = experiment.trainer(base.model, &base.text).expect("there are layers");
    let report = |_| {
        let report = trainer.step().expect("the step works");
        (report.masked, report.loss)
    };
    (0..STEPS).map(report).collect()
}

#[test]
fn the_split_of_a_batch_changes_no_mask_and_the_rest_by_rounding_alone() {
    let splits = [[1, 4], [2, 2], [4, 1]];
    let objectives = [
        "kind = \"weft\"",
        "kind = \"sft\"",
        "kind = \"cart\"",
        "kind = \"token_weight\"",
        "normalizer = \"sequence\"",
    ];
    // Measured: 1.2e-5 and 4.3e-3.
    let precisions = [("f32", 1e-4), ("bf16", 2e-2)];
    for (precision, bound) in precisions {
        let folders = splits.map(|_| folder("split"));
        let texts = folders.each_ref().map(|folder| recipe(folder, &format!("precision = \"{precision}\"")));
        let adapters: Vec<_> = folders
            .iter()
            .zip(&texts)
            .zip(splits)
            .map(|((folder, text), [micro, accumulated])| {
                let set = [format!("train.micro_batch_size={micro}"), format!("train.grad_accum_steps={accumulated}")];
                train(folder, text, &["--set", &set[0], "--set", &set[1]])
            })
            .collect();
        let tensors = |file: &PathBuf| fixtures::read(&fs::read(file).expect("there is an adapter"));
        let [first, others @ ..] = &adapters.iter().map(tensors).collect::<Vec<_>>()[..] else { unreachable!() };
        for other in others {
            // The distance of all weights together, against what was trained: lora_B begins at 0.
            let (mut distance, mut size) = (0.0, 0.0);
            for (name, (_, numbers)) in first.iter().filter(|(name, _)| name.contains("lora_B")) {
                for (a, b) in numbers.iter().zip(&other[name].1) {
                    distance += f64::from(a - b).powi(2);
                    size += f64::from(*a).powi(2);
                }
            }
            let relative = (distance / size).sqrt();
            println!("{precision}: {relative:.2e} of the adapter's norm");
            assert!(size > 0.0 && relative <= bound, "{precision}: {relative}");
        }
    }
    for objective in objectives {
        let folder = folder("masks");
        let text = recipe(&folder, "").replace("[objective]\n", &format!("[objective]\n{objective}\n"));
        let [whole, others @ ..] = &splits.map(|split| masks(&text, split));
        for other in others {
            for (step, ((masked, loss), (other_masked, other_loss))) in whole.iter().zip(other).enumerate() {
                assert_eq!(masked, other_masked, "{objective}, step {step}");
                assert!((loss - other_loss).abs() <= 1e-3 * loss, "{objective}, step {step}: {loss}, {other_loss}");
            }
        }
    }
}

#[test]
fn answers_are_the_same_at_any_batch_size() {
    let base = Base::open(Path::new("tiny-base")).expect("it is embedded");
    let ask = |i: usize| {
        let content = format!("{}What is {i} + {}?", "Now tell me. ".repeat(i % 3), 3 * i + 1);
        base.text.prompt_ids(&[Message { role: "user".to_owned(), content }]).expect("the template works")
    };
    let prompts: Vec<Vec<u32>> = (0..8).map(ask).collect();
    let mut model = base.model;
    let config = lora::LoraConfig::new(4, 8.0, 0.0, vec!["all-linear".to_owned()], false);
    lora::attach_fresh(&mut model, &config, 3).expect("there are layers");
    fixtures::disturb(&mut model);
    let settings = Sampling { gen_length: 24, block_length: 12, diffusion_steps: 12, ..Sampling::default() };
    let samplings = [
        settings.clone(),
        Sampling { temperature: 0.8, remasking: Some(Remasking::Random), ..settings.clone() },
        Sampling { cfg_scale: 1.0, confidence_threshold: Some(0.6), ..settings.clone() },
        Sampling { remasking: Some(Remasking::Entropy), alg_temp: 0.2, temperature: 0.4, ..settings },
    ];
    for precision in [Precision::F32, Precision::Bf16] {
        model.config.precision = precision;
        for sampling in &samplings {
            let answers = |size: usize| -> Vec<Vec<u32>> {
                let numbered: Vec<Prompt> =
                    prompts.iter().zip(0..).map(|(ids, example)| Prompt { ids, example }).collect();
                let batches = numbered.chunks(size);
                let of = |batch: &[Prompt]| generate(&model, batch, sampling).expect("the lengths divide");
                batches.flat_map(of).map(|output| output.ids).collect()
            };
            let alone = answers(1);
            assert_eq!(alone, answers(3), "{precision:?} {sampling:?}");
            assert_eq!(alone, answers(8), "{precision:?} {sampling:?}");
        }
    }
}

/// Why it holds: not a bit of a sequence's logits, entropies or losses depends on the others of its batch.
#[test]
fn a_sequence_has_the_same_bits_in_any_batch() {
    let mut model = Base::open(Path::new("tiny-base")).expect("it is embedded").model;
    let config = lora::LoraConfig::new(4, 8.0, 0.0, vec!["all-linear".to_owned()], false);
    lora::attach_fresh(&mut model, &config, 3).expect("there are layers");
    fixtures::disturb(&mut model);
    let ids = |i: usize| (0..5 + 13 * i).map(|p| ((p * 37 + i * 11) % 600) as u32).collect::<Vec<u32>>();
    let sequences: Vec<Vec<u32>> = (0..8).map(ids).collect();
    for precision in [Precision::F32, Precision::Bf16] {
        (model.config.precision, model.config.entropy_precision) = (precision, precision);
        let numbers = |sequences: &[Vec<u32>]| -> Vec<Vec<u32>> {
            let batch = Batch::pack(sequences.iter().map(Vec::as_slice));
            let rows: Vec<usize> = (0..batch.ids.len()).collect();
            let mut all: Vec<Vec<u32>> = vec![vec![]; rows.len()];
            let mut push = |row: usize, x: f32| all[row].push(x.to_bits());
            let vocab = model.params[model.head.weight].weight.rows();
            model.for_each_logits(&batch, &rows, |first, chunk| {
                chunk.iter().enumerate().for_each(|(i, x)| push(first + i / vocab, *x));
            });
            model.entropy(&batch, &rows).iter().enumerate().for_each(|(row, x)| push(row, *x));
            model.nll(&batch, &rows, &batch.ids).iter().enumerate().for_each(|(row, x)| push(row, *x));
            all
        };
        let alone: Vec<Vec<u32>> = sequences.iter().flat_map(|one| numbers(std::slice::from_ref(one))).collect();
        for size in [3, 8] {
            let together: Vec<Vec<u32>> = sequences.chunks(size).flat_map(numbers).collect();
            let differing = alone.iter().zip(&together).position(|(a, b)| a != b);
            assert_eq!(differing, None, "{precision:?}, {size} at a time");
        }
    }
}
