//! JSON whose objects name each key once. `serde_json` alone keeps the last of two values, silently. The NaN and
//! Infinity that Python's `json` writes are no JSON; rows may have them where nobody reads them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads a JSON text.
///
/// # Errors
/// What is wrong and where in the text; a repeated key is a data error (`is_data`).
pub fn parse(text: &str) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer)?;
    deserializer.end().map(|()| value)
}

/// What stands for NaN in a text that is parsed. No text of a row has this value by chance.
const NAN: &str = "\u{0}weft: NaN\u{0}";
/// The numbers that Python writes and JSON doesn't have; the longer ones first.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads a JSON text like [`parse`], in which NaN, Infinity and -Infinity stand for a value that [`take_nan`] finds.
///
/// # Errors
/// The errors of [`parse`].
pub fn parse_with_nan(text: &str) -> serde_json::Result<Value> {
    parse(text).or_else(|error| match with_placeholders(text) {
        Some(replaced) if !error.is_data() => {
            parse(&replaced).map_err(|other| if other.is_data() { other } else { error })
        }
        _ => Err(error),
    })
}

/// Replaces the numbers that JSON doesn't have; `None` if there are none outside of strings.
fn with_placeholders(text: &str) -> Option<String> {
    let placeholder = Value::from(NAN).to_string();
    let (mut replaced, mut rest, mut found) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find(['"', '-', 'I', 'N']) {
        replaced.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match NUMBERS.iter().find(|number| rest.starts_with(**number)) {
            Some(number) => {
                replaced.push_str(&placeholder);
                found = true;
                rest = &rest[number.len()..];
                continue;
            }
            None if rest.starts_with('"') => string_length(rest),
            None => 1,
        };
        replaced.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    replaced.push_str(rest);
    found.then_some(replaced)
}

/// The length of the string at the start of a text, quotes included; the rest of the text if it has no end.
fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    if at < bytes.len() { at + 1 } else { bytes.len() }
}

/// Replaces the NaN of a row's fields by null and returns the keys under which there was one.
pub fn take_nan(fields: &mut Map<String, Value>) -> Vec<String> {
    let keys = fields.iter_mut().filter_map(|(key, value)| clear(value).then(|| key.clone()));
    keys.collect()
}

fn clear(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text == NAN => {
            *value = Value::Null;
            true
        }
        // Every item is visited, not those up to the first with one.
        Value::Array(items) => items.iter_mut().fold(false, |found, item| clear(item) | found),
        Value::Object(fields) => fields.values_mut().fold(false, |found, item| clear(item) | found),
        _ => false,
    }
}

/// Any JSON value whose objects have distinct keys.
#[derive(Clone, Copy)]
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = vec![];
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} appears twice")));
            }
            let value = entries.next_value_seed(self)?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}
