//! The fields of a request's JSON, taken one by one. A field that is null counts as absent, as in OpenAI's own clients. A
//! field that nothing takes is unknown, and is refused.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::refusal::{Refusal, quoted};
use crate::data::strict_json;

/// The longest name, in bytes, that may be meant to be a known one.
const LONGEST_NAME: usize = 60;

/// The fields that haven't been taken yet.
pub(super) struct Fields {
    fields: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads an object.
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let wrong = |reason: String| {
            Refusal::new(400, format!("the body is not JSON: {reason}; send an object with the request's fields"))
        };
        let text = std::str::from_utf8(body).map_err(|e| wrong(e.to_string()))?;
        let value = strict_json::parse(text).map_err(|e| wrong(one_line(&e.to_string())))?;
        Self::of(value, "the body")
    }

    /// The fields of a value that has to be an object.
    pub(super) fn of(value: Value, what: &str) -> Result<Self, Refusal> {
        match value {
            Value::Object(mut fields) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Self { fields, known: vec![] })
            }
            other => Err(Refusal::new(400, format!("{what} is {}, not an object of JSON", short(&other)))),
        }
    }

    /// The value of a field.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.shift_remove(name)
    }

    /// The text of a field.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, &other, "a string")),
        }
    }

    /// The boolean of a field.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    /// The number of a field.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(name, &value, "a number")),
        }
    }

    /// The whole number of a field.
    pub(super) fn whole(&mut self, name: &'static str) -> Result<Option<u64>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(name, &value, "a whole number of at least 0")),
        }
    }

    /// A value that is given by its name.
    pub(super) fn named<T, E: Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Refusal> {
        let parsed = self.text(name)?.map(|text| parse(&text)).transpose();
        parsed.map_err(|reason| Refusal::of_field(name, format!("{name}: {}", one_line(&reason.to_string()))))
    }

    /// Refuses fields that nothing has taken.
    pub(super) fn finish(self, within: &str) -> Result<(), Refusal> {
        let Some((name, _)) = self.fields.iter().next() else { return Ok(()) };
        let distance = |known: &&&str| strsim::damerau_levenshtein(known, name);
        // The distance to a name takes time and memory in proportion to its length.
        let known = self.known.iter().filter(|_| name.len() <= LONGEST_NAME);
        let nearest = known.min_by_key(distance).filter(|known| distance(known) <= 1 + name.len() / 3);
        let fix = nearest.map_or("leave it out".to_owned(), |known| format!("the nearest known one is {known}"));
        Err(Refusal::of_field(name, format!("unknown field {}{within}; {fix}", quoted(name))))
    }
}

/// The refusal of a value of the wrong type.
pub(super) fn wrong(name: &str, value: &Value, wanted: &str) -> Refusal {
    Refusal::of_field(name, format!("{name} is {}; give {wanted}", short(value)))
}

/// A value, as errors quote it.
pub(super) fn short(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// A sentence without line breaks.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
