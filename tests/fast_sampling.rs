//! Caches and the confidence threshold: against a plain network and loop, against what is exact, and in batches.

mod device;
mod plain;
mod scratch;

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use device::on_device;
use proptest::prelude::*;
use weft::data::generated::{self, Puzzle};
use weft::model::batch::Batch;
use weft::model::block::Transformer;
use weft::model::cached::{KeysValues, Part};
use weft::model::{checkpoint, lora};
use weft::rng::{Draws, Stream};
use weft::sampler::cache::{Caching, Work};
use weft::sampler::generate::{Output, Prompt, Sampling, generate};
use weft::sampler::remasking::{Remasking, confident};

const CACHES: [Caching; 3] = [Caching::None, Caching::Prefix, Caching::Dual];

/// Golden checkpoints of every layout with their adapters, the head scaled so that some predictions are confident.
fn models() -> [Transformer; 4] {
    ["llada", "dream", "a2d-qwen3", "a2d-qwen2"].map(|family| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family);
        let mut model = checkpoint::load(&folder).expect("the golden checkpoint loads");
        lora::load(&folder.join("lora/adapter"), &mut model).expect("the golden adapter loads");
        let head = model.head.weight;
        model.params[head].weight.make_trainable().iter_mut().for_each(|x| *x *= 6.0);
        on_device(model)
    })
}

/// `count` tokens of the golden vocabulary, none a special one.
fn tokens(name: u64, count: usize) -> Vec<u32> {
    let draws = Draws::new(7, Stream::Text, 0, name);
    (0..count as u64).map(|i| (draws.unit_f64(i) * 150.0) as u32).collect()
}

fn block_loop(gen_length: usize, block_length: usize, diffusion_steps: usize) -> Sampling {
    let remasking = Some(Remasking::LowConfidence);
    Sampling { gen_length, block_length, diffusion_steps, remasking, ..Sampling::default() }
}

fn run(model: &Transformer, prompts: &[Vec<u32>], sampling: &Sampling) -> Vec<Output> {
    let prompts: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids, example: 3 }).collect();
    generate(model, &prompts, sampling).expect("the settings are sound")
}

fn cached_logits(model: &Transformer, batch: &Batch, cache: &mut KeysValues, part: Part) -> Vec<Vec<f32>> {
    let mut rows = vec![];
    let push = |_, chunk: &mut [f32]| rows.extend(chunk.chunks(160).map(<[f32]>::to_vec));
    model.for_each_logits_of(&model.predicting_inputs_cached(batch, cache, part), push);
    rows
}

/// The largest distance relative to the largest of `expected`.
fn distance<T: Copy + Into<f64>>(got: &[Vec<T>], expected: &[Vec<f64>]) -> f64 {
    assert!(!got.is_empty() && got.len() == expected.len());
    let largest = expected.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
    let apart = |(g, e): (&T, &f64)| ((*g).into() - e).abs() / largest;
    got.iter().flatten().zip(expected.iter().flatten()).map(apart).fold(0.0, f64::max)
}

