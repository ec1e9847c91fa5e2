//! Sampling with block-causal attention: token for token what recomputing every row gives, whatever is batched with it.

mod device;
mod plain;
mod scratch;
mod small_run;

use std::path::{Path, PathBuf};

use device::on_device;
use proptest::prelude::*;
use serde_json::{Value, json};
use small_run::examples;
use weft::data::packing::Padding;
use weft::model::batch::{AttentionKind, Batch};
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::objective::{Blocks, Kind, Objective};
use weft::recipe::Recipe;
use weft::rng::{Draws, Stream};
use weft::sampler::cache::Caching;
use weft::sampler::generate::{Attention, Output, Prompt, Sampling, generate, generate_told};
use weft::sampler::infill::infill;
use weft::sampler::remasking::{Remasking, num_transfer_tokens};
use weft::train::settings::TrainTable;

const FAMILIES: [&str; 3] = ["a2d-qwen3", "dream", "llada"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Transformer {
    on_device(checkpoint::load(&path(name)).expect("the golden checkpoint loads"))
}

fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 37 + seed * 13 + 5) % 150) as u32).collect()
}

fn sampling(block_length: usize) -> Sampling {
    let attention = Some(Attention::BlockCausal);
    Sampling { gen_length: 16, block_length, diffusion_steps: 8, attention, ..Sampling::default() }
}

fn answer(model: &Transformer, ids: &[u32], sampling: &Sampling) -> Output {
    generate(model, &[Prompt { ids, example: 3 }], sampling).expect("it samples").remove(0)
}

/// The loop at temperature 0, with every row computed at every step.
fn recomputed(model: &Transformer, prompt: &[u32], s: &Sampling) -> Vec<u32> {
    let mask = model.config.mask_token_id;
    let end = prompt.len() + s.gen_length;
    let mut ids = prompt.to_vec();
    ids.resize(end.next_multiple_of(s.block_length), mask);
    let first = prompt.len() / s.block_length * s.block_length;
    for start in (first..ids.len()).step_by(s.block_length) {
        let block = start..start + s.block_length;
        let all = block.clone().filter(|i| ids[*i] == mask).count();
        let steps = match s.confidence_threshold {
            Some(_) => all,
            None => (all * s.diffusion_steps).div_ceil(s.gen_length).clamp(1, all.max(1)),
        };
        for count in num_transfer_tokens(all, steps) {
            let masked: Vec<usize> = block.clone().filter(|i| ids[*i] == mask).collect();
            if masked.is_empty() {
                break;
            }
            let kind = AttentionKind::BlockCausal { block_length: s.block_length };
            let logits = |ids: &[u32]| {
                let mut all = vec![];
                let batch = Batch::pack_as(kind, [[ids; 2]]);
                model.for_each_logits(&batch, &masked, |_, chunk| all.extend_from_slice(chunk));
                all
            };
            let mut logits = logits(&ids[..]);
            if s.cfg_scale > 0.0 {
                let without = [&vec![mask; prompt.len()], &ids[prompt.len()..]].concat();
                let mut other = vec![];
                let batch = Batch::pack_as(kind, [[without.as_slice(); 2]]);
                model.for_each_logits(&batch, &masked, |_, chunk| other.extend_from_slice(chunk));
                let guide = |(l, u): (&mut f32, f32)| *l = u + (s.cfg_scale as f32 + 1.0) * (*l - u);
                logits.iter_mut().zip(other).for_each(guide);
            }
            let vocab = logits.len() / masked.len();
            let mut found: Vec<(f64, usize, u32)> = vec![];
            for (row, i) in logits.chunks(vocab).zip(&masked) {
                let total: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
                let tokens = (0..vocab as u32).filter(|v| *v != mask);
                let best = tokens.max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize])).expect("a vocabulary");
                found.push((f64::from(row[best as usize]).exp() / total, *i, best));
            }
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            let keep = match s.confidence_threshold {
                Some(threshold) => found.iter().filter(|f| f.0 >= threshold).count().max(1),
                None => count,
            };
            found.iter().take(keep).for_each(|(_, i, id)| ids[*i] = *id);
        }
        let own = &ids[block.start.max(prompt.len())..block.end];
        if !s.whole_canvas && own.iter().any(|id| s.eos_token_ids.contains(id)) {
            ids[block.end..].fill(s.eos_token_ids[0]);
            break;
        }
    }
    ids.truncate(end);
    ids
}

