//! What a recipe's run will take, computed before any weight is read: its largest resident size part by part, the time
//! of a step, and the settings that would make the run fit if it doesn't. docs/memory.md lists the parts and compares
//! plans with what runs used.

mod batches;
mod choices;
mod communication;
mod gpu;
mod gpu_time;
mod memory;
mod rehearsal;
mod remedy;
mod time;

use std::cell::Cell;

use serde::Serialize;

use crate::data::Example;
use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::eval::generations::{batch_sizes, prompt_ids};
use crate::experiment::{Experiment, adapter, answer_length, lora_config};
use crate::machine;
use crate::model::batch::AttentionKind;
use crate::model::block::Transformer;
use crate::model::lora;
use crate::model::settings::Trainable;
use crate::recipe::Recipe;
use crate::sampler::cache::Caching;
use crate::sampler::generate::Sampling;
use crate::sampler::remasking::{Loop, Remasking};
use crate::train::held_out::{PACKED_TOKENS, TIMES};
use crate::train::settings::ACTIVATION_BYTES;
use crate::train::view::View;

pub use batches::{Batches, Lengths, MicroBatch, views};
pub use communication::Communication;
pub use gpu_time::{GPU_MODELS, GpuModel, GpuRates, step_seconds as gpu_step_time};
pub use memory::{Part, Stored, Work};
pub use remedy::Remedy;
pub use time::{Rates, step_seconds as step_time};

/// The plan of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The memory at the run's largest moment, by purpose.
    pub parts: Vec<Part>,
    /// The largest resident size: the parts' sum.
    pub peak_bytes: usize,
    /// The memory that the run may use, on a GPU without a sixteenth that stays in reserve; `None` if the system
    /// doesn't say.
    pub available_bytes: Option<usize>,
    /// Settings that make the run fit, if it doesn't.
    pub remedies: Vec<Remedy>,
    /// Bytes that the forward may save for backward besides each layer's input and attention.
    pub activation_bytes: usize,
    /// Tokens of the largest micro-batch.
    pub largest_micro_batch: usize,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// What the ranks send each other; `None` for one rank.
    pub communication: Option<Communication>,
    /// Rank, scale and layers of the adapter that the run starts from; `None` if it is a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

impl Plan {
    /// Whether the run fits into the memory that it may use.
    pub fn fits(&self) -> bool {
        self.available_bytes.is_none_or(|available| self.peak_bytes <= available)
    }

    /// Returns an error if the run doesn't fit.
    ///
    /// # Errors
    /// What the run needs, what is available, and which settings make it fit.
    pub fn check(&self) -> Result<()> {
        let Some(available) = self.available_bytes.filter(|available| self.peak_bytes > *available) else {
            return Ok(());
        };
        let gb = |bytes: usize| format!("{:.3} GB", bytes as f64 / 1e9);
        let largest = self.parts.iter().max_by_key(|part| part.bytes).expect("a plan has parts");
        let remedy = |r: &Remedy| format!("{} ({})", r.settings.join(" "), gb(r.peak_bytes));
        let ways: Vec<String> = self.remedies.iter().map(remedy).collect();
        let ways = match ways.is_empty() {
            true => "smaller micro-batches, gradient checkpointing, bf16, a lower rank, an adapter, a base in 4 bits, \
                 shorter sequences and fewer samples don't make it fit; take a smaller model or a machine with more memory"
                .to_owned(),
            false => format!("it fits with {}", ways.join(", or with ")),
        };
        Err(Error::Usage(format!(
            "the run needs {} and {} are available (most of it {}, {}); {ways}",
            gb(self.peak_bytes),
            gb(available),
            largest.name,
            gb(largest.bytes)
        )))
    }
}

/// The reserve of a GPU's memory for gaps that fit no allocation is the total divided by this.
const RESERVE: usize = 16;

/// What the plans of a recipe and of its variants have in common: rows, base and prompts.
pub struct Planner<'a> {
    experiment: &'a Experiment,
    base: Transformer,
    stored: Stored,
    /// Tokens of each of the task's prompts.
    prompts: Vec<usize>,
    /// The largest batch that bounds the choices of tasks.
    choices: Option<MicroBatch>,
    program_bytes: usize,
    ranks: usize,
    /// `Some` if the run uses a GPU; the inner value is the GPU's free bytes, if they are known.
    gpu: Option<Option<usize>>,
    /// Bytes for matmul results saved for backward, if the recipe doesn't set them.
    granted: Cell<usize>,
    /// The line about the adapter that the run starts from, which is attached to the base.
    adapter: Option<String>,
}