#[test]
fn a_cached_forward_is_a_plain_one_with_stale_keys_and_values() {
    for model in models() {
        let mask = model.config.mask_token_id;
        let before = usize::from(model.config.logits_shifted);
        let mut canvases: Vec<Vec<u32>> =
            [5, 9, 2].iter().map(|prompt| [tokens(*prompt, *prompt as usize), vec![mask; 8]].concat()).collect();
        let batch = Batch::pack(canvases.iter().map(Vec::as_slice));
        let mut cache = KeysValues::new(&model, &batch);
        let all: Vec<usize> = (0..batch.ids.len()).collect();
        let first = cached_logits(&model, &batch, &mut cache, Part { computed: &all, predicted: &all });
        let passes: Vec<plain::Pass> =
            canvases.iter().map(|ids| plain::forward(&model, ids, 0..ids.len(), None)).collect();
        let expected: Vec<Vec<f64>> = passes.iter().flat_map(|pass| pass.logits.clone()).collect();
        assert!(distance(&first, &expected) < 1e-5, "a first pass computes everything");
        // The first and the last canvas get tokens in their first block; the second one is finished.
        let mut part = (vec![], vec![], vec![], vec![]);
        for (i, fresh) in [(0, 5 - before..13), (2, 2 - before..6)] {
            let start = batch.sequences[i].start;
            let block: Range<usize> = canvases[i].len() - 8..canvases[i].len() - 4;
            canvases[i][block.start + 1] = 17 + i as u32;
            canvases[i][block.start + 2] = 90;
            part.0.extend(fresh.clone().map(|row| start + row));
            part.1.extend(block.clone().map(|row| start + row));
            let stale = plain::forward(&model, &canvases[i], fresh, Some(&passes[i])).logits;
            let full = plain::forward(&model, &canvases[i], 0..canvases[i].len(), None).logits;
            part.2.extend(stale[block.clone()].to_vec());
            part.3.extend(full[block].to_vec());
        }
        let (computed, predicted, stale, full) = part;
        let changed = Batch::pack(canvases.iter().map(Vec::as_slice));
        let got = cached_logits(&model, &changed, &mut cache, Part { computed: &computed, predicted: &predicted });
        assert!(distance(&got, &stale) < 1e-5, "{} off", distance(&got, &stale));
        assert!(distance(&stale, &full) > 1e-3, "stale rows matter: {}", distance(&stale, &full));
        // Nothing has changed since: the rows computed again are what a fresh pass of everything gives.
        let everything = Part { computed: &all, predicted: &predicted };
        assert!(distance(&cached_logits(&model, &changed, &mut cache, everything), &full) < 1e-5);
        let again = cached_logits(&model, &changed, &mut cache, Part { computed: &computed, predicted: &predicted });
        assert!(distance(&again, &full) < 1e-5, "nothing is stale");
        let mut uncached = vec![];
        model.for_each_logits(&changed, &predicted, |_, chunk| uncached.extend(chunk.iter().map(|z| f64::from(*z))));
        let uncached: Vec<Vec<f64>> = uncached.chunks(160).map(<[f64]>::to_vec).collect();
        assert!(distance(&again, &uncached) < 1e-5);
    }
}

#[test]
fn every_cache_and_threshold_gives_what_the_plain_loop_gives() {
    // Not an empty one: nothing but masks predicts every token alike, and ties have no order.
    let prompts: Vec<Vec<u32>> = [6, 1, 11].map(|count| tokens(count, count as usize)).to_vec();
    for model in models() {
        let (mut answers, mut forwards) = (vec![], vec![]);
        for (threshold, cfg_scale) in [(None, 0.0), (Some(0.15), 0.0), (Some(0.3), 0.7), (None, 0.7)] {
            for cache in CACHES {
                let sampling = Sampling { confidence_threshold: threshold, cache, cfg_scale, ..block_loop(12, 6, 8) };
                let outputs = run(&model, &prompts, &sampling);
                for (prompt, output) in prompts.iter().zip(&outputs) {
                    let (ids, passes, rows) = plain::denoise(&model, prompt, &sampling);
                    assert_eq!(output.ids, ids, "{sampling:?}");
                    assert_eq!(output.work, Work { forwards: passes, rows }, "{sampling:?}");
                }
                forwards.extend(outputs.iter().map(|output| output.work.forwards));
                answers.push(outputs.into_iter().map(|output| output.ids).collect::<Vec<_>>());
            }
        }
        assert!(answers.windows(2).any(|w| w[0] != w[1]), "stale keys change an answer");
        forwards.sort_unstable();
        forwards.dedup();
        assert!(forwards.len() > 3, "canvases finish at different steps: {forwards:?}");
    }
}

#[test]
fn caches_are_exact_where_nothing_is_stale() {
    for model in models() {
        let ids =
            |prompt: &Vec<u32>, sampling: &Sampling| run(&model, std::slice::from_ref(prompt), sampling).remove(0).ids;
        for cache in CACHES {
            // One step a block: there is no later one.
            let single = block_loop(12, 3, 4);
            let prompt = tokens(1, 9);
            assert_eq!(ids(&prompt, &Sampling { cache, ..single.clone() }), ids(&prompt, &single));
            // One block and no prompt: nothing lies around the block.
            let alone = block_loop(12, 12, 6);
            assert_eq!(ids(&vec![], &Sampling { cache, ..alone.clone() }), ids(&vec![], &alone));
        }
    }
}

