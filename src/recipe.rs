//! Recipes: one flat TOML per experiment, its tables named after the folders that read them. Every problem is told
//! at once, before a file is opened; an unknown key is told with the nearest known one.

mod data;
mod reading;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_kernels::precision::Precision;
use weft_kernels::weight::Dtype;

use crate::data::packing::Padding;
use crate::error::Result;
use crate::eval::Task;
use crate::files::{is_named_as_rows, read_text};
use crate::objective::{Kind, Objective};
use crate::sampler::generate::Sampling;
use crate::train::guard::OnNonFinite;
use crate::train::lr_schedule::LrSchedule;
pub use data::{DataTable, MaxSeqLen};
pub(crate) use reading::in_plain_words;
pub use reading::parse;
use reading::unknown;

/// A fine-tuning experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// The base and its adapter.
    pub model: ModelTable,
    /// The examples.
    pub data: DataTable,
    /// What is trained.
    pub objective: Objective,
    /// How it is trained.
    pub train: TrainTable,
    /// How answers are generated for `eval`.
    pub sampler: Sampling,
    /// A task that base and adapter are scored on.
    pub eval: EvalTable,
}

/// Answers that a report shows of a recipe with a task.
const SAMPLES: usize = 3;

/// `[model]`: the base and its adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelTable {
    /// A checkpoint's folder, a model of the hub (`ORG/NAME`, `ORG/NAME@REVISION`), or `tiny-base` for the embedded one.
    pub path: PathBuf,
    /// The format of products' factors, `f32` or `bf16`; sums, norms, softmax and everything trained are f32 in both.
    pub precision: Precision,
    /// What is trained: `lora`, an adapter on the frozen base, or `full`, every weight, in f32.
    pub trainable: Trainable,
    /// The format of the checkpoint that a full run ends with; the base's own where absent.
    pub save_dtype: Option<SaveDtype>,
    /// Rank of the adapter.
    pub lora_rank: usize,
    /// Numerator of the adapter's scale.
    pub lora_alpha: f64,
    /// Dropout of the adapter's input.
    pub lora_dropout: f64,
    /// The layers that are adapted, named as PEFT's `target_modules`.
    pub lora_targets: Vec<String>,
    /// Scale by `lora_alpha / sqrt(lora_rank)`.
    pub use_rslora: bool,
}

/// What of the base is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// A LoRA adapter.
    #[default]
    Lora,
    /// Every weight.
    Full,
}

/// A format that checkpoints are saved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// The trained weights as they are.
    F32,
    /// Half the size, rounded to nearest.
    Bf16,
}

impl From<SaveDtype> for Dtype {
    fn from(dtype: SaveDtype) -> Self {
        match dtype {
            SaveDtype::F32 => Self::F32,
            SaveDtype::Bf16 => Self::Bf16,
        }
    }
}

/// What backward may keep of the forward where a recipe doesn't say: on a CPU with its caches it hardly pays to keep more.
pub const ACTIVATION_BYTES: usize = 350_000_000;

/// `[train]`: the loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainTable {
    /// The folder that holds everything the run writes.
    pub output: PathBuf,
    /// Names every draw.
    pub seed: u64,
    /// Passes over the examples.
    pub epochs: u64,
    /// Optimizer steps, if fewer than the epochs have.
    pub max_steps: Option<u64>,
    /// Examples per forward.
    pub micro_batch_size: usize,
    /// Forwards per optimizer step.
    pub grad_accum_steps: usize,
    /// Memory in GB for what the last layers computed, kept until backward; the others are recomputed (gradient
    /// checkpointing). It changes time and memory, not a bit of the result; 0 recomputes all. Where absent 0.35 on a CPU,
    /// and on a card what the rest of the run leaves free.
    pub activation_memory_gb: Option<f64>,
    /// Highest learning rate.
    pub lr: f64,
    /// How it moves after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps from 0 to the highest learning rate.
    pub warmup_steps: u64,
    /// Decoupled weight decay; vectors are never decayed.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_eps: f64,
    /// Largest gradient norm; 0 is off.
    pub max_grad_norm: f64,
    /// What a loss or gradient that isn't finite does: `stop` ends the run, `skip` passes over the step and counts it.
    pub on_non_finite: OnNonFinite,
    /// A step whose gradient norm is more than so many times the median of the last 64 is passed over; 0 is off.
    pub spike_factor: f64,
    /// Steps between evaluations on held-out rows; 0 leaves the last only.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 leaves the last only.
    pub checkpoint_every: u64,
}

