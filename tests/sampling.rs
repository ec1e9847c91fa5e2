//! The samplers against LLaDA's and Dream's own outputs at temperature 0, and what must hold at any setting.

mod device;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use device::on_device;
use safetensors::SafeTensors;
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::parity::check_sampling;
use weft::sampler::cache::Caching;
use weft::sampler::generate::{Output, Prompt, Sampling, generate};
use weft::sampler::infill::infill;
use weft::sampler::remasking::{Remasking, transfer_shares};

const FAMILIES: [&str; 5] = ["llada", "dream", "a2d-qwen3", "a2d-qwen2", "illada"];
const DREAMS: [Remasking; 4] = [Remasking::Origin, Remasking::MaskgitPlus, Remasking::TopkMargin, Remasking::Entropy];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family)
}

fn model(family: &str) -> Transformer {
    on_device(checkpoint::load(&folder(family)).expect("the golden checkpoint loads"))
}

fn sampling(gen_length: usize, block_length: usize, diffusion_steps: usize) -> Sampling {
    Sampling { gen_length, block_length, diffusion_steps, eos_token_ids: vec![157], ..Sampling::default() }
}

fn one(model: &Transformer, ids: &[u32], sampling: &Sampling) -> Result<Vec<u32>, String> {
    let outputs = generate(model, &[Prompt { ids, example: 0 }], sampling).map_err(|e| e.to_string());
    Ok(outputs?.remove(0).ids)
}

/// Settings of both families that leave no mask; Dream's may predict it, so it is forbidden as an end token there.
fn settings(mask: u32) -> Vec<Sampling> {
    let greedy = Sampling { remasking: Some(Remasking::LowConfidence), ..sampling(12, 4, 6) };
    let dream = |remasking| Sampling {
        remasking: Some(remasking),
        forbid_eos: true,
        eos_token_ids: vec![157, mask],
        ..sampling(13, 32, 5)
    };
    let drawn = |remasking| Sampling { temperature: 0.8, top_p: 0.9, top_k: 20, alg_temp: 0.3, ..dream(remasking) };
    let mut all = vec![
        greedy.clone(),
        Sampling { temperature: 1.0, ..greedy.clone() },
        Sampling { remasking: Some(Remasking::Random), ..greedy.clone() },
        Sampling { cfg_scale: 1.5, ..greedy.clone() },
        Sampling { defer_eos: true, forbid_eos: true, ..greedy },
    ];
    all.extend(DREAMS.map(dream));
    all.extend(DREAMS.map(drawn));
    all.push(Sampling { cfg_scale: 0.5, ..dream(Remasking::Entropy) });
    all
}

#[test]
fn greedy_outputs_match_each_familys_own_sampler() {
    for (family, count) in FAMILIES.into_iter().zip([5, 4, 5, 5, 5]) {
        let (model, folder) = (model(family), folder(family));
        let tensors = folder.join("sampling.safetensors");
        let rows = check_sampling(&model, &tensors, &folder.join("sampling.json")).expect("the cases are settings");
        assert_eq!(rows.len(), count);
        let file = std::fs::read(&tensors).expect("the golden file is there");
        let file = SafeTensors::deserialize(&file).expect("the golden file is whole");
        for row in rows {
            assert_eq!(row.error, 0.0, "{family} {} differs", row.name);
            let tokens: usize =
                file.tensor(&row.name).expect("the golden file has the tensor").shape().iter().product();
            assert_eq!(row.count, tokens, "{family} {}", row.name);
        }
    }
}

#[test]
fn no_mask_is_left_and_the_prompt_stays() {
    for model in FAMILIES.map(model) {
        let mask = model.config.mask_token_id;
        let prompt = [3, mask, 7];
        for settings in settings(mask) {
            let output = one(&model, &prompt, &settings).expect("the lengths divide");
            assert_eq!(output[..3], prompt);
            assert_eq!(output.len(), 3 + settings.gen_length);
            assert!(output[3..].iter().all(|id| *id != mask), "{settings:?} leaves a mask: {output:?}");
            assert_eq!(output, one(&model, &prompt, &settings).expect("the lengths divide"), "the draws are keyed");
            assert!(!settings.forbid_eos || output[3..].iter().all(|id| *id != 157), "{output:?} holds an end token");
        }
    }
}

#[test]
fn a_batch_gives_what_single_prompts_give() {
    let prompts: [&[u32]; 3] = [&[3, 159, 7], &[], &[12, 13, 14, 15, 16, 17]];
    let batch: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids, example: 0 }).collect();
    for model in FAMILIES.map(model) {
        for settings in settings(model.config.mask_token_id) {
            let settings = Sampling { temperature: 0.7, ..settings };
            let singles: Vec<_> =
                prompts.iter().map(|ids| one(&model, ids, &settings).expect("the lengths divide")).collect();
            let together = generate(&model, &batch, &settings).expect("the lengths divide");
            assert_eq!(together.into_iter().map(|output| output.ids).collect::<Vec<_>>(), singles);
        }
    }
}

