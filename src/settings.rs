//! Reads settings of any type: TOML and `--set` over the type's defaults. Every key is read on its own, so that each
//! problem is reported with the key's name, in a recipe's words. The settings themselves are defined in the folders
//! that read them.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::with_home;

/// Other programs' names for settings; docs/from-pytorch.md says which program uses which name.
pub(crate) const SYNONYMS: [(&str, &str); 41] = [
    ("adapter_name_or_path", "model.adapter"),
    ("early_stopping_patience", "train.patience"),
    ("load_best_model_at_end", "train.keep_best"),
    ("model_name_or_path", "model.path"),
    ("model_name", "model.path"),
    ("torch_dtype", "model.precision"),
    ("dtype", "model.precision"),
    ("bf16", "model.precision"),
    ("r", "model.lora_rank"),
    ("lora_r", "model.lora_rank"),
    ("rank", "model.lora_rank"),
    ("alpha", "model.lora_alpha"),
    ("dropout", "model.lora_dropout"),
    ("target_modules", "model.lora_targets"),
    ("lora_target_modules", "model.lora_targets"),
    ("train_data", "data.train"),
    ("dataset", "data.train"),
    ("dataset_args", "data.train"),
    ("eval_data", "data.held_out"),
    ("validation", "data.held_out"),
    ("max_length", "data.max_seq_len"),
    ("max_seq_length", "data.max_seq_len"),
    ("time_epsilon", "objective.t_min"),
    ("loss_norm_type", "objective.normalizer"),
    ("output_dir", "train.output"),
    ("learning_rate", "train.lr"),
    ("lr_scheduler_type", "train.lr_schedule"),
    ("warmup_ratio", "train.warmup_steps"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("batch_size", "train.micro_batch_size"),
    ("per_device_train_batch_size", "train.micro_batch_size"),
    ("gradient_accumulation_steps", "train.grad_accum_steps"),
    ("gradient_checkpointing", "train.activation_memory_gb"),
    ("adam_epsilon", "train.adam_eps"),
    ("eval_steps", "train.eval_every"),
    ("save_steps", "train.checkpoint_every"),
    ("max_new_tokens", "sampler.gen_length"),
    ("steps", "sampler.diffusion_steps"),
    ("threshold", "sampler.confidence_threshold"),
    ("alg", "sampler.remasking"),
];

/// Settings of other programs that have no counterpart, and why.
const WITHOUT_TWIN: [(&str, &str); 9] = [
    ("fp16", "matmul operands are f32 or bf16 (model.precision)"),
    ("optim", "the optimizer is AdamW"),
    ("optimizer", "the optimizer is AdamW"),
    ("report_to", "metrics.jsonl, TensorBoard events and report.html are always written"),
    ("logging_steps", "every step is logged"),
    ("save_total_limit", "the newest two checkpoints are kept"),
    ("deepspeed", "none of it is needed on CPUs"),
    ("load_in_4bit", "bases are f32 or bf16 as they are stored"),
    ("load_in_8bit", "bases are f32 or bf16 as they are stored"),
];

/// Reads a recipe over its type's defaults. `check` returns what is wrong with the values that could be read.
///
/// # Errors
/// Every problem at once; if the text isn't TOML, only the first.
pub fn parse<R: Serialize + DeserializeOwned + Default>(
    text: &str,
    path: &Path,
    settings: &[String],
    check: impl FnOnce(&R) -> Vec<String>,
) -> Result<R> {
    let refuse = |problems| Error::Recipe { path: path.to_owned(), problems };
    let mut given: toml::Table = toml::from_str(text).map_err(|e| {
        let line = text[..e.span().map_or(0, |s| s.start).min(text.len())].lines().count().max(1);
        let hint = if e.message().contains("invalid") { " (strings need quotes)" } else { "" };
        refuse(vec![format!("line {line} is not TOML: {}{hint}", e.message().replace('\n', " "))])
    })?;
    // serde_json writes `None` as null, so the default contains every key.
    let mut resolved = serde_json::to_value(R::default()).expect("a recipe is JSON");
    let known = resolved.as_object().expect("a recipe is a table").clone();
    let mut problems: Vec<String> =
        settings.iter().filter_map(|setting| apply(setting, &mut given, &known).err()).collect();
    for (table, keys) in given {
        let Some(Value::Object(known_keys)) = known.get(&table) else {
            problems.push(match own_place(&table, &known) {
                Some(place) if !keys.is_table() => format!("{table} is outside of every table; set {place}"),
                _ => unknown("table", &table, "", known.keys()),
            });
            continue;
        };
        let toml::Value::Table(keys) = keys else {
            problems.push(format!("{table} is a table; write [{table}] and its keys below"));
            continue;
        };
        for (key, value) in keys {
            if !known_keys.contains_key(&key) {
                problems.push(match own_place(&key, &known) {
                    Some(place) => format!("unknown key {table}.{key}; set {place}"),
                    None => unknown("key", &key, &format!("{table}."), known_keys.keys()),
                });
                continue;
            }
            match read_key::<R>(&table, &key, value) {
                Ok(value) => resolved[&table][&key] = value,
                Err(problem) => problems.push(problem),
            }
        }
    }
    let recipe = serde_json::from_value(resolved).expect("each key was read on its own");
    problems.extend(check(&recipe));
    if problems.is_empty() { Ok(recipe) } else { Err(refuse(problems)) }
}

/// Reads a key's value as the recipe's type.
fn read_key<R: DeserializeOwned>(table: &str, key: &str, value: toml::Value) -> std::result::Result<Value, String> {
    // JSON has no infinities or NaN; they would become null.
    if let Some(number) = value.as_float().filter(|x| !x.is_finite()) {
        return Err(format!("{table}.{key} = {number}: give a finite number"));
    }
    let mut value = serde_json::to_value(value).expect("TOML values are JSON values");
    expand_home(key, &mut value);
    let keys = Map::from_iter([(key.to_owned(), value.clone())]);
    let trial = Value::Object(Map::from_iter([(table.to_owned(), Value::Object(keys))]));
    match serde_json::from_value::<R>(trial) {
        Ok(_) => Ok(value),
        Err(e) => Err(format!("{table}.{key} = {value}: {}", in_plain_words(&e.to_string()))),
    }
}

/// The settings that are paths, those of a source of rows among them.
const PATHS: [&str; 5] = ["path", "train", "held_out", "output", "adapter"];

/// Expands a leading `~` in a setting that is a path, or in those of a table or a list.
fn expand_home(key: &str, value: &mut Value) {
    match value {
        Value::String(text) if PATHS.contains(&key) => {
            *text = with_home(Path::new(text)).to_string_lossy().into_owned();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| expand_home(key, item)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| expand_home(key, value)),
        _ => {}
    }
}

/// Puts serde's message about a value into a recipe's words.
pub(crate) fn in_plain_words(error: &str) -> String {
    if let Some((_, known)) = error.split_once("unknown variant").and_then(|(_, rest)| rest.split_once("expected ")) {
        let known = known.trim_start_matches("one of ").replace('`', "").replace(" or ", ", ");
        return format!("the known values are {known}");
    }
    let wanted = match error.rsplit_once("expected ") {
        Some((_, "f64" | "f32")) => "a number",
        Some((_, "u64" | "usize")) => "a whole number, 0 or above",
        Some((_, "a boolean")) => "true or false",
        Some((_, "a string" | "path string")) => "a string in quotes",
        Some((_, "a sequence")) => "a list in [ ]",
        Some((_, "a map")) => "a table in { }",
        Some((_, other)) if other.starts_with("string or") || other.contains("enum") => "one of its names, in quotes",
        _ => return error.to_owned(),
    };
    format!("give {wanted}")
}

/// Puts `table.key=value` into the recipe; a value that isn't TOML is taken as text.
fn apply(setting: &str, given: &mut toml::Table, known: &Map<String, Value>) -> std::result::Result<(), String> {
    let wrong = || format!("--set {setting:?} is not table.key=value");
    let Some((name, value)) = setting.split_once('=') else {
        let fix = setting.trim().split_once(' ').map(|(name, value)| format!("; write {name}={}", value.trim()));
        return Err(wrong() + &fix.unwrap_or_default());
    };
    let Some((table, key)) = name.trim().split_once('.') else {
        let place = own_place(name.trim(), known).map(|place| format!("; write {place}={}", value.trim()));
        return Err(wrong() + &place.unwrap_or_default());
    };
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let value = parsed.and_then(|mut t| t.remove("value")).unwrap_or_else(|| toml::Value::from(value.trim()));
    let entry = given.entry(table).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    entry.as_table_mut().ok_or_else(wrong)?.insert(key.to_owned(), value);
    Ok(())
}

/// The place `table.key` where a key belongs: a key that only one table has, or another program's name for a setting.
pub(crate) fn own_place(key: &str, known: &Map<String, Value>) -> Option<String> {
    let has = |table: &str, key: &str| known.get(table).is_some_and(|keys| keys.get(key).is_some());
    let tables: Vec<&String> = known.keys().filter(|table| has(table, key)).collect();
    let synonym = || {
        let (_, place) = SYNONYMS.iter().find(|(name, _)| *name == key)?;
        place.split_once('.').filter(|(table, key)| has(table, key)).map(|_| (*place).to_owned())
    };
    match tables[..] {
        [table] => Some(format!("{table}.{key}")),
        _ => synonym(),
    }
}

/// The error for a table or key that isn't known.
pub(crate) fn unknown<K: AsRef<str>>(
    what: &str,
    name: &str,
    table: &str,
    known: impl IntoIterator<Item = K>,
) -> String {
    if let Some((_, why)) = WITHOUT_TWIN.iter().find(|(known, _)| *known == name) {
        return format!("unknown {what} {table}{name}; leave it out: {why}");
    }
    let distance = |key: &str| match key.contains(name) && name.len() > 2 || name.contains(key) {
        true => 0,
        false => strsim::damerau_levenshtein(key, name),
    };
    let nearest = known.into_iter().map(|key| (distance(key.as_ref()), key)).min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, key)) if distance <= 1 + name.len() / 3 => {
            format!("unknown {what} {table}{name}; the nearest known one is {table}{}", key.as_ref())
        }
        _ => format!("unknown {what} {table}{name}; \"weft recipe\" prints those that are known"),
    }
}