impl<'a> Planner<'a> {
    /// Takes an experiment whose rows have been read, its base on the meta device, its text model, and where the
    /// weights are. What this process has resident by now, a run has resident too before it reads a weight.
    ///
    /// # Errors
    /// A chat template that fails on a problem of the recipe's task; the errors of [`adapter::load`].
    pub fn new(
        experiment: &'a Experiment,
        (mut base, text): (Transformer, &TextModel),
        stored: Stored,
    ) -> Result<Self> {
        let program_bytes = machine::resident_bytes() as usize;
        let told = adapter::load(&experiment.recipe.model, &mut base)?.as_ref().map(adapter::told);
        if told.is_some() {
            base = base.to_meta();
        }
        let generated = experiment.tasks.iter().filter(|posed| !posed.task.is_choice());
        let prompts = generated.map(|posed| prompt_ids(text, &posed.problems)).collect::<Result<Vec<_>>>()?;
        let prompts = prompts.iter().flatten().map(Vec::len).collect();
        let choices = choices::batch(experiment, text, base.config.mask_token_id)?;
        Ok(Self {
            experiment,
            base,
            stored,
            prompts,
            choices,
            program_bytes,
            ranks: experiment.ranks.size(),
            gpu: None,
            granted: Cell::new(ACTIVATION_BYTES),
            adapter: told,
        })
    }

    /// Plans for one rank of a group of this size.
    pub fn with_ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// Plans for a GPU's memory instead of the machine's; `free_bytes` is what the GPU has free, if that is known.
    pub fn on_gpu(self, free_bytes: Option<usize>) -> Self {
        Self { gpu: Some(free_bytes), ..self }
    }

    /// Plans the experiment's recipe within `limit_bytes`, or within what the machine has.
    ///
    /// # Errors
    /// Targets that the network doesn't have.
    pub fn plan(&self, limit_bytes: Option<usize>) -> Result<Plan> {
        let recipe = &self.experiment.recipe;
        // Memory that this process already uses isn't available any more, but the plan includes it.
        let of_machine = || machine::available_bytes().map(|bytes| bytes as usize + self.program_bytes);
        let available_bytes = limit_bytes.or_else(|| self.gpu.unwrap_or_else(of_machine));
        let reserved = |bytes: usize| if self.gpu.is_some() { bytes / RESERVE } else { 0 };
        let available_bytes = available_bytes.map(|bytes| bytes - reserved(bytes));
        let batches = self.batches(recipe);
        self.grant(recipe, &batches, available_bytes)?;
        let parts = self.parts(recipe, &batches)?;
        let peak_bytes = parts.iter().map(|part| part.bytes).sum();
        let remedies = match available_bytes.filter(|available| peak_bytes > *available) {
            Some(available) => remedy::remedies(recipe, self, available),
            None => vec![],
        };
        let largest_micro_batch = batches.largest_steps.iter().flatten().map(|batch| batch.tokens).max().unwrap_or(0);
        let communication = match self.ranks {
            1 => None,
            ranks => Some(Communication::of(&self.model(recipe)?, recipe, &batches, ranks)),
        };
        let steps = batches.steps;
        let activation_bytes = recipe.train.activation_bytes(self.granted.get());
        Ok(Plan {
            parts,
            peak_bytes,
            available_bytes,
            remedies,
            activation_bytes,
            largest_micro_batch,
            steps,
            communication,
            adapter: self.adapter.clone(),
        })
    }

    /// On a GPU, grants activations saved for backward all the memory that the rest of the run leaves free.
    fn grant(&self, recipe: &Recipe, batches: &Batches, available_bytes: Option<usize>) -> Result<()> {
        let is_said = recipe.train.activation_memory_gb.is_some();
        if let (Some(_), Some(available), false) = (self.gpu, available_bytes, is_said) {
            self.granted.set(0);
            let rest: usize = self.parts(recipe, batches)?.iter().map(|part| part.bytes).sum();
            self.granted.set(available.saturating_sub(rest));
        }
        Ok(())
    }