#[test]
fn the_familys_own_remasking_is_taken_where_none_is_named() {
    let [llada, dream] = [Remasking::LowConfidence, Remasking::Entropy];
    for (family, own) in FAMILIES.into_iter().zip([llada, dream, llada, llada, llada]) {
        let model = model(family);
        let named = Sampling { remasking: Some(own), ..sampling(12, 4, 6) };
        assert_eq!(one(&model, &[1, 2], &sampling(12, 4, 6)), one(&model, &[1, 2], &named));
    }
    let names = ["low_confidence", "random", "origin", "maskgit_plus", "topk_margin", "entropy"];
    assert!(names.iter().all(|name| Remasking::parse(name).is_ok_and(|r| r.name() == *name)));
    assert!(Remasking::parse("maskgit").is_err_and(|e| e.to_string().contains("maskgit_plus")));
}

#[test]
fn the_schedule_keeps_every_token_by_its_last_step() {
    for steps in [1, 2, 7, 16, 512] {
        let shares = transfer_shares(steps);
        assert_eq!((shares.len(), shares[steps - 1]), (steps, 1.0));
        let mut time = 1.0;
        for (i, share) in shares[..steps - 1].iter().enumerate() {
            let next = 1.0 - (i + 1) as f64 * (1.0 - 1e-3) / steps as f64;
            assert!((f64::from(*share) - (1.0 - next / time)).abs() < 1e-4, "step {i} of {steps}: {share}");
            time = next;
        }
    }
}

#[test]
fn origin_draws_one_token_from_the_head_and_top_k_and_top_p_bound_it() {
    let model = model("dream");
    // One step over one token: the answer is a draw from the head's distribution alone.
    let draw = |example: u64, settings: &Sampling| {
        let prompt = [Prompt { ids: &[9, 4, 2], example }];
        generate(&model, &prompt, settings).expect("the settings are sound").remove(0).ids[3]
    };
    let plain = Sampling { temperature: 1.0, remasking: Some(Remasking::Origin), ..sampling(1, 1, 1) };
    let batch = weft::model::batch::Batch::pack([&[9, 4, 2, model.config.mask_token_id][..]]);
    let mut logits = vec![];
    model.for_each_logits(&batch, &[3], |_, chunk| logits.extend(chunk.iter().map(|z| f64::from(*z))));
    let total: f64 = logits.iter().map(|z| z.exp()).sum();
    let probability = |v: usize| logits[v].exp() / total;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let draws = 3000;
    let counts = |settings: &Sampling| {
        let mut counts: HashMap<usize, f64> = HashMap::new();
        (0..draws).for_each(|example| *counts.entry(draw(example, settings) as usize).or_default() += 1.0);
        counts
    };
    let kept = |mass: &dyn Fn(usize) -> f64, among: &[usize], counts: &HashMap<usize, f64>| {
        let whole: f64 = among.iter().map(|v| mass(*v)).sum();
        assert!(counts.keys().all(|v| among.contains(v)), "a token is drawn that was cut off");
        for v in among.iter().take(4) {
            let p = mass(*v) / whole;
            let bound = 5.0 * (p * (1.0 - p) / draws as f64).sqrt();
            let share = counts.get(v).copied().unwrap_or(0.0) / draws as f64;
            assert!((share - p).abs() < bound, "token {v}: drawn {share}, expected {p}");
        }
    };
    kept(&probability, &order, &counts(&plain));
    kept(&probability, &order[..5], &counts(&Sampling { top_k: 5, ..plain.clone() }));
    let mut held = 0.0;
    let is_within = |v: &&usize| {
        let before = held;
        held += probability(**v);
        before <= 0.9
    };
    let within = order.iter().take_while(is_within).count();
    assert!(within > 2 && within < order.len(), "the cut is somewhere within");
    kept(&probability, &order[..within], &counts(&Sampling { top_p: 0.9, ..plain.clone() }));
    let sharper = |v: usize| (logits[v] / 0.5).exp();
    kept(&sharper, &order, &counts(&Sampling { temperature: 0.5, ..plain }));
}