#[test]
fn the_cache_of_finished_blocks_is_exact() {
    for name in FAMILIES {
        let model = golden(name);
        for (len, block_length) in [(5, 4), (8, 4), (0, 8), (13, 1), (7, 5), (3, 32)] {
            let ids = prompt(len, block_length);
            for change in [
                sampling(block_length),
                Sampling { confidence_threshold: Some(0.05), ..sampling(block_length) },
                Sampling { cfg_scale: 1.5, ..sampling(block_length) },
                Sampling { gen_length: 9, diffusion_steps: 9, ..sampling(block_length) },
            ] {
                let got = answer(&model, &ids, &change);
                assert_eq!(got.ids, recomputed(&model, &ids, &change), "{name} {len} {block_length} {change:?}");
                assert_eq!(got.ids.len(), len + change.gen_length);
                assert!(!got.ids[len..].contains(&model.config.mask_token_id));
                // A row is computed with its own block and once more when that is finished, not at every step.
                let rows = got.work.rows as usize;
                let whole = got.work.forwards as usize * (len + change.gen_length);
                assert!(rows <= whole + got.work.forwards as usize * block_length, "{rows} rows");
            }
        }
    }
}

#[test]
fn a_plain_network_samples_the_same() {
    for name in FAMILIES {
        let model = golden(name);
        let (ids, s) = (prompt(6, 1), sampling(4));
        assert_eq!(answer(&model, &ids, &s).ids, plain::denoise_in_blocks(&model, &ids, &s), "{name}");
    }
}

#[test]
fn a_batch_gives_each_prompt_what_it_gets_alone() {
    for name in FAMILIES {
        let model = golden(name);
        let prompts: Vec<Vec<u32>> = [5, 0, 16, 9].into_iter().map(|len| prompt(len, len)).collect();
        let warm = Sampling { temperature: 0.7, seed: 5, ..sampling(4) };
        let random = Sampling { remasking: Some(Remasking::Random), ..sampling(4) };
        for s in [sampling(4), Sampling { confidence_threshold: Some(0.04), ..sampling(4) }, warm, random] {
            let asked: Vec<Prompt> = prompts.iter().zip(0..).map(|(ids, example)| Prompt { ids, example }).collect();
            let together = generate(&model, &asked, &s).expect("it samples");
            for (prompt, together) in asked.iter().zip(together) {
                let alone = generate(&model, &[*prompt], &s).expect("it samples").remove(0);
                assert_eq!(alone, together, "{name} {s:?}");
            }
        }
    }
}

#[test]
fn an_end_token_ends_the_answer() {
    let model = golden("a2d-qwen3");
    let ids = prompt(6, 2);
    let open = Sampling { gen_length: 40, diffusion_steps: 40, ..sampling(4) };
    let without = answer(&model, &ids, &open);
    // A token of the second block plays the end token.
    let end = without.ids[9];
    let ended = Sampling { eos_token_ids: vec![end], ..open.clone() };
    let got = answer(&model, &ids, &ended);
    assert_eq!(got.ids, recomputed(&model, &ids, &ended));
    let first = got.ids[6..].iter().position(|id| *id == end).expect("it is there") + 6;
    assert!(got.ids[(first / 4 + 1) * 4..].iter().all(|id| *id == end));
    assert!(got.work.forwards < without.work.forwards);
    let whole = Sampling { whole_canvas: true, ..ended.clone() };
    assert_eq!(answer(&model, &ids, &whole).ids, without.ids);
    let never = Sampling { forbid_eos: true, ..ended };
    assert!(!answer(&model, &ids, &never).ids[6..].contains(&end));
}

#[test]
fn steps_are_told_and_the_prompt_is_never_edited() {
    let model = golden("a2d-qwen3");
    let ids = prompt(7, 3);
    let (sender, receiver) = std::sync::mpsc::channel();
    let prompts = [Prompt { ids: &ids, example: 0 }];
    let output = generate_told(&model, &prompts, &sampling(4), Some(sender)).expect("it samples").remove(0);
    let told: Vec<Vec<Vec<u32>>> = receiver.iter().collect();
    assert_eq!(told.last().expect("steps")[0], output.ids);
    assert!(told.iter().all(|step| step[0].len() == 23 && step[0][..7] == ids[..]));
}

#[test]
fn settings_that_have_no_sense_are_refused_by_name() {
    let model = golden("dream");
    let refused =
        |s: &Sampling| generate(&model, &[Prompt { ids: &[1], example: 0 }], s).expect_err("no sense").to_string();
    for (setting, told) in [
        (Sampling { block_length: 0, ..sampling(4) }, "block_length 0"),
        (Sampling { cache: Caching::Dual, ..sampling(4) }, "cache dual"),
        (Sampling { remasking: Some(Remasking::Entropy), ..sampling(4) }, "remasking entropy has none"),
    ] {
        assert!(refused(&setting).contains(told), "{}", refused(&setting));
    }
    let text = [1, model.config.mask_token_id, 2];
    let error =
        infill(&model, Prompt { ids: &text, example: 0 }, &sampling(4), None).expect_err("no sense").to_string();
    assert!(error.contains("attention block-causal"), "{error}");
    let prefix = Sampling { cache: Caching::Prefix, ..sampling(4) };
    assert!(prefix.warnings(Remasking::LowConfidence)[0].contains("cache has no effect"));
}

