//! Reads a recipe's file. For a file in another format, or a name that is nearly that of a recipe, the error says what to do
//! instead.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::COMPARISON;
use crate::error::{Error, Result};
use crate::files::{is_named_as_rows, read_text};

/// What to do with another program's recipe.
const TRANSLATE: &str = "\"weft recipe > my.toml\" writes a recipe with every key, and docs/from-pytorch.md has other \
                         programs' names for them";

/// Reads a recipe's text.
///
/// # Errors
/// A file that can't be read, or is in another format than TOML.
pub fn read(path: &Path) -> Result<String> {
    let refuse = |reason: String| Error::Config { path: path.to_owned(), reason };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if ["jsonl", "parquet"].contains(&extension) && is_named_as_rows(path) && path.exists() {
        let shown = path.display();
        return Err(refuse(format!("it is a file of rows, not a recipe; give it as --set data.train={shown}")));
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
