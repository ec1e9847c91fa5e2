//! LoRA adapters with PEFT's semantics and in PEFT's format: fresh adapters, loading and saving. `lora_config` decides
//! which layers they adapt; the arithmetic is `weft_kernels::lora_linear`'s.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use weft_kernels::weight::{Dtype, Weight};

use super::adapter_tensors::{AdapterTensors, PREFIX};
use super::block::{Linear, Param, Transformer};
use super::from_hub;
use super::lora_config::{BASE_QUANTIZATION, BLOCK_LENGTH, ends_with_name};
pub use super::lora_config::{LoraConfig, TargetModules};
use super::quantize::Quantization;
use super::weights::{Tensor, write_tensors};
use crate::error::{Error, Result};
use crate::files::{make_folder, read_text, write_whole};
use crate::hub;
use crate::rng::{Draws, Stream};

/// The file of the tensors in an adapter's folder.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// Attaches a PEFT adapter from a folder or the hub to its base; its tensors become the trainable parameters. If it was trained
/// by block diffusion, the model then answers in its blocks.
///
/// # Errors
/// A file or tensor that is missing, damaged or left over, a field that Weft doesn't support, or targets that match no
/// layer.
pub fn load(folder: &Path, model: &mut Transformer) -> Result<LoraConfig> {
    let folder = &*from_hub::adapter(folder)?;
    let path = folder.join("adapter_config.json");
    if let Some(reason) = other_folder(folder).filter(|_| !path.exists()) {
        return Err(Error::Config { path: folder.to_owned(), reason });
    }
    let refuse = |reason: String| Error::Config { path: path.clone(), reason };
    let config = read_config(folder, &path)?;
    config.check().map_err(refuse)?;
    model.config.block_length = config.block_length().map_err(refuse)?.or(model.config.block_length);
    let mut tensors = AdapterTensors::open(folder)?;
    for target in targets(model, &config).map_err(refuse)? {
        let [a, b] = shapes(model, &target);
        let a = tensors.take(&tensor_name(&target.module, "lora_A"), &a)?;
        let b = tensors.take(&tensor_name(&target.module, "lora_B"), &b)?;
        attach(model, &target, [a, b].map(trainable));
    }
    tensors.check_rest(model)?;
    model.config.lora_scale = config.scale();
    model.config.lora_dropout = config.lora_dropout as f32;
    Ok(config)
}

/// For a path that was given as an adapter and isn't one: what it is, and the fix. `None` if that isn't known.
fn other_folder(folder: &Path) -> Option<String> {
    let within = |name: &str| folder.join(name).exists();
    if within("adapter/adapter_config.json") {
        return Some(format!("it is a run folder; its adapter is in {}", folder.join("adapter").display()));
    }
    if within("checkpoint/config.json") {
        let checkpoint = folder.join("checkpoint");
        return Some(format!(
            "it is a run folder whose run trained every weight and has no adapter; leave the adapter out and give {} as the model \
             (--model, or model.path in a recipe)",
            checkpoint.display()
        ));
    }
    match () {
        () if folder.is_file() => Some("it is a file; give an adapter's folder".to_owned()),
        () if within("config.json") => Some(from_hub::NO_ADAPTER.to_owned()),
        () => from_hub::to_resume_from(folder).or_else(|| {
            let reason = "it has no adapter_config.json; give an adapter's folder, such as adapter in a run folder";
            folder.is_dir().then(|| reason.to_owned())
        }),
    }
}

/// Reads adapter_config.json; where it doesn't say which layers are adapted, the error lists those of the tensors.
fn read_config(folder: &Path, path: &Path) -> Result<LoraConfig> {
    let format = |e: serde_json::Error| Error::Format { path: path.to_owned(), reason: e.to_string() };
    let fields: Map<String, Value> = serde_json::from_str(&read_text(path)?).map_err(format)?;
    if fields.get("target_modules").is_some_and(Value::is_null) {
        let reason = format!(
            "target_modules is null, so the file doesn't say which layers are adapted; the tensors beside it are those \
             of \"target_modules\": {}",
            serde_json::json!(AdapterTensors::open(folder)?.modules())
        );
        return Err(Error::Config { path: path.to_owned(), reason });
    }
    LoraConfig::from_fields(fields).map_err(format)
}