/// A golden checkpoint whose config.json has more fields.
fn with_fields(name: &str, fields: Value) -> PathBuf {
    let folder = scratch::folder(&format!("block-causal-{name}-{}", fields.to_string().len()));
    let text = std::fs::read_to_string(path(name).join("config.json")).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config.as_object_mut().expect("a table").extend(fields.as_object().expect("a table").clone());
    std::fs::write(folder.join("config.json"), config.to_string()).expect("it is written");
    std::fs::copy(path(name).join("model.safetensors"), folder.join("model.safetensors")).expect("it is copied");
    folder
}

#[test]
fn a_checkpoint_says_how_it_was_trained() {
    for (field, length) in [("block_length", 4), ("block_size", 8), ("bd_size", 32)] {
        let (model, config) =
            checkpoint::load_with(&with_fields("a2d-qwen3", json!({ field: length })), Default::default())
                .expect("the checkpoint loads");
        assert_eq!(model.config.block_length, Some(length));
        assert!(config.unknown_fields().is_empty());
        assert!(config.told(true).contains(&format!("its block of {length} ")), "{}", config.told(true));
        let own = Sampling { gen_length: 16, diffusion_steps: 8, ..Sampling::default() };
        let asked = Sampling { block_length: length, ..sampling(length) };
        assert_eq!(answer(&model, &prompt(5, 1), &own).ids, answer(&model, &prompt(5, 1), &asked).ids);
        let other = Sampling { attention: Some(Attention::Bidirectional), block_length: 16, ..own };
        assert!(!other.for_model(&model.config).is_block_causal());
    }
    let error = checkpoint::load(&with_fields("a2d-qwen3", json!({ "block_length": 0 }))).expect_err("no length");
    assert!(error.to_string().contains("block_length = 0"), "{error}");
}

#[test]
fn a_recipe_samples_as_it_trains() {
    let model = golden("a2d-qwen3");
    let recipe = |settings: &[&str]| {
        let settings: Vec<String> =
            ["data.train=a.jsonl"].iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
        Recipe::parse("", Path::new("r.toml"), &settings).expect("a recipe").sampling(&model.config)
    };
    let trained = recipe(&["objective.blocks=bd3lm", "objective.block_length=8"]);
    assert_eq!((trained.is_block_causal(), trained.block_length), (true, 8));
    let chosen = recipe(&["objective.blocks=bd3lm", "sampler.block_length=4"]);
    assert_eq!((chosen.is_block_causal(), chosen.block_length), (true, 4));
    let plain = recipe(&["objective.blocks=bd3lm", "sampler.attention=bidirectional"]);
    assert!(!plain.is_block_causal());
    assert!(!recipe(&["objective.blocks=blockwise"]).is_block_causal());
}

/// What block diffusion was trained on comes back block by block.
#[test]
fn a_model_trained_by_block_diffusion_answers_in_blocks() {
    let mut model = checkpoint::load(&path("a2d-qwen3")).expect("the golden checkpoint loads");
    weft::train::optimizer::train_everything(&mut model);
    let objective = Objective { kind: Kind::Sft, blocks: Blocks::Bd3lm, block_length: 4, ..Objective::default() };
    let rows = examples()[..3].to_vec();
    let settings = TrainTable { epochs: 150, lr: 5e-3, max_grad_norm: 1.0, ..small_run::settings() };
    let mut trainer = small_run::trainer(model, rows.clone(), settings, (objective, Padding::None));
    (0..trainer.num_steps()).for_each(|_| drop(trainer.step().expect("the step works")));
    for row in &rows {
        let s = Sampling { gen_length: row.answer_ids.len(), diffusion_steps: row.answer_ids.len(), ..sampling(4) };
        let got = answer(&trainer.model, &row.prompt_ids, &s);
        assert_eq!(got.ids[row.prompt_ids.len()..], row.answer_ids[..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_mask_is_left_and_no_prompt_changed(
        len in 0usize..20, block_length in 1usize..12, gen_length in 1usize..20, steps in 1usize..24, seed in 0u64..99,
    ) {
        let model = golden("a2d-qwen2");
        let ids: Vec<u32> =
            (0..len as u64).map(|i| (Draws::new(seed, Stream::Text, 0, 0).unit_f64(i) * 150.0) as u32).collect();
        let s = Sampling { gen_length, diffusion_steps: steps, temperature: 0.5, ..sampling(block_length) };
        let got = answer(&model, &ids, &s).ids;
        prop_assert_eq!(got.len(), len + gen_length);
        prop_assert_eq!(&got[..len], &ids[..]);
        prop_assert!(!got.contains(&model.config.mask_token_id));
    }
}
