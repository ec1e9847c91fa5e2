//! LLaDA: its configuration, and its tensors' names as fields of the transformer.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_kernels::precision::Precision;
use weft_kernels::weight::{Dtype, Weight};

use super::block::{Block, Config, Linear, Param, ParamId, Transformer};
use super::weights::{Checkpoint, Tensor, write_tensors};
use crate::error::{Error, Result};
use crate::files::{make_folder, read_text, write_whole};
use crate::rng::{Draws, Stream};

/// The fields of config.json that change the numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LladaConfig {
    model_type: String,
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    mlp_hidden_size: Option<usize>,
    #[serde(default = "default_mlp_ratio")]
    mlp_ratio: usize,
    vocab_size: usize,
    embedding_size: Option<usize>,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    #[serde(default)]
    weight_tying: bool,
    mask_token_id: u32,
    #[serde(flatten)]
    others: Map<String, Value>,
}

fn default_mlp_ratio() -> usize {
    4
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_eps() -> f32 {
    1e-5
}

/// Fields that Weft computes for one value only; an absent field has that value.
const REQUIRED: [(&str, &str); 15] = [
    ("include_bias", "false"),
    ("include_qkv_bias", "false"),
    ("bias_for_layer_norm", "false"),
    ("alibi", "false"),
    ("input_emb_norm", "false"),
    ("attention_layer_norm", "false"),
    ("scale_logits", "false"),
    ("multi_query_attention", "false"),
    ("rope", "true"),
    ("rope_full_precision", "true"),
    ("layer_norm_with_affine", "true"),
    ("activation_type", "\"silu\""),
    ("block_type", "\"llama\""),
    ("block_group_size", "1"),
    ("layer_norm_type", "\"rms\""),
];

/// Dropouts of the base, which Weft doesn't draw.
const DROPOUTS: [&str; 3] = ["attention_dropout", "residual_dropout", "embedding_dropout"];

/// The sizes of a new model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Width.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Features within the MLP.
    pub mlp_hidden_size: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence it is trained on.
    pub max_seq_len: usize,
    /// The mask token.
    pub mask_token_id: u32,
    /// The end token.
    pub eos_token_id: u32,
}

impl LladaConfig {
    /// The configuration of a new model, with every field that LLaDA's own code asks for.
    pub fn new(sizes: Sizes) -> Self {
        let Sizes { width, layers, heads, mlp_hidden_size, vocab_size, max_seq_len, mask_token_id, eos_token_id } =
            sizes;
        let mut others: Map<String, Value> = REQUIRED
            .into_iter()
            .map(|(field, only)| (field.to_owned(), serde_json::from_str(only).expect("the table holds JSON")))
            .collect();
        others.extend(DROPOUTS.map(|field| (field.to_owned(), Value::from(0.0))));
        others.extend([
            ("max_sequence_length".to_owned(), Value::from(max_seq_len)),
            ("eos_token_id".to_owned(), Value::from(eos_token_id)),
            ("pad_token_id".to_owned(), Value::from(eos_token_id)),
            ("architectures".to_owned(), Value::from(vec!["LLaDAModelLM"])),
            ("torch_dtype".to_owned(), Value::from("bfloat16")),
        ]);
        Self {
            model_type: "llada".to_owned(),
            d_model: width,
            n_layers: layers,
            n_heads: heads,
            n_kv_heads: Some(heads),
            mlp_hidden_size: Some(mlp_hidden_size),
            mlp_ratio: default_mlp_ratio(),
            vocab_size,
            embedding_size: Some(vocab_size),
            rope_theta: default_rope_theta(),
            rms_norm_eps: default_eps(),
            weight_tying: false,
            mask_token_id,
            others,
        }
    }

    /// Reads config.json's text; `path` is named in errors.
    ///
    /// # Errors
    /// A field that Weft doesn't compute, by its name.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let format = |e: serde_json::Error| Error::Format { path: path.to_owned(), reason: e.to_string() };
        let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
        let fields: Value = serde_json::from_str(text).map_err(format)?;
        // Another family lacks LLaDA's fields; its name is the better message.
        let family = &fields["model_type"];
        if family != "llada" {
            return Err(refuse(format!("model_type {family} is not supported; give a checkpoint of model_type llada")));
        }
        let config: Self = serde_json::from_value(fields).map_err(|e| refuse(e.to_string()))?;
        config.check().map_err(refuse)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (field, only) in REQUIRED {
            let found = self.others.get(field).filter(|v| !v.is_null()).map(ToString::to_string);
            if let Some(value) = found.filter(|value| value != only) {
                return Err(format!("{field} = {value} is not supported; only {only} is"));
            }
        }
        for field in DROPOUTS {
            if let Some(value) = self.others.get(field).filter(|v| v.as_f64() != Some(0.0) && !v.is_null()) {
                return Err(format!("{field} = {value} is not supported; set it to 0"));
            }
        }
        let (d, heads, kv_heads) = (self.d_model, self.n_heads, self.kv_heads());
        if heads == 0 || kv_heads == 0 || d == 0 || d % (2 * heads) != 0 || heads % kv_heads != 0 {
            return Err(format!(
                "d_model {d}, n_heads {heads} and n_kv_heads {kv_heads} do not divide into even heads"
            ));
        }
        if self.rows() < self.vocab_size {
            let (rows, vocab) = (self.rows(), self.vocab_size);
            return Err(format!("embedding_size {rows} is smaller than vocab_size {vocab}"));
        }
        if self.mask_token_id as usize >= self.rows() {
            let id = self.mask_token_id;
            return Err(format!("mask_token_id {id} lies outside the vocabulary of {}; set it below", self.rows()));
        }
        Ok(())
    }

    fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Rows of the embedding and the head.
    fn rows(&self) -> usize {
        self.embedding_size.unwrap_or(self.vocab_size)
    }
}

