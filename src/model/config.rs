//! config.json: which family of checkpoints it describes and in what sizes; and the refusal of everything there that
//! Weft doesn't compute.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::block::Config;
use super::config_fields;
use super::facts::{self, Facts, Overrides, TokenizerFiles};
use super::family::{FAMILIES, Family, Keys};
use super::layout::{Layout, SizeFields};
use crate::error::{Error, Result};
use crate::files::read_text;

/// RoPE's base where config.json doesn't say.
const ROPE_THETA: f64 = 10_000.0;

/// Fields of a mixture of experts.
const EXPERTS: [&str; 5] =
    ["num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"];

/// Fields that name the tokens per block of a model trained by block diffusion: Weft's own, SDAR's, and Fast-dLLM v2's.
pub(crate) const BLOCK_LENGTHS: [&str; 3] = ["block_length", "block_size", "bd_size"];

/// A config.json: its raw fields, the layout that they describe, and the facts that it leaves to other files.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    fields: Map<String, Value>,
    pub(super) layout: Layout,
    facts: Facts,
}

impl ModelConfig {
    /// Parses the text of config.json; `path` is named in errors.
    ///
    /// # Errors
    /// The name of a family or a field that Weft doesn't support, or a mask token that the text doesn't name.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::from_files(text, path, &TokenizerFiles::default(), Overrides::default())
    }

    /// Reads config.json of a checkpoint's folder, and the facts that `overrides` and the tokenizer's files add.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::parse`]; a mask token that no file names, or that is an ordinary token.
    pub fn open(folder: &Path, overrides: Overrides) -> Result<Self> {
        let path = folder.join("config.json");
        Self::from_files(&read_text(&path)?, &path, &TokenizerFiles::read(folder)?, overrides)
    }

    /// Parses the text of config.json, with what the tokenizer's files and the user add.
    ///
    /// # Errors
    /// Those of [`ModelConfig::open`].
    pub(crate) fn from_files(
        text: &str,
        path: &Path,
        tokenizer: &TokenizerFiles,
        overrides: Overrides,
    ) -> Result<Self> {
        let format = |e: serde_json::Error| Error::Format { path: path.to_owned(), reason: e.to_string() };
        let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
        Self::from_fields(serde_json::from_str(text).map_err(format)?, tokenizer, overrides).map_err(refuse)
    }

    pub(super) fn from_fields(
        fields: Map<String, Value>,
        tokenizer: &TokenizerFiles,
        overrides: Overrides,
    ) -> std::result::Result<Self, String> {
        let family = family_of(&fields)?;
        let reader = Reader { fields: &fields, family };
        // A checkpoint that Weft can't compute is refused before its facts are asked for.
        reader.check_fields()?;
        let rope_theta = reader.rope_theta()?;
        let facts = facts::find(family, &fields, tokenizer, overrides)?;
        let layout = reader.layout(&facts, rope_theta)?;
        facts.check(family, tokenizer)?;
        Ok(Self { fields, layout, facts })
    }

    /// The id of the mask token.
    pub fn mask_token_id(&self) -> u32 {
        self.layout.config.mask_token_id
    }

    /// The family of the checkpoint.
    pub fn family(&self) -> &'static Family {
        self.layout.config.family
    }

    /// The mask token and the shift of the logits, each with where it was found.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the first lines of a run say of the model, given whether its head turned out to be tied.
    pub fn told(&self, is_tied: bool) -> String {
        let head = match self.layout.tied && !is_tied {
            true => "; the head is its own: it differs from the embedding, though config.json ties them",
            false => "",
        };
        let attention = match self.layout.config.block_length {
            None => "every token attends to its whole sequence".to_owned(),
            Some(length) => {
                let is_named =
                    BLOCK_LENGTHS.iter().any(|key| self.fields.get(*key).is_some_and(|value| !value.is_null()));
                let source = match is_named {
                    true => "config.json".to_owned(),
                    false => format!("its family, {}", self.family().name),
                };
                format!("a token attends to its block of {length} and those before it in sampling (from {source})")
            }
        };
        format!("{}; {}; {attention}{head}", self.family().name, self.facts)
    }

    /// The fields of config.json that Weft doesn't know, which may change the model's numbers.
    pub fn unknown_fields(&self) -> Vec<&str> {
        config_fields::unknown(&self.fields, self.family())
    }

    /// Rows of the embedding, of which there may be more than tokens.
    pub(crate) fn num_rows(&self) -> usize {
        self.layout.rows
    }

    /// The value of a field.
    pub(crate) fn field(&self, key: &str) -> Option<&Value> {
        self.fields.get(key)
    }

    /// The text of config.json.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.fields).expect("JSON values print")
    }
}

