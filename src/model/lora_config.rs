//! adapter_config.json: which layers PEFT adapts by it, with which rank and scale; and the refusal of everything there
//! that Weft doesn't compute. `lora` reads and writes the files.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Fields of adapter_config.json on which a saved adapter's results don't depend; any other field that Weft doesn't
/// know must be null, false or empty.
const NEUTRAL: [&str; 14] = [
    "auto_mapping",
    BASE_QUANTIZATION,
    "base_model_name_or_path",
    BLOCK_LENGTH,
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

/// The field that says how the base was quantized while the adapter was trained on it.
pub(crate) const BASE_QUANTIZATION: &str = "base_quantization";

/// The field with the tokens per block of an adapter that was trained by block diffusion.
pub(crate) const BLOCK_LENGTH: &str = "block_length";

/// Initializations that leave the base as it is, so that a trained adapter doesn't show which one it began with.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// How an adapter that isn't a plain LoRA becomes a base that is read, which needs its files alone.
const MERGE: &str = "load the adapter on its base in PEFT and save the merged model, which is read as a base: \
                     model.merge_and_unload().save_pretrained(DIR)";

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

/// The numbers of layers, with the names of the lists that they count in.
const LAYERS: [&str; 2] = ["layers_to_transform", "layers_pattern"];
const EXCLUDED: &str = "exclude_modules";
const RANKS: &str = "rank_pattern";
const ALPHAS: &str = "alpha_pattern";

type Result<T> = std::result::Result<T, String>;

impl LoraConfig {
    /// The configuration of a new adapter.
    pub fn new(r: usize, lora_alpha: f64, lora_dropout: f64, targets: Vec<String>, use_rslora: bool) -> Self {
        let target_modules = match &targets[..] {
            [all] if all == "all-linear" => TargetModules::Pattern(all.clone()),
            _ => TargetModules::Names(targets),
        };
        Self { r, lora_alpha, lora_dropout, target_modules, use_rslora, others: Map::new() }
    }

    /// The configuration of a file's fields. PEFT writes its defaults as null into some of them.
    pub(super) fn from_fields(mut fields: Map<String, Value>) -> serde_json::Result<Self> {
        fields.retain(|field, value| !value.is_null() || !["lora_dropout", "use_rslora"].contains(&field.as_str()));
        serde_json::from_value(Value::Object(fields))
    }

    /// The scale of `B A x` in layers for which no pattern gives another.
    pub fn scale(&self) -> f32 {
        self.scale_of(self.r, self.lora_alpha)
    }

    fn scale_of(&self, r: usize, alpha: f64) -> f32 {
        let r = r as f64;
        (alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// The rank and the scale of a layer's adapter.
    pub(super) fn rank_and_scale(&self, module: &str) -> Result<(usize, f32)> {
        let rank = match self.of_pattern(RANKS, module)? {
            Some((field, value)) => {
                let rank = value.as_u64().filter(|rank| *rank > 0).and_then(|rank| usize::try_from(rank).ok());
                rank.ok_or_else(|| format!("{field} = {value} is not a valid rank; give at least 1"))?
            }
            None => self.r,
        };
        let alpha = match self.of_pattern(ALPHAS, module)? {
            Some((field, value)) => {
                let alpha = value.as_f64().ok_or_else(|| format!("{field} = {value} is no number"))?;
                let is_finite = self.scale_of(rank, alpha).is_finite();
                is_finite.then_some(alpha).ok_or_else(|| {
                    format!("{field} = {value} gives no finite scale; give the value that the adapter was trained with")
                })?
            }
            None => self.lora_alpha,
        };
        Ok((rank, self.scale_of(rank, alpha)))
    }

    /// The first entry of a pattern field whose key matches the end of a layer's name, as PEFT chooses it.
    fn of_pattern(&self, field: &str, module: &str) -> Result<Option<(String, &Value)>> {
        for (key, value) in self.others.get(field).and_then(Value::as_object).into_iter().flatten() {
            if Pattern::new(field, key, "^(?:.*\\.)?(?:", ")$")?.is_match(module)? {
                return Ok(Some((format!("{field}.{key}"), value)));
            }
        }
        Ok(None)
    }

    /// Tokens per block, if the adapter was trained by block diffusion.
    pub(super) fn block_length(&self) -> Result<Option<usize>> {
        let Some(value) = self.others.get(BLOCK_LENGTH).filter(|value| !is_off(value)) else { return Ok(None) };
        let length = value.as_u64().filter(|length| *length > 0).and_then(|length| usize::try_from(length).ok());
        let error = || format!("{BLOCK_LENGTH} = {value} is no length; give at least 1, or leave it out");
        length.map(Some).ok_or_else(error)
    }

    pub(super) fn check(&self) -> Result<()> {
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
        self.others.iter().try_for_each(|(field, value)| check_field(field, value))?;
        self.block_length()?;
        let is_used = |field: &&&str| self.others.get(**field).is_some_and(|value| !is_off(value));
        match (LAYERS.iter().find(is_used), &self.target_modules) {
            (Some(field), TargetModules::Pattern(pattern)) => Err(format!(
                "{field} = {} doesn't go with target_modules = {pattern:?}, for PEFT neither; list the names of the layers",
                self.others[*field]
            )),
            _ => Ok(()),
        }
    }

    /// A function that decides for each module as PEFT does; `head` is the LM head's name.
    pub(super) fn matcher(&self, head: &str) -> Result<impl Fn(&str) -> Result<bool>> {
        let whole = |field: &str, pattern: &str| Pattern::new(field, pattern, "^(?:", ")$");
        let (targets, head) = (self.target_modules.clone(), head.to_owned());
        let pattern = match &targets {
            TargetModules::Pattern(pattern) if pattern != "all-linear" => Some(whole("target_modules", pattern)?),
            _ => None,
        };
        let excluded = match self.others.get(EXCLUDED) {
            Some(Value::String(pattern)) if !pattern.is_empty() => Excluded::Pattern(whole(EXCLUDED, pattern)?),
            value => Excluded::Names(value.map(texts).unwrap_or_default()),
        };
        let layers = self.layers()?;
        Ok(move |module: &str| {
            let is_excluded = match &excluded {
                Excluded::Pattern(pattern) => pattern.is_match(module)?,
                Excluded::Names(names) => names.iter().any(|name| ends_with_name(module, name)),
            };
            let is_target = match (&targets, &pattern) {
                (_, Some(pattern)) => pattern.is_match(module)?,
                (TargetModules::Names(names), _) => {
                    let is_whole = names.iter().any(|name| name == module);
                    is_whole || names.iter().any(|name| ends_with_name(module, name)) && layers.contain(module)?
                }
                (TargetModules::Pattern(_), None) => module != head,
            };
            Ok(is_target && !is_excluded)
        })
    }

    /// The layers that `layers_to_transform` names: all if it is absent or empty.
    fn layers(&self) -> Result<Layers> {
        let [numbers, lists] = LAYERS.map(|field| self.others.get(field).filter(|value| !is_off(value)));
        let Some(value) = numbers else {
            return match lists {
                Some(value) => {
                    Err(format!("layers_pattern = {value} needs layers_to_transform; remove one or add the other"))
                }
                None => Ok(Layers { numbers: None, lists: vec![] }),
            };
        };
        let numbers = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
        let numbers: Option<Vec<u64>> = numbers.into_iter().map(Value::as_u64).collect();
        let numbers = numbers.ok_or_else(|| format!("layers_to_transform = {value} isn't numbers of layers"))?;
        let mut names = lists.map(texts).unwrap_or_default();
        if names.is_empty() {
            names.push("[^.]*".to_owned());
        }
        let list = |name: &String| Pattern::new(LAYERS[1], name, "^.*\\.(?:", ")\\.(\\d+)\\.");
        Ok(Layers { numbers: Some(numbers), lists: names.iter().map(list).collect::<Result<_>>()? })
    }
}

enum Excluded {
    Names(Vec<String>),
    Pattern(Pattern),
}

/// The numbers of the adapted layers, and what finds a layer's number in the name of a module.
struct Layers {
    numbers: Option<Vec<u64>>,
    lists: Vec<Pattern>,
}

impl Layers {
    fn contain(&self, module: &str) -> Result<bool> {
        let Some(numbers) = &self.numbers else { return Ok(true) };
        for list in &self.lists {
            if let Some(number) = list.number_in(module)? {
                return Ok(numbers.contains(&number));
            }
        }
        Ok(false)
    }
}

/// A regular expression of Python's kind, lookaround included, with the field that it comes from.
struct Pattern {
    regex: fancy_regex::Regex,
    told: String,
}

impl Pattern {
    fn new(field: &str, pattern: &str, before: &str, after: &str) -> Result<Self> {
        let told = format!("{field} {pattern:?}");
        let regex = fancy_regex::Regex::new(&format!("{before}{pattern}{after}"))
            .map_err(|_| format!("{told} is not a regular expression that Weft can parse; name the layers instead"))?;
        Ok(Self { regex, told })
    }

    fn is_match(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|_| self.too_slow())
    }

    /// The number that the last group of the pattern matches.
    fn number_in(&self, module: &str) -> Result<Option<u64>> {
        let found = self.regex.captures(module).map_err(|_| self.too_slow())?;
        Ok(found.and_then(|found| found.iter().last().flatten()?.as_str().parse().ok()))
    }

    fn too_slow(&self) -> String {
        format!("{} takes too long to match; name the layers instead", self.told)
    }
}

/// Refuses a field that makes the adapter something other than a plain LoRA.
fn check_field(field: &str, value: &Value) -> Result<()> {
    let why = match field {
        "peft_type" if value == "LORA" => return Ok(()),
        "bias" if value == "none" => return Ok(()),
        "init_lora_weights" if value.is_boolean() || PLAIN_STARTS.iter().any(|start| value == start) => return Ok(()),
        _ if NEUTRAL.contains(&field) || is_off(value) => return Ok(()),
        EXCLUDED if value.is_string() || value.is_array() => return Ok(()),
        RANKS | ALPHAS if value.is_object() => return Ok(()),
        "layers_to_transform" if value.is_u64() || value.is_array() => return Ok(()),
        "layers_pattern" if value.is_string() || value.is_array() => return Ok(()),
        "init_lora_weights" => ": it changes the base's weights too",
        "use_dora" => ": DoRA also scales each row of the weights, by numbers that it trains",
        "modules_to_save" => ": the adapter replaces these modules as a whole",
        "bias" => ": the adapter replaces the base's biases",
        "peft_type" => ": only LORA is",
        _ => "",
    };
    Err(format!("{field} = {value} is not supported{why}; {MERGE}"))
}

/// A text, or a list's texts.
fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
    list.into_iter().filter_map(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether a module has a name, or a name that ends with it after a dot.
pub(super) fn ends_with_name(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
