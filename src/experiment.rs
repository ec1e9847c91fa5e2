//! An experiment that a recipe describes: the base, the rows, what is trained, and the score on the recipe's task. The
//! training loop is in `train`; the commands print the results.

pub(crate) mod adapter;
pub mod answer_length;
pub mod tasks;
pub(crate) mod trained;

use std::path::Path;

use serde_json::{Value, json};

use crate::base::Base;
use crate::data::chat::Turn;
use crate::data::chat_template::TextModel;
use crate::data::hold_out::{HeldOut, divide};
use crate::data::packing::Padding;
use crate::data::settings::PADDED_TEXT;
use crate::data::shared_rows::SharedRows;
use crate::data::sources::Source;
use crate::data::token_cache::TokenCache;
use crate::data::{self, Mixed, Reading, generated};
use crate::device;
use crate::error::{Error, Result};
use crate::eval::sandbox::Sandbox;
use crate::model::block::{Config, Transformer};
use crate::model::from_hub;
use crate::model::lora::{self, LoraConfig};
use crate::model::settings::{ModelTable, Trainable};
use crate::objective::Blocks;
use crate::parallel::{Ranks, solo};
use crate::recipe::Recipe;
use crate::sampler::generate::{Prompt, Sampling, generate};
use crate::settings::recipe_file::{ROWS, TOKENIZER};
use crate::train::optimizer::train_everything;
use crate::train::resolved::Resolved;
use crate::train::{Job, Trainer};
use tasks::Posed;

/// A recipe with the rows, problems and ranks that it works on.
pub struct Experiment {
    /// The recipe.
    pub recipe: Recipe,
    /// The training rows.
    pub train: Mixed,
    /// The held-out rows.
    pub held_out: Option<Mixed>,
    /// The recipe's tasks with their problems, in the order in which they are scored; those without problems are left out.
    pub tasks: Vec<Posed>,
    /// Where programs of answers run, if the recipe runs any.
    pub sandbox: Option<Sandbox>,
    /// The ranks that take part in the experiment.
    #[doc(hidden)]
    pub ranks: Ranks,
    /// The sources of the training rows, and that of the held-out rows.
    sources: Sources,
    /// The hash of the base's tokenizer and chat template.
    tokenizer: u128,
}

impl Experiment {
    /// Opens the recipe's base on the process's device; reads its rows, or generates them into the run folder.
    ///
    /// # Errors
    /// A base or rows that can't be read; sampler settings that make no sense for the base's family.
    pub fn open(recipe: Recipe) -> Result<(Self, Base)> {
        let (experiment, mut base) = Self::open_alone(recipe)?;
        base.model.put_on(&device::current());
        Ok((experiment, base))
    }

    fn open_alone(recipe: Recipe) -> Result<(Self, Base)> {
        let folder = recipe.train.output.join("data");
        Self::open_with(recipe, &folder)
    }

    /// Opens an experiment like [`Experiment::open`], for one rank of a data-parallel group; the base's weights stay in
    /// their files for now. The first rank goes before the others, which then find in the caches what it downloaded and
    /// tokenized. Rows that the other ranks generate are removed again.
    ///
    /// # Errors
    /// The errors of [`Experiment::open`].
    #[doc(hidden)]
    pub fn open_on(ranks: Ranks, recipe: Recipe) -> Result<(Self, Base)> {
        let opened = match ranks.is_first() {
            true => {
                let opened = Self::open_alone(recipe);
                // If this rank fails, it doesn't let the others start: they would report the same error.
                opened.as_ref().ok().into_iter().for_each(|_| ranks.wait());
                opened
            }
            false => {
                ranks.wait();
                let scratch = std::env::temp_dir().join(format!("weft-rows-{}", std::process::id()));
                let opened = Self::open_with(recipe, &scratch);
                let _ = std::fs::remove_dir_all(&scratch);
                opened
            }
        };
        let (experiment, base) = opened?;
        let experiment = Self { ranks, ..experiment };
        experiment.check_ranks()?;
        Ok((experiment, base))
    }

