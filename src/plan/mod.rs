//! What a recipe's run will take, told before any weight is read: its largest resident size part by part, the time of a
//! step, and the settings that would make it fit where it doesn't. docs/memory.md has the parts and how far plans lay from
//! what runs used.

mod batches;
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
use crate::experiment::{Experiment, lora_config};
use crate::machine;
use crate::model::block::Transformer;
use crate::model::family::Family;
use crate::model::lora;
use crate::model::settings::Trainable;
use crate::recipe::Recipe;
use crate::sampler::cache::Caching;
use crate::sampler::remasking::Remasking;
use crate::train::held_out::{PACKED_TOKENS, TIMES};
use crate::train::settings::ACTIVATION_BYTES;

pub use batches::{Batches, Lengths, MicroBatch};
pub use communication::Communication;
pub use gpu_time::{GPU_MODELS, GpuModel, GpuRates, step_seconds as gpu_step_time};
pub use memory::{Part, Stored, Work};
pub use remedy::Remedy;
pub use time::{Rates, step_seconds as step_time};

/// A run as it was planned.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What the memory is for at the run's largest moment.
    pub parts: Vec<Part>,
    /// The largest resident size: the parts' sum.
    pub peak_bytes: usize,
    /// What the run may take, of a GPU's memory without a sixteenth; `None` where the system doesn't say.
    pub available_bytes: Option<usize>,
    /// Settings that make the run fit where it doesn't.
    pub remedies: Vec<Remedy>,
    /// What backward may keep of the forward.
    pub activation_bytes: usize,
    /// Tokens of the largest micro-batch.
    pub largest_micro_batch: usize,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// What ranks send each other; of several.
    pub communication: Option<Communication>,
}

impl Plan {
    /// Whether the run fits into what it may take.
    pub fn fits(&self) -> bool {
        self.available_bytes.is_none_or(|available| self.peak_bytes <= available)
    }

    /// Refuses a run that doesn't fit.
    ///
    /// # Errors
    /// What it needs, what there is, and which settings make it fit.
    pub fn check(&self) -> Result<()> {
        let Some(available) = self.available_bytes.filter(|available| self.peak_bytes > *available) else {
            return Ok(());
        };
        let gb = |bytes: usize| format!("{:.3} GB", bytes as f64 / 1e9);
        let largest = self.parts.iter().max_by_key(|part| part.bytes).expect("a plan has parts");
        let remedy = |r: &Remedy| format!("{} ({})", r.settings.join(" "), gb(r.peak_bytes));
        let ways: Vec<String> = self.remedies.iter().map(remedy).collect();
        let ways = match ways.is_empty() {
            true => {
                "neither smaller micro-batches, nothing kept for backward, bf16, a lower rank, an adapter, shorter \
                     sequences nor fewer samples make it fit; take a smaller model or a machine with more memory"
                    .to_owned()
            }
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

/// The part of a GPU's memory that is left alone, one in so many: pieces that fit nothing.
const RESERVE: usize = 16;

/// What plans of a recipe and of changes of it have in common: rows, base, prompts.
pub struct Planner<'a> {
    experiment: &'a Experiment,
    base: Transformer,
    stored: Stored,
    /// Tokens of the task's prompts.
    prompts: Vec<usize>,
    distinct_ids: usize,
    program_bytes: usize,
    ranks: usize,
    /// Whether the run's numbers lie on a GPU, and how many bytes that has free where it is known.
    gpu: Option<Option<usize>>,
    /// Bytes for what backward keeps where the recipe doesn't say.
    granted: Cell<usize>,
}

impl<'a> Planner<'a> {
    /// Takes an experiment whose rows have been read, its base on the meta device, text, and where its weights are. What the
    /// process has resident by now is what a run has too before it reads a weight.
    ///
    /// # Errors
    /// A chat template that fails on a problem of the recipe's task.
    pub fn new(experiment: &'a Experiment, (base, text): (Transformer, &TextModel), stored: Stored) -> Result<Self> {
        let program_bytes = machine::resident_bytes() as usize;
        let prompts = prompt_ids(text, &experiment.problems)?.iter().map(Vec::len).collect();
        let mut is_read = vec![false; base.params[base.embedding].weight.rows()];
        for example in experiment.train.dataset.examples.iter().chain(experiment.held_out_examples()) {
            for id in example.prompt_ids.iter().chain(&example.answer_ids) {
                is_read[*id as usize] = true;
            }
        }
        let distinct_ids = 1 + is_read.iter().filter(|is_read| **is_read).count();
        Ok(Self {
            experiment,
            base,
            stored,
            prompts,
            distinct_ids,
            program_bytes,
            ranks: experiment.ranks.size(),
            gpu: None,
            granted: Cell::new(ACTIVATION_BYTES),
        })
    }

    /// Plans for one of so many ranks.
    pub fn with_ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// Plans for a GPU's memory, of which so many bytes are free where that is known, instead of the machine's.
    pub fn on_gpu(self, free_bytes: Option<usize>) -> Self {
        Self { gpu: Some(free_bytes), ..self }
    }

    /// The plan of the experiment's recipe, in so many bytes or what the machine has.
    ///
    /// # Errors
    /// Targets that the network doesn't have.
    pub fn plan(&self, limit_bytes: Option<usize>) -> Result<Plan> {
        let recipe = &self.experiment.recipe;
        // What this process has already is no more to be had, but part of the plan.
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
        })
    }

