//! `weft train`: the main command. Reads a recipe, scores the base, trains an adapter or every weight, saves it and
//! scores again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weft::base::{Base, is_embedded};
use weft::counted::counted;
use weft::data::Example;
use weft::data::turns::turns;
use weft::error::{Error, Result};
use weft::experiment::{Experiment, answer_length};
use weft::files::{read_text, write_whole};
use weft::interrupt::{self, Stage};
use weft::machine::{available_bytes, peak_rss_bytes, resident_bytes};
use weft::model::settings::Trainable;
use weft::parallel::Ranks;
use weft::parallel::session::{has_room_beside, ranks_here};
use weft::plan::{Plan, Planner, Stored};
use weft::recipe::{Recipe, RunSize};
use weft::report::rows::{SourceRows, table};
use weft::report::training::{self, Contents, Sample};
use weft::reproduce::study;
use weft::sampler::generate::Sampling;
use weft::train::Trainer;
use weft::train::checkpoint;
use weft::train::rank_log::RankLog;
use weft::train::run::{self, RESULTS};
use weft::train::scored::{Scoring, train_scored};
use weft::train::step::StepReport;
use weft_kernels::cuda::WORKSPACE;

use super::generate::tell_idle;
use super::model_card;
use super::plan::as_bytes;
use super::progress::doing;
use super::question;
use super::results::Results;
use super::rows::{self, INDENT};
use super::scores;
use super::warn_of_base;

/// The recipe that `weft train` runs when none is given.
const QUICKSTART: &str = include_str!("../../recipes/quickstart.toml");

/// Fine-tune a model as a recipe describes
///
/// Writes report.html, metrics.jsonl, TensorBoard events, checkpoints to resume from, and the PEFT adapter into the
/// recipe's train.output; with model.trainable = "full", the whole trained checkpoint takes the adapter's place.
/// Without a recipe it runs the quick start: the embedded base learns to answer 4x4 Sudoku in a chat, in a few minutes.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft train\n  weft train --set train.lr=5e-4 --set train.output=runs/try-2\n  weft train runs/try-2 --resume\n  weft recipe > my.toml\n  weft train my.toml --set data.train=YOUR-ROWS.jsonl --set train.output=runs/mine"
)]
pub struct Train {
    /// The recipe (TOML), or the folder of a run, whose recipe is used; default: the quick start
    recipe: Option<PathBuf>,
    /// Replace a setting of the recipe
    #[arg(long = "set", value_name = "table.key=value")]
    settings: Vec<String>,
    #[command(flatten)]
    facts: super::FactArgs,
    /// Resume the run in the recipe's train.output
    #[arg(long)]
    resume: bool,
    /// Refuse a run whose plan exceeds this much memory, in GB; default: what is available
    #[arg(long, value_name = "GB", value_parser = super::plan::positive)]
    memory_gb: Option<f64>,
    /// Let each rank of an mpirun write the time of its steps to ranks/rank-R.jsonl in the output folder
    #[arg(long)]
    rank_logs: bool,
    /// Send gradients of full fine-tuning during backward under mpirun: on, off, or auto, which is on where a rank has at
    /// least 4 processors or an idle one
    #[arg(long, default_value = "auto", value_name = "WHEN", value_parser = overlap)]
    overlap: Overlap,
    /// Start the run even if its plan doesn't fit
    #[arg(long)]
    skip_plan: bool,
    /// Print the results as one JSON object and nothing else (implies --quiet)
    #[arg(long)]
    json: bool,
}

/// The run's peak memory, of the process or of the GPU: the quantity that the plan predicts.
fn used_bytes() -> u64 {
    weft::device::gpu().map_or_else(peak_rss_bytes, |gpu| (gpu.most_used_bytes() + WORKSPACE) as u64)
}

/// Whether gradients travel during backward; `None` decides by the number of cores.
type Overlap = Option<bool>;

fn overlap(text: &str) -> std::result::Result<Overlap, String> {
    match text {
        "auto" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => Err("the known values are on, off and auto".to_owned()),
    }
}

