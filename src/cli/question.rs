//! The command at the end of a run that asks the trained model the question of the first held-out row, with the recipe's
//! sampler.

use std::path::Path;

use serde_json::json;
use weft::base::Base;
use weft::data::Example;
use weft::data::chat::Turn;
use weft::data::typed_tokens::SpecialTokens;
use weft::error::Result;
use weft::experiment::Experiment;
use weft::files::write_whole;
use weft::model::block::Config;
use weft::model::settings::{Trainable, shell_word};
use weft::recipe::Recipe;
use weft::sampler::generate::Sampling;
use weft::sampler::remasking::Loop;
use weft_kernels::precision::Precision;

use super::FactArgs;
use super::generate::as_options;

/// The file in the run folder with the question, where it doesn't fit into a line of a shell.
const QUESTION: &str = "question.json";
/// The longest question that is written into the command, in bytes.
const LONGEST: usize = 200;
/// Lengths above this one are rounded up to a multiple of it, or of the sampler's block.
const ROUNDED: usize = 8;
/// The share of answers that the command has room for.
const SHARE: f64 = 0.95;

/// The command that asks the model in `folder`. A question of several turns or lines is written into the run folder.
///
/// # Errors
/// A file that can't be written.
pub fn command(experiment: &Experiment, base: &Base, folder: &Path) -> Result<String> {
    let recipe = &experiment.recipe;
    let mut command = "weft generate".to_owned();
    match recipe.model.trainable {
        Trainable::Lora => {
            let facts = FactArgs::of(&recipe.model).as_options();
            let (model, adapter) = (shell_word(&recipe.model.path), shell_word(folder));
            command += &format!(" --model {model} --adapter {adapter}{facts}");
        }
        // A saved checkpoint's config.json already has the facts that the recipe gives of the base.
        Trainable::Full => command += &format!(" --model {}", shell_word(folder)),
    }
    if recipe.model.precision == Precision::Bf16 {
        command += " --precision bf16";
    }
    if !recipe.data.chat_template_kwargs.is_empty() {
        let kwargs = json!(recipe.data.chat_template_kwargs).to_string();
        command += &format!(" --chat-template-kwargs {}", shell_word(Path::new(&kwargs)));
    }
    if recipe.data.special_tokens == SpecialTokens::Tokens {
        command += " --special-tokens tokens";
    }
    let texts = experiment.train.dataset.documents > 0;
    let length = if texts { Sampling::default().gen_length } else { usual_length(&experiment.train.dataset.examples) };
    command += &as_options(&sampling(recipe, &base.model.config, length));
    Ok(command + &asked(experiment, texts)?)
}

/// The length that the share [`SHARE`] of the answers doesn't exceed.
fn usual_length(examples: &[Example]) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(|example| example.answer_ids.len()).collect();
    lengths.sort_unstable();
    let at = (SHARE * lengths.len() as f64).ceil() as usize;
    lengths.get(at.saturating_sub(1)).copied().unwrap_or(1)
}

/// The recipe's sampler with room for answers of `length` tokens, in whole blocks, at as many tokens a step.
fn sampling(recipe: &Recipe, config: &Config, length: usize) -> Sampling {
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

/// The options that contain the question.
fn asked(experiment: &Experiment, texts: bool) -> Result<String> {
    let (turns, tools) = experiment.first_question().unwrap_or_else(|| (vec![Turn::new("user", "...")], None));
    let raw = if texts { " --raw" } else { "" };
    if let ([turn], None) = (&turns[..], &tools)
        && turn.role == "user"
        && turn.fields.is_empty()
        && turn.text().len() <= LONGEST
        && !turn.text().contains(char::is_control)
    {
        return Ok(format!("{raw} --prompt {}", quoted(turn.text())));
    }
    let question = match tools {
        Some(tools) => json!({ "messages": turns, "tools": tools }),
        None => json!(turns),
    };
    let path = experiment.recipe.train.output.join(QUESTION);
    let text = serde_json::to_string_pretty(&question).expect("turns are JSON");
    write_whole(&path, format!("{text}\n").as_bytes())?;
    Ok(format!(" --messages {}", shell_word(&path)))
}

/// A text quoted for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
