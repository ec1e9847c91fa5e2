//! `weft train`: the main job. Reads a recipe, scores the base, trains an adapter or every weight, saves, scores again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weft::base::Base;
use weft::data::{self, Dataset, Limits};
use weft::error::{Error, Result};
use weft::eval::generated::{self, Puzzle};
use weft::eval::generations::{accuracy_of, answer, save};
use weft::eval::{Accuracy, read_problems};
use weft::files::make_folder;
use weft::model::block::Transformer;
use weft::model::lora::{self, LoraConfig};
use weft::recipe::{DataTable, ModelTable, Recipe, Trainable};
use weft::sampler::generate::Sampling;
use weft::train::entropy_reuse::Drift;
use weft::train::optimizer::train_everything;
use weft::train::{Job, Trainer, run};

use super::eval::in_percent;
use super::generate::tell_idle;

/// The recipe of the default job.
const QUICKSTART: &str = include_str!("../../recipes/quickstart.toml");

/// Fine-tune a model by a recipe
///
/// Writes metrics.jsonl, checkpoints to resume from, and the PEFT adapter (model.trainable = "full": the whole trained
/// checkpoint) into the recipe's train.output. Without a recipe it runs the quick start: the embedded base learns to
/// answer 4x4 Sudoku in a chat, in a few minutes.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft train\n  weft train recipes/gsm8k.toml --set train.lr=5e-4 --set train.output=runs/try-2\n  weft train recipes/gsm8k.toml --resume"
)]
pub struct Train {
    /// The recipe (TOML); the quick start where absent
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    /// Go on with the run in the recipe's train.output
    #[arg(long)]
    resume: bool,
}

/// The rows of a run.
struct Rows {
    train: Dataset,
    held_out: Option<Dataset>,
    held_out_file: Option<PathBuf>,
}

