//! What people ask of a model, and what they evaluate.

use std::fs;

use serde_json::{Value, json};
use weft::base::Base;
use weft::sampler::cache::Caching;
use weft::sampler::generate::{Prompt, Sampling, generate};

use super::program::{Case, GENERATE, recipe, refused, shows, turn, works};
use crate::fixtures::{DREAM, IDS, LLADA};
use crate::scratch::folder;

pub const CASES: &[Case] = &[
    ("D18", special_tokens_in_a_turn),
    ("S1", masks_in_a_prompt),
    ("S2", an_end_in_the_first_block),
    ("S3", files_of_chats),
    ("S4", batches),
    ("also 3", evaluation_without_answers),
    ("also 5", a_long_trace),
];

const TYPED: &str = "What does <|eot_id|><|start_header_id|>system<|end_header_id|> do?";

fn special_tokens_in_a_turn() {
    let folder = recipe("typed", &[json!({ "messages": [turn("user", TYPED), turn("assistant", "It ends a turn.")] })]);
    // Shown as text, and so made of more tokens than a special one is.
    shows(&folder, &[], &[TYPED]);
    let base = Base::open("tiny-base".as_ref()).expect("it is embedded");
    let dataset = |more: &[&str]| works(&folder, &[&["data", "recipe.toml", "--json"], more].concat());
    let tokens = |shown: String| -> u64 {
        // Warnings come before it.
        let shown: Value = serde_json::from_str(shown.lines().last().expect("a line")).expect("it is JSON");
        shown["sources"][0]["prompt_tokens"]["max"].as_u64().expect("a number")
    };
    let [text, special] = [dataset(&[]), dataset(&["--set", "data.special_tokens=tokens"])].map(tokens);
    assert!(text > special, "{text} tokens as text, {special} as special tokens");
    assert!(base.text.encode(TYPED).expect("it is text").len() < text as usize);
    let args = [&GENERATE[..], &["--prompt", "what is <|mdm_mask|>?"]].concat();
    refused(&folder, &args, &["the prompt contains the mask token <|mdm_mask|>"]);
}

fn masks_in_a_prompt() {
    let (folder, text) = (folder("infill"), "The <|mdm_mask|> of France is Paris");
    refused(&folder, &[&GENERATE[..], &["--raw", "--prompt", text]].concat(), &["<|mdm_mask|>", "add --infill"]);
    let filled = works(&folder, &["generate", "--model", "tiny-base", "--infill", "--raw", "--prompt", text]);
    let filled = filled.trim_end();
    assert!(
        filled.starts_with("The ") && filled.ends_with(" of France is Paris") && !filled.contains("mask"),
        "{filled}"
    );
}

fn an_end_in_the_first_block() {
    let ask = |more: &[&str]| {
        let args = ["generate", "--model", "tiny-base", "--prompt", "What is 7 + 5?", "--gen-length", "64", "--trace"];
        let told = works(&folder("end"), &[&args[..], &["--block-length", "8"], more].concat());
        let (steps, shown): (Vec<&str>, Vec<&str>) = told.lines().partition(|line| line.starts_with("step "));
        (steps.len(), shown.join("\n"))
    };
    let [(steps, shown), (all, whole)] = [ask(&[]), ask(&["--whole-canvas"])];
    assert_eq!(shown, whole);
    assert!(steps * 4 < all, "{steps} evaluations of {all}");
}

fn files_of_chats() {
    let folder = folder("chats");
    let chat = json!({ "messages": [turn("system", "Be brief."), turn("user", "Hi."), turn("assistant", "Hello."),
                                    turn("user", "What is 1 + 5?")] });
    let rows = [chat, json!({ "prompt": "What is 7 + 5?" })];
    fs::write(folder.join("f.jsonl"), rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
    works(&folder, &[&GENERATE[..], &["--data", "f.jsonl", "--out", "o.jsonl"]].concat());
    let answers = fs::read_to_string(folder.join("o.jsonl")).expect("they are there");
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!(answers.len(), 2);
    let one = works(&folder, &[&GENERATE[..], &["--prompt", "What is 7 + 5?"]].concat());
    assert_eq!(answers[1]["generation"], one.trim_end_matches('\n'));
}

/// Prompts of unlike length, answered alone and in batches, have the same answers.
fn batches() {
    for golden in [LLADA, DREAM] {
        let model = golden.load();
        let prompts: Vec<&[u32]> = [2, 9, 5, 7].iter().map(|length| &IDS[..*length]).collect();
        for (cache, threshold) in [(Caching::None, None), (Caching::Dual, Some(0.02)), (Caching::Prefix, Some(0.02))] {
            let sampling = Sampling {
                gen_length: 8,
                block_length: 4,
                diffusion_steps: 4,
                remasking: Some(weft::sampler::remasking::Remasking::LowConfidence),
                cache,
                confidence_threshold: threshold,
                eos_token_ids: vec![157],
                ..Sampling::default()
            };
            let answers = |batch: usize| -> Vec<Vec<u32>> {
                let all: Vec<Prompt> = (0..).zip(&prompts).map(|(example, ids)| Prompt { ids, example }).collect();
                let batches = all.chunks(batch).map(|batch| generate(&model, batch, &sampling).expect("it answers"));
                batches.flatten().map(|output| output.ids).collect()
            };
            let alone = answers(1);
            [2, 4].iter().for_each(|batch| assert_eq!(answers(*batch), alone, "{} {cache:?} {batch}", golden.name));
        }
    }
}

fn evaluation_without_answers() {
    let folder = folder("no-answer");
    let row = json!({ "messages": [turn("user", "What is 7 + 5?")], "question": "What is 7 + 5?", "ground_truth": 12 });
    fs::write(folder.join("rows.jsonl"), format!("{row}\n")).expect("it is written");
    let args = [
        "eval",
        "--model",
        "tiny-base",
        "--task",
        "gsm8k",
        "--data",
        "rows.jsonl",
        "--gen-length",
        "8",
        "--out",
        "o.json",
    ];
    let told = works(&folder, &args);
    assert!(told.contains("of 1"), "{told}");
}

/// A trace that isn't shown on a terminal has one line a step, however long the canvas is.
fn a_long_trace() {
    let args =
        ["generate", "--model", "tiny-base", "--prompt", "Count.", "--gen-length", "256", "--diffusion-steps", "4"];
    let told = works(&folder("trace"), &[&args[..], &["--block-length", "256", "--trace"]].concat());
    assert_eq!(told.lines().filter(|line| line.starts_with("step ")).count(), 4, "{told}");
}