    /// Refuses ranks that would train on different recipes or rows.
    fn check_ranks(&self) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let Resolved { recipe, defaults } = self.resolved();
        let own = serde_json::to_vec(&recipe).expect("a recipe is JSON");
        let all: Vec<Value> = self.ranks.all_gather_bytes(&own).iter().map(|of| json_of(of)).collect();
        let of_rank = |rank: usize| Resolved { recipe: all[rank].clone(), defaults: defaults.clone() };
        let differing = |rank: usize| Some((rank, of_rank(rank).differs_from_first(&all[0])?));
        match (1..all.len()).find_map(differing) {
            None => Ok(()),
            Some((rank, what)) => Err(Error::Usage(format!(
                "rank {rank} was started differently from rank 0: {what}; give every rank the same recipe and rows"
            ))),
        }
    }

    fn open_with(recipe: Recipe, folder: &Path) -> Result<(Self, Base)> {
        let mut base = Base::open_with(&recipe.model.path, recipe.model.overrides())?;
        if let Some(adapter) = &recipe.model.adapter {
            // An adapter of the hub is fetched here, where the first rank goes before the others.
            from_hub::adapter(adapter)?;
        }
        check_trainable(&recipe, &base.model)?;
        set_template_kwargs(&recipe, &mut base.text)?;
        base.model.config.precision = recipe.model.precision;
        Ok((Self::read(recipe, (&base.text, &base.model.config), folder)?, base))
    }

    /// Reads the recipe's rows, given the text side and the configuration of the base; generated rows are written into
    /// `folder`.
    ///
    /// # Errors
    /// The errors of [`Experiment::open`].
    pub fn read(recipe: Recipe, (text, config): (&TextModel, &Config), folder: &Path) -> Result<Self> {
        if recipe.eval.generates() {
            let sampling = recipe.sampling(config);
            sampling.check().map_err(|e| Error::Usage(format!("[sampler]: {e}")))?;
        }
        let sources = Sources::of(&recipe, folder)?;
        let held_out = &sources.held_out;
        let (tasks, sandbox) = tasks::open(&recipe, held_out)?;
        let reading = reading(&recipe, text, config.mask_token_id);
        let (train, held_out) = sources.read(&reading)?;
        check_padding(&recipe, [Some(&train), held_out.as_ref()])?;
        let tokenizer = text.content_key();
        Ok(Self { recipe, train, held_out, tasks, sandbox, ranks: solo(), sources, tokenizer })
    }

    /// The rows that are both trained on and held out; `None` if there are none. To name the place of the first one, the files
    /// are read again.
    pub fn shared_rows(&self) -> Option<SharedRows> {
        self.sources.shared_rows(&self.train, self.held_out.as_ref())
    }

    /// The tokenized held-out rows.
    pub fn held_out_examples(&self) -> &[data::Example] {
        self.held_out.as_ref().map_or(&[], |held_out| &held_out.dataset.examples)
    }

    /// The recipe as a run saves it: it contains the key of each source's examples under `rows`, so that resuming
    /// notices when they have changed.
    pub fn resolved(&self) -> Resolved {
        let parts = self.train.parts.iter().chain(self.held_out.iter().flat_map(|held_out| &held_out.parts));
        let mut resolved = self.recipe.resolved();
        resolved.recipe[ROWS] = parts.map(|part| json!([part.name, part.key])).collect();
        resolved.recipe[TOKENIZER] = format!("{:032x}", self.tokenizer).into();
        resolved
    }

    /// Starts the training of the base's network; also returns the configuration of its adapter, fresh or loaded from
    /// `model.adapter`, or `None` if every weight is trained.
    ///
    /// # Errors
    /// LoRA targets that the network doesn't have; an adapter of `model.adapter` that can't be loaded.
    pub fn trainer(&self, mut model: Transformer, text: &TextModel) -> Result<(Trainer, Option<LoraConfig>)> {
        let adapter = self.make_trainable(&mut model)?;
        if self.recipe.objective.blocks == Blocks::Bd3lm {
            // The files saved from this model then say how it was trained.
            model.config.block_length = Some(self.recipe.objective.block_length);
        }
        let job = Job {
            examples: self.train.dataset.examples.clone(),
            mixture: self.train.mixture.clone(),
            objective: self.recipe.objective,
            padding: self.recipe.data.padding,
            eos_token_id: text.eos_token_id(),
            settings: self.recipe.train.clone(),
        };
        Ok((Trainer::on(self.ranks.clone(), model, job), adapter))
    }

    /// Adds to a training error the file and row of each example that it names.
    pub fn with_rows(&self, error: Error) -> Error {
        let Error::NonFinite(mut diagnosis) = error else { return error };
        for wrong in &mut diagnosis.wrong {
            wrong.row = self.place(wrong.example);
        }
        Error::NonFinite(diagnosis)
    }

    /// The file and row of a training example.
    fn place(&self, mut example: usize) -> Option<String> {
        for (source, part) in self.sources.train.iter().zip(&self.train.parts) {
            match example.checked_sub(part.examples) {
                Some(of_rest) => example = of_rest,
                None => return data::place(source, part.row_of(example)),
            }
        }
        None
    }

    /// Attaches the recipe's adapter and returns its configuration, or makes every weight trainable.
    fn make_trainable(&self, model: &mut Transformer) -> Result<Option<LoraConfig>> {
        if self.recipe.model.trainable == Trainable::Full {
            train_everything(model);
            return Ok(None);
        }
        if let Some(config) = adapter::load(&self.recipe.model, model)? {
            return Ok(Some(config));
        }
        let config = lora_config(&self.recipe.model);
        let attached = lora::attach_fresh(model, &config, self.recipe.train.seed);
        attached.map_err(|e| Error::Usage(format!("the adapter of [model]: {e}")))?;
        Ok(Some(config))
    }

    /// A network's answers to the first rows, for people to read; held-out rows are used if there are any. Their sampler is
    /// [`answer_length::of_report`].
    ///
    /// # Errors
    /// Sampling lengths that aren't divisible.
    pub fn samples(&self, model: &Transformer, text: &TextModel) -> Result<Vec<String>> {
        let own = answer_length::of_report(&self.recipe, &model.config, &self.train);
        let sampling = Sampling { eos_token_ids: text.end_token_ids(), seed: self.recipe.train.seed, ..own };
        let rows = self.sampled();
        let prompts: Vec<Prompt> =
            rows.iter().zip(0..).map(|(row, example)| Prompt { ids: &row.prompt_ids, example }).collect();
        let outputs = generate(model, &prompts, &sampling)?;
        let answers =
            rows.iter().zip(outputs).map(|(row, output)| text.decode_answer(&output.ids[row.prompt_ids.len()..]));
        Ok(answers.collect())
    }

    /// The rows that [`Experiment::samples`] answers.
    pub fn sampled(&self) -> &[data::Example] {
        let rows = if self.held_out.is_some() { self.held_out_examples() } else { &self.train.dataset.examples };
        let count = self.recipe.eval.num_samples();
        &rows[..count.min(rows.len())]
    }

    /// The question of the first held-out row, or of the first training row if no rows are held out: turns and tools.
    pub fn first_question(&self) -> Option<(Vec<Turn>, Option<Value>)> {
        self.sources.held_out.iter().chain(&self.sources.train).find_map(data::first_question)
    }

    fn sampling(&self, model: &Transformer) -> Sampling {
        Sampling { seed: self.recipe.train.seed, ..self.recipe.sampling(&model.config) }
    }
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("a rank sent JSON")
}

