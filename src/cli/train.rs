//! `weft train`: the main job. Reads a recipe, scores the base, trains an adapter or every weight, saves, scores again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weft::base::{Base, is_embedded};
use weft::data::{Dataset, Example, Mixed, Part};
use weft::error::{Error, Result};
use weft::eval::Accuracy;
use weft::eval::generations::{accuracy_of, save};
use weft::experiment::Experiment;
use weft::files::make_folder;
use weft::machine::peak_rss_bytes;
use weft::model::lora;
use weft::plan::{Planner, Stored};
use weft::recipe::{Recipe, Trainable};
use weft::report::training::{self, Sample};
use weft::train::entropy_reuse::Drift;
use weft::train::run::{self, Summary};

use super::bar;
use super::eval::in_percent;
use super::generate::tell_idle;
use super::plan::as_bytes;

/// The recipe of the default job.
const QUICKSTART: &str = include_str!("../../recipes/quickstart.toml");

/// Fine-tune a model by a recipe
///
/// Writes report.html, metrics.jsonl, TensorBoard events, checkpoints to resume from, and the PEFT adapter (model.trainable = "full": the whole trained
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
    /// Refuse a run that is planned to take more memory than so many GB; than what is available where absent
    #[arg(long, value_name = "GB", value_parser = super::plan::memory_gb)]
    memory_gb: Option<f64>,
    /// Begin a run that is planned not to fit all the same
    #[arg(long)]
    skip_plan: bool,
}

