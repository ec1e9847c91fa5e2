//! `weft data`: shows what a recipe's model will see of its rows.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use weft::base::Base;
use weft::counted::{counted, verb};
use weft::data::chat_template::TextModel;
use weft::data::lengths::Lengths;
use weft::data::shared_rows::SharedRows;
use weft::data::{Example, Mixed, Part};
use weft::error::Result;
use weft::experiment::{Sources, check_padding, reading, set_template_kwargs};
use weft::model::config::ModelConfig;
use weft::recipe::{Recipe, RunSize};
use weft::report::visible::visible;

use super::progress::doing;
use super::rows;
use super::train::read_recipe;

/// The number of characters shown at the beginning and at the end of a prompt or answer.
const SHOWN: [usize; 2] = [800, 300];

/// Show what the model will see of a recipe's rows
///
/// Prints lengths in tokens, how many answers are cut, which rows are skipped and why, the size of an epoch, and the first
/// examples of each source as they are tokenized: prompt, answer and end token. Of the base, only the tokenizer and
/// config.json are needed.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft data --examples 1\n  weft data my.toml --set data.train=YOUR-ROWS.jsonl --set data.max_seq_len=256"
)]
pub struct Data {
    /// The recipe (TOML), or the folder of a run, whose recipe is used; default: the quick start
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    #[command(flatten)]
    facts: super::FactArgs,
    /// The number of examples shown of each source
    #[arg(long, default_value_t = 3, value_name = "N")]
    examples: usize,
    /// Show long texts in full
    #[arg(long)]
    full: bool,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

/// Reads rows to look at, not to train on: generated rows go into a temporary folder.
pub(super) fn read_aside<T>(quiet: bool, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let scratch = std::env::temp_dir().join(format!("weft-rows-{}", std::process::id()));
    let _reading = doing(quiet, "reading rows");
    let rows = read(&scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    rows
}

impl Data {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let recipe = read_recipe(self.recipe.as_deref(), &self.facts.after(&self.settings), true)?;
        let (mut text, config) = Base::open_text(&recipe.model.path, recipe.model.overrides())?;
        set_template_kwargs(&recipe, &mut text)?;
        let (mut train, mut held_out, shared) = read_aside(quiet, |scratch| {
            let sources = Sources::of(&recipe, scratch)?;
            let reading = reading(&recipe, &text, config.mask_token_id());
            let (train, held_out) = sources.read(&reading)?;
            check_padding(&recipe, [Some(&train), held_out.as_ref()])?;
            let shared = sources.shared_rows(&train, held_out.as_ref());
            Ok((train, held_out, shared))
        })?;
        let of_run = [Some(&train), held_out.as_ref()];
        // Shared rows are a remark here.
        rows::warn(&config, of_run, None);
        let steps = num_steps(&recipe, &train).1;
        let run = RunSize { train: &train, held_out: held_out.as_ref(), problems: None, steps, ranks: 1 };
        recipe.warnings_of_run(&run).iter().for_each(|warning| tell!("warning: {warning}"));
        let beyond = rows::beyond(&config, of_run);
        let remarks = remarks(&recipe, (&train, held_out.as_ref()), shared);
        if let Some(puzzle) = recipe.data.generate {
            let parts = train.parts.iter_mut().chain(held_out.iter_mut().flat_map(|held_out| &mut held_out.parts));
            parts.for_each(|part| part.name = format!("generated {}", puzzle.name()));
        }
        match self.json {
            true => {
                let mut object = self.as_json(&recipe, &text, &train, held_out.as_ref());
                object["remarks"] = json!(remarks);
                object["beyond_positions"] = json!(beyond);
                say!("{object}");
            }
            false => self.print(&recipe, (&text, &config), (&train, held_out.as_ref()), &remarks),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(
        &self,
        recipe: &Recipe,
        (text, config): (&TextModel, &ModelConfig),
        (train, held_out): (&Mixed, Option<&Mixed>),
        remarks: &[String],
    ) {
        print_lengths(train, "", recipe.data.max_seq_len.0);
        if let Some(held_out) = held_out {
            print_lengths(held_out, "held out: ", recipe.data.max_seq_len.0);
        }
        for remark in remarks {
            sentence!(6, "note: {remark}");
        }
        let (steps, all) = num_steps(recipe, train);
        let (epoch, tokens) = (train.epoch_len(), train.tokens_per_epoch());
        let (examples, tokens) = (counted(epoch, "example"), counted(tokens.round(), "token"));
        let (per_epoch, batch) = (counted(steps, "step"), recipe.train.global_batch_size());
        sentence!(10, "an epoch: {examples}, {tokens}, {per_epoch} of {batch}");
        say!("the run:  {}, {:.2} epochs", counted(all, "step"), all as f64 / steps as f64);
        sentence!(10, "model:    {}: {}", config.family().name, config.facts());
        let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        for (part, examples) in train.by_source() {
            for (i, example) in examples.iter().take(self.examples).enumerate() {
                say!("\n== {}, example {} of {}", part.name, i + 1, part.examples);
                self.print_example(text, (part, example), is_coloured);
            }
        }
    }

    fn print_example(&self, text: &TextModel, (part, example): (&Part, &Example), is_coloured: bool) {
        let [prompt, answer, end] = parts(text, (part, example));
        // Dim, green, reverse video.
        let paint = |code: u8, text: &str| match is_coloured {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        if part.documents > 0 {
            say!("-- text, {}\n{}", counted(example.answer_ids.len(), "token"), paint(32, &self.shown(&answer)));
            return;
        }
        say!("-- prompt, {}\n{}", counted(example.prompt_ids.len(), "token"), paint(2, &self.shown(&prompt)));
        say!("-- answer, {}\n{}", counted(example.answer_ids.len(), "token"), paint(32, &self.shown(&answer)));
        match end.is_empty() {
            true => say!("-- cut: no end token"),
            false => say!("-- end token\n{}", paint(7, &end)),
        }
    }

    /// Makes a text printable: what would act on the terminal is escaped, and a long text loses its middle.
    fn shown(&self, text: &str) -> String {
        let chars: Vec<char> = text.chars().collect();
        let escape = |chars: &[char]| visible(&chars.iter().collect::<String>()).into_owned();
        let [first, last] = SHOWN;
        match self.full || chars.len() <= first + last {
            true => escape(&chars),
            false => {
                let (head, tail) = (&chars[..first], &chars[chars.len() - last..]);
                let left_out = chars.len() - first - last;
                format!("{}\n[... {left_out} characters; --full shows them ...]\n{}", escape(head), escape(tail))
            }
        }
    }

    fn as_json(&self, recipe: &Recipe, text: &TextModel, train: &Mixed, held_out: Option<&Mixed>) -> Value {
        let example = |part: &Part, example: &Example| {
            let [prompt, answer, end] = parts(text, (part, example));
            let (prompt_tokens, answer_tokens) = (example.prompt_ids.len(), example.answer_ids.len());
            json!({ "prompt": prompt, "answer": answer, "end": end,
                    "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens })
        };
        let sources = |mixed: &Mixed, shown: usize| -> Vec<Value> {
            let source = |(part, examples): (&Part, &[Example])| {
                let [prompt, answer, total] = Lengths::of_examples(examples);
                let mut object = rows::of_part(part);
                object["prompt_tokens"] = json!(prompt);
                object["answer_tokens"] = json!(answer);
                object["total_tokens"] = json!(total);
                object["shown"] = examples.iter().take(shown).map(|one| example(part, one)).collect();
                object
            };
            mixed.by_source().map(source).collect()
        };
        let (steps, all) = num_steps(recipe, train);
        json!({
            "sources": sources(train, self.examples),
            "held_out": held_out.map(|held_out| sources(held_out, 0)),
            "max_seq_len": recipe.data.max_seq_len,
            "examples_per_epoch": train.epoch_len(),
            "tokens_per_epoch": train.tokens_per_epoch().round() as u64,
            "steps_per_epoch": steps,
            "steps": all,
        })
    }
}

/// Remarks about properties of the rows that are probably unintended.
fn remarks(recipe: &Recipe, (train, held_out): (&Mixed, Option<&Mixed>), shared: Option<SharedRows>) -> Vec<String> {
    let mut remarks: Vec<String> = shared.iter().map(SharedRows::to_string).collect();
    let (cut, count) = (train.dataset.truncated, train.dataset.examples.len());
    if 2 * cut > count {
        let are = verb(cut, ["is cut and has", "are cut and have"]);
        remarks.push(format!(
            "{cut} of {} {are} no end token; a model that is trained on them doesn't stop (data.max_seq_len)",
            counted(count, "answer")
        ));
    }
    remarks.extend(rows::fewer_than_wanted(recipe, (train, held_out)));
    remarks
}

/// Prompt, answer and end token as text; the end token is empty for an answer that was cut, and for packed texts, whose
/// end tokens stand in their places.
fn parts(text: &TextModel, (part, example): (&Part, &Example)) -> [String; 3] {
    let ends = text.end_token_ids();
    let answer = match example.answer_ids.split_last() {
        Some((last, answer)) if part.documents == 0 && ends.contains(last) => answer,
        _ => &example.answer_ids,
    };
    let end = &example.answer_ids[answer.len()..];
    [&example.prompt_ids, answer, end].map(|ids| text.decode_canvas(ids))
}

/// The optimizer steps of an epoch and of the run.
fn num_steps(recipe: &Recipe, train: &Mixed) -> (u64, u64) {
    (recipe.train.steps_per_epoch(train.epoch_len(), 1), recipe.train.num_steps(train.epoch_len(), 1))
}

fn print_lengths(mixed: &Mixed, what: &str, max_seq_len: usize) {
    for (part, examples) in mixed.by_source() {
        sentence!(2, "{what}{}: {}, each {} in an epoch", part.name, part.how_many(), part.how_often());
        say!("  {:8}{:>8}{:>8}{:>10}{:>8}{:>8}", "tokens", "min", "median", "mean", "95 %", "max");
        // A text is neither prompt nor answer.
        let hidden = if part.documents > 0 { 2 } else { 0 };
        let lengths = ["prompt", "answer", "total"].into_iter().zip(Lengths::of_examples(examples));
        for (name, lengths) in lengths.skip(hidden) {
            let Lengths { min, median, mean, p95, max } = lengths;
            say!("  {name:8}{min:>8}{median:>8}{mean:>10.1}{p95:>8}{max:>8}");
        }
        match part.documents {
            0 => say!("  {} cut at {max_seq_len} tokens", counted(part.truncated, "answer")),
            _ => say!("  nothing cut: texts are packed into sequences of {max_seq_len} tokens"),
        }
        for line in part.notes.lines() {
            sentence!(4, "  {line}");
        }
        say!();
    }
}
