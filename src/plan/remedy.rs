//! Settings that make a run fit: each is planned again, and only those that suffice are named.

use serde::Serialize;
use weft_kernels::precision::Precision;

use super::Planner;
use crate::data::settings::MaxSeqLen;
use crate::model::quantize::Quantize;
use crate::model::settings::Trainable;
use crate::recipe::Recipe;
use crate::train::settings::ACTIVATION_BYTES;

/// The steps, in tokens, in which shorter sequence lengths are tried.
const SEQ_LEN_STEP: usize = 64;

/// Settings that make a run fit together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// `table.key=value`, as `--set` takes them.
    pub settings: Vec<String>,
    /// The largest resident size with them.
    pub peak_bytes: usize,
}

/// A setting that may be changed, the most harmless first: the first two change only the order of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knob {
    MicroBatch,
    Activations,
    Precision,
    Lora,
    Quantize,
    LoraRank,
    MaxSeqLen,
    Samples,
}

const KNOBS: [Knob; 8] = [
    Knob::MicroBatch,
    Knob::Activations,
    Knob::Precision,
    Knob::Lora,
    Knob::Quantize,
    Knob::LoraRank,
    Knob::MaxSeqLen,
    Knob::Samples,
];

/// A changed recipe and the settings that changed it.
type Change = (Recipe, Vec<String>);

impl Knob {
    /// The values that the knob can be set to, the mildest first.
    fn changes(self, recipe: &Recipe, planner: &Planner) -> Vec<Change> {
        let change = |set: &dyn Fn(&mut Recipe), settings: Vec<String>| {
            let mut changed = recipe.clone();
            set(&mut changed);
            (changed, settings)
        };
        let (train, global) = (&recipe.train, recipe.train.global_batch_size());
        match self {
            Self::MicroBatch => {
                // A micro-batch never holds more rows than there are.
                let largest = train.micro_batch_size.min(planner.num_examples() + 1);
                let sizes = (1..largest).rev().filter(|size| global.is_multiple_of(*size));
                let of = |size: usize| {
                    let steps = global / size;
                    let set = |r: &mut Recipe| (r.train.micro_batch_size, r.train.grad_accum_steps) = (size, steps);
                    let settings =
                        [format!("train.micro_batch_size={size}"), format!("train.grad_accum_steps={steps}")];
                    change(&set, settings.to_vec())
                };
                sizes.map(of).collect()
            }
            Self::Activations if train.activation_bytes(ACTIVATION_BYTES) > 0 => {
                let settings = vec!["train.activation_memory_gb=0".to_owned()];
                vec![change(&|r| r.train.activation_memory_gb = Some(0.0), settings)]
            }
            Self::Precision if recipe.model.precision == Precision::F32 => {
                vec![change(&|r| r.model.precision = Precision::Bf16, vec!["model.precision=bf16".to_owned()])]
            }
            Self::Lora if recipe.model.trainable == Trainable::Full => {
                vec![change(&|r| r.model.trainable = Trainable::Lora, vec!["model.trainable=lora".to_owned()])]
            }
            // A base that is already quantized has nothing left to gain.
            Self::Quantize
                if recipe.model.trainable == Trainable::Lora
                    && planner.base.quantization().is_none()
                    && recipe.model.quantize.is_none() =>
            {
                vec![change(&|r| r.model.quantize = Some(Quantize::Nf4), vec!["model.quantize=nf4".to_owned()])]
            }
            Self::LoraRank if recipe.model.trainable == Trainable::Lora && recipe.model.adapter.is_none() => {
                // The adapter's scale alpha / rank stays the same; RSLoRA's alpha / sqrt(rank) shrinks with the rank,
                // as it is meant to.
                let ranks =
                    (0..recipe.model.lora_rank.max(1).ilog2()).map(|halvings| recipe.model.lora_rank >> (halvings + 1));
                let of = |rank: usize| {
                    let alpha = recipe.model.lora_alpha * rank as f64 / recipe.model.lora_rank as f64;
                    let set = |r: &mut Recipe| (r.model.lora_rank, r.model.lora_alpha) = (rank, alpha);
                    change(&set, vec![format!("model.lora_rank={rank}"), format!("model.lora_alpha={alpha}")])
                };
                ranks.map(of).collect()
            }
            Self::MaxSeqLen => {
                let longest = planner.longest().min(recipe.data.max_seq_len.0);
                let lengths = (1..longest.div_ceil(SEQ_LEN_STEP)).rev().map(|n| n * SEQ_LEN_STEP);
                let of = |len: usize| {
                    change(&|r| r.data.max_seq_len = MaxSeqLen(len), vec![format!("data.max_seq_len={len}")])
                };
                lengths.take_while(|len| *len > planner.longest_prompt()).map(of).collect()
            }
            Self::Samples => {
                let counts = (0..planner.experiment.sampled().len()).rev();
                counts.map(|n| change(&|r| r.eval.samples = Some(n), vec![format!("eval.samples={n}")])).collect()
            }
            Self::Activations | Self::Precision | Self::Lora | Self::Quantize | Self::LoraRank => vec![],
        }
    }