/// The family that a config.json names, by its class or its `model_type`.
fn family_of(fields: &Map<String, Value>) -> std::result::Result<&'static Family, String> {
    let model_type = fields.get("model_type").unwrap_or(&Value::Null);
    let is_given = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null() && *value != 0);
    if let Some(key) = EXPERTS.iter().find(|key| is_given(key)) {
        return Err(format!(
            "{key} = {} makes model_type {model_type} a mixture of experts, which is not supported; give a dense checkpoint",
            fields[*key]
        ));
    }
    let classes: Vec<&str> =
        fields.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let by_class = FAMILIES.iter().find(|family| family.class.is_some_and(|class| classes.contains(&class)));
    if let Some(family) = by_class.or_else(|| FAMILIES.iter().find(|family| *model_type == family.model_type)) {
        return Ok(family);
    }
    let what = match model_type.as_str() {
        Some(name) if name.contains("moe") => "is a mixture of experts, which is not supported",
        _ => "is not supported",
    };
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    Err(format!("model_type {model_type} {what}; give a checkpoint of model_type {}", listed(&known)))
}

/// Words as a list with "or" before the last.
pub(crate) fn listed(words: &[&str]) -> String {
    let (last, first) = words.split_last().expect("there are words");
    format!("{} or {last}", first.join(", "))
}

/// The fields of a config.json, read in the names of its family.
struct Reader<'a> {
    fields: &'a Map<String, Value>,
    family: &'static Family,
}