    /// Seconds of a mean step at the machine's rates; with several ranks, of the one with the most tokens, without
    /// communication.
    ///
    /// # Errors
    /// Those of [`Planner::plan`].
    pub fn step_seconds(&self, rates: Rates) -> Result<f64> {
        let recipe = &self.experiment.recipe;
        let batches = self.batches(recipe);
        Ok(batches.imbalance * step_time(&self.model(recipe)?, &batches, &recipe.objective, rates))
    }

    /// Predicted seconds of a mean step on a GPU with these rates; with several ranks, of the one with the most tokens,
    /// without communication.
    ///
    /// # Errors
    /// Those of [`Planner::plan`].
    pub fn gpu_step_seconds(&self, rates: GpuRates) -> Result<f64> {
        let recipe = &self.experiment.recipe;
        let batches = self.batches(recipe);
        Ok(batches.imbalance * gpu_step_time(&self.model(recipe)?, &batches, &recipe.objective, rates))
    }

    /// The machine's rates at the recipe's precisions.
    ///
    /// # Errors
    /// Those of [`Planner::plan`].
    pub fn rates(&self) -> Result<Rates> {
        self.model(&self.experiment.recipe).map(|model| Rates::measure(&model))
    }

    /// The largest resident size for a changed recipe.
    fn peak_bytes(&self, recipe: &Recipe) -> Result<usize> {
        Ok(self.parts(recipe, &self.batches(recipe))?.iter().map(|part| part.bytes).sum())
    }

    /// Tokens of the longest prompt among the training and held-out rows.
    fn longest_prompt(&self) -> usize {
        self.examples().map(|e| e.prompt_ids.len()).max().unwrap_or(0)
    }

    /// Tokens of the longest prompt and answer together among the training and held-out rows.
    fn longest(&self) -> usize {
        self.examples().map(|e| e.prompt_ids.len() + e.answer_ids.len()).max().unwrap_or(0)
    }

    fn num_examples(&self) -> usize {
        self.experiment.train.dataset.examples.len()
    }

    fn examples(&self) -> impl Iterator<Item = &Example> {
        self.experiment.train.dataset.examples.iter().chain(self.experiment.held_out_examples())
    }

    fn batches(&self, recipe: &Recipe) -> Batches {
        let train = &self.experiment.train;
        let lengths: Vec<Lengths> =
            train.dataset.examples.iter().map(|e| Lengths::of(e, recipe.data.max_seq_len.0)).collect();
        Batches::of_ranks(recipe, &train.mixture, &lengths, self.ranks)
    }

    /// The base on the meta device, with the parameters that a recipe trains.
    fn model(&self, recipe: &Recipe) -> Result<Transformer> {
        let mut model = self.base.to_meta();
        recipe.model.quantization().into_iter().for_each(|quantization| model.quantize(quantization));
        match recipe.model.trainable {
            Trainable::Full => model.train_whole_meta(),
            // It has been attached to the base.
            Trainable::Lora if recipe.model.adapter.is_some() => {}
            Trainable::Lora => lora::attach_meta(&mut model, &lora_config(&recipe.model))
                .map_err(|e| Error::Usage(format!("the adapter of [model]: {e}")))?,
        }
        model.config.precision = recipe.model.precision;
        model.config.entropy_precision = recipe.objective.entropy_precision.unwrap_or(recipe.model.precision);
        model.config.activation_bytes = recipe.train.activation_bytes(self.granted.get());
        Ok(model)
    }

    fn parts(&self, recipe: &Recipe, batches: &Batches) -> Result<Vec<Part>> {
        let model = self.model(recipe)?;
        let sampling = recipe.sampling(&model.config);
        let held_out = self.held_out(recipe).into_iter().chain(self.choices).reduce(choices::larger);
        let generation = self.generation(recipe);
        let trained = model.params.iter().filter(|p| p.trainable);
        let largest_tensor = trained.map(|p| p.weight.rows() * p.weight.cols()).max().unwrap_or(0);
        let work = Work {
            model: &model,
            stored: self.stored,
            program_bytes: self.program_bytes,
            rows_bytes: self.rows_bytes(recipe),
            steps: &batches.largest_steps,
            needs_entropy: recipe.objective.kind.needs_pass_1(),
            views: views(&recipe.objective),
            attention_kind: AttentionKind::of(&recipe.objective),
            held_out,
            generation,
            networks: if recipe.sampler.cfg_scale > 0.0 { 2 } else { 1 },
            has_cache: recipe.sampler.cache != Caching::None || sampling.is_block_causal(),
            sampled_in_blocks: sampling.is_block_causal().then_some(sampling.block_length),
            written_bytes: size_of::<f32>() * largest_tensor,
            ranks: self.ranks,
        };
        Ok(if self.gpu.is_some() { work.parts_of_gpu() } else { work.parts() })
    }