impl Train {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        let recipe = read_recipe(self.recipe.as_deref(), &self.settings)?;
        let output = recipe.train.output.clone();
        run::check_output(&output, self.resume)?;
        // 1. Base and rows.
        let (experiment, mut base) = Experiment::open(recipe)?;
        let stored = if is_embedded(&experiment.recipe.model.path) { Stored::Resident } else { Stored::Mapped };
        let planner = Planner::new(&experiment, (base.model.outline(), &base.text), stored)?;
        let plan = planner.plan(self.memory_gb.map(as_bytes))?;
        if !self.skip_plan {
            plan.check().map_err(|e| Error::Usage(format!("{e}; --skip-plan begins it all the same")))?;
        }
        let recipe = &experiment.recipe;
        tell_idle(&recipe.sampler.for_family(base.model.config.family));
        if !quiet {
            describe(&experiment, &base);
            println!("memory     {:.2} GB planned", plan.peak_bytes as f64 / 1e9);
        }
        // 2. The base's score and answers, before anything is trained.
        let before = evaluate(&experiment, &base, &output.join("base-generations.json"), quiet)?;
        let mut samples = first_samples(&experiment, &base)?;
        // 3. Training.
        let (mut trainer, adapter) = experiment.trainer(base.model, &base.text)?;
        let (held_out, resolved) = (experiment.held_out_examples(), experiment.resolved());
        let summary = run::train(&mut trainer, (held_out, &output), &resolved, self.resume, quiet)?;
        base.model = trainer.model;
        let product = if adapter.is_some() { "adapter" } else { "checkpoint" };
        let folder = output.join(product);
        match adapter {
            Some(config) => lora::save(&folder, &base.model, &config, &base.name)?,
            None => base.save(&folder, recipe.model.save_dtype.map_or(base.dtype, Into::into))?,
        }
        // 4. The same after it, the report, and where everything lies.
        let after = evaluate(&experiment, &base, &output.join(format!("{product}-generations.json")), quiet)?;
        for (sample, after) in samples.iter_mut().zip(experiment.samples(&base.model, &base.text)?) {
            sample.after = after;
        }
        let scores = before.zip(after).map(|(before, after)| [("base", before), (product, after)]);
        let mut results = tell_results(&experiment, trainer.step, &summary, scores);
        let [peak, planned] = [peak_rss_bytes(), plan.peak_bytes as u64].map(|bytes| bytes as f64 / 1e9);
        println!("peak memory {peak:.3} GB; {planned:.3} GB were planned");
        results.push(("peak memory".to_owned(), format!("{peak:.2} GB")));
        training::write(&output, &results, &samples)?;
        println!("the {product} lies in {}", folder.display());
        println!("the report lies in {}", output.join(training::REPORT).display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what a run came to; names and values for its report.
fn tell_results(
    experiment: &Experiment,
    steps: u64,
    summary: &Summary,
    scores: Option<[(&str, Accuracy); 2]>,
) -> Vec<(String, String)> {
    println!("trained {} steps in {:.0} s", steps - summary.first_step, summary.train_secs);
    let mut results = vec![("steps".to_owned(), steps.to_string())];
    if let Some(Drift { rank_correlation, mean_change }) = summary.entropy_drift {
        println!(
            "reused entropies at the end: rank correlation {rank_correlation:.3} with fresh ones, {mean_change:.3} nats apart"
        );
    }
    if let Some([before, after]) = summary.held_out {
        println!("held-out loss {before:.4} -> {after:.4} nats per answer token");
        results.push(("held-out loss, before and after".to_owned(), format!("{before:.3} \u{2192} {after:.3}")));
    }
    if let (Some(task), Some(scores)) = (experiment.recipe.eval.task, scores) {
        println!("{} on the same {} held-out problems:", task.name(), experiment.problems.len());
        let width = scores.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, accuracy) in scores {
            println!("  {name:width$}  {}", in_percent(&accuracy));
            results.push((format!("{}, {name}", task.name()), in_percent(&accuracy)));
        }
    }
    results.push(("training".to_owned(), format!("{:.0} s", summary.train_secs)));
    results
}

/// Reads a recipe, the quick start's where there is none, and warns of settings without effect.
pub(super) fn read_recipe(path: Option<&Path>, settings: &[String]) -> Result<Recipe> {
    let recipe = match path {
        Some(path) => Recipe::read(path, settings)?,
        None => Recipe::parse(QUICKSTART, Path::new("recipes/quickstart.toml"), settings)?,
    };
    recipe.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(recipe)
}

fn describe(experiment: &Experiment, base: &Base) {
    let recipe = &experiment.recipe;
    let parameters: usize = base.model.params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let whole = if recipe.model.trainable == Trainable::Full { ", all trained" } else { "" };
    println!("base       {} ({:.2} million parameters{whole})", base.name, parameters as f64 / 1e6);
    let (name, normalizer) = (recipe.objective.kind.name(), recipe.objective.normalizer());
    println!("objective  {name}, loss divided by the {} tokens", normalizer.divides_by());
    let Mixed { dataset: Dataset { examples, truncated, passed_over }, mixture, parts } = &experiment.train;
    let tokens: usize = examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
    let (count, longest) = (examples.len(), recipe.data.max_seq_len.0);
    println!("data       {count} examples, {tokens} tokens; {truncated} answers cut at {longest} tokens");
    if *passed_over > 0 {
        println!("           {passed_over} rows passed over: their checks call no answer right");
    }
    for Part { name, weight, examples, .. } in parts.iter().filter(|_| parts.len() > 1) {
        println!("           {name}: {examples} examples, {weight} times each in an epoch");
    }
    if parts.len() > 1 {
        println!("           an epoch has {} examples", mixture.epoch_len(count));
    }
    if let Some(Mixed { dataset, .. }) = &experiment.held_out {
        println!("held out   {} examples; {} answers cut", dataset.examples.len(), dataset.truncated);
    }
}

/// The rows that the report shows, answered by the base.
fn first_samples(experiment: &Experiment, base: &Base) -> Result<Vec<Sample>> {
    let before = experiment.samples(&base.model, &base.text)?;
    let sample = |(row, before): (&Example, String)| Sample {
        prompt: base.text.decode_canvas(&row.prompt_ids),
        expected: base.text.decode_answer(&row.answer_ids),
        before,
        after: String::new(),
    };
    Ok(experiment.sampled().iter().zip(before).map(sample).collect())
}

/// The accuracy on the recipe's task, whose generations are saved; `None` without a task.
fn evaluate(experiment: &Experiment, base: &Base, out: &Path, quiet: bool) -> Result<Option<Accuracy>> {
    let Some(task) = experiment.recipe.eval.task else { return Ok(None) };
    let generations = experiment.evaluate(&base.model, &base.text, &bar(quiet))?;
    let Some(generations) = generations else { return Ok(None) };
    // The base is scored before the run makes its folder.
    make_folder(&experiment.recipe.train.output)?;
    save(out, task, &generations)?;
    Ok(Some(accuracy_of(&generations)))
}
