//! The length of the answers that a run generates for people to read, in its report and in the command that it prints at its
//! end. The length follows from the answers that are trained on.

use crate::data::{Example, Mixed};
use crate::model::block::Config;
use crate::recipe::Recipe;
use crate::sampler::generate::Sampling;
use crate::sampler::remasking::Loop;

/// The share of the trained answers that are no longer than the chosen length.
const SHARE: f64 = 0.95;
/// Lengths above this one are rounded up to a multiple of it, or of the sampler's block.
const ROUNDED: usize = 8;
/// The longest answers in a report whose recipe names no length: the time to generate an answer grows with its length squared.
const LONGEST_SHOWN: usize = 512;

/// The smallest length that the share `SHARE` of the answers doesn't exceed.
pub fn usual_length(examples: &[Example]) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(|example| example.answer_ids.len()).collect();
    lengths.sort_unstable();
    let at = (SHARE * lengths.len() as f64).ceil() as usize;
    lengths.get(at.saturating_sub(1)).copied().unwrap_or(1)
}

/// The recipe's sampler with room for answers of `length` tokens, in whole blocks, and with the same number of tokens per step.
pub fn with_room(recipe: &Recipe, config: &Config, length: usize) -> Sampling {
    let for_model = recipe.sampling(config);
    let Sampling { block_length, diffusion_steps, .. } = for_model;
    let recipe = &Sampling { block_length, diffusion_steps, ..recipe.sampler.clone() };
    let steps = |gen_length: usize| (gen_length * recipe.diffusion_steps / recipe.gen_length.max(1)).max(1);
    if for_model.is_block_causal() {
        let attention = for_model.attention;
        return Sampling {
            gen_length: length,
            diffusion_steps: steps(length),
            attention,
            block_length,
            ..recipe.clone()
        };
    }
    let block = recipe.block_length.max(1);
    let gen_length = match length {
        _ if length > block => length.next_multiple_of(block),
        ..=ROUNDED => length,
        _ => length.next_multiple_of(ROUNDED).min(block),
    };
    let block_length = block.min(gen_length);
    let has_blocks = for_model.remasking.is_none_or(|r| r.sampling_loop() == Loop::Llada);
    let sized = match has_blocks {
        true => Sampling { gen_length, block_length, ..recipe.clone() },
        false => recipe.clone().with_gen_length(gen_length),
    };
    let blocks = if has_blocks { sized.num_blocks() } else { 1 };
    Sampling { diffusion_steps: steps(gen_length).next_multiple_of(blocks), ..sized }
}

/// The sampler for the answers in a report: the recipe's own if it names a length, or else one with room for most of the
/// answers that are trained on.
pub fn of_report(recipe: &Recipe, config: &Config, train: &Mixed) -> Sampling {
    let is_named = recipe.sampler.gen_length != Sampling::default().gen_length;
    if is_named || train.dataset.documents > 0 {
        return recipe.sampling(config);
    }
    let length = usual_length(&train.dataset.examples).min(LONGEST_SHOWN);
    with_room(recipe, config, length).for_model(config)
}

/// A sentence that says how the answers in a report were sampled.
pub fn told(sampling: &Sampling, train: &Mixed) -> String {
    let Sampling { gen_length, diffusion_steps, .. } = sampling;
    let steps = match sampling.confidence_threshold {
        None if *diffusion_steps == 1 => " in one step".to_owned(),
        None => format!(" in {diffusion_steps} steps"),
        Some(_) => String::new(),
    };
    let is_short = train.dataset.documents == 0 && usual_length(&train.dataset.examples) > *gen_length;
    let longer = if is_short {
        "; more than 5 of 100 answers in the training rows are longer, and sampler.gen_length gives them room"
    } else {
        ""
    };
    format!("Answers of at most {gen_length} tokens{steps}{longer}.")
}
