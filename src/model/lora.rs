//! LoRA adapters with PEFT's semantics and in PEFT's format: which layers `target_modules` names, fresh adapters,
//! loading and saving. The arithmetic is `weft_kernels::lora_linear`'s.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_kernels::weight::{Dtype, Weight};

use super::block::{Linear, Param, Transformer};
use super::from_hub;
use super::weights::{Checkpoint, Tensor, write_tensors};
use crate::error::{Error, Result};
use crate::files::{make_folder, read_text, write_whole};
use crate::hub;
use crate::rng::{Draws, Stream};

/// The file of the tensors in an adapter's folder.
const TENSORS: &str = "adapter_model.safetensors";

/// Fields of adapter_config.json on which a saved adapter's results don't depend; any other field that Weft doesn't
/// know must be null, false or empty.
const NEUTRAL: [&str; 12] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "lora_ga_config",
    "runtime_config",
];

/// The fields of adapter_config.json on which the results depend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the adapter's scale.
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's input in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// The layers that are adapted.
    pub target_modules: TargetModules,
    /// Whether the scale is `lora_alpha / sqrt(r)` instead of `lora_alpha / r`.
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// PEFT's two ways of naming layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Names, or suffixes of names that follow a dot.
    Names(Vec<String>),
    /// `"all-linear"` (every linear layer except the LM head), or a regular expression that matches a whole name.
    Pattern(String),
}

impl LoraConfig {
    /// The configuration of a new adapter.
    pub fn new(r: usize, lora_alpha: f64, lora_dropout: f64, targets: Vec<String>, use_rslora: bool) -> Self {
        let target_modules = match &targets[..] {
            [all] if all == "all-linear" => TargetModules::Pattern(all.clone()),
            _ => TargetModules::Names(targets),
        };
        Self { r, lora_alpha, lora_dropout, target_modules, use_rslora, others: Map::new() }
    }

    /// The scale of `B A x`.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.r == 0 {
            return Err("r = 0 is not a valid rank; give at least 1".to_owned());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(format!("lora_dropout = {} lies outside [0, 1)", self.lora_dropout));
        }
        if !self.scale().is_finite() {
            return Err(format!(
                "lora_alpha = {} gives no finite scale; give the value that the adapter was trained with",
                self.lora_alpha
            ));
        }
        for (field, value) in &self.others {
            let supported = match field.as_str() {
                "peft_type" => value == "LORA",
                "bias" => value == "none",
                // Other initializations change the base's weights too.
                "init_lora_weights" => value.is_boolean() || value == "gaussian" || value == "orthogonal",
                _ => NEUTRAL.contains(&field.as_str()) || is_off(value),
            };
            if !supported {
                return Err(format!("{field} = {value} is not supported; save the adapter as a plain LoRA"));
            }
        }
        Ok(())
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl TargetModules {
    /// A function that decides for each module as PEFT does; `head` is the LM head's name.
    fn matcher(&self, head: &str) -> std::result::Result<impl Fn(&str) -> bool, String> {
        let pattern = match self {
            Self::Pattern(pattern) if pattern != "all-linear" => {
                Some(regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|_| {
                    format!("target_modules {pattern:?} is not a regular expression that Weft can parse")
                })?)
            }
            _ => None,
        };
        let head = head.to_owned();
        Ok(move |module: &str| match (self, &pattern) {
            (_, Some(pattern)) => pattern.is_match(module),
            (Self::Names(names), _) => names.iter().any(|name| ends_with_name(module, name)),
            (Self::Pattern(_), None) => module != head,
        })
    }
}