#[test]
fn alg_temp_chooses_in_proportion_to_confidence() {
    let model = model("dream");
    let mask = model.config.mask_token_id;
    // Two of three tokens stay masked after the first of these steps; which one is kept is drawn.
    let settings = |alg_temp| Sampling {
        alg_temp,
        forbid_eos: true,
        eos_token_ids: vec![mask],
        remasking: Some(Remasking::MaskgitPlus),
        ..sampling(3, 3, 3)
    };
    let outputs = |alg_temp: f64| -> Vec<Vec<u32>> {
        let run = |example| generate(&model, &[Prompt { ids: &[9, 4], example }], &settings(alg_temp));
        (0..40).map(|example| run(example).expect("the settings are sound").remove(0).ids).collect()
    };
    let greedy = outputs(0.0);
    assert!(greedy.iter().all(|output| *output == greedy[0]), "nothing is drawn");
    assert_eq!(outputs(1e-9), greedy, "a temperature near 0 keeps the most confident");
    let drawn = outputs(1e9);
    assert!(drawn.iter().any(|output| *output != greedy[0]), "another order gives another answer");
}

#[test]
fn infilling_fills_the_masks_and_nothing_else() {
    for model in FAMILIES.map(model) {
        let mask = model.config.mask_token_id;
        let text = [3, mask, 7, 9, mask, mask, 4, 5, mask, 11, 12];
        let fill = |settings: &Sampling| infill(&model, Prompt { ids: &text, example: 0 }, settings, None);
        let masks: Vec<usize> = (0..text.len()).filter(|i| text[*i] == mask).collect();
        let plain = Sampling { gen_length: 1, block_length: 4, diffusion_steps: 4, ..settings(mask)[0].clone() };
        let cached = |cache| Sampling { cache, ..plain.clone() };
        let threshold = Sampling { confidence_threshold: Some(0.1), ..plain.clone() };
        let few = Sampling { diffusion_steps: 1, ..plain.clone() };
        let dreams = Sampling { remasking: Some(Remasking::Entropy), ..settings(mask)[5].clone() };
        let all = [plain.clone(), cached(Caching::Prefix), cached(Caching::Dual), threshold, few, dreams];
        for settings in all {
            let Output { ids, work } = fill(&settings).expect("the settings are sound");
            assert_eq!(ids.len(), text.len());
            for (i, id) in ids.iter().enumerate() {
                assert!(if masks.contains(&i) { *id != mask } else { *id == text[i] }, "{settings:?}: {ids:?}");
            }
            assert!(work.forwards >= 1 && work.forwards <= 6, "{settings:?} took {work:?}");
        }
        // At one position, infilling and answering are the same where nothing stands behind.
        let end = [&text[..4], &[mask]].concat();
        let end = [&[3, 8][..], &end[2..]].concat();
        let one_step = Sampling { block_length: 1, diffusion_steps: 1, ..plain.clone() };
        let filled = infill(&model, Prompt { ids: &end, example: 0 }, &one_step, None).expect("the settings are sound");
        assert_eq!(
            filled.ids,
            one(&model, &end[..end.len() - 1], &Sampling { gen_length: 1, ..one_step }).expect("so are these")
        );
        let message = infill(&model, Prompt { ids: &[1, 2], example: 0 }, &plain, None).expect_err("nothing to fill");
        assert_eq!(message.to_string(), "the text holds no mask token to fill");
        let guided = Sampling { cfg_scale: 0.5, ..plain };
        assert!(fill(&guided).is_err_and(|e| e.to_string().contains("cfg_scale 0.5 needs a prompt")));
    }
}

#[test]
fn settings_without_sense_are_refused_with_their_values() {
    let llada = model("llada");
    let message = one(&llada, &[1], &sampling(10, 4, 10)).expect_err("10 is no multiple of 4");
    assert_eq!(message, "gen_length 10 is not a multiple of block_length 4; set gen_length 12 or another block_length");
    assert!(one(&llada, &[1], &sampling(12, 4, 4)).is_err_and(|m| m.contains("diffusion_steps 4")));
    let dream = model("dream");
    assert!(one(&dream, &[1], &sampling(10, 4, 7)).is_ok(), "Dream's loop has no blocks");
    for (settings, expected) in [
        (Sampling { top_p: 0.0, ..sampling(4, 4, 4) }, "top_p 0 lies outside (0, 1]"),
        (Sampling { top_p: f64::NAN, ..sampling(4, 4, 4) }, "top_p NaN lies outside (0, 1]"),
        (Sampling { alg_temp: -1.0, ..sampling(4, 4, 4) }, "alg_temp -1 is negative"),
        (sampling(4, 4, 0), "diffusion_steps 0 must be at least 1"),
    ] {
        let message = one(&dream, &[1], &settings).expect_err(expected);
        assert!(message.contains(expected), "{message}");
    }
    let idle = Sampling { top_p: 0.5, alg_temp: 0.1, ..sampling(4, 4, 4) };
    let told = idle.warnings(Remasking::Random);
    assert_eq!(told.len(), 2);
    assert_eq!(told[0], "top_p has no effect with remasking random");
    assert_eq!(idle.warnings(Remasking::Origin).len(), 2, "block_length and alg_temp");
}