/// The fresh adapter that a recipe asks for.
pub(crate) fn lora_config(table: &ModelTable) -> LoraConfig {
    let ModelTable { lora_rank, lora_alpha, lora_dropout, lora_targets, use_rslora, .. } = table;
    LoraConfig::new(*lora_rank, *lora_alpha, *lora_dropout, lora_targets.clone(), *use_rslora)
}

/// The sources of a recipe's rows.
pub struct Sources {
    /// The sources of the training rows.
    pub train: Vec<Source>,
    /// The sources of the held-out rows; none if no rows are held out.
    pub held_out: Vec<Source>,
}

impl Sources {
    /// The rows that are both trained on and held out, given what was read from these sources; `None` if there are none.
    pub fn shared_rows(&self, train: &Mixed, held_out: Option<&Mixed>) -> Option<SharedRows> {
        SharedRows::find((train, &self.train), (held_out?, self.held_out.as_slice()))
    }

    /// The sources that a recipe names; generated rows are written into `folder`. Where a part of the training rows is
    /// held out, all of them are read once to choose it.
    ///
    /// # Errors
    /// A file that can't be written; rows that can't be read or divided.
    pub fn of(recipe: &Recipe, folder: &Path) -> Result<Self> {
        let table = &recipe.data;
        let Some(puzzle) = table.generate else {
            return match &table.held_out {
                Some(part @ (HeldOut::Percent(_) | HeldOut::Rows(_))) => {
                    let (train, held_out) = divide(table.training(), part, recipe.train.seed)?;
                    Ok(Self { train, held_out })
                }
                _ => Ok(Self { train: table.training(), held_out: table.held_out() }),
            };
        };
        let rows = [(table.train_rows, 4096), (table.held_out_rows, 256)];
        let rows = rows.map(|(rows, default)| rows.and_then(|rows| rows.as_first()).unwrap_or(default));
        let [train, held_out] = generated::write(puzzle, recipe.train.seed, rows, folder)?;
        Ok(Self { train: vec![Source::at(&train, "train")], held_out: vec![Source::at(&held_out, "test")] })
    }