#[test]
fn a_threshold_of_nothing_fills_a_block_at_once_and_one_beyond_1_a_token_a_step() {
    for model in models() {
        for cache in CACHES {
            for temperature in [0.0, 0.9] {
                let prompt = vec![tokens(4, 7)];
                let with = |threshold| Sampling {
                    confidence_threshold: threshold,
                    cache,
                    temperature,
                    ..block_loop(12, 4, 12)
                };
                let one_by_one = run(&model, &prompt, &with(None));
                assert_eq!(run(&model, &prompt, &with(Some(1.1))), one_by_one);
                assert_eq!(one_by_one[0].work.forwards, 12);
                let at_once = run(&model, &prompt, &with(Some(0.0))).remove(0);
                assert_eq!(at_once.work, Work { forwards: 3, rows: 3 * 19 });
                let three_steps = Sampling { diffusion_steps: 3, temperature: 0.0, ..with(None) };
                assert!(temperature > 0.0 || at_once.ids == run(&model, &prompt, &three_steps)[0].ids);
                assert_eq!(at_once.ids[..7], prompt[0]);
                assert!(at_once.ids[7..].iter().all(|id| *id != model.config.mask_token_id));
            }
        }
    }
}

#[test]
fn what_has_no_blocks_or_no_confidence_is_refused() {
    let model = &models()[1];
    let message = |sampling: Sampling| {
        let prompt = [Prompt { ids: &[1], example: 0 }];
        generate(model, &prompt, &sampling).expect_err("the settings don't go together").to_string()
    };
    let own = Sampling { remasking: None, ..block_loop(8, 4, 8) };
    assert_eq!(
        message(Sampling { confidence_threshold: Some(0.9), ..own.clone() }),
        "confidence_threshold 0.9 needs blocks, and remasking entropy has none; set remasking low_confidence, \
         which denoises Dream's checkpoints block by block too"
    );
    assert!(message(Sampling { cache: Caching::Dual, ..own }).starts_with("cache dual needs blocks"));
    let random = Sampling { remasking: Some(Remasking::Random), ..block_loop(8, 4, 8) };
    assert!(message(Sampling { confidence_threshold: Some(0.5), ..random }).contains("set remasking low_confidence"));
    for (threshold, text) in [(-0.1, "-0.1"), (f64::NAN, "NaN")] {
        let sampling = Sampling { confidence_threshold: Some(threshold), ..block_loop(8, 4, 8) };
        assert_eq!(message(sampling), format!("confidence_threshold {text} is negative or not a number"));
    }
    // A number of steps that the blocks don't divide has no effect, which is told.
    let idle = Sampling { confidence_threshold: Some(0.5), ..block_loop(8, 4, 7) };
    assert_eq!(run(model, &[vec![1]], &idle).len(), 1);
    let told = idle.warnings(Remasking::LowConfidence);
    assert_eq!(told, ["diffusion_steps has no effect with confidence_threshold"]);
    assert!(Caching::parse("all").is_err_and(|e| e.to_string().contains("known values are none, prefix, dual")));
    assert!(CACHES.iter().all(|cache| Caching::parse(cache.name()).is_ok_and(|parsed| parsed == *cache)));
}

#[test]
fn a_threshold_is_reached_by_equals_and_one_is_kept_whatever_it_is() {
    assert_eq!(confident(&[0.2, 0.5, 0.9], 0.5), [2, 1]);
    assert_eq!(confident(&[0.2, 0.5, 0.4], 0.6), [1]);
    assert!(confident(&[], 0.6).is_empty());
}

