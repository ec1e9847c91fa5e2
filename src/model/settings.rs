//! `[model]` of a recipe: which base, in which precision, and what of it is trained.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use weft_kernels::precision::Precision;
use weft_kernels::weight::Dtype;

use super::facts::Overrides;
use super::quantize::{Quantization, Quantize};
use crate::files::shell_word;

/// `[model]`: the base and its adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelTable {
    /// A checkpoint's folder, a model of the hub (`ORG/NAME`, `ORG/NAME@REVISION`), or `tiny-base` for the embedded one.
    pub path: PathBuf,
    /// The format of matmuls' operands: `f32`, `bf16`, `bf16x3`, or `auto`, which is replaced by the fastest format of f32's
    /// accuracy on this processor. Sums, norms, softmax and everything trained are f32 in each.
    #[serde(deserialize_with = "precision_or_auto")]
    pub precision: Precision,
    /// The 4-bit format of the frozen base's linear layers, `nf4`; in the checkpoint's own format if absent.
    pub quantize: Option<Quantize>,
    /// Whether the scales of `quantize` are quantized to 8 bits, as QLoRA does it.
    pub double_quant: bool,
    /// The id of the mask token, where neither config.json nor the tokenizer names it, or against what they name.
    pub mask_token_id: Option<u32>,
    /// Whether the logits that predict position i sit at position i-1, against what is known of the model's family.
    pub logits_shifted: Option<bool>,
    /// What is trained: `lora`, an adapter on the frozen base, or `full`, every weight, in f32.
    pub trainable: Trainable,
    /// The dtype of the checkpoint that a full run saves at its end; the base's own if absent.
    pub save_dtype: Option<SaveDtype>,
    /// Rank of the adapter.
    pub lora_rank: usize,
    /// Numerator of the adapter's scale `lora_alpha / lora_rank`.
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's input.
    pub lora_dropout: f64,
    /// The layers that are adapted, named as PEFT's `target_modules`.
    pub lora_targets: Vec<String>,
    /// Whether the scale is `lora_alpha / sqrt(lora_rank)`.
    pub use_rslora: bool,
    /// A PEFT adapter's folder, or one of the hub, whose training goes on. Its rank, scale and layers take the place of
    /// `lora_rank`, `lora_alpha`, `use_rslora` and `lora_targets`. If absent, the adapter is a fresh one.
    pub adapter: Option<PathBuf>,
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

/// A dtype that checkpoints are saved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// f32: the trained weights unchanged.
    F32,
    /// bf16: half the size, rounded to nearest.
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

impl Default for ModelTable {
    fn default() -> Self {
        Self {
            path: PathBuf::from("tiny-base"),
            precision: Precision::F32,
            quantize: None,
            double_quant: true,
            mask_token_id: None,
            logits_shifted: None,
            trainable: Trainable::default(),
            save_dtype: None,
            lora_rank: 32,
            lora_alpha: 64.0,
            lora_dropout: 0.0,
            lora_targets: ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec(),
            use_rslora: false,
            adapter: None,
        }
    }
}

impl ModelTable {
    /// The rank and the scale of a fresh adapter, with the settings that they come from.
    pub fn told_of_adapter(&self) -> String {
        let Self { lora_rank: rank, lora_alpha: alpha, .. } = self;
        let (scale, by) = match self.use_rslora {
            true => (alpha / (*rank as f64).sqrt(), "sqrt(rank)"),
            false => (alpha / *rank as f64, "rank"),
        };
        // Four digits tell scales apart.
        let scale = (scale * 1e4).round() / 1e4;
        format!("rank {rank}, scaled by {scale} (model.lora_alpha {alpha} / {by})")
    }

    /// What the recipe says of the base against its files.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            mask_token_id: self.mask_token_id,
            logits_shifted: self.logits_shifted,
            // Weights that are trained stay f32 in either precision.
            rounds_halves: self.precision == Precision::Bf16 && self.trainable == Trainable::Lora,
            quantize: self.quantization(),
        }
    }

    /// How the base is quantized, if it is.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantize.map(|Quantize::Nf4| Quantization { double_quant: self.double_quant })
    }

    /// What is wrong with the values, one sentence per problem.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        refuse(self.path.as_os_str().is_empty(), "model.path is empty; name a model, or leave it out".to_owned());
        if let Some(reason) = without_tiles(self.precision) {
            refuse(true, format!("model.precision = \"{}\": {reason}", self.precision));
        }
        let is_lora = self.trainable == Trainable::Lora;
        refuse(
            self.quantize.is_some() && !is_lora,
            "model.quantize = \"nf4\" does not go with model.trainable = \"full\", because a base in 4 bits stays frozen; set \
             model.trainable=lora, or leave out model.quantize"
                .to_owned(),
        );
        refuse(is_lora && self.lora_rank == 0, "model.lora_rank = 0 is not a valid rank; give at least 1".to_owned());
        let alpha = self.lora_alpha;
        refuse(
            is_lora && (alpha <= 0.0 || alpha.is_nan()),
            format!("model.lora_alpha = {alpha} scales the adapter to nothing; give more than 0"),
        );
        let dropout = self.lora_dropout;
        refuse(!(0.0..1.0).contains(&dropout), format!("model.lora_dropout = {dropout} lies outside [0, 1)"));
        if let Some(adapter) = &self.adapter {
            let is_empty = adapter.as_os_str().is_empty();
            refuse(is_empty, "model.adapter is empty; name an adapter's folder, or leave it out".to_owned());
            let (model, adapter) = (shell_word(&self.path), shell_word(adapter));
            refuse(
                !is_lora && !is_empty,
                format!(
                    "model.adapter = {adapter} does not go with model.trainable = \"full\", which trains the weights of the \
                     base; merge it first: weft merge --model {model} --adapter {adapter} --out merged, then set \
                     model.path=merged and leave out model.adapter"
                ),
            );
        }
        problems
    }
}

/// Reads a format of operands; `auto` is the fastest one of f32's accuracy on this processor.
fn precision_or_auto<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Precision, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Given {
        F32,
        Bf16,
        Bf16x3,
        Auto,
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::F32 => Precision::F32,
        Given::Bf16 => Precision::Bf16,
        Given::Bf16x3 => Precision::Bf16x3,
        Given::Auto => Precision::fastest_accurate(),
    })
}

/// Why this processor doesn't compute in a format that needs tiles, and what to set instead; `None` if it does.
pub fn without_tiles(precision: Precision) -> Option<String> {
    (precision == Precision::Bf16x3 && !precision.is_fast()).then(|| {
        "this processor has no AMX instructions for bf16, without which it is slower than f32; give f32, or auto, which is the \
         faster of the two on each processor"
            .to_owned()
    })
}