    /// The training rows, and the held-out rows; `None` if there are no sources of them.
    ///
    /// # Errors
    /// The errors of [`data::load_mixed`]. Where the held-out rows are a part of the training rows, the bad rows of both sides
    /// are reported together.
    pub fn read(&self, reading: &Reading) -> Result<(Mixed, Option<Mixed>)> {
        let held_out = || (!self.held_out.is_empty()).then(|| data::load_mixed(&self.held_out, reading)).transpose();
        let both = data::load_mixed(&self.train, reading).and_then(|train| Ok((train, held_out()?)));
        let is_divided = self.train.iter().any(|source| source.side.is_some());
        both.or_else(|error| {
            if is_divided {
                let whole = |source: &Source| Source { side: None, ..source.clone() };
                data::load_mixed(&self.train.iter().map(whole).collect::<Vec<_>>(), reading)?;
            }
            Err(error)
        })
    }
}

/// Refuses to train every weight of a base that is stored in 4 bits.
///
/// # Errors
/// A full fine-tuning of such a base, with what to do about it.
pub fn check_trainable(recipe: &Recipe, model: &Transformer) -> Result<()> {
    let is_full = recipe.model.trainable == Trainable::Full;
    match model.quantization().filter(|_| is_full) {
        None => Ok(()),
        Some(_) => Err(Error::Usage(format!(
            "model.trainable = \"full\" does not go with {}, whose weights are in 4 bits and stay frozen; set \
             model.trainable=lora, or give the checkpoint that it was quantized from",
            recipe.model.path.display()
        ))),
    }
}

/// Passes the recipe's `data.chat_template_kwargs` to the chat template, and sets how special tokens in prompts are read
/// (`data.special_tokens`).
///
/// # Errors
/// A variable that the template doesn't read.
pub fn set_template_kwargs(recipe: &Recipe, text: &mut TextModel) -> Result<()> {
    text.set_special_tokens(recipe.data.special_tokens);
    text.set_template_kwargs(&recipe.data.chat_template_kwargs, "data.chat_template_kwargs.")
}

/// Refuses padding for packed texts, whose format may be known only once they have been read.
///
/// # Errors
/// Texts in a recipe that pads answers.
pub fn check_padding(recipe: &Recipe, rows: [Option<&Mixed>; 2]) -> Result<()> {
    let has_texts = rows.into_iter().flatten().any(|mixed| mixed.dataset.documents > 0);
    match has_texts && recipe.data.padding == Padding::Eos {
        true => Err(Error::Usage(PADDED_TEXT.to_owned())),
        false => Ok(()),
    }
}

/// How the recipe's rows become examples; their tokens are cached in the user's folder.
pub fn reading<'a>(recipe: &Recipe, text: &'a TextModel, mask_token_id: u32) -> Reading<'a> {
    Reading { text, mask_token_id, max_seq_len: recipe.data.max_seq_len.0, cache: TokenCache::of_user() }
}