#[test]
fn weft_eval_tells_what_an_answer_took() {
    let folder = scratch::folder("fast");
    let [_, held_out] = generated::write(Puzzle::Sudoku, 1, [1, 3], &folder).expect("the rows are written");
    let eval = |more: &[&str]| {
        let _ = std::fs::remove_file(folder.join("out.json"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(["eval", "--model", "tiny-base", "--task", "sudoku", "--data"]).arg(&held_out).arg("--out");
        command.arg(folder.join("out.json")).args(["--gen-length", "16", "--block-length", "8"]).args(more);
        let output = command.output().expect("weft starts");
        [output.stderr, output.stdout].map(|text| String::from_utf8(text).expect("UTF-8"))
    };
    let rows = |told: &str| -> f64 {
        let (_, end) = told.split_once("of the network each, ").expect("the rows are told");
        end.strip_suffix(" rows each\n").expect("they come last").parse().expect("a number")
    };
    let [told, printed] = eval(&[]);
    assert!(told.starts_with("3 answers in ") && told.contains(" s: 8.0 evaluations of the network each, "), "{told}");
    assert_eq!(printed.lines().count(), 2, "{printed}");
    let [cached, _] = eval(&["--cache", "dual"]);
    // Two whole canvases and six blocks of eight, in place of eight whole canvases.
    assert_eq!(rows(&cached), rows(&told) / 4.0 + 48.0, "{told}{cached}");
    assert_eq!(eval(&["--quiet"]), [String::new(), printed]);
    let [one_by_one, _] = eval(&["--diffusion-steps", "16"]);
    assert!(one_by_one.starts_with("3 answers in ") && one_by_one.contains("16.0 evaluations"), "{one_by_one}");
    let [by_threshold, _] = eval(&["--confidence-threshold", "1"]);
    assert!(by_threshold.starts_with("3 answers in ") && by_threshold.contains("16.0 evaluations"), "{by_threshold}");
}

/// What a reader is shown of an answer: the tokens before its first end token.
fn shown<'a>(output: &'a Output, prompt: &[u32], ends: &[u32]) -> &'a [u32] {
    let answer = &output.ids[prompt.len()..];
    &answer[..answer.iter().position(|id| ends.contains(id)).unwrap_or(answer.len())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Any token may be an end token here, so answers end in any block, or in none.
    #[test]
    fn an_end_token_saves_work_and_changes_nothing_that_is_shown(
        prompts in prop::collection::vec(prop::collection::vec(0u32..150, 1..14), 1..5),
        blocks in 1usize..5,
        block_length in 1usize..6,
        cache in prop::sample::select(CACHES.to_vec()),
        threshold in prop::sample::select(vec![None, Some(0.1), Some(0.25), Some(2.0)]),
        (cfg_scale, temperature, defer_eos) in (prop::sample::select(vec![0.0, 0.8]), 0.0f64..1.0, any::<bool>()),
        (family, end) in (0usize..4, 1u32..40),
    ) {
        let model = &models()[family];
        let ends: Vec<u32> = (0..150).step_by(end as usize).collect();
        let whole = Sampling {
            cache, confidence_threshold: threshold, cfg_scale, temperature, defer_eos,
            eos_token_ids: ends.clone(), whole_canvas: true, ..block_loop(blocks * block_length, block_length, blocks * block_length)
        };
        let wholes = run(model, &prompts, &whole);
        let outputs = run(model, &prompts, &Sampling { whole_canvas: false, ..whole });
        for ((prompt, output), whole) in prompts.iter().zip(&outputs).zip(&wholes) {
            prop_assert_eq!(shown(output, prompt, &ends), shown(whole, prompt, &ends));
            prop_assert_eq!(output.ids.len(), whole.ids.len());
            prop_assert!(!output.ids.contains(&model.config.mask_token_id), "the rest is filled");
            let answer = &output.ids[prompt.len()..];
            let last = answer.iter().position(|id| ends.contains(id)).map_or(blocks, |at| at / block_length + 1);
            let behind = &answer[last * block_length..];
            prop_assert!(behind.iter().all(|id| *id == ends[0]));
            match last < blocks {
                true => prop_assert!(output.work.forwards < whole.work.forwards && output.work.rows < whole.work.rows),
                false => prop_assert_eq!(output, whole),
            }
        }
    }
    #[test]
    fn a_batch_gives_what_single_prompts_give(
        prompts in prop::collection::vec(prop::collection::vec(0u32..150, 0..14), 1..5),
        blocks in 1usize..4,
        block_length in 1usize..6,
        cache in prop::sample::select(CACHES.to_vec()),
        threshold in prop::sample::select(vec![None, Some(0.0), Some(0.1), Some(0.25), Some(0.6), Some(2.0)]),
        cfg_scale in prop::sample::select(vec![0.0, 0.8]),
        family in 0usize..4,
    ) {
        let model = &models()[family];
        let gen_length = blocks * block_length;
        let sampling = Sampling {
            cache, confidence_threshold: threshold, cfg_scale, ..block_loop(gen_length, block_length, gen_length)
        };
        let together = run(model, &prompts, &sampling);
        for (prompt, output) in prompts.iter().zip(&together) {
            let alone = run(model, std::slice::from_ref(prompt), &sampling).remove(0);
            prop_assert_eq!(output, &alone);
            prop_assert_eq!(&output.ids[..prompt.len()], &prompt[..]);
            prop_assert!(output.ids[prompt.len()..].iter().all(|id| *id != model.config.mask_token_id));
        }
    }
}