/// Opens a LLaDA checkpoint's folder.
///
/// # Errors
/// A config field that Weft doesn't compute, by its name; a file or tensor that is missing or damaged.
pub fn load(folder: &Path) -> Result<Transformer> {
    let path = folder.join("config.json");
    let config = LladaConfig::parse(&read_text(&path)?, &path)?;
    assemble(&config, Checkpoint::open(folder)?)
}

/// The model that a configuration and its tensors are.
///
/// # Errors
/// A tensor that is missing or has another shape.
pub fn assemble(config: &LladaConfig, mut checkpoint: Checkpoint) -> Result<Transformer> {
    build(config, |name, shape| checkpoint.take(name, shape))
}

/// A model to train from scratch: matrices normal with deviation 0.02, those that write to the residual stream
/// divided by `sqrt(2 layers)`, gains 1; everything trainable.
///
/// # Source
/// GPT-2's initialisation (Radford et al., 2019), which LLaDA's `init_std` 0.02 follows.
pub fn fresh(config: &LladaConfig, seed: u64) -> Transformer {
    let residual = 1.0 / (2.0 * config.n_layers as f64).sqrt();
    let mut index = 0;
    let draw = |name: &str, shape: &[usize]| {
        let draws = Draws::new(seed, Stream::Init, 0, index);
        index += 1;
        let inner = name.contains("attn_out") || name.contains("blocks") && name.contains("ff_out");
        let deviation = 0.02 * if inner { residual } else { 1.0 };
        Ok(match *shape {
            [rows, cols] => {
                let numbers = (0..(rows * cols) as u64).map(|i| (draws.normal(i) * deviation) as f32).collect();
                Weight::from_f32(rows, cols, numbers)
            }
            _ => Weight::from_f32(1, shape[0], vec![1.0; shape[0]]),
        })
    };
    let mut model = build(config, draw).expect("drawing cannot fail");
    model.params.iter_mut().for_each(|p| p.trainable = true);
    model
}

/// Writes a whole model as a Hugging Face folder in bf16.
///
/// # Errors
/// A file that can't be written.
pub fn save(folder: &Path, model: &Transformer, config: &LladaConfig) -> Result<()> {
    make_folder(folder)?;
    let tensors = model.params.iter().map(|param| Tensor::of(param, Dtype::Bf16)).collect();
    write_tensors(&folder.join("model.safetensors"), tensors)?;
    let text = serde_json::to_string_pretty(config).expect("a configuration is JSON");
    write_whole(&folder.join("config.json"), text.as_bytes())
}

/// Names each tensor and takes it from `take(name, shape)`.
pub(crate) fn build(config: &LladaConfig, take: impl FnMut(&str, &[usize]) -> Result<Weight>) -> Result<Transformer> {
    let mut table = Table { source: take, params: vec![] };
    let (d, rows) = (config.d_model, config.rows());
    let mlp = config.mlp_hidden_size.unwrap_or(config.mlp_ratio * d);
    let kv = d / config.n_heads * config.kv_heads();
    let embedding = table.take("wte", &[rows, d])?;
    let mut blocks = vec![];
    for i in 0..config.n_layers {
        let name = |part: &str| format!("blocks.{i}.{part}");
        let mut linear = |part: &str, outputs, inputs| table.linear(&name(part), outputs, inputs);
        let qkv = [linear("q_proj", d, d)?, linear("k_proj", kv, d)?, linear("v_proj", kv, d)?];
        let gate_up = [linear("ff_proj", mlp, d)?, linear("up_proj", mlp, d)?];
        let (attn_out, down) = (linear("attn_out", d, d)?, linear("ff_out", d, mlp)?);
        let (attn_norm, ff_norm) = (table.take(&name("attn_norm"), &[d])?, table.take(&name("ff_norm"), &[d])?);
        blocks.push(Block { attn_norm, qkv, attn_out, ff_norm, gate_up, down });
    }
    let final_norm = table.take("ln_f", &[d])?;
    let head = match config.weight_tying {
        true => Linear { weight: embedding, lora: None },
        false => table.linear("ff_out", rows, d)?,
    };
    let config = Config {
        width: d,
        heads: config.n_heads,
        kv_heads: config.kv_heads(),
        rope_theta: config.rope_theta,
        rms_norm_eps: config.rms_norm_eps,
        mask_token_id: config.mask_token_id,
        lora_scale: 1.0,
        lora_dropout: 0.0,
        activation_bytes: 0,
        precision: Precision::F32,
        entropy_precision: Precision::F32,
    };
    Ok(Transformer { config, params: table.params, embedding, blocks, final_norm, head })
}

/// The parameter table while it fills.
struct Table<F> {
    source: F,
    params: Vec<Param>,
}

impl<F: FnMut(&str, &[usize]) -> Result<Weight>> Table<F> {
    fn take(&mut self, part: &str, shape: &[usize]) -> Result<ParamId> {
        let name = format!("model.transformer.{part}.weight");
        let weight = (self.source)(&name, shape)?;
        self.params.push(Param { name, shape: shape.to_vec(), weight, trainable: false });
        Ok(self.params.len() - 1)
    }

    fn linear(&mut self, part: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.take(part, &[outputs, inputs])?, lora: None })
    }
}