impl Reader<'_> {
    /// A field's value; an absent or null field has none.
    fn get<T: DeserializeOwned>(&self, key: &str) -> std::result::Result<Option<T>, String> {
        let value = self.fields.get(key).filter(|value| !value.is_null());
        value.map(|value| T::deserialize(value).map_err(|e| format!("{e}, in {key}"))).transpose()
    }

    fn need<T: DeserializeOwned>(&self, key: &str) -> std::result::Result<T, String> {
        self.get(key)?.ok_or_else(|| format!("missing field `{key}`"))
    }

    fn layout(&self, facts: &Facts, rope_theta: f64) -> std::result::Result<Layout, String> {
        let (family, keys) = (self.family, self.family.keys);
        let (width, heads): (usize, usize) = (self.need(keys.width)?, self.need(keys.heads)?);
        let tokens: usize = self.need("vocab_size")?;
        let own_rows: Option<usize> = keys.rows.map_or(Ok(None), |key| self.get(key))?;
        let rows = own_rows.unwrap_or(tokens);
        if rows < tokens {
            return Err(format!("{} {rows} is smaller than vocab_size {tokens}", keys.rows.unwrap_or_default()));
        }
        let own_mlp: Option<usize> = self.get(keys.mlp_hidden_size)?;
        let (mlp_hidden_size, mlp_field) = match (own_mlp, keys.mlp_ratio) {
            (Some(size), _) => (size, keys.mlp_hidden_size.to_owned()),
            (None, None) => return Err(format!("missing field `{}`", keys.mlp_hidden_size)),
            (None, Some((key, default))) => {
                let ratio: usize = self.get(key)?.unwrap_or(default);
                (ratio.saturating_mul(width), format!("{key} * {}", keys.width))
            }
        };
        let own_head_dim: Option<usize> = self.get("head_dim")?.or(family.head_dim);
        let config = Config {
            kv_heads: self.get(keys.kv_heads)?.unwrap_or(heads),
            head_dim: own_head_dim.unwrap_or(width / heads.max(1)),
            rope_theta,
            rms_norm_eps: self.get("rms_norm_eps")?.unwrap_or(keys.rms_norm_eps),
            logits_shifted: facts.logits_shifted.value,
            block_length: self.block_length()?,
            ..Layout::config(family, [width, heads], facts.mask_token_id.value)
        };
        let layout = Layout {
            layers: self.need(keys.layers)?,
            mlp_hidden_size,
            rows,
            tied: self.get(keys.tied)?.unwrap_or(false),
            config,
        };
        let rows = keys.rows.filter(|_| own_rows.is_some()).unwrap_or("vocab_size");
        layout.check(&SizeFields { keys, mlp_hidden_size: &mlp_field, rows, has_head_dim: own_head_dim.is_some() })?;
        Ok(layout)
    }

    /// Tokens per block, if a field or the family names them, because the model was trained by block diffusion.
    fn block_length(&self) -> std::result::Result<Option<usize>, String> {
        for key in BLOCK_LENGTHS {
            match self.get::<usize>(key)? {
                None => {}
                Some(0) => return Err(format!("{key} = 0 is no length; give at least 1, or leave it out")),
                length => return Ok(length),
            }
        }
        Ok(self.family.block_length)
    }

    /// Refuses fields whose value isn't the one that Weft supports; an absent or null field has that value.
    fn check_fields(&self) -> std::result::Result<(), String> {
        let keys = self.family.keys;
        for (field, only) in keys.required {
            // Qwen2's layout always has these biases, whatever the field says.
            if *field == "attention_bias" && self.family.qkv_bias {
                continue;
            }
            let found = self.fields.get(*field).filter(|v| !v.is_null()).map(ToString::to_string);
            if let Some(value) = found.filter(|value| value != only) {
                return Err(format!("{field} = {value} is not supported; only {only} is"));
            }
        }
        for field in keys.dropouts {
            if let Some(value) = self.fields.get(*field).filter(|v| v.as_f64() != Some(0.0) && !v.is_null()) {
                return Err(format!("{field} = {value} is not supported; set it to 0"));
            }
        }
        config_fields::check(self.fields, self.family)?;
        self.check_head_dim()?;
        self.check_windows()
    }

    /// Refuses features per head that LLaDA's and Dream's code, which divides the width by the heads, doesn't read.
    fn check_head_dim(&self) -> std::result::Result<(), String> {
        let Keys { width, heads, .. } = *self.family.keys;
        let Some(head_dim) = self.get::<usize>("head_dim")?.filter(|_| self.family.derives_head_dim) else {
            return Ok(());
        };
        let own = self.need::<usize>(width)? / self.need::<usize>(heads)?.max(1);
        match head_dim == own {
            true => Ok(()),
            false => Err(format!("head_dim = {head_dim} is not supported; only {width} / {heads} = {own} is")),
        }
    }

    /// Refuses layers that don't see the whole sequence.
    fn check_windows(&self) -> std::result::Result<(), String> {
        let types = self.fields.get("layer_types").and_then(Value::as_array).into_iter().flatten();
        if let Some(other) = types.into_iter().find(|of| **of != "full_attention") {
            return Err(format!("layer_types with {other} is not supported; only \"full_attention\" is"));
        }
        // Qwen's code looks at the window only where `use_sliding_window` is true, which is refused by itself.
        let is_off = self.fields.get("use_sliding_window").is_some_and(|value| *value == false);
        let is_ignored = is_off || self.family.qkv_bias || self.family.qk_norm;
        match self.fields.get("sliding_window").filter(|v| !v.is_null() && !is_ignored) {
            Some(window) => Err(format!("sliding_window = {window} is not supported; only null is")),
            None => Ok(()),
        }
    }

    /// RoPE's base: from `rope_parameters`, where transformers 5 writes it, or `rope_theta`.
    fn rope_theta(&self) -> std::result::Result<f64, String> {
        for field in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.fields.get(field).filter(|value| !value.is_null()) else { continue };
            let kind = ["rope_type", "type"].into_iter().find_map(|key| value.get(key));
            let is_default = value.is_object() && kind.is_none_or(|kind| *kind == "default");
            if !is_default {
                return Err(format!("{field} = {value} is not supported; only RoPE of type \"default\" is"));
            }
            let others = ["factor", "partial_rotary_factor", "mrope_section", "full_attention", "sliding_attention"];
            let other = others.into_iter().find(|key| value.get(key).is_some_and(|v| !v.is_null() && *v != 1.0));
            if let Some(key) = other {
                return Err(format!("{field}.{key} = {} is not supported; leave it out", value[key]));
            }
        }
        if let Some(part) = self.fields.get("partial_rotary_factor").filter(|v| !v.is_null() && **v != 1.0) {
            return Err(format!("partial_rotary_factor = {part} is not supported; only 1.0 is"));
        }
        // transformers 5 writes theta in `rope_parameters` only; `rope_scaling` is the older name of the same object.
        let mut theta: Option<(&str, f64)> = self.get("rope_theta")?.map(|theta| ("rope_theta", theta));
        for (field, path) in
            [("rope_scaling", "rope_scaling.rope_theta"), ("rope_parameters", "rope_parameters.rope_theta")]
        {
            let nested = self.fields.get(field).and_then(|value| value.get("rope_theta"));
            let Some(value) = nested.filter(|value| !value.is_null()) else { continue };
            let value = value.as_f64().ok_or_else(|| format!("{path} = {value} is no number"))?;
            match theta {
                Some((other, found)) if found != value => {
                    return Err(format!(
                        "{other} = {found} contradicts {path} = {value}; keep the one of the model's authors"
                    ));
                }
                _ => theta = Some((path, value)),
            }
        }
        Ok(theta.map_or(ROPE_THETA, |(_, theta)| theta))
    }
}
