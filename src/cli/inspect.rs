//! `weft inspect`: shows which tokens a model is uncertain about.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weft::base::Base;
use weft::data::row_range::RowRange;
use weft::data::settings::{OnRow, RowPolicy};
use weft::data::sources::Source;
use weft::data::{Conversation, Example, Message, Reading, numbered_with_notes};
use weft::error::{Error, Result};
use weft::experiment::Experiment;
use weft::files::{read_text, shell_word, write_whole};
use weft::model::lora;
use weft::noising::entropy::Transform;
use weft::objective::Blocks;
use weft::recipe::Recipe;
use weft::report::entropy_map::{entropy_page, inspect};
use weft_kernels::precision::Precision;

use super::progress::doing;
use super::rows;

/// Show what a model is uncertain about: a page of answers coloured by entropy
///
/// On hover, the page shows each answer token's entropy with the whole answer masked, and the rate at which WeFT masks
/// it. A model that was trained by block diffusion sees the answer's clean blocks before each block. The answers are the first
/// held-out rows of a recipe (its training rows if it has none), the first rows of a file, or the text of a file.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft inspect --model tiny-base --data rows.jsonl --examples 5\n  weft inspect runs/quickstart --adapter runs/quickstart/adapter\n  weft inspect --model tiny-base --text answer.txt --prompt 'What is 7 + 5?' --out entropy.html"
)]
pub struct Inspect {
    /// The recipe (TOML) whose rows and base are shown, or the folder of a run
    #[arg(conflicts_with = "model")]
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value", conflicts_with = "model")]
    settings: Vec<String>,
    /// The checkpoint's folder, a model of the hub (ORG/NAME or ORG/NAME@REVISION), or tiny-base
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    facts: super::FactArgs,
    /// Rows whose answers are shown, as weft train reads them: JSONL, JSON, parquet, CSV, or a data set of the hub
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    data: Option<PathBuf>,
    /// The file whose text is the answer
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The user's turn before the text; default: none
    #[arg(long, value_name = "TEXT", requires = "text")]
    prompt: Option<String>,
    /// A PEFT adapter's folder, or one of the hub; without it the base is shown, even for a recipe that has been
    /// trained
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The number of answers of a recipe or of --data to show
    #[arg(long, default_value_t = 4, value_name = "N")]
    examples: usize,
    /// Write the page to this file
    #[arg(long, default_value = "entropy.html", value_name = "FILE")]
    out: PathBuf,
}

impl Inspect {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let (mut base, examples, transform) = match (&self.recipe, &self.model, &self.text) {
            (Some(recipe), ..) => match &self.data {
                Some(data) => {
                    let data = shell_word(data);
                    return Err(Error::Usage(format!(
                        "--data is for --model; for a recipe write --set data.held_out={data}"
                    )));
                }
                None => self.of_recipe(recipe)?,
            },
            (None, Some(model), None) if self.data.is_some() => {
                let base = Base::open_with(model, self.facts.overrides())?;
                let examples = self.of_rows(&base)?;
                (base, examples, Transform::default())
            }
            (None, Some(model), Some(text)) => {
                let base = Base::open_with(model, self.facts.overrides())?;
                let example = self.of_text(&base, text)?;
                (base, vec![example], Transform::default())
            }
            _ => return Err(Error::Usage("give a recipe, or --model DIR with --data FILE or --text FILE".to_owned())),
        };
        let name = match &self.adapter {
            Some(adapter) => {
                lora::load(adapter, &mut base.model)?;
                super::warn_of_base(adapter, &base.name);
                format!("{} with {}", base.name, adapter.display())
            }
            None => base.name.clone(),
        };
        base.model.config.entropy_precision = Precision::F32;
        base.model.put_on(&weft::device::current());
        let computing = doing(quiet, "computing entropies");
        let inspected = |example| inspect(&base.model, &base.text, example, transform);
        let texts: Vec<_> = examples.iter().map(inspected).collect();
        drop(computing);
        let instead = if self.out.exists() { ", in place of the page that was there" } else { "" };
        write_whole(&self.out, entropy_page(&name, &texts, transform).as_bytes())?;
        say!("the entropies of {name} are in {}{instead}", self.out.display());
        if let Some(adapter) = self.own_adapter() {
            tell!("note: the base is shown; --adapter {} shows the adapter of this run", shell_word(&adapter));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The adapter of the run whose folder is given as the recipe, if it isn't the one that is shown.
    fn own_adapter(&self) -> Option<PathBuf> {
        let adapter = self.recipe.as_ref()?.join("adapter");
        (self.adapter.is_none() && adapter.exists()).then_some(adapter)
    }

    fn of_recipe(&self, path: &Path) -> Result<(Base, Vec<Example>, Transform)> {
        let recipe = Recipe::read(path, &self.facts.after(&self.settings))?;
        let transform = recipe.objective.transform;
        let blocks = recipe.objective.blocks;
        let block_length = recipe.objective.block_length;
        let (experiment, mut base) = Experiment::open(recipe)?;
        if blocks == Blocks::Bd3lm {
            // The recipe's pass 1 sees the blocks before.
            base.model.config.block_length = Some(block_length);
        }
        let held_out = experiment.held_out_examples();
        let rows = if held_out.is_empty() { &experiment.train.dataset.examples } else { held_out };
        Ok((base, rows.iter().take(self.examples).cloned().collect(), transform))
    }

    /// The examples of the first rows of `--data`.
    fn of_rows(&self, base: &Base) -> Result<Vec<Example>> {
        let path = self.data.clone().unwrap_or_default();
        let rows = Some(RowRange::first(self.examples));
        let policy = RowPolicy { bad_row: OnRow::Skip, ..RowPolicy::default() };
        let source = Source { path: path.into(), rows, policy, ..Source::default() };
        let mask_token_id = base.model.config.mask_token_id;
        let reading = Reading { text: &base.text, mask_token_id, max_seq_len: usize::MAX, cache: None };
        let (numbered, notes) = numbered_with_notes(&source, &reading)?;
        rows::lines_of_options(&notes).iter().for_each(|line| tell!("note: {line}"));
        let examples: Vec<Example> = numbered.into_iter().map(|(_, example)| example).collect();
        match examples.is_empty() {
            true => Err(Error::Usage(format!("{} holds no answer to show; give a row per answer", source.name()))),
            false => Ok(examples),
        }
    }

    fn of_text(&self, base: &Base, path: &Path) -> Result<Example> {
        let answer = read_text(path)?.trim_end_matches('\n').to_owned();
        if answer.is_empty() {
            let path = path.display();
            return Err(Error::Usage(format!("{path} holds no text; write the answer to be inspected")));
        }
        match &self.prompt {
            None => Ok(Example { prompt_ids: vec![], answer_ids: base.text.encode(&answer)? }),
            Some(content) => {
                let prompt = vec![Message { role: "user".to_owned(), content: content.clone() }];
                base.text.example(&Conversation { prompt, answer })
            }
        }
    }
}