impl Train {
    pub fn run(self, quiet: bool, ranks: &Ranks) -> Result<ExitCode> {
        let is_first = ranks.is_first();
        let quiet = quiet || self.json || !is_first;
        interrupt::enter(if self.resume { Stage::Resumed } else { Stage::Start });
        // 1. The base and the rows.
        let (experiment, mut base, plan) = self.open(ranks, quiet)?;
        let output = experiment.recipe.train.output.clone();
        let _lock = is_first.then(|| run::lock(&output)).transpose()?;
        let recipe = &experiment.recipe;
        let matmul = if recipe.model.trainable == Trainable::Full { "checkpoint" } else { "adapter" };
        if self.resume && self.is_finished(&experiment, (matmul, plan.steps), quiet)? {
            let steps = finished_steps(&output).unwrap_or(plan.steps);
            return if is_first { self.tell_finished(&output, steps) } else { Ok(ExitCode::SUCCESS) };
        }
        if is_first {
            begin(&experiment, &base, &plan, quiet);
        }
        base.model.put_on(&weft::device::current());
        // 2. The base's score and answers before training.
        let (before, seconds) = scores::of_base(&experiment, &base, (self.resume, quiet))?;
        let mut samples = if is_first { first_samples(&experiment, &base)? } else { vec![] };
        // 3. Training.
        let (mut trainer, adapter) = experiment.trainer(base.model, &base.text)?;
        trainer.model.config.activation_bytes = plan.activation_bytes;
        trainer.optimizer.overlaps = self.overlap.unwrap_or_else(|| has_room_beside(ranks));
        if self.rank_logs {
            trainer.rank_log = Some(RankLog::open(&output.join("ranks"), &**ranks)?);
        }
        let (held_out, resolved) = (experiment.held_out_examples(), experiment.resolved());
        let options = run::Options { resume: self.resume, quiet };
        let mut score = |trainer: &Trainer| scores::of_trained(&experiment, (trainer, &base.text), matmul, quiet);
        let each_epoch = recipe.eval.is_each_epoch();
        let scoring = Scoring { before: &before, seconds, each_epoch, score: &mut score };
        interrupt::enter(Stage::Steps);
        let mut go_on = |_: &StepReport| ControlFlow::Continue(());
        let ended = match experiment.tasks.is_empty() {
            true => run::train(&mut trainer, (held_out, &output), &resolved, options, go_on).map(|of| (of, vec![])),
            false => train_scored(&mut trainer, (held_out, &output), &resolved, options, (scoring, &mut go_on)),
        };
        let (summary, after) = ended.map_err(|error| experiment.with_rows(error))?;
        interrupt::enter(Stage::End);
        let steps = trainer.step;
        base.model = trainer.model;
        let folder = output.join(matmul);
        experiment.save(&base, adapter.as_ref(), &trainer.optimizer, &folder)?;
        // 4. The answers after training, the report, and the list of what was written.
        if !is_first {
            return Ok(ExitCode::SUCCESS);
        }
        for (sample, after) in samples.iter_mut().zip(experiment.samples(&base.model, &base.text)?) {
            sample.after = after;
        }
        let best = experiment.save_best(&mut base, (adapter.as_ref(), matmul), summary.best)?;
        let asks = |folder: &PathBuf| question::command(&experiment, &base, folder);
        let (of_last, of_best) = (asks(&folder)?, best.as_ref().map(asks).transpose()?);
        let better = of_best.as_ref().filter(|_| summary.best.is_some_and(|best| best.step != steps));
        let named = |(before, after)| [("base", before), (matmul, after)];
        let results = Results {
            steps,
            summary: &summary,
            experiment: &experiment,
            scores: before.into_iter().zip(after).map(named).collect(),
            memory_bytes: [used_bytes(), plan.peak_bytes as u64],
            files: [(matmul, folder.clone()), ("report", output.join(training::REPORT))]
                .map(|(name, path)| (name, path.display().to_string())),
            question: better.unwrap_or(&of_last).clone(),
            best: best.as_ref().map(|folder| folder.display().to_string()),
            rows: rows::as_json(&experiment.train, experiment.held_out.as_ref()),
        };
        for (folder, question) in [(&folder, &of_last)].into_iter().chain(best.as_ref().zip(of_best.as_ref())) {
            model_card::write(folder, (&base.name, question), &results)?;
        }
        let sampling = answer_length::of_report(recipe, &base.model.config, &experiment.train);
        self.finish(&results, (&samples, &answer_length::told(&sampling, &experiment.train)))
    }