/// `[eval]`: a task that base and adapter are scored on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalTable {
    /// The task; none where absent.
    pub task: Option<Task>,
    /// Problems; all where absent.
    pub limit: Option<usize>,
    /// Rows whose answers before and after training are shown in report.html; where absent, 3 with a task, else none.
    pub samples: Option<usize>,
}

impl EvalTable {
    /// How many rows' answers the report shows.
    pub fn num_samples(&self) -> usize {
        self.samples.unwrap_or(if self.task.is_some() { SAMPLES } else { 0 })
    }

    /// Whether a run asks the sampler for anything.
    pub fn generates(&self) -> bool {
        self.task.is_some() || self.num_samples() > 0
    }
}

impl Default for ModelTable {
    fn default() -> Self {
        Self {
            path: PathBuf::from("tiny-base"),
            precision: Precision::F32,
            trainable: Trainable::default(),
            save_dtype: None,
            lora_rank: 32,
            lora_alpha: 64.0,
            lora_dropout: 0.0,
            lora_targets: ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec(),
            use_rslora: false,
        }
    }
}

impl Default for TrainTable {
    fn default() -> Self {
        Self {
            output: PathBuf::from("runs/weft"),
            seed: 1,
            epochs: 1,
            max_steps: None,
            micro_batch_size: 1,
            grad_accum_steps: 1,
            activation_memory_gb: None,
            lr: 1e-4,
            lr_schedule: LrSchedule::default(),
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_eps: 1e-8,
            max_grad_norm: 1.0,
            on_non_finite: OnNonFinite::default(),
            spike_factor: 0.0,
            eval_every: 0,
            checkpoint_every: 0,
        }
    }
}

impl Recipe {
    /// Reads a recipe and the settings that replace some of it (`table.key=value`).
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        Self::parse(&read_text(path)?, path, settings)
    }

    /// As [`Recipe::read`], from text.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn parse(text: &str, path: &Path, settings: &[String]) -> Result<Self> {
        parse(text, path, settings, Self::problems)
    }

    /// Settings without effect, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let (kind, is_full) = (self.objective.kind, self.model.trainable == Trainable::Full);
        let has_held_out = self.data.held_out.is_some() || self.data.generate.is_some();
        let entropy = ["transform", "reference", "entropy_every", "entropy_precision"];
        let lora = ["lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora"];
        let of_kind = |reason: &str| format!("objective.kind is {}, {reason}", kind.name());
        let held_out = "there is no data.held_out".to_owned();
        let (generated, of_files) = (self.data.generate.is_some(), ["split", "held_out", "held_out_split", "format"]);
        let is_file = |path: &Option<PathBuf>| path.as_deref().is_some_and(is_named_as_rows);
        let idle: [(bool, &str, &[&str], String); 10] = [
            (generated, "data", &of_files, "data.generate makes the rows".to_owned()),
            (is_file(&self.data.train), "data", &["split"], "data.train is a file".to_owned()),
            (is_file(&self.data.held_out), "data", &["held_out_split"], "data.held_out is a file".to_owned()),
            (!kind.needs_entropy(), "objective", &entropy, of_kind("which asks for no entropy")),
            (kind != Kind::Weft, "objective", &["weighting"], of_kind("not weft")),
            (kind != Kind::Cart, "objective", &["geo_p"], of_kind("not cart")),
            (is_full, "model", &lora, "model.trainable is full, without an adapter".to_owned()),
            (!is_full, "model", &["save_dtype"], "model.trainable is lora, and adapters are saved in f32".to_owned()),
            (!has_held_out, "train", &["eval_every"], held_out.clone()),
            (!has_held_out, "eval", &["task"], held_out),
        ];
        let value = |recipe: &Self| serde_json::to_value(recipe).expect("a recipe is JSON");
        let (own, default) = (value(self), value(&Self::default()));
        let mut warnings = vec![];
        for (_, table, keys, reason) in idle.iter().filter(|(is_idle, ..)| *is_idle) {
            let set = keys.iter().filter(|key| own[table][key] != default[table][key]);
            warnings.extend(set.map(|key| format!("{table}.{key} has no effect: {reason}")));
        }
        warnings
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = [self.train.problems(), self.data.problems()].concat();
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        let (model, data, objective) = (&self.model, &self.data, &self.objective);
        refuse(model.path.as_os_str().is_empty(), "model.path is empty; name a model, or leave it out".to_owned());
        let is_lora = model.trainable == Trainable::Lora;
        refuse(is_lora && model.lora_rank == 0, "model.lora_rank = 0 is no rank; give at least 1".to_owned());
        let alpha = model.lora_alpha;
        refuse(
            is_lora && (alpha <= 0.0 || alpha.is_nan()),
            format!("model.lora_alpha = {alpha} scales the adapter to nothing; give more than 0"),
        );
        let dropout = model.lora_dropout;
        refuse(!(0.0..1.0).contains(&dropout), format!("model.lora_dropout = {dropout} lies outside [0, 1)"));
        let floor = objective.rate_floor;
        refuse(!(0.0..1.0).contains(&floor), format!("objective.rate_floor = {floor} lies outside [0, 1)"));
        let geo_p = objective.geo_p;
        refuse(!(geo_p > 0.0 && geo_p <= 1.0), format!("objective.geo_p = {geo_p} lies outside (0, 1]"));
        let every = objective.entropy_every;
        refuse(every == 0, "objective.entropy_every = 0; 1 computes the entropies in every epoch".to_owned());
        let padded = "objective.entropy_every above 1 needs data.padding = \"none\": the entropies of padding change with \
                      the micro-batch";
        refuse(every > 1 && data.padding == Padding::Eos, padded.to_owned());
        let t_min = objective.t_min;
        refuse(!(t_min > 0.0 && t_min < 1.0), format!("objective.t_min = {t_min} lies outside (0, 1)"));
        if self.eval.generates() {
            problems.extend(self.sampler.check().err().map(|e| format!("sampler: {e}")));
        }
        problems
    }
}