/// The base that an adapter's folder names, if any.
pub fn named_base(folder: &Path) -> Option<String> {
    config_field(folder, "base_model_name_or_path")?.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// How the base of an adapter was quantized during training; `None` if the adapter's folder doesn't say that it was.
pub fn base_quantization(folder: &Path) -> Option<Quantization> {
    let field = config_field(folder, BASE_QUANTIZATION)?;
    Some(Quantization { double_quant: field.get("double_quant")?.as_bool()? })
}

fn config_field(folder: &Path, field: &str) -> Option<Value> {
    let text = read_text(&from_hub::adapter(folder).ok()?.join("adapter_config.json")).ok()?;
    let fields: Map<String, Value> = serde_json::from_str(&text).ok()?;
    fields.get(field).cloned()
}

/// Attaches a fresh adapter: A uniform in `+-1 / sqrt(in)` (Kaiming with a = sqrt(5), as PEFT draws it), B zero,
/// so that the model computes what its base computes.
///
/// # Errors
/// Settings that make no sense, or targets that match no layer.
pub fn attach_fresh(model: &mut Transformer, config: &LoraConfig, seed: u64) -> Result<()> {
    let attached = attach_new(model, config, |index, [[r, inputs], [outputs, _]]| {
        let draws = Draws::new(seed, Stream::Init, 0, index as u64);
        let bound = 1.0 / (inputs as f64).sqrt();
        let a = (0..r * inputs).map(|i| ((2.0 * draws.unit_f64(i as u64) - 1.0) * bound) as f32).collect();
        let b = vec![0.0; outputs * r];
        [Weight::from_f32(r, inputs, a), Weight::from_f32(outputs, r, b)]
    });
    attached.map_err(Error::Usage)
}

/// Attaches an adapter without storage to a model on the meta device.
///
/// # Errors
/// The errors of [`attach_fresh`], as one sentence.
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
    for target in targets {
        let shapes @ [[r, inputs], [outputs, _]] = shapes(model, &target);
        if r > inputs.min(outputs) {
            return Err(format!("rank {r} is larger than {} of [{outputs}, {inputs}]; lower it", target.module));
        }
        attach(model, &target, make(target.index, shapes));
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
    let mut fields = serde_json::json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": null,
        "revision": null,
        "inference_mode": true,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    // PEFT ignores fields that it doesn't know, with a warning.
    if let Some(length) = model.config.block_length {
        fields[BLOCK_LENGTH] = length.into();
    }
    if let Some(Quantization { double_quant }) = model.quantization() {
        fields[BASE_QUANTIZATION] = serde_json::json!({ "quant_type": "nf4", "double_quant": double_quant });
    }
    let own = serde_json::to_value(config).expect("a LoRA configuration is JSON");
    let (base, revision) = hub::name_and_revision(base);
    // An adapter that was loaded has the name of its base from elsewhere.
    let of_folder = serde_json::json!({ "base_model_name_or_path": base, "revision": revision });
    let fields = fields.as_object_mut().expect("the literal above is an object");
    for more in [own, of_folder] {
        fields.extend(more.as_object().expect("both are objects").clone());
    }
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

/// A layer that gets an adapter.
struct Target {
    /// Its index among the linear layers.
    index: usize,
    module: String,
    rank: usize,
    /// Its scale where a pattern gives it another than the rest's.
    own_scale: Option<f32>,
}

/// The layers that get adapters.
fn targets(model: &Transformer, config: &LoraConfig) -> std::result::Result<Vec<Target>, String> {
    let modules = modules(model);
    let embedding = model.params[model.embedding].name.trim_end_matches(".weight");
    let head = modules.get(model.linears().count() - 1).cloned().unwrap_or_default();
    let matches = config.matcher(&head)?;
    // PEFT adapts an embedding in another way (lora_embedding_A), which Weft doesn't support.
    if !matches!(&config.target_modules, TargetModules::Pattern(p) if p == "all-linear") && matches(embedding)? {
        return Err(format!("target_modules name the embedding {embedding}; Weft adapts linear layers only"));
    }
    let all = modules.clone();
    let mut found = vec![];
    for (index, module) in modules.into_iter().enumerate() {
        if matches(&module)? {
            let (rank, scale) = config.rank_and_scale(&module)?;
            let own_scale = Some(scale).filter(|scale| *scale != config.scale());
            found.push(Target { index, module, rank, own_scale });
        }
    }
    match found.is_empty() {
        true => {
            let (names, own) =
                (serde_json::to_string(&config.target_modules).expect("names are JSON"), last_names(&all));
            Err(format!("the targets {names} (lora_targets, target_modules) name no layer of the model; it has {own}"))
        }
        false => Ok(found),
    }
}

/// The last parts of modules' names, each once, as a list.
fn last_names(modules: &[String]) -> String {
    let names: BTreeSet<&str> = modules.iter().filter_map(|name| name.rsplit('.').next()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
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
    let fix = match known.is_empty() {
        true => format!("it has {}", last_names(&modules)),
        false => format!("here {}", known.join(", ")),
    };
    Err(format!("the targets {names} (lora_targets, target_modules) name no layer of the model; {fix}"))
}

/// The shapes of `lora_A` `[R, in]` and `lora_B` `[out, R]` of a layer.
fn shapes(model: &Transformer, target: &Target) -> [[usize; 2]; 2] {
    let id = model.linears().nth(target.index).expect("the index comes from the same list").weight;
    let weight = &model.params[id].weight;
    [[target.rank, weight.cols()], [weight.rows(), target.rank]]
}

pub(super) fn tensor_name(module: &str, part: &str) -> String {
    format!("{PREFIX}{module}.{part}.weight")
}

fn trainable(mut weight: Weight) -> Weight {
    weight.widen();
    weight
}

fn attach(model: &mut Transformer, target: &Target, [a, b]: [Weight; 2]) {
    let first = model.params.len();
    for (part, weight) in [("lora_A", a), ("lora_B", b)] {
        let shape = vec![weight.rows(), weight.cols()];
        model.params.push(Param { name: tensor_name(&target.module, part), shape, weight, trainable: true });
    }
    let layer = model.linears_mut().nth(target.index).expect("the index comes from the same list");
    (layer.lora, layer.lora_scale) = (Some([first, first + 1]), target.own_scale);
}
