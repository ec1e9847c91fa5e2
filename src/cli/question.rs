//! The command at the end of a run that asks the trained model the question of the first held-out row, with the recipe's
//! sampler.

use std::path::Path;

use serde_json::json;
use weft::base::Base;
use weft::data::chat::Turn;
use weft::data::typed_tokens::SpecialTokens;
use weft::error::Result;
use weft::experiment::Experiment;
use weft::experiment::answer_length::{usual_length, with_room};
use weft::files::{shell_word, write_whole};
use weft::model::settings::Trainable;
use weft::sampler::generate::Sampling;
use weft_kernels::precision::Precision;

use super::FactArgs;
use super::generate::as_options;

/// The file in the run folder with the question, where it doesn't fit into a line of a shell.
const QUESTION: &str = "question.json";
/// The longest question that is written into the command, in bytes.
const LONGEST: usize = 200;

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
    command += &as_options(&with_room(recipe, &base.model.config, length));
    Ok(command + &asked(experiment, texts)?)
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