    /// Writes the report and the results, and prints these.
    fn finish(&self, results: &Results, (samples, sampler): (&[Sample], &str)) -> Result<ExitCode> {
        let Experiment { recipe, train, held_out, .. } = results.experiment;
        let output = &recipe.train.output;
        let sources = SourceRows::of(train, held_out.as_ref(), recipe.data.max_seq_len.0);
        let remarks: Vec<String> = sources.iter().flat_map(SourceRows::remarks).collect();
        let contents = Contents {
            results: &results.rows(),
            facts: &results.facts(),
            rows: &table(&sources),
            remarks: &remarks,
            samples,
            sampler,
        };
        training::write(output, &contents)?;
        let object = results.to_json();
        // This file is written last: where it exists, the run is finished.
        write_whole(&output.join(RESULTS), format!("{object}\n").as_bytes())?;
        match self.json {
            true => say!("{object}"),
            false => results.print(),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Opens base and rows and plans the run. A run that doesn't fit leaves nothing behind.
    fn open(&self, ranks: &Ranks, quiet: bool) -> Result<(Experiment, Base, Plan)> {
        let is_first = ranks.is_first();
        let recipe = read_recipe(self.recipe.as_deref(), &self.facts.after(&self.settings), is_first)?;
        let output = recipe.train.output.clone();
        if is_first {
            run::check_output(&output, self.resume)?;
        }
        let is_new = !output.exists();
        let opening = doing(quiet, "opening base and rows");
        let leave_nothing = |_: &Error| {
            // Nothing but generated rows has been written so far.
            let _ = (is_new && is_first).then(|| std::fs::remove_dir_all(&output));
        };
        let (experiment, base) = Experiment::open_on(ranks.clone(), recipe).inspect_err(leave_nothing)?;
        drop(opening);
        let plan = self.plan(&experiment, &base).inspect_err(leave_nothing)?;
        Ok((experiment, base, plan))
    }

    /// What the run will take on each rank. The run is refused where a machine has too little memory for the ranks on
    /// it.
    fn plan(&self, experiment: &Experiment, base: &Base) -> Result<Plan> {
        let is_in_memory = is_embedded(&experiment.recipe.model.path) || base.is_half();
        let stored = if is_in_memory { Stored::Resident } else { Stored::Mapped };
        let mut planner = Planner::new(experiment, (base.model.to_meta(), &base.text), stored)?;
        if let Some(gpu) = weft::device::gpu() {
            // The rank whose GPU has the least memory decides.
            let of_ranks = experiment.ranks.all_gather_f64(&[gpu.available_bytes() as f64]);
            let least = of_ranks.iter().flatten().copied().fold(f64::MAX, f64::min);
            planner = planner.on_gpu(Some(least as usize));
        }
        let here = ranks_here(&experiment.ranks);
        let shared = available_bytes()
            .filter(|_| here > 1 && weft::device::gpu().is_none())
            .map(|bytes| bytes as usize / here + resident_bytes() as usize);
        let plan = planner.plan(self.memory_gb.map(as_bytes).or(shared))?;
        if !self.skip_plan && experiment.ranks.is_first() {
            plan.check().map_err(|e| Error::Usage(format!("{e}; --skip-plan starts it anyway")))?;
        }
        Ok(plan)
    }

    /// Whether there is nothing to resume, as the first rank sees it.
    fn is_finished(&self, experiment: &Experiment, (matmul, steps): (&str, u64), quiet: bool) -> Result<bool> {
        let (output, ranks) = (&experiment.recipe.train.output, &experiment.ranks);
        let newest = || checkpoint::newest_step(output, &experiment.resolved(), ranks.size());
        let step = if ranks.is_first() { newest()? } else { None };
        if step.is_none() && !quiet {
            tell!("{} has no checkpoint to resume from; the run begins at step 0", output.display());
        }
        let is_whole = [matmul, RESULTS].iter().all(|name| output.join(name).exists());
        // A run that ended early has fewer steps than were planned, and so has one that goes on for more epochs.
        let steps = finished_steps(output).filter(|_| ended_early(output)).unwrap_or(steps);
        Ok(ranks.any(step == Some(steps) && is_whole))
    }

    /// Reports that the run is finished: there is nothing to resume, and its files stay as they are.
    fn tell_finished(&self, output: &Path, steps: u64) -> Result<ExitCode> {
        match self.json {
            true => say!("{}", read_text(&output.join(RESULTS))?.trim_end()),
            false => say!(
                "the run in {} is finished ({}); there is nothing to resume",
                output.display(),
                counted(steps, "step")
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The results of a finished run; `None` if it isn't finished.
fn stored_results(output: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&read_text(&output.join(RESULTS)).ok()?).ok()
}

/// The steps of a finished run.
fn finished_steps(output: &Path) -> Option<u64> {
    stored_results(output)?["steps"].as_u64()
}

/// Whether a finished run ended because the held-out loss fell no further.
fn ended_early(output: &Path) -> bool {
    stored_results(output).is_some_and(|results| results["ended_early"] == true)
}

/// Reads a recipe, or the quick start's where none is given, and warns of settings without effect if it `tells`.
pub(super) fn read_recipe(path: Option<&Path>, settings: &[String], tells: bool) -> Result<Recipe> {
    let recipe = match (path, own_rows(settings)) {
        (Some(path), _) => Recipe::read(path, settings)?,
        (None, Some(rows)) => return Err(generates(rows)),
        (None, None) => Recipe::parse(QUICKSTART, Path::new("recipes/quickstart.toml"), settings)?,
    };
    let comparison = path.and_then(study::warning);
    let warnings = recipe.warnings().into_iter().chain(comparison);
    warnings.filter(|_| tells).for_each(|warning| tell!("warning: {warning}"));
    Ok(recipe)
}

/// The setting that names rows for the quick start, which has its own.
fn own_rows(settings: &[String]) -> Option<&String> {
    let names = |key: &str| settings.iter().find(move |setting| setting.trim_start().starts_with(key));
    ["data.train=", "data.sources="].iter().find_map(|key| names(key))
}

fn generates(setting: &str) -> Error {
    Error::Usage(format!(
        "--set {setting}: the quick start, which runs where no recipe is given, generates its own rows; write a recipe with \"weft \
         recipe > my.toml\" and give its path as well"
    ))
}

/// Prints warnings and what the run will do, before it starts.
fn begin(experiment: &Experiment, base: &Base, plan: &Plan, quiet: bool) {
    let recipe = &experiment.recipe;
    // The recipe's warnings already say that the sampler's seed has no effect.
    tell_idle(&Sampling { seed: Sampling::default().seed, ..recipe.sampling(&base.model.config) });
    let of_run = [Some(&experiment.train), experiment.held_out.as_ref()];
    rows::warn(base.config(), of_run, experiment.shared_rows());
    rows::warn_of_run(recipe, of_size(experiment, plan.steps));
    base.told_of_quantizing().iter().for_each(|told| tell!("warning: model.quantize {told}"));
    if let Some(adapter) = &recipe.model.adapter {
        warn_of_base(adapter, &base.name);
    }
    if quiet {
        return;
    }
    describe(experiment, base);
    if let (Some(folder), Some(told)) = (&recipe.model.adapter, &plan.adapter) {
        sentence!(INDENT.len(), "adapter    starts from {}: {told}", folder.display());
    }
    if let (Trainable::Lora, None) = (recipe.model.trainable, &recipe.model.adapter) {
        sentence!(INDENT.len(), "adapter    {}", recipe.model.told_of_adapter());
    }
    sentence!(INDENT.len(), "memory     {:.2} GB planned", plan.peak_bytes as f64 / 1e9);
    if recipe.train.checkpoint_every == 0 {
        sentence!(
            INDENT.len(),
            "saved      at the end, or when it is asked to stop; train.checkpoint_every saves along the way"
        );
    }
}

/// The size of a run, once its rows and problems have been read.
pub(super) fn of_size(experiment: &Experiment, steps: u64) -> RunSize<'_> {
    RunSize {
        train: &experiment.train,
        held_out: experiment.held_out.as_ref(),
        problems: experiment.tasks.iter().map(|posed| posed.problems.len()).max(),
        steps,
        ranks: experiment.ranks.size(),
    }
}

fn describe(experiment: &Experiment, base: &Base) {
    let recipe = &experiment.recipe;
    let parameters: usize = base.model.params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let whole = if recipe.model.trainable == Trainable::Full { ", all trained" } else { "" };
    sentence!(INDENT.len(), "base       {} ({:.2} million parameters{whole})", base.name, parameters as f64 / 1e6);
    sentence!(INDENT.len(), "model      {}", base.told());
    if let Some(gpu) = weft::device::gpu() {
        sentence!(INDENT.len(), "device     {}", gpu.name());
    }
    let ranks = &experiment.ranks;
    if ranks.size() > 1 {
        let batch = recipe.train.global_batch_size() * ranks.size();
        let threads = counted(rayon::current_num_threads(), "thread");
        sentence!(INDENT.len(), "ranks      {}, {threads} each on this machine; {batch} examples a step", ranks.size());
    }
    let (name, normalizer) = (recipe.objective.kind.name(), recipe.objective.normalizer());
    sentence!(INDENT.len(), "objective  {name}, loss divided by the {} tokens", normalizer.divides_by());
    let (given, sampling) = (&recipe.sampler, recipe.sampling(&base.model.config));
    let blocks = sampling.block_length;
    if recipe.eval.generates() && !sampling.is_block_causal() && blocks != given.block_length {
        let (tokens, steps) = (counted(given.gen_length, "token"), counted(sampling.diffusion_steps, "step"));
        let other = given.block_length;
        sentence!(
            INDENT.len(),
            "answers    {tokens} in blocks of {blocks}, because {other} don't divide them; {steps}"
        );
    }
    rows::say_of(experiment);
}

/// The base's answers to the rows that the report shows.
fn first_samples(experiment: &Experiment, base: &Base) -> Result<Vec<Sample>> {
    let before = experiment.samples(&base.model, &base.text)?;
    let sample = |(row, before): (&Example, String)| Sample {
        prompt: turns(&base.text, &row.prompt_ids),
        expected: base.text.decode_answer(&row.answer_ids),
        before,
        after: String::new(),
    };
    Ok(experiment.sampled().iter().zip(before).map(sample).collect())
}