/// Attaches a PEFT adapter from a folder or the hub to its base; its tensors become the trainable parameters.
///
/// # Errors
/// A file or tensor that is missing, damaged or left over, a field that Weft doesn't support, or targets that match no
/// layer.
pub fn load(folder: &Path, model: &mut Transformer) -> Result<LoraConfig> {
    let folder = &*from_hub::adapter(folder)?;
    let path = folder.join("adapter_config.json");
    if !path.exists() && folder.join("adapter/adapter_config.json").exists() {
        let reason = format!("it is a run's folder; its adapter is in {}", folder.join("adapter").display());
        return Err(Error::Config { path: folder.to_owned(), reason });
    }
    let config: LoraConfig = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::Format { path: path.clone(), reason: e.to_string() })?;
    config.check().map_err(|reason| Error::Config { path: path.clone(), reason })?;
    let mut tensors = Checkpoint::open_file(folder, TENSORS)?;
    let targets = targets(model, &config).map_err(|reason| Error::Config { path, reason })?;
    for (index, module) in targets {
        let [a, b] = shapes(model, index, config.r);
        let a = tensors.take(&tensor_name(&module, "lora_A"), &a)?;
        let b = tensors.take(&tensor_name(&module, "lora_B"), &b)?;
        attach(model, index, &module, [a, b].map(trainable));
    }
    if let Some(name) = tensors.rest().next() {
        let reason = "no layer of the model uses it".to_owned();
        return Err(Error::Tensor { name: name.to_owned(), folder: folder.to_owned(), reason });
    }
    model.config.lora_scale = config.scale();
    model.config.lora_dropout = config.lora_dropout as f32;
    Ok(config)
}

