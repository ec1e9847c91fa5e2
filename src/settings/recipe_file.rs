//! Reads a recipe's file, or the recipe that a run folder holds. For a file in another format, or a name that is nearly that of
//! a recipe, the error says what to do instead.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{COMPARISON, own_place};
use crate::error::{Error, Result};
use crate::files::{RECIPE, is_named_as_rows, read_text, shell_word};

/// The key under which a resolved recipe holds the names of its sources and the keys of their examples.
pub(crate) const ROWS: &str = "rows";
/// The key under which a resolved recipe holds the hash of the base's tokenizer and chat template. It says which runs can
/// be compared; the rows' keys say whether a run can be resumed.
pub(crate) const TOKENIZER: &str = "tokenizer";

/// What to do with another program's recipe.
const TRANSLATE: &str = "\"weft recipe > my.toml\" writes a recipe with every key, and docs/from-pytorch.md has other \
                         programs' names for them";

/// Reads a recipe's text, for a command with these settings of `--set`; `R` is the recipe's type.
///
/// # Errors
/// Those of [`read`]. If there is no such file because a setting was taken for it, the error says how to write the setting.
pub(crate) fn read_for<R: Serialize + Default>(path: &Path, settings: &[String]) -> Result<String> {
    if !path.exists() {
        let known = serde_json::to_value(R::default()).expect("a recipe is JSON");
        let given = path.to_string_lossy();
        if let Some(setting) = meant(&given, settings, known.as_object().expect("a recipe is a table")) {
            return Err(Error::Usage(format!("there is no recipe {given}; write --set {setting}")));
        }
    }
    read(path)
}

/// The setting that was meant by an argument in the recipe's place: `train.lr=1e-3`, as Hydra takes it, or the value in
/// `--set train.lr 1e-3`.
fn meant(given: &str, settings: &[String], known: &Map<String, Value>) -> Option<String> {
    if let Some(name) = settings.iter().map(|setting| setting.trim()).find(|setting| !setting.contains(['=', ' '])) {
        return Some(format!("{name}={}", shell_word(Path::new(given))));
    }
    let (name, value) = given.trim_start_matches(['+', '~', '-']).split_once('=')?;
    let value = shell_word(Path::new(value));
    match name.split_once('.') {
        Some((table, key)) if known.get(table)?.get(key).is_some() => Some(format!("{name}={value}")),
        Some((table, key)) => own_place(key, table, known).map(|place| place.setting(&value)),
        None => own_place(name, "", known).map(|place| place.setting(&value)),
    }
}

/// Reads a recipe's text. A run folder, or the `recipe.json` in it, holds the recipe of its run.
///
/// # Errors
/// A file that can't be read, or is in another format than TOML.
pub fn read(path: &Path) -> Result<String> {
    let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if ["jsonl", "parquet"].contains(&extension) && is_named_as_rows(path) && path.exists() {
        let own = ["my", "rows", "weft"].map(|name| format!("{name}.toml"));
        let recipe = own.iter().find(|own| !Path::new(own).exists()).unwrap_or(&own[0]);
        let rows = shell_word(path);
        return Err(refuse(format!(
            "it is a file of rows, not a recipe; weft recipe > {recipe} writes one, and --set data.train={rows} after its path \
             gives it these rows"
        )));
    }
    if path.join(RECIPE).is_file() {
        return read(&path.join(RECIPE));
    }
    if path.is_dir() {
        return Err(refuse("it is a folder, and a recipe is a file (TOML); name the file".to_owned()));
    }
    let text = read_text(path).map_err(|error| match &error {
        Error::Read { source, .. } if source.kind() == ErrorKind::NotFound => near(path).map_or(error, |near| {
            Error::Usage(format!("there is no recipe {}, but there is {}", path.display(), near.display()))
        }),
        _ => error,
    })?;
    if let Some(recipe) = of_run(&text) {
        return Ok(recipe);
    }
    let is_toml = toml::from_str::<toml::Table>(&text).is_ok();
    let format = match extension {
        "yaml" | "yml" => Some("YAML"),
        "json" => Some("JSON"),
        _ if looks_like_yaml(&text) => Some("YAML"),
        _ if text.trim_start().starts_with('{') => Some("JSON"),
        _ => None,
    };
    match format.filter(|_| !is_toml) {
        Some(format) => Err(refuse(format!("it is {format}, and recipes are TOML: {TRANSLATE}"))),
        None => Ok(text),
    }
}

/// The recipe of a run as TOML, from the JSON in its folder; `None` for any other text.
fn of_run(text: &str) -> Option<String> {
    let mut saved: Value = serde_json::from_str(text).ok().filter(|saved: &Value| saved.get("weft").is_some())?;
    let mut recipe = saved.get_mut("recipe")?.take();
    without_nulls(&mut recipe);
    let tables = recipe.as_object_mut()?;
    [ROWS, TOKENIZER].iter().for_each(|key| _ = tables.shift_remove(*key));
    toml::to_string(&toml::Table::try_from(tables).ok()?).ok()
}

/// Removes the settings without a value, which TOML can't write.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Whether the first line with content is a key of YAML.
fn looks_like_yaml(text: &str) -> bool {
    let is_said = |line: &&str| !line.is_empty() && !line.starts_with('#') && *line != "---";
    let first = text.lines().map(str::trim_end).find(is_said).unwrap_or_default();
    let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    first.split_once(':').is_some_and(|(key, rest)| is_key(key) && (rest.is_empty() || rest.starts_with(' ')))
}

/// A recipe whose name differs in the extension, or that lies in the folder of the recipes.
fn near(path: &Path) -> Option<PathBuf> {
    let named = [path.to_owned(), path.with_extension("toml")];
    let all = named.iter().flat_map(|path| [path.clone(), Path::new("recipes").join(path)]);
    all.into_iter().find(|path| path.is_file())
}

/// A recipe's text without the table of a comparison, which only `weft reproduce` reads.
pub(crate) fn without_comparison(text: &str) -> Cow<'_, str> {
    match toml::from_str::<toml::Table>(text) {
        Ok(mut tables) if tables.contains_key(COMPARISON) => {
            tables.remove(COMPARISON);
            Cow::Owned(toml::to_string(&tables).expect("it was read from TOML"))
        }
        _ => Cow::Borrowed(text),
    }
}