    /// On a GPU backward keeps as much as the rest of the run leaves.
    fn grant(&self, recipe: &Recipe, batches: &Batches, available_bytes: Option<usize>) -> Result<()> {
        let is_said = recipe.train.activation_memory_gb.is_some();
        if let (Some(_), Some(available), false) = (self.gpu, available_bytes, is_said) {
            self.granted.set(0);
            let rest: usize = self.parts(recipe, batches)?.iter().map(|part| part.bytes).sum();
            self.granted.set(available.saturating_sub(rest));
        }
        Ok(())
    }

    /// Seconds of a mean step at the machine's rates; of several ranks the one with most tokens, without what they send.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn step_seconds(&self, rates: Rates) -> Result<f64> {
        let recipe = &self.experiment.recipe;
        let batches = self.batches(recipe);
        Ok(batches.imbalance * step_time(&self.model(recipe)?, &batches, &recipe.objective, rates))
    }

    /// Seconds of a mean step on a GPU of such rates, a prediction; of several ranks the one with most tokens, without
    /// what they send.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn gpu_step_seconds(&self, rates: GpuRates) -> Result<f64> {
        let recipe = &self.experiment.recipe;
        let batches = self.batches(recipe);
        Ok(batches.imbalance * gpu_step_time(&self.model(recipe)?, &batches, &recipe.objective, rates))
    }

    /// The rates of this machine at the recipe's precisions.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn rates(&self) -> Result<Rates> {
        self.model(&self.experiment.recipe).map(|model| Rates::measure(&model))
    }

    /// The largest resident size with a changed recipe.
    fn peak_bytes(&self, recipe: &Recipe) -> Result<usize> {
        Ok(self.parts(recipe, &self.batches(recipe))?.iter().map(|part| part.bytes).sum())
    }

    /// The longest prompt of the training rows and the held-out ones.
    fn longest_prompt(&self) -> usize {
        self.examples().map(|e| e.prompt_ids.len()).max().unwrap_or(0)
    }

    /// The longest of them with its answer.
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

    /// The base on the meta device with what a recipe trains of it.
    fn model(&self, recipe: &Recipe) -> Result<Transformer> {
        let mut model = self.base.to_meta();
        match recipe.model.trainable {
            Trainable::Full => model.train_whole_meta(),
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
        let (held_out, generation) = (self.held_out(recipe), self.generation(recipe));
        let trained = model.params.iter().filter(|p| p.trainable);
        let largest_tensor = trained.map(|p| p.weight.rows() * p.weight.cols()).max().unwrap_or(0);
        let work = Work {
            model: &model,
            stored: self.stored,
            distinct_ids: self.distinct_ids,
            program_bytes: self.program_bytes,
            rows_bytes: self.rows_bytes(recipe),
            steps: &batches.largest_steps,
            needs_entropy: recipe.objective.kind.needs_entropy(),
            held_out,
            generation,
            networks: if recipe.sampler.cfg_scale > 0.0 { 2 } else { 1 },
            has_cache: recipe.sampler.cache != Caching::None,
            written_bytes: size_of::<f32>() * largest_tensor,
            ranks: self.ranks,
        };
        Ok(if self.gpu.is_some() { work.parts_of_gpu() } else { work.parts() })
    }

    /// Training's copy of the rows, 4 bytes a token beside two vectors for each, and the entropies that are reused.
    fn rows_bytes(&self, recipe: &Recipe) -> usize {
        let of = |e: &Example| {
            let entropies = if recipe.objective.entropy_every > 1 { e.answer_ids.len() } else { 0 };
            size_of::<Example>() + size_of::<u32>() * (e.prompt_ids.len() + e.answer_ids.len() + entropies)
        };
        self.experiment.train.dataset.examples.iter().map(of).sum()
    }

    /// The largest batch of an evaluation of the held-out rows: packed to a number of tokens, or one longer sequence.
    fn held_out(&self, recipe: &Recipe) -> Option<MicroBatch> {
        let lengths = self.experiment.held_out_examples().iter().map(|e| Lengths::of(e, recipe.data.max_seq_len.0));
        let longest = lengths.clone().map(Lengths::total).max()?;
        let all: usize = TIMES.len() * lengths.clone().map(Lengths::total).sum::<usize>();
        let answers: usize = TIMES.len() * lengths.map(|l| l.answer).sum::<usize>();
        let tokens = PACKED_TOKENS.min(all).max(longest);
        let masked = (tokens * answers).div_ceil(all.max(1));
        Some(MicroBatch { tokens, longest, masked, ..MicroBatch::default() })
    }

    /// The largest batch of the sampler, over the task's problems and the report's samples, which are one batch.
    fn generation(&self, recipe: &Recipe) -> Option<MicroBatch> {
        let gen_length = recipe.sampler.gen_length;
        let of = |prompts: &[usize]| {
            let longest = prompts.iter().max().copied().unwrap_or(0) + gen_length;
            let tokens = prompts.iter().sum::<usize>() + prompts.len() * gen_length;
            let masked = prompts.len() * self.logit_rows(recipe);
            MicroBatch { tokens, longest, masked, ..MicroBatch::default() }
        };
        let mut first = 0;
        let mut batches: Vec<MicroBatch> = vec![];
        for count in batch_sizes(&self.prompts, gen_length) {
            batches.push(of(&self.prompts[first..first + count]));
            first += count;
        }
        let sampled = self.experiment.sampled();
        let sampled = &sampled[..recipe.eval.num_samples().min(sampled.len())];
        let samples: Vec<usize> = sampled.iter().map(|e| e.prompt_ids.len()).collect();
        batches.extend((!samples.is_empty()).then(|| of(&samples)));
        batches.into_iter().reduce(|a, b| MicroBatch {
            tokens: a.tokens.max(b.tokens),
            longest: a.longest.max(b.longest),
            masked: a.masked.max(b.masked),
            ..a
        })
    }

    /// Rows of a sequence whose logits are held at once: LLaDA's loop takes a block, Dream's every masked token, but for
    /// `origin`, which draws before it looks.
    fn logit_rows(&self, recipe: &Recipe) -> usize {
        let sampler = recipe.sampler.for_family(self.base.config.family);
        match sampler.remasking.expect("the family has one") {
            Remasking::Origin => (2 * sampler.gen_length).div_ceil(sampler.diffusion_steps).min(sampler.gen_length),
            remasking if remasking.family() == Family::Llada => sampler.block_length,
            _ => sampler.gen_length,
        }
    }
}