/// The base that an adapter's folder names, if any.
pub fn named_base(folder: &Path) -> Option<String> {
    let text = read_text(&from_hub::adapter(folder).ok()?.join("adapter_config.json")).ok()?;
    let fields: serde_json::Value = serde_json::from_str(&text).ok()?;
    fields["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Attaches a fresh adapter: A uniform in `+-1 / sqrt(in)` (Kaiming with a = sqrt(5), as PEFT draws it), B zero,
/// so that the model computes what its base computes.
///
/// # Errors
/// Settings that make no sense, or targets that match no layer, as one sentence.
pub fn attach_fresh(model: &mut Transformer, config: &LoraConfig, seed: u64) -> std::result::Result<(), String> {
    attach_new(model, config, |index, [[r, inputs], [outputs, _]]| {
        let draws = Draws::new(seed, Stream::Init, 0, index as u64);
        let bound = 1.0 / (inputs as f64).sqrt();
        let a = (0..r * inputs).map(|i| ((2.0 * draws.unit_f64(i as u64) - 1.0) * bound) as f32).collect();
        let b = vec![0.0; outputs * r];
        [Weight::from_f32(r, inputs, a), Weight::from_f32(outputs, r, b)]
    })
}

/// Attaches an adapter without storage to a model on the meta device.
///
/// # Errors
/// Those of [`attach_fresh`].
pub(crate) fn attach_meta(model: &mut Transformer, config: &LoraConfig) -> std::result::Result<(), String> {
    attach_new(model, config, |_, shapes| shapes.map(|[rows, cols]| Weight::meta(rows, cols, Dtype::F32)))
}

/// Attaches `make(index, [[R, in], [out, R]])` as the adapter of each target layer.
fn attach_new(
    model: &mut Transformer,
    config: &LoraConfig,
    make: impl Fn(usize, [[usize; 2]; 2]) -> [Weight; 2],
) -> std::result::Result<(), String> {
    config.check()?;
    let targets = targets(model, config)?;
    check_names(model, &config.target_modules)?;
    for (index, module) in targets {
        let shapes @ [[r, inputs], [outputs, _]] = shapes(model, index, config.r);
        if r > inputs.min(outputs) {
            return Err(format!("rank {r} is larger than {module} of [{outputs}, {inputs}]; lower it"));
        }
        attach(model, index, &module, make(index, shapes));
    }
    model.config.lora_scale = config.scale();
    model.config.lora_dropout = config.lora_dropout as f32;
    Ok(())
}

/// Saves the adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors` (f32).
///
/// # Errors
/// A file that can't be written.
pub fn save(folder: &Path, model: &Transformer, config: &LoraConfig, base: &str) -> Result<()> {
    make_folder(folder)?;
    let tensors = model.params.iter().filter(|p| p.is_adapters());
    write_tensors(&folder.join(TENSORS), tensors.map(|p| Tensor::of(p, Dtype::F32)).collect())?;
    let (base, revision) = hub::name_and_revision(base);
    let mut fields = serde_json::json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": true,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    let own = serde_json::to_value(config).expect("a LoRA configuration is JSON");
    let fields = fields.as_object_mut().expect("the literal above is an object");
    fields.extend(own.as_object().expect("a struct is an object").clone());
    let text = serde_json::to_string_pretty(fields).expect("JSON values print");
    write_whole(&folder.join("adapter_config.json"), text.as_bytes())
}

/// The linear layers' names in order; a head without a module of its own has none.
fn modules(model: &Transformer) -> Vec<String> {
    let name = |layer: &Linear| model.params[layer.weight].name.trim_end_matches(".weight").to_owned();
    let mut names: Vec<String> = model.linears().map(name).collect();
    if model.has_tied_head() {
        names.pop();
        let names_of = model.config.family.names;
        names.extend(names_of.has_tied_module.then(|| names_of.head.to_owned()));
    }
    names
}

/// The index among the linear layers and the name of each layer that gets an adapter.
fn targets(model: &Transformer, config: &LoraConfig) -> std::result::Result<Vec<(usize, String)>, String> {
    let modules = modules(model);
    let embedding = model.params[model.embedding].name.trim_end_matches(".weight");
    let head = modules.get(model.linears().count() - 1).cloned().unwrap_or_default();
    let matches = config.target_modules.matcher(&head)?;
    // PEFT adapts an embedding in another way (lora_embedding_A), which Weft doesn't support.
    if !matches!(&config.target_modules, TargetModules::Pattern(p) if p == "all-linear") && matches(embedding) {
        return Err(format!("target_modules name the embedding {embedding}; Weft adapts linear layers only"));
    }
    let all = modules.clone();
    let found: Vec<_> = modules.into_iter().enumerate().filter(|(_, module)| matches(module)).collect();
    match found.is_empty() {
        true => {
            let names = serde_json::to_string(&config.target_modules).expect("names are JSON");
            let own: std::collections::BTreeSet<&str> = all.iter().filter_map(|name| name.rsplit('.').next()).collect();
            let own = own.into_iter().collect::<Vec<_>>().join(", ");
            Err(format!("the targets {names} (lora_targets, target_modules) name no layer of the model; it has {own}"))
        }
        false => Ok(found),
    }
}

/// Refuses names of which PEFT would silently use a part, such as those of another family, and says what this family calls
/// the layers.
fn check_names(model: &Transformer, targets: &TargetModules) -> std::result::Result<(), String> {
    let TargetModules::Names(names) = targets else { return Ok(()) };
    if names.iter().any(|name| name == "all-linear") {
        let head = model.config.family.names.head;
        return Err(format!(
            "all-linear among other targets names no layer; give it alone, or list the layers, the head {head} among them"
        ));
    }
    let modules = modules(model);
    let is_unused = |name: &&String| modules.iter().all(|module| !ends_with_name(module, name));
    let unused: Vec<&String> = names.iter().filter(is_unused).collect();
    if unused.is_empty() {
        return Ok(());
    }
    let own = |name: &&String| model.config.family.own_name(name).map(|own| format!("{name} is {own}"));
    let known: Vec<String> = unused.iter().filter_map(own).collect();
    let names = unused.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let fix = if known.is_empty() { "remove them".to_owned() } else { format!("here {}", known.join(", ")) };
    Err(format!("the targets {names} (lora_targets, target_modules) name no layer of the model; {fix}"))
}

/// Whether a module has a name, or a name that ends with it after a dot.
fn ends_with_name(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The shapes of `lora_A` `[R, in]` and `lora_B` `[out, R]` of a layer.
fn shapes(model: &Transformer, index: usize, r: usize) -> [[usize; 2]; 2] {
    let id = model.linears().nth(index).expect("the index comes from the same list").weight;
    let weight = &model.params[id].weight;
    [[r, weight.cols()], [weight.rows(), r]]
}

fn tensor_name(module: &str, part: &str) -> String {
    format!("base_model.model.{module}.{part}.weight")
}

fn trainable(mut weight: Weight) -> Weight {
    weight.widen();
    weight
}

fn attach(model: &mut Transformer, index: usize, module: &str, [a, b]: [Weight; 2]) {
    let first = model.params.len();
    for (part, weight) in [("lora_A", a), ("lora_B", b)] {
        let shape = vec![weight.rows(), weight.cols()];
        model.params.push(Param { name: tensor_name(module, part), shape, weight, trainable: true });
    }
    model.linears_mut().nth(index).expect("the index comes from the same list").lora = Some([first, first + 1]);
}