    /// The mildest change of this knob that fits.
    fn mildest(self, recipe: &Recipe, planner: &Planner, limit: usize) -> Option<(Change, usize)> {
        let changes = self.changes(recipe, planner);
        let peak = |change: &Change| planner.peak_bytes(&change.0).unwrap_or(usize::MAX);
        let first = changes.partition_point(|change| peak(change) > limit);
        changes.into_iter().nth(first).map(|change| {
            let bytes = peak(&change);
            (change, bytes)
        })
    }
}

/// The single settings that make a recipe's run fit into `limit` bytes; if there are none, a combination of several;
/// empty if no combination is enough.
pub(super) fn remedies(recipe: &Recipe, planner: &Planner, limit: usize) -> Vec<Remedy> {
    let single = |knob: &Knob| {
        let ((_, settings), peak_bytes) = knob.mildest(recipe, planner, limit)?;
        Some(Remedy { settings, peak_bytes })
    };
    let singles: Vec<Remedy> = KNOBS.iter().filter_map(single).collect();
    if singles.is_empty() { combination(recipe, planner, limit).into_iter().collect() } else { singles }
}

/// Sets knob after knob to its strongest value until the run fits, the last one no further than needed; then leaves out
/// every knob that turns out to be unnecessary.
fn combination(recipe: &Recipe, planner: &Planner, limit: usize) -> Option<Remedy> {
    let mut turned: Vec<Knob> = vec![];
    let mut strongest = recipe.clone();
    for knob in KNOBS {
        let fits = knob.mildest(&strongest, planner, limit).is_some();
        let Some((changed, _)) = knob.changes(&strongest, planner).pop() else { continue };
        strongest = changed;
        turned.push(knob);
        if fits {
            for knob in turned.clone() {
                let fewer: Vec<Knob> = turned.iter().copied().filter(|other| *other != knob).collect();
                if turn(&fewer, recipe, planner, limit).is_some() {
                    turned = fewer;
                }
            }
            return turn(&turned, recipe, planner, limit);
        }
    }
    None
}

/// Sets all knobs except the last to their strongest values, and the last to its mildest value that fits.
fn turn(knobs: &[Knob], recipe: &Recipe, planner: &Planner, limit: usize) -> Option<Remedy> {
    let (last, others) = knobs.split_last()?;
    let (mut changed, mut settings) = (recipe.clone(), vec![]);
    for knob in others {
        let (recipe, own) = knob.changes(&changed, planner).pop()?;
        changed = recipe;
        settings.extend(own);
    }
    let ((_, own), peak_bytes) = last.mildest(&changed, planner, limit)?;
    settings.extend(own);
    Some(Remedy { settings, peak_bytes })
}
