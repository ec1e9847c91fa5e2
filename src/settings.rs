//! Reads settings of any type: TOML and `--set` over the type's defaults. Every key is read on its own, so that each
//! problem is reported with the key's name, in a recipe's words. The settings themselves are defined in the folders
//! that read them.

pub mod other_names;
pub(crate) mod recipe_file;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::with_home;
use other_names::{SYNONYMS, TABLES, Take, normal, why_not};

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
            problems.push(match own_place(&table, "", &known) {
                Some(place) if !keys.is_table() => format!("{table} is outside of every table; {}", place.sentence()),
                _ => unknown_table(&table, &table, &keys, &known),
            });
            continue;
        };
        let toml::Value::Table(keys) = keys else {
            problems.push(format!("{table} is a table; write [{table}] and its keys below"));
            continue;
        };
        for (key, value) in keys {
            if !known_keys.contains_key(&key) {
                problems.push(match own_place(&key, &table, &known) {
                    _ if value.is_table() && own_table(&key, &known).is_some() => {
                        unknown_table(&format!("{table}.{key}"), &key, &value, &known)
                    }
                    Some(place) => format!("unknown key {table}.{key}; {}", place.sentence()),
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
    let problems: Vec<String> = problems.into_iter().map(|problem| with_origin(problem, settings)).collect();
    if problems.is_empty() { Ok(recipe) } else { Err(refuse(problems)) }
}

/// The problem, with `--set` before it if it is about a setting that this option gave.
fn with_origin(problem: String, settings: &[String]) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let is_about = |text: &str, name: &str| text.strip_prefix(name).is_some_and(|rest| !rest.starts_with(is_word));
    let unknown = ["unknown key ", "unknown table "].iter().find_map(|start| problem.strip_prefix(start));
    let names = || settings.iter().filter_map(|setting| setting.split_once('=')).map(|(name, _)| name.trim());
    let is_unknown = |text: &str| names().any(|name| is_about(text, name) || is_about(text, table_of(name)));
    match unknown {
        Some(rest) if is_unknown(rest) => format!("--set: {problem}"),
        None if names().any(|name| is_about(&problem, name)) => format!("--set {problem}"),
        _ => problem,
    }
}

fn table_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// Weft's name for another program's table.
fn own_table(table: &str, known: &Map<String, Value>) -> Option<&'static str> {
    TABLES.iter().find(|(name, own)| *name == normal(table) && known.contains_key(*own)).map(|(_, own)| *own)
}

/// The error for a table that isn't known, or for another program's key outside of every table. `place` is the table's name
/// with that of the table around it, if there is one.
fn unknown_table(place: &str, table: &str, keys: &toml::Value, known: &Map<String, Value>) -> String {
    match (own_table(table, known), keys) {
        (Some(own), toml::Value::Table(keys)) if keys.is_empty() => format!("unknown table {place}; write [{own}]"),
        (Some(own), toml::Value::Table(keys)) => {
            let fixes: Vec<String> = keys.iter().map(|(key, value)| moved(own, key, value, known)).collect();
            format!("unknown table {place}; {}", fixes.join("; "))
        }
        _ if table == COMPARISON => format!("unknown table {table}; only weft reproduce reads it"),
        _ => unknown(if keys.is_table() { "table" } else { "key" }, table, "", known.keys()),
    }
}

/// What to write for a key of another program's table, for which Weft has the table `own`.
fn moved(own: &str, key: &str, value: &toml::Value, known: &Map<String, Value>) -> String {
    if known.get(own).is_some_and(|keys| keys.get(key).is_some()) {
        return format!("set {own}.{key} = {value}");
    }
    match own_place(key, own, known) {
        Some(Place { keys, take: Take::Same }) => format!("set {} = {value}", keys.join(" or ")),
        Some(place) => place.sentence(),
        None => unknown("key", key, &format!("{own}."), known[own].as_object().expect("a table").keys()),
    }
}

/// The table of a recipe that only a comparison reads.
pub(crate) const COMPARISON: &str = "reproduce";

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
        Err(e) if value.is_string() && e.to_string().ends_with(A_SEQUENCE) => {
            Err(format!("{table}.{key} = {value}: give a list, [{value}]"))
        }
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

/// The end of serde's message about a value that should be a list.
const A_SEQUENCE: &str = "expected a sequence";

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
        Some((_, "a sequence")) => "a list in [ ], such as [\"a\", \"b\"]",
        Some((_, "a map")) => "a table in { }",
        Some((_, other)) if other.starts_with("string or") || other.contains("enum") => "one of its names, in quotes",
        _ => return error.to_owned(),
    };
    format!("give {wanted}")
}

