//! The model card of a run's adapter or checkpoint: a README.md that says what it was trained from, on what, how, with
//! which results, and how to use it. Hubs show it as the front page of a repository.

use std::path::Path;

use serde_json::{Map, Value};
use weft::error::Result;
use weft::files::write_whole;
use weft::hub::name_and_revision;
use weft::model::settings::Trainable;
use weft::recipe::Recipe;
use weft::report::rows::SourceRows;
use weft::report::visible::visible;

use super::results::Results;

/// The card's file name.
const CARD: &str = "README.md";

/// Writes the card into the folder of the adapter or checkpoint that a run saved and that `question` asks.
pub fn write(folder: &Path, (base, question): (&str, &str), results: &Results) -> Result<()> {
    write_whole(&folder.join(CARD), card(base, question, results).as_bytes())
}

fn card(base: &str, question: &str, results: &Results) -> String {
    let experiment = results.experiment;
    let recipe = &experiment.recipe;
    let is_lora = recipe.model.trainable == Trainable::Lora;
    let what = if is_lora { "LoRA adapter (PEFT format)" } else { "checkpoint" };
    let (name, revision) = name_and_revision(base);
    let at = revision.map(|revision| format!(" at revision {revision}")).unwrap_or_default();
    let library = if is_lora { "library_name: peft\n" } else { "" };
    let header =
        format!("---\nbase_model: {}\n{library}tags:\n- masked-diffusion\n- weft\n---\n\n", Value::from(name.as_str()));
    let kind = recipe.objective.kind.name();
    let from = recipe.model.adapter.as_ref();
    let from = from.map(|adapter| format!(" It started from the adapter {}.", adapter.display())).unwrap_or_default();
    let quantization = recipe.model.quantization();
    let of_base = quantization.map(|of| format!(", its linear layers in {of},")).unwrap_or_default();
    let mut card = format!(
        "{header}# A {what} for {name}\n\nTrained by Weft {} on the masked diffusion language model {name}{at}{of_base} with \
         the objective {kind}.{from}\n\n## Data\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for source in SourceRows::of(&experiment.train, experiment.held_out.as_ref(), recipe.data.max_seq_len.0) {
        let used = if source.is_held_out { ", held out" } else { "" };
        card += &format!("- {}: {}{used}\n", source.name, source.gives);
        // A reason may name what a row holds, and Markdown would take that for tags.
        source.left_out.iter().for_each(|remark| card += &format!("  - {}\n", visible(remark).replace('<', "\\<")));
    }
    card += "\n## Results\n\n| | |\n|---|---|\n";
    for (name, value) in results.rows() {
        card += &format!("| {name} | {value} |\n");
    }
    card += &format!("\n## Use\n\n```sh\n{question}\n```\n\n");
    card += &format!(
        "## Recipe\n\nThese settings differ from the defaults; `weft train recipe.toml` repeats the run.\n\n```toml\n{}```\n",
        settings(recipe)
    );
    card
}

/// The settings of a recipe that differ from their defaults, as TOML.
fn settings(recipe: &Recipe) -> String {
    let resolved = recipe.resolved();
    let mut text = String::new();
    for (table, keys) in resolved.recipe.as_object().into_iter().flatten() {
        let empty = Map::new();
        let is_told =
            |(key, value): &(&String, &Value)| !value.is_null() && resolved.defaults[table][key.as_str()] != **value;
        let told: Vec<String> = keys.as_object().unwrap_or(&empty).iter().filter(is_told).map(line).collect();
        if !told.is_empty() {
            text += &format!("[{table}]\n{}\n", told.concat());
        }
    }
    format!("{}\n", text.trim_end())
}

fn line((key, value): (&String, &Value)) -> String {
    format!("{key} = {}\n", inline(value))
}

/// A value of TOML on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<String> =
                fields.map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), inline(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        // JSON's strings and numbers are TOML's too.
        other => other.to_string(),
    }
}