impl TrainTable {
    /// What is wrong with the values, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let counts = [
            ("epochs", self.epochs),
            ("micro_batch_size", self.micro_batch_size as u64),
            ("grad_accum_steps", self.grad_accum_steps as u64),
        ];
        let zero = counts.iter().filter(|(_, n)| *n == 0).map(|(k, _)| format!("train.{k} = 0; give at least 1"));
        let positive = [("lr", self.lr), ("adam_eps", self.adam_eps)];
        let not_positive = positive
            .iter()
            .filter(|(_, x)| !(*x > 0.0 && x.is_finite()))
            .map(|(k, x)| format!("train.{k} = {x} is not a positive number"));
        let fractions = [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)];
        let outside = fractions
            .iter()
            .filter(|(_, x)| !(0.0..1.0).contains(x))
            .map(|(k, x)| format!("train.{k} = {x} lies outside [0, 1)"));
        let least = [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("activation_memory_gb", self.activation_memory_gb.unwrap_or(0.0)),
        ];
        let negative = least
            .iter()
            .filter(|(_, x)| !(*x >= 0.0 && x.is_finite()))
            .map(|(k, x)| format!("train.{k} = {x} is negative or not a number"));
        let factor = self.spike_factor;
        let low = (factor != 0.0 && !(factor > 1.0 && factor.is_finite())).then(|| {
            format!("train.spike_factor = {factor} would pass over ordinary steps; give more than 1, or 0 for none")
        });
        let empty = self.output.as_os_str().is_empty();
        let output = empty.then(|| "train.output is empty; name a folder, or leave it out".to_owned());
        let none =
            (self.max_steps == Some(0)).then(|| "train.max_steps = 0 trains nothing; leave it out for all".to_owned());
        output
            .into_iter()
            .chain(none)
            .chain(zero)
            .chain(not_positive)
            .chain(outside)
            .chain(negative)
            .chain(low)
            .collect()
    }

    /// Examples per optimizer step.
    pub fn global_batch_size(&self) -> usize {
        self.micro_batch_size.saturating_mul(self.grad_accum_steps)
    }

    /// `activation_memory_gb` in bytes, or `otherwise`.
    pub fn activation_bytes(&self, otherwise: usize) -> usize {
        self.activation_memory_gb.map_or(otherwise, |gb| (gb * 1e9) as usize)
    }
}
