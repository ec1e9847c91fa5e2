//! Warnings of settings without effect: those that the recipe alone shows, and those that show once the rows have been read and
//! the steps counted. Each warning is one sentence with the setting and the reason for which it has no effect.

use std::collections::BTreeSet;

use crate::counted::{counted, verb};
use crate::data::Mixed;
use crate::data::hold_out::HeldOut;
use crate::data::packing::Padding;
use crate::data::paths::Paths;
use crate::data::settings::{OnLongAnswer, OnRow, TrainOn};
use crate::data::sources::Source;
use crate::data::typed_tokens::SpecialTokens;
use crate::eval::settings::TaskTable;
use crate::eval::task_file::Kind as TaskKind;
use crate::model::settings::Trainable;
use crate::objective::{Blocks, Kind};
use crate::recipe::Recipe;
use crate::sampler::generate::Sampling;
use crate::train::best::BestBy;
use crate::train::guard::LEAST;
use crate::train::resolved::Resolved;

/// Whether keys of a table have no effect, with the table, the keys and the reason.
type Idle = (bool, &'static str, &'static [&'static str], String);

/// A run's size, known once its rows are read.
#[derive(Clone, Copy, Debug)]
pub struct RunSize<'a> {
    /// The training rows.
    pub train: &'a Mixed,
    /// The held-out rows.
    pub held_out: Option<&'a Mixed>,
    /// The number of a task's problems, of the task that has the most; `None` if there is no task or they aren't read.
    pub problems: Option<usize>,
    /// The optimizer steps of the whole run.
    pub steps: u64,
    /// The ranks that share each step.
    pub ranks: usize,
}

impl Recipe {
    /// Warnings of the settings whose lack of effect the recipe alone shows, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let Resolved { recipe: own, defaults: default } = self.resolved();
        let idle =
            [self.idle_data(), self.idle_objective(), self.idle_model(), self.idle_train(), self.idle_eval()].concat();
        let (mut warnings, mut told) = (vec![], BTreeSet::new());
        for (_, table, keys, reason) in idle.iter().filter(|(is_idle, ..)| *is_idle) {
            let is_set = |key: &&&str| own[table][key] != default[table][key];
            for key in keys.iter().filter(is_set) {
                if told.insert((*table, *key)) {
                    warnings.push(format!("{table}.{key} has no effect: {reason}"));
                }
            }
        }
        warnings.extend(self.idle_sources());
        warnings.extend(self.idle_sampler());
        warnings
    }

    fn idle_data(&self) -> Vec<Idle> {
        let data = &self.data;
        let is_file = |paths: Option<&Paths>| paths.is_some_and(Paths::are_files);
        let held_out = data.held_out.as_ref();
        let is_part = held_out.is_some_and(|held_out| held_out.files().is_none());
        let sources = data.sources.as_deref().unwrap_or_default();
        let each = |has: fn(&Source) -> bool| !sources.is_empty() && sources.iter().all(has);
        let splits = each(|source| source.split.is_some() || source.path.are_files());
        let names_held_out = !data.held_out().is_empty();
        let of_sources = || "each of data.sources has its own".to_owned();
        let padded = data.padding == Padding::Eos && self.train.micro_batch_size == 1;
        let of_files: &[&str] = &["split", "held_out", "held_out_split", "format", "train_on", "on_bad_row"];
        vec![
            (data.generate.is_some(), "data", of_files, "data.generate makes the rows".to_owned()),
            (is_file(data.train.as_ref()), "data", &["split"], "data.train is a file".to_owned()),
            (splits, "data", &["split"], "each of data.sources is a file or has its own".to_owned()),
            (
                is_file(held_out.and_then(HeldOut::files)),
                "data",
                &["held_out_split"],
                "data.held_out is a file".to_owned(),
            ),
            (is_part, "data", &["held_out_split"], "data.held_out is a part of the training rows".to_owned()),
            (!data.has_held_out(), "data", &["held_out_split", "held_out_rows"], no_held_out()),
            (each(|source| source.format.is_some()) && !names_held_out, "data", &["format"], of_sources()),
            (each(|source| source.train_on.is_some()) && !names_held_out, "data", &["train_on"], of_sources()),
            (
                padded,
                "data",
                &["padding"],
                "train.micro_batch_size is 1, and an answer is padded to the longest one of its micro-batch".to_owned(),
            ),
        ]
    }

    fn idle_objective(&self) -> Vec<Idle> {
        let (kind, objective) = (self.objective.kind, &self.objective);
        let of_kind = |reason: &str| format!("objective.kind is {}, {reason}", kind.name());
        let is_alone = self.train.micro_batch_size == 1;
        // WeFT's rate of a token with a low entropy lies below t, and can lie below t_min.
        let is_low = kind != Kind::Weft && objective.rate_floor <= objective.t_min;
        vec![
            (
                !kind.needs_entropy(),
                "objective",
                &["transform", "reference", "entropy_every"],
                of_kind("which uses no entropies"),
            ),
            (
                is_alone,
                "objective",
                &["reference"],
                "train.micro_batch_size is 1, and the mean is that of a micro-batch".to_owned(),
            ),
            (!kind.needs_pass_1(), "objective", &["entropy_precision"], of_kind("which has one pass only")),
            (kind != Kind::Lift, "objective", &["lift_policy"], of_kind("not lift")),
            (kind != Kind::Weft, "objective", &["weighting"], of_kind("not weft")),
            (kind != Kind::Cart, "objective", &["geo_p"], of_kind("not cart")),
            (
                is_low,
                "objective",
                &["rate_floor"],
                of_kind(&format!("whose rate is t, and objective.t_min = {} is its least value", objective.t_min)),
            ),
            (objective.blocks == Blocks::None, "objective", &["block_length"], "objective.blocks is none".to_owned()),
        ]
    }

    fn idle_model(&self) -> Vec<Idle> {
        let is_full = self.model.trainable == Trainable::Full;
        let lora: &[&str] = &["lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora"];
        vec![
            (is_full, "model", lora, "model.trainable is full, without an adapter".to_owned()),
            (self.model.quantize.is_none(), "model", &["double_quant"], "model.quantize is not set".to_owned()),
            (!is_full, "model", &["save_dtype"], "model.trainable is lora, and adapters are saved in f32".to_owned()),
        ]
    }

    fn idle_train(&self) -> Vec<Idle> {
        let has_held_out = self.data.has_held_out();
        let is_unscored = !has_held_out && self.eval.entries().iter().all(TaskTable::needs_held_out);
        let by_task = self.train.best_by == BestBy::Task;
        let at_the_end = "the held-out rows are evaluated at the end only; set train.eval_every".to_owned();
        vec![
            (!has_held_out, "train", &["eval_every"], no_held_out()),
            (is_unscored, "train", &["best_by"], no_held_out()),
            (is_unscored || (!has_held_out && !by_task), "train", &["keep_best", "patience"], no_held_out()),
            (!by_task && self.train.eval_every == 0, "train", &["keep_best", "patience"], at_the_end),
        ]
    }

    fn idle_eval(&self) -> Vec<Idle> {
        let entries = self.eval.entries();
        let is_unscored = !self.data.has_held_out() && entries.iter().all(TaskTable::needs_held_out);
        // What a task file's kind is shows once it is read.
        let none_is = |kind| entries.iter().all(|entry| entry.known().is_some_and(|task| task.kind() != Some(kind)));
        let each_is_limited = entries.iter().all(|entry| entry.limit.is_some());
        let no_task = "eval.task and eval.tasks are not set".to_owned();
        vec![
            (!self.eval.has_tasks(), "eval", &["limit", "mc_samples", "each_epoch", "run_code"], no_task),
            (is_unscored, "eval", &["task", "tasks", "limit", "each_epoch"], no_held_out()),
            (each_is_limited, "eval", &["limit"], "each of eval.tasks has its own".to_owned()),
            (none_is(TaskKind::Choice), "eval", &["mc_samples"], "no task chooses among given answers".to_owned()),
            (none_is(TaskKind::Code), "eval", &["run_code"], "no task's answers are programs".to_owned()),
        ]
    }

    /// Warnings of the settings of single sources that have no effect.
    fn idle_sources(&self) -> impl Iterator<Item = String> {
        let sources = self.data.sources.iter().flatten().enumerate();
        let idle = sources.filter(|(_, source)| source.split.is_some() && source.path.are_files());
        idle.map(|(i, _)| format!("data.sources[{i}].split has no effect: its path is a file"))
    }

    /// One warning of all settings of `[sampler]` that a run doesn't use.
    fn idle_sampler(&self) -> Option<String> {
        let (own, default) = (serde_json::json!(self.sampler), serde_json::json!(Sampling::default()));
        if self.eval.generates() {
            let is_set = self.sampler.seed != Sampling::default().seed;
            return is_set.then(|| {
                "sampler.seed has no effect on the run, whose answers are drawn by train.seed; only the command printed \
                 at its end uses it"
                    .to_owned()
            });
        }
        let keys = own.as_object().into_iter().flatten().filter(|(key, value)| default[key] != **value);
        let keys: Vec<String> = keys.map(|(key, _)| format!("sampler.{key}")).collect();
        let have = verb(keys.len(), ["has", "have"]);
        (!keys.is_empty()).then(|| {
            format!(
                "{} {have} no effect on the run, which generates no answers (set eval.task or eval.samples); only the \
                 command printed at its end uses [sampler]",
                keys.join(", ")
            )
        })
    }

    /// Warnings of the settings that have no effect in a run of this size, one sentence each.
    pub fn warnings_of_run(&self, run: &RunSize) -> Vec<String> {
        [self.idle_steps(run), self.idle_evaluations(run), self.idle_rows(run)].concat()
    }

    fn idle_steps(&self, run: &RunSize) -> Vec<String> {
        let (train, steps) = (&self.train, counted(run.steps, "step"));
        let (epoch, batch) = (run.train.epoch_len(), train.global_batch_size().saturating_mul(run.ranks));
        let is_one_epoch = run.steps <= epoch.div_ceil(batch) as u64;
        let is_repeated = self.data.sources.iter().flatten().any(|source| source.weight > 1.0);
        let mut warnings = vec![];
        let mut warn = |is_idle: bool, sentence: String| warnings.extend(is_idle.then_some(sentence));
        let warmup = train.warmup_steps;
        warn(
            warmup > 0 && warmup >= run.steps,
            format!("train.warmup_steps = {warmup} in a run of {steps}: the learning rate never reaches train.lr"),
        );
        let most = train.max_steps.unwrap_or(0);
        warn(
            most > run.steps,
            format!("train.max_steps = {most} has no effect: the run has {steps}; raise train.epochs to train longer"),
        );
        warn(
            batch > epoch,
            format!(
                "train.micro_batch_size and train.grad_accum_steps make steps of {}, but an epoch has only {}: each step is \
                 an epoch",
                counted(batch, "example"),
                counted(epoch, "example")
            ),
        );
        let every = self.objective.entropy_every;
        warn(
            every > 1 && self.objective.kind.needs_entropy() && is_one_epoch && !is_repeated,
            format!("objective.entropy_every = {every} has no effect: the run has one epoch"),
        );
        let factor = train.spike_factor;
        warn(
            factor > 0.0 && run.steps <= LEAST as u64,
            format!(
                "train.spike_factor = {factor} has no effect: it needs more than {LEAST} steps, and the run has {steps}"
            ),
        );
        let every = train.checkpoint_every;
        warn(
            every > run.steps,
            format!(
                "train.checkpoint_every = {every} has no effect: the run has {steps}, and the last one is saved anyway"
            ),
        );
        warnings
    }

    fn idle_evaluations(&self, run: &RunSize) -> Vec<String> {
        let (train, steps) = (&self.train, counted(run.steps, "step"));
        let mut warnings = vec![];
        let mut warn = |is_idle: bool, sentence: String| warnings.extend(is_idle.then_some(sentence));
        // The number of evaluations before the one at the end.
        let before_end = run.steps.saturating_sub(1).checked_div(train.eval_every);
        if let Some(before_end) = before_end.filter(|_| run.held_out.is_some()) {
            let every = train.eval_every;
            warn(
                every > run.steps,
                format!(
                    "train.eval_every = {every} has no effect: the run has {steps}, and its end is evaluated anyway"
                ),
            );
            let by_loss = train.best_by == BestBy::HeldOutLoss;
            warn(
                by_loss && train.keep_best && before_end == 0,
                "train.keep_best has no effect: the only evaluation is at the end; lower train.eval_every".to_owned(),
            );
            // The first evaluation has no earlier one to be compared with.
            warn(
                by_loss && train.patience > 0 && train.patience >= before_end,
                format!(
                    "train.patience = {} has no effect: before the end there {} {}, the first of which has nothing to be \
                     compared with",
                    train.patience,
                    verb(before_end, ["is", "are"]),
                    counted(before_end, "evaluation")
                ),
            );
        }
        let (rows, of) = match run.held_out {
            Some(held_out) => (held_out.dataset.examples.len(), "held-out example"),
            None => (run.train.dataset.examples.len(), "training example"),
        };
        let are = verb(rows, ["is", "are"]);
        if let Some(samples) = self.eval.samples.filter(|samples| *samples > rows) {
            warn(true, format!("eval.samples = {samples}, but there {are} only {}", counted(rows, of)));
        }
        let problems = run.problems.filter(|_| self.eval.has_tasks()).unwrap_or(usize::MAX);
        if let Some(limit) = self.eval.limit.filter(|limit| *limit > problems) {
            let (are, there) = (verb(problems, ["is", "are"]), counted(problems, "problem"));
            let told = match self.eval.entries().len() {
                1 => format!("there {are} only {there}"),
                _ => format!("no task has more than {there}"),
            };
            warn(true, format!("eval.limit = {limit}, but {told}"));
        }
        warnings
    }

    /// Warnings of the settings that have no effect on rows of this kind.
    fn idle_rows(&self, run: &RunSize) -> Vec<String> {
        let data = &self.data;
        let mut parts = run.train.parts.iter().chain(run.held_out.iter().flat_map(|held_out| &held_out.parts));
        let are_texts = parts.clone().next().is_some() && parts.clone().all(|part| part.documents > 0);
        let of_texts = [
            ("train_on", data.train_on != TrainOn::Last),
            ("on_long_prompt", data.on_long_prompt != OnRow::Stop),
            ("on_long_answer", data.on_long_answer != OnLongAnswer::Cut),
            ("special_tokens", data.special_tokens != SpecialTokens::Text),
            ("chat_template_kwargs", !data.chat_template_kwargs.is_empty()),
        ];
        if are_texts {
            let idle = of_texts.iter().filter(|(_, is_set)| *is_set);
            return idle.map(|(key, _)| format!("data.{key} has no effect: the rows are plain texts")).collect();
        }
        let has_longer_chats = parts.any(|part| {
            let notes = &part.notes;
            part.documents == 0 && notes.context_turns + notes.answer_turns > notes.rows - notes.num_skipped()
        });
        let is_idle = data.train_on != TrainOn::Last && data.generate.is_none() && !has_longer_chats;
        let sentence = || "data.train_on has no effect: no chat has more than one assistant turn".to_owned();
        is_idle.then(sentence).into_iter().collect()
    }
}

fn no_held_out() -> String {
    "there is no data.held_out".to_owned()
}
