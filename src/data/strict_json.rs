//! JSON whose objects name each key once. `serde_json` alone keeps the last of two values, silently. The NaN and
//! Infinity that Python's `json` writes are no JSON, and half of a surrogate pair (`"\ud83d"`) is no character; rows may
//! have them where nobody reads them.

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
/// The character that replaces half of a surrogate pair in a string.
const HALF: &str = "\u{0}weft: half\u{0}";
/// [`HALF`] as JSON writes it.
const WRITTEN_HALF: &str = "\\u0000weft: half\\u0000";

/// Something in a value that isn't JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotJson {
    /// NaN, Infinity or -Infinity, which is read as null.
    Number,
    /// Half of a surrogate pair, which is read as U+FFFD.
    HalfPair,
}

impl NotJson {
    /// The error for a key that is read.
    pub fn told(self, key: &str) -> String {
        match self {
            Self::Number => format!("{key} holds NaN or Infinity, and NaN is not JSON; write null, or drop the row"),
            Self::HalfPair => format!(
                "{key} holds half of a surrogate pair (an escape from \\ud800 to \\udfff), which is no character, as a \
                 text that was cut within an emoji does; drop the row, or write it again after \
                 text.encode(\"utf-8\", \"ignore\").decode() in Python"
            ),
        }
    }
}
/// The numbers that Python writes and JSON doesn't have; the longer ones first.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads a JSON text like [`parse`], in which NaN, Infinity, -Infinity and halves of surrogate pairs stand for values
/// that [`take_not_json`] finds.
///
/// # Errors
/// The errors of [`parse`].
pub(crate) fn parse_with_nan(text: &str) -> serde_json::Result<Value> {
    parse(text).or_else(|error| match with_placeholders(text) {
        Some(replaced) if !error.is_data() => match parse(&replaced) {
            Ok(value) if has_half_key(&value) => Err(error),
            read => read.map_err(|other| if other.is_data() { other } else { error }),
        },
        _ => Err(error),
    })
}

/// Replaces the numbers that JSON doesn't have, and halves of surrogate pairs; `None` if there are none.
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
            None if rest.starts_with('"') => {
                let length = string_length(rest);
                found |= push_string(&rest[..length], &mut replaced);
                rest = &rest[length..];
                continue;
            }
            None => 1,
        };
        replaced.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    replaced.push_str(rest);
    found.then_some(replaced)
}

/// Appends a string, in which halves of surrogate pairs are replaced; returns whether it has any.
fn push_string(string: &str, to: &mut String) -> bool {
    let (mut rest, mut found) = (string, false);
    while let Some(at) = rest.find('\\') {
        to.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match [escaped(rest), rest.get(6..).and_then(escaped)] {
            [Some(0xd800..0xdc00), Some(0xdc00..0xe000)] => 12,
            [Some(0xd800..0xe000), _] => {
                to.push_str(WRITTEN_HALF);
                found = true;
                rest = &rest[6..];
                continue;
            }
            [Some(_), _] => 6,
            // The escaped character may have several bytes.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        to.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    to.push_str(rest);
    found
}

/// The code unit of the escape at the start of a text.
fn escaped(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u16::from_str_radix(digits, 16).ok()
}

/// Whether the name of a key holds half of a surrogate pair.
fn has_half_key(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_half_key),
        Value::Object(fields) => fields.iter().any(|(key, item)| key.contains(HALF) || has_half_key(item)),
        _ => false,
    }
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

/// Replaces what isn't JSON in a row's fields and returns the keys under which it was: NaN becomes null, and half of a
/// surrogate pair becomes U+FFFD.
pub(crate) fn take_not_json(fields: &mut Map<String, Value>) -> Vec<(String, NotJson)> {
    let keys = fields.iter_mut().filter_map(|(key, value)| clear(value).map(|found| (key.clone(), found)));
    keys.collect()
}

fn clear(value: &mut Value) -> Option<NotJson> {
    match value {
        Value::String(text) if text == NAN => {
            *value = Value::Null;
            Some(NotJson::Number)
        }
        Value::String(text) if text.contains(HALF) => {
            *text = text.replace(HALF, "\u{fffd}");
            Some(NotJson::HalfPair)
        }
        // Every item is visited, not those up to the first with one.
        Value::Array(items) => items.iter_mut().fold(None, |found, item| clear(item).or(found)),
        Value::Object(fields) => fields.values_mut().fold(None, |found, item| clear(item).or(found)),
        _ => None,
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