impl Train {
    pub fn run(self) -> Result<ExitCode> {
        let recipe = match &self.recipe {
            Some(path) => Recipe::read(path, &self.settings)?,
            None => Recipe::parse(QUICKSTART, Path::new("recipes/quickstart.toml"), &self.settings)?,
        };
        recipe.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
        let output = recipe.train.output.clone();
        run::check_output(&output, self.resume)?;
        // 1. Base and rows.
        let mut base = Base::open(&recipe.model.path)?;
        base.model.config.precision = recipe.model.precision;
        if recipe.eval.task.is_some() {
            let sampling = recipe.sampler.for_family(base.model.config.family);
            tell_idle(&sampling);
            sampling.check().map_err(|e| Error::Usage(format!("[sampler]: {e}")))?;
        }
        let rows = rows(&recipe, &base)?;
        describe(&recipe, &base, &rows);
        // 2. The base's score, before anything is trained.
        let before = evaluate(&recipe, &base, &rows, &output.join("base-generations.json"))?;
        // 3. Training.
        let adapter = make_trainable(&recipe, &mut base.model)?;
        let held_out = rows.held_out.as_ref().map_or(&[][..], |d| &d.examples);
        let job = Job {
            examples: rows.train.examples.clone(),
            objective: recipe.objective,
            padding: recipe.data.padding,
            eos_token_id: base.text.eos_token_id(),
            settings: recipe.train.clone(),
        };
        let mut trainer = Trainer::new(base.model, job);
        let resolved = serde_json::to_value(&recipe).expect("a recipe is JSON");
        let summary = run::train(&mut trainer, held_out, &output, &resolved, self.resume)?;
        base.model = trainer.model;
        let product = if adapter.is_some() { "adapter" } else { "checkpoint" };
        let folder = output.join(product);
        match adapter {
            Some(config) => lora::save(&folder, &base.model, &config, &base.name)?,
            None => base.save(&folder, recipe.model.save_dtype.map_or(base.dtype, Into::into))?,
        }
        // 4. The score after it, and where everything lies.
        let after = evaluate(&recipe, &base, &rows, &output.join(format!("{product}-generations.json")))?;
        println!("trained {} steps in {:.0} s", trainer.step - summary.first_step, summary.train_secs);
        if let Some(Drift { rank_correlation, mean_change }) = summary.entropy_drift {
            println!(
                "reused entropies at the end: rank correlation {rank_correlation:.3} with fresh ones, {mean_change:.3} nats apart"
            );
        }
        if let Some([before, after]) = summary.held_out {
            println!("held-out loss {before:.4} -> {after:.4} nats per answer token");
        }
        if let (Some(task), Some(before), Some(after)) = (recipe.eval.task, before, after) {
            println!("{} on the same {} held-out problems:", task.name(), before.1);
            let width = product.len();
            println!("  {:width$}  {}", "base", in_percent(&before.0));
            println!("  {product}  {}", in_percent(&after.0));
        }
        println!("the {product} lies in {}", folder.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Attaches the recipe's adapter, whose configuration is returned, or makes every weight trainable.
fn make_trainable(recipe: &Recipe, model: &mut Transformer) -> Result<Option<LoraConfig>> {
    let ModelTable { trainable, lora_rank, lora_alpha, lora_dropout, lora_targets, use_rslora, .. } = &recipe.model;
    if *trainable == Trainable::Full {
        train_everything(model);
        return Ok(None);
    }
    let config = LoraConfig::new(*lora_rank, *lora_alpha, *lora_dropout, lora_targets.clone(), *use_rslora);
    let attached = lora::attach_fresh(model, &config, recipe.train.seed);
    attached.map_err(|e| Error::Usage(format!("the adapter of [model]: {e}")))?;
    Ok(Some(config))
}

/// Reads the recipe's rows, or generates them into the run's folder.
fn rows(recipe: &Recipe, base: &Base) -> Result<Rows> {
    let DataTable { train, held_out, generate, train_rows, held_out_rows, max_seq_len, .. } = recipe.data.clone();
    let (train_file, held_out_file) = match generate {
        Some(puzzle) => {
            let folder = recipe.train.output.join("data");
            let [train, held_out] = generated_rows(puzzle, recipe, &folder)?;
            (train, Some(held_out))
        }
        None => (train.expect("the recipe was checked to name its rows"), held_out),
    };
    let mask = base.model.config.mask_token_id;
    let read = |file: &Path, rows| data::load(file, &base.text, Limits { max_seq_len: max_seq_len.0, rows }, mask);
    let train = read(&train_file, train_rows)?;
    let held_out = held_out_file.as_deref().map(|file| read(file, held_out_rows)).transpose()?;
    Ok(Rows { train, held_out, held_out_file })
}

fn generated_rows(puzzle: Puzzle, recipe: &Recipe, folder: &Path) -> Result<[PathBuf; 2]> {
    let (rows, held_out_rows) = (recipe.data.train_rows.unwrap_or(4096), recipe.data.held_out_rows.unwrap_or(256));
    generated::write(puzzle, recipe.train.seed, [rows, held_out_rows], folder)
}

fn describe(recipe: &Recipe, base: &Base, rows: &Rows) {
    let parameters: usize = base.model.params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let whole = if recipe.model.trainable == Trainable::Full { ", all trained" } else { "" };
    println!("base       {} ({:.2} million parameters{whole})", base.name, parameters as f64 / 1e6);
    let (name, normalizer) = (recipe.objective.kind.name(), recipe.objective.normalizer());
    println!("objective  {name}, loss divided by the {} tokens", normalizer.divides_by());
    let Dataset { examples, truncated } = &rows.train;
    let tokens: usize = examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
    println!(
        "data       {} examples, {tokens} tokens; {truncated} answers cut at {} tokens",
        examples.len(),
        recipe.data.max_seq_len.0
    );
    if let Some(held_out) = &rows.held_out {
        println!("held out   {} examples; {} answers cut", held_out.examples.len(), held_out.truncated);
    }
}

/// The accuracy on the recipe's task and the number of problems; `None` without a task.
fn evaluate(recipe: &Recipe, base: &Base, rows: &Rows, out: &Path) -> Result<Option<(Accuracy, usize)>> {
    let (Some(task), Some(file)) = (recipe.eval.task, &rows.held_out_file) else { return Ok(None) };
    let mut problems = read_problems(task, file)?;
    problems.truncate(recipe.eval.limit.unwrap_or(problems.len()));
    let sampling = Sampling { seed: recipe.train.seed, ..recipe.sampler.clone() };
    // The base is scored before the run makes its folder.
    make_folder(&recipe.train.output)?;
    let generations = answer(base, task, &problems, &sampling)?;
    save(out, task, &generations)?;
    Ok(Some((accuracy_of(&generations), problems.len())))
}