    /// Bytes of training's copy of the rows: 4 per token besides two vectors per row, and the entropies that are
    /// reused.
    fn rows_bytes(&self, recipe: &Recipe) -> usize {
        let of = |e: &Example| {
            let entropies = if recipe.objective.entropy_every > 1 { e.answer_ids.len() } else { 0 };
            size_of::<Example>() + size_of::<u32>() * (e.prompt_ids.len() + e.answer_ids.len() + entropies)
        };
        self.experiment.train.dataset.examples.iter().map(of).sum()
    }

    /// The largest batch of an evaluation on held-out rows: packed up to a number of tokens, or one longer sequence.
    fn held_out(&self, recipe: &Recipe) -> Option<MicroBatch> {
        let lengths = self.experiment.held_out_examples().iter().map(|e| Lengths::of(e, recipe.data.max_seq_len.0));
        let view = View::of(&recipe.objective, 0);
        let rows = lengths.clone().map(|lengths| view.rows_of(lengths.total()));
        let longest = rows.clone().max()?;
        let all: usize = TIMES.len() * rows.sum::<usize>();
        let answers: usize = TIMES.len() * lengths.map(|l| l.answer).sum::<usize>();
        let tokens = PACKED_TOKENS.min(all).max(longest);
        let masked = (tokens * answers).div_ceil(all.max(1));
        Some(MicroBatch { tokens, longest, masked, ..MicroBatch::default() })
    }

    /// The largest batch of the sampler, over the task's problems and the report's samples, which form one batch.
    fn generation(&self, recipe: &Recipe) -> Option<MicroBatch> {
        let of = |prompts: &[usize], sampling: &Sampling| {
            let gen_length = canvas(sampling);
            let longest = prompts.iter().max().copied().unwrap_or(0) + gen_length;
            let tokens = prompts.iter().sum::<usize>() + prompts.len() * gen_length;
            let masked = prompts.len() * logit_rows(sampling);
            MicroBatch { tokens, longest, masked, ..MicroBatch::default() }
        };
        let sampling = recipe.sampling(&self.base.config);
        let mut first = 0;
        let mut batches: Vec<MicroBatch> = vec![];
        for count in batch_sizes(&self.prompts, canvas(&sampling)) {
            batches.push(of(&self.prompts[first..first + count], &sampling));
            first += count;
        }
        let sampled = self.experiment.sampled();
        let sampled = &sampled[..recipe.eval.num_samples().min(sampled.len())];
        let samples: Vec<usize> = sampled.iter().map(|e| e.prompt_ids.len()).collect();
        let shown = || answer_length::of_report(recipe, &self.base.config, &self.experiment.train);
        batches.extend((!samples.is_empty()).then(|| of(&samples, &shown())));
        batches.into_iter().reduce(choices::larger)
    }
}

/// The number of tokens after a prompt: with block-causal attention, a canvas reaches to the end of its last block.
fn canvas(sampling: &Sampling) -> usize {
    let beyond = if sampling.is_block_causal() { sampling.block_length - 1 } else { 0 };
    sampling.gen_length.saturating_add(beyond)
}

/// The number of rows of a sequence whose logits are in memory at once: a block in LLaDA's loop, and every masked token in
/// Dream's, except with `origin`, which draws the tokens to keep before it predicts them.
fn logit_rows(sampling: &Sampling) -> usize {
    match sampling.remasking.expect("a default was chosen") {
        Remasking::Origin => (2 * sampling.gen_length).div_ceil(sampling.diffusion_steps).min(sampling.gen_length),
        remasking if remasking.sampling_loop() == Loop::Llada => sampling.block_length,
        _ => sampling.gen_length,
    }
}
