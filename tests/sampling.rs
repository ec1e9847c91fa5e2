//! The sampler against LLaDA's own outputs at temperature 0, and what must hold at any setting.

use std::path::Path;

use safetensors::SafeTensors;
use weft::model::block::Transformer;
use weft::model::llada;
use weft::sampler::generate::{Prompt, Sampling, generate};
use weft::sampler::remasking::Remasking;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada")
}

fn model() -> Transformer {
    llada::load(&folder()).expect("the golden checkpoint loads")
}

fn sampling(gen_length: usize, block_length: usize, diffusion_steps: usize) -> Sampling {
    Sampling {
        gen_length,
        block_length,
        diffusion_steps,
        temperature: 0.0,
        cfg_scale: 0.0,
        remasking: Remasking::LowConfidence,
        eos_token_ids: vec![157],
        forbid_eos: false,
        defer_eos: false,
        seed: 1,
    }
}

fn one(model: &Transformer, ids: &[u32], sampling: &Sampling) -> Result<Vec<u32>, String> {
    Ok(generate(model, &[Prompt { ids, example: 0 }], sampling)?.remove(0))
}

#[test]
fn greedy_outputs_match_lladas_own_sampler() {
    let bytes = std::fs::read(folder().join("sampling.safetensors")).expect("the golden file is there");
    let file = SafeTensors::deserialize(&bytes).expect("the golden file is whole");
    let ids = |name: String| -> Vec<u32> {
        let tensor = file.tensor(&name).expect("the golden file has the tensor");
        tensor.data().chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as u32).collect()
    };
    let text = std::fs::read_to_string(folder().join("sampling.json")).expect("the cases are there");
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).expect("the cases are JSON");
    assert_eq!(cases.len(), 5);
    let model = model();
    for (i, case) in cases.iter().enumerate() {
        let [length, block, steps] =
            ["gen_length", "block_length", "steps"].map(|k| case[k].as_u64().expect("a number") as usize);
        let got = one(&model, &ids(format!("{i}.prompt")), &sampling(length, block, steps));
        assert_eq!(got.expect("the lengths divide"), ids(format!("{i}.output")), "case {i}");
    }
}

#[test]
fn no_mask_is_left_and_the_prompt_stays() {
    let model = model();
    let prompt = [3, 159, 7];
    let greedy = sampling(12, 4, 6);
    for settings in [
        Sampling { temperature: 1.0, ..greedy.clone() },
        Sampling { remasking: Remasking::Random, ..greedy.clone() },
        Sampling { cfg_scale: 1.5, ..greedy.clone() },
        Sampling { defer_eos: true, forbid_eos: true, ..greedy.clone() },
    ] {
        let output = one(&model, &prompt, &settings).expect("the lengths divide");
        assert_eq!(output[..3], prompt);
        assert!(output[3..].iter().all(|id| *id != 159), "{settings:?} leaves a mask: {output:?}");
        assert_eq!(output, one(&model, &prompt, &settings).expect("the lengths divide"), "the draws are keyed");
        assert!(!settings.forbid_eos || output[3..].iter().all(|id| *id != 157), "{output:?} holds an end token");
    }
}

#[test]
fn a_batch_gives_what_single_prompts_give() {
    let model = model();
    let prompts: [&[u32]; 3] = [&[3, 159, 7], &[1], &[12, 13, 14, 15, 16, 17]];
    let settings = Sampling { temperature: 0.7, cfg_scale: 0.5, ..sampling(12, 4, 6) };
    let batch: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids, example: 0 }).collect();
    let singles: Vec<_> = prompts.iter().map(|ids| one(&model, ids, &settings).expect("the lengths divide")).collect();
    assert_eq!(generate(&model, &batch, &settings).expect("the lengths divide"), singles);
}

#[test]
fn lengths_that_do_not_divide_are_refused_with_their_values() {
    let message = one(&model(), &[1], &sampling(10, 4, 10)).expect_err("10 is no multiple of 4");
    assert_eq!(message, "gen_length 10 is not a multiple of block_length 4");
    assert!(one(&model(), &[1], &sampling(12, 4, 4)).is_err_and(|m| m.contains("diffusion_steps 4")));
}