/// Puts `table.key=value` into the recipe. A value that isn't TOML is taken as text, or as a list of texts: `a,b` where the
/// setting is a list, and `[a,b]`, which is what a shell leaves of `["a","b"]`.
fn apply(setting: &str, given: &mut toml::Table, known: &Map<String, Value>) -> std::result::Result<(), String> {
    let wrong = || format!("--set {setting:?} is not table.key=value");
    let Some((name, value)) = setting.split_once('=') else {
        let (name, value) = setting.trim().split_once(' ').unwrap_or((setting.trim(), "VALUE"));
        return Err(wrong() + &format!("; write {name}={}", value.trim()));
    };
    let name = name.trim();
    let Some((table, key)) = name.split_once('.') else {
        let place = own_place(name, "", known).map(|place| format!("; write {}", place.setting(value.trim())));
        let why = || why_not(name).map(|why| format!("; leave it out: {why}"));
        let near = || nearest(name, known).map(|near| format!("; the nearest known one is {near}"));
        return Err(wrong() + &place.or_else(why).or_else(near).unwrap_or_default());
    };
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let text = value.trim();
    let is_list = known.get(table).and_then(|keys| keys.get(key)).is_some_and(Value::is_array);
    let items = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).or_else(|| is_list.then_some(text));
    let list = |items: &str| {
        items.split(',').map(str::trim).filter(|item| !item.is_empty()).map(toml::Value::from).collect::<Vec<_>>()
    };
    let as_text = || items.map_or_else(|| toml::Value::from(text), |items| list(items).into());
    let value = parsed.and_then(|mut t| t.remove("value")).unwrap_or_else(as_text);
    let entry = given.entry(table).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    entry.as_table_mut().ok_or_else(wrong)?.insert(key.to_owned(), value);
    Ok(())
}

/// Where a key belongs, and what to write there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The setting, `table.key`; two settings for a name with two meanings.
    pub keys: Vec<String>,
    /// What to write for it.
    pub take: Take,
}

impl Place {
    /// What to do in a recipe.
    pub fn sentence(&self) -> String {
        let keys = self.keys.join(" or ");
        match self.take {
            Take::Same => format!("set {keys}"),
            Take::Value(value) => format!("set {keys} = {value}"),
            Take::Other(what) => format!("set {keys}, {what}"),
        }
    }

    /// What to write after `--set`, for a value that was given under another name.
    pub fn setting(&self, value: &str) -> String {
        let all = |value: &str| self.keys.iter().map(|key| format!("{key}={value}")).collect::<Vec<_>>().join(" or ");
        match self.take {
            Take::Same => all(value),
            Take::Value(value) => all(value.trim_matches('"')),
            Take::Other(what) => format!("{} with {what}", all("VALUE")),
        }
    }
}

/// The place where a key belongs: a key that only one table has, or another program's name for a setting. If the name has
/// several meanings, the one of the table where it was found counts.
pub fn own_place(key: &str, table: &str, known: &Map<String, Value>) -> Option<Place> {
    let key = &*normal(key);
    let has = |table: &str, key: &str| known.get(table).is_some_and(|keys| keys.get(key).is_some());
    // What a name means in the table where it stands comes before another table's key of this name.
    let here = SYNONYMS.iter().find(|(name, place, _)| *name == key && table_of(place) == table && !has(table, key));
    if let Some((_, place, take)) = here.filter(|(_, place, _)| has(table, &place[table.len() + 1..])) {
        return Some(Place { keys: vec![(*place).to_owned()], take: *take });
    }
    let tables: Vec<&String> = known.keys().filter(|table| has(table, key)).collect();
    match tables[..] {
        [] => {}
        [table] => return Some(Place { keys: vec![format!("{table}.{key}")], take: Take::Same }),
        // In a third table it may be a misspelt key of that table.
        _ if !table.is_empty() && !has(table, key) => return None,
        _ => {}
    }
    let is_known = |place: &str| place.split_once('.').is_some_and(|(table, key)| has(table, key));
    let found: Vec<(&str, Take)> = SYNONYMS
        .iter()
        .filter(|(name, place, _)| *name == key && is_known(place))
        .map(|(_, place, take)| (*place, *take))
        .collect();
    let own: Vec<(&str, Take)> = found.iter().copied().filter(|(place, _)| table_of(place) == table).collect();
    let of_table = if own.is_empty() { found } else { own };
    let (_, take) = *of_table.first()?;
    Some(Place { keys: of_table.iter().map(|(place, _)| (*place).to_owned()).collect(), take })
}

/// The setting, `table.key`, whose key differs least from a misspelt name; `None` if all differ much.
pub fn nearest(name: &str, known: &Map<String, Value>) -> Option<String> {
    let keys =
        known.iter().flat_map(|(table, keys)| keys.as_object().into_iter().flatten().map(move |key| (table, key.0)));
    let distances = keys.map(|(table, key)| (strsim::damerau_levenshtein(key, name), format!("{table}.{key}")));
    distances.min().filter(|(distance, _)| *distance <= name.len() / 4).map(|(_, place)| place)
}

/// The error for a table or key that isn't known.
pub(crate) fn unknown<K: AsRef<str>>(
    what: &str,
    name: &str,
    table: &str,
    known: impl IntoIterator<Item = K>,
) -> String {
    if let Some(why) = why_not(name) {
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
