//! Trains an experiment, from its first step to the saved weights. The loop is in `train`; the command adds scores and the
//! report.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::Experiment;
use crate::base::Base;
use crate::error::Result;
use crate::model::lora::{self, LoraConfig};
use crate::model::weights::make_in_order;
use crate::train::Trainer;
use crate::train::best::{self, Best, BestBy};
use crate::train::optimizer::Optimizer;
use crate::train::run::{Options, Summary, lock, train};
use crate::train::scored::{Scoring, train_scored};
use crate::train::step::StepReport;

/// The result of [`Experiment::train`].
pub struct Trained {
    /// The base with its trained adapter or weights: the last ones, or the best ones if the recipe keeps them.
    pub base: Base,
    /// What the run did.
    pub summary: Summary,
    /// The folder in the run folder that holds the last weights: `adapter`, in PEFT's format, or `checkpoint`.
    pub folder: PathBuf,
    /// The folder with the best weights, if `train.keep_best` is set.
    pub best: Option<PathBuf>,
}

impl Experiment {
    /// Trains the base as `weft train` does and saves the result in the recipe's `train.output`, with metrics.jsonl,
    /// TensorBoard events and checkpoints. It makes no samples or report, and no scores unless `train.best_by = "task"`
    /// chooses the best weights by them.
    ///
    /// `observe` gets the report of every step. If it returns `ControlFlow::Break`, the run stops after the step, as SIGINT
    /// stops `weft train`: a checkpoint is saved, the error is [`Error::Stopped`](crate::error::Error::Stopped), and a later
    /// call with [`Options::resume`] continues from there to the same result.
    ///
    /// # Errors
    /// A run folder that holds another run or is in use; LoRA targets that the network doesn't have; a loss that isn't
    /// finite; a file that can't be written; a request to stop.
    ///
    /// # Examples
    /// ```
    /// use std::ops::ControlFlow::{Break, Continue};
    /// use weft::prelude::*;
    ///
    /// # let folder = std::env::temp_dir().join(format!("weft-doc-observed-{}", std::process::id()));
    /// # let output = folder.display();
    /// let text = format!(
    ///     "[data]\ngenerate = \"sudoku\"\ntrain_rows = 12\nheld_out_rows = 2\n\
    ///      [train]\noutput = \"{output}\"\nmicro_batch_size = 4\nepochs = 1"
    /// );
    /// let open = || Experiment::open(Recipe::parse(&text, "in the program".as_ref(), &[])?);
    ///
    /// // Watch the run, and stop it after its second step.
    /// let (experiment, base) = open()?;
    /// let mut losses = vec![];
    /// let stopped = experiment.train(base, Options { quiet: true, ..Options::default() }, |report| {
    ///     losses.push(report.loss);
    ///     if report.step == 2 { Break(()) } else { Continue(()) }
    /// });
    /// assert!(matches!(stopped, Err(Error::Stopped { step: 2, .. })));
    ///
    /// // Resume it and let it end.
    /// let (experiment, base) = open()?;
    /// let trained = experiment.train(base, Options { resume: true, quiet: true }, |report| {
    ///     losses.push(report.loss);
    ///     Continue(())
    /// })?;
    /// assert_eq!((losses.len(), trained.summary.first_step), (3, 2));
    /// assert!(trained.folder.join("adapter_model.safetensors").exists());
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn train(
        &self,
        mut base: Base,
        options: Options,
        mut observe: impl FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<Trained> {
        let output = &self.recipe.train.output;
        let _lock = self.ranks.is_first().then(|| lock(output)).transpose()?;
        let by_task = self.recipe.train.best_by == BestBy::Task && !self.tasks.is_empty();
        let before = match self.logged_before(options.resume && by_task)? {
            Some(logged) => logged,
            None if by_task => self.scores(&base.model, &base.text)?,
            None => vec![],
        };
        let (mut trainer, adapter) = self.trainer(base.model, &base.text)?;
        let rows = (self.held_out_examples(), output.as_path());
        let summary = match by_task {
            true => {
                let mut score = |trainer: &Trainer| self.scores(&trainer.model, &base.text);
                let scoring = Scoring { before: &before, seconds: None, each_epoch: true, score: &mut score };
                train_scored(&mut trainer, rows, &self.resolved(), options, (scoring, &mut observe))
                    .map(|scored| scored.0)
            }
            false => train(&mut trainer, rows, &self.resolved(), options, observe),
        };
        let summary = summary.map_err(|error| self.with_rows(error))?;
        base.model = trainer.model;
        let last = if adapter.is_some() { "adapter" } else { "checkpoint" };
        let folder = output.join(last);
        self.save(&base, adapter.as_ref(), &trainer.optimizer, &folder)?;
        let best = match self.ranks.is_first() {
            true => self.save_best(&mut base, (adapter.as_ref(), last), summary.best)?,
            false => None,
        };
        Ok(Trained { base, summary, folder, best })
    }

    /// Saves what was trained: the adapter, or every weight. Every rank calls it; the first one writes.
    ///
    /// # Errors
    /// A file that can't be written.
    #[doc(hidden)]
    pub fn save(&self, base: &Base, adapter: Option<&LoraConfig>, optimizer: &Optimizer, folder: &Path) -> Result<()> {
        let is_first = self.ranks.is_first();
        if let Some(config) = adapter {
            return if is_first { lora::save(folder, &base.model, config, &base.name) } else { Ok(()) };
        }
        let dtype = self.recipe.model.save_dtype.map_or(base.dtype, Into::into);
        let params = base.model.params.iter().enumerate();
        let tensors = params.map(|(id, param)| optimizer.saved(id, param, dtype)).collect();
        if !is_first {
            make_in_order(tensors);
            return Ok(());
        }
        base.save_tensors(folder, dtype, tensors)
    }

    /// Saves the best weights (`train.keep_best`) beside the last ones, which are in the folder named `last`, and returns
    /// their folder. Afterwards the model holds the best weights. Returns `None` if the recipe doesn't ask for them, or if
    /// nothing was evaluated after a step.
    ///
    /// # Errors
    /// A file that can't be read or written.
    #[doc(hidden)]
    pub fn save_best(
        &self,
        base: &mut Base,
        (adapter, last): (Option<&LoraConfig>, &str),
        best: Option<Best>,
    ) -> Result<Option<PathBuf>> {
        let table = &self.recipe.train;
        if !table.keep_best || best.is_none() {
            return Ok(None);
        }
        best::load(&table.output, &mut base.model)?;
        let folder = table.output.join(format!("best-{last}"));
        match adapter {
            Some(config) => lora::save(&folder, &base.model, config, &base.name)?,
            None => base.save(&folder, self.recipe.model.save_dtype.map_or(base.dtype, Into::into))?,
        }
        Ok(Some(folder))
    }
}
