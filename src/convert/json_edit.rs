//! Edits of JSON texts that leave every other byte as it was: members of an object and elements of an array are found
//! as ranges of the text, and only those are replaced. New parts take the indentation of their neighbours.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Result, Value};

/// The members of an object, or the elements of an array with empty keys, in the order of the text.
struct Parts<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Parts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct OfParts;
        impl<'de> Visitor<'de> for OfParts {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object or an array")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut parts = vec![];
                while let Some(part) = map.next_entry()? {
                    parts.push(part);
                }
                Ok(Parts(parts))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut parts = vec![];
                while let Some(element) = seq.next_element()? {
                    parts.push((String::new(), element));
                }
                Ok(Parts(parts))
            }
        }
        deserializer.deserialize_any(OfParts)
    }
}

/// The keys and the ranges of the values of an object, or the ranges of an array's elements.
fn parts(text: &str) -> Result<Vec<(String, Range<usize>)>> {
    let Parts(parts) = serde_json::from_str(text)?;
    let range = |value: &RawValue| {
        let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
        start..start + value.get().len()
    };
    Ok(parts.into_iter().map(|(key, value)| (key, range(value))).collect())
}

/// The text of a member's value; `None` if there is no such member. Of two with the same key the last counts.
pub(super) fn get<'a>(text: &'a str, key: &str) -> Result<Option<&'a str>> {
    Ok(parts(text)?.into_iter().rfind(|(name, _)| name == key).map(|(_, range)| &text[range]))
}

/// Replaces a member's value, or adds the member behind the others.
pub(super) fn set(text: &str, key: &str, value: &Value) -> Result<String> {
    let parts = parts(text)?;
    let printed = print(value, &first_gap(text))?;
    match parts.iter().rfind(|(name, _)| name == key) {
        Some((_, range)) => Ok(replaced(text, range.clone(), &printed)),
        None => {
            let colon = parts.first().map_or(" ", |(_, range)| trailing_space(&text[..range.start]));
            Ok(appended(text, &parts, &format!("{}:{colon}{printed}", serde_json::to_string(key)?)))
        }
    }
}

/// Replaces a member's value by what `edit` makes of its text; a text without that member stays as it is.
pub(super) fn edit(text: &str, key: &str, edit: impl FnOnce(&str) -> Result<String>) -> Result<String> {
    match parts(text)?.into_iter().rfind(|(name, _)| name == key) {
        Some((_, range)) => Ok(replaced(text, range.clone(), &edit(&text[range])?)),
        None => Ok(text.to_owned()),
    }
}

/// Adds an element behind the last one of an array.
pub(super) fn push(text: &str, value: &Value) -> Result<String> {
    Ok(appended(text, &parts(text)?, &print(value, &first_gap(text))?))
}

/// Removes a member with its comma.
pub(super) fn remove(text: &str, key: &str) -> Result<String> {
    let parts = parts(text)?;
    let Some(at) = parts.iter().rposition(|(name, _)| name == key) else { return Ok(text.to_owned()) };
    let end = parts[at].1.end;
    let cut = match (at, parts.get(1)) {
        (0, None) => open(text)..end,
        // Behind the first member lie a comma and white space, then the second member's key.
        (0, Some(_)) => {
            let next = end + text[end..].find('"').expect("a member begins with its key");
            open(text) + first_gap(text).len()..next
        }
        _ => parts[at - 1].1.end..end,
    };
    Ok(replaced(text, cut, ""))
}

/// The place behind the opening bracket.
fn open(text: &str) -> usize {
    text.find(['{', '[']).map_or(0, |at| at + 1)
}

/// The white space between the opening bracket and the first part.
fn first_gap(text: &str) -> String {
    let inside = &text[open(text)..];
    inside[..inside.len() - inside.trim_start().len()].to_owned()
}

fn trailing_space(text: &str) -> &str {
    &text[text.trim_end().len()..]
}

fn replaced(text: &str, range: Range<usize>, by: &str) -> String {
    format!("{}{by}{}", &text[..range.start], &text[range.end..])
}

fn appended(text: &str, parts: &[(String, Range<usize>)], part: &str) -> String {
    let Some((_, last)) = parts.last() else { return replaced(text, open(text)..open(text), part) };
    let first = &parts[0].1;
    let gap = match parts.len() {
        1 => first_gap(text),
        _ => {
            let behind = text[first.end..].trim_start().trim_start_matches(',');
            behind[..behind.len() - behind.trim_start().len()].to_owned()
        }
    };
    replaced(text, last.end..last.end, &format!(",{gap}{part}"))
}

/// Prints a value over several lines if the parts around it stand on lines of their own, else on one.
fn print(value: &Value, gap: &str) -> Result<String> {
    match gap.rfind('\n') {
        Some(line) => Ok(serde_json::to_string_pretty(value)?.replace('\n', &format!("\n{}", &gap[line + 1..]))),
        None => serde_json::to_string(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{edit, get, push, remove, set};

    const PRETTY: &str = "{\n  \"eps\": 1e-06,\n  \"of\": [\n    \"A\"\n  ],\n  \"a\\u0062\": {}\n}\n";

    #[test]
    fn what_is_not_edited_keeps_its_bytes() {
        assert_eq!(
            set(PRETTY, "of", &json!(["B"])).expect("JSON"),
            "{\n  \"eps\": 1e-06,\n  \"of\": [\n    \"B\"\n  ],\n  \"a\\u0062\": {}\n}\n"
        );
        assert_eq!(
            set(PRETTY, "new", &json!({ "x": 1 })).expect("JSON"),
            "{\n  \"eps\": 1e-06,\n  \"of\": [\n    \"A\"\n  ],\n  \"a\\u0062\": {},\n  \"new\": {\n    \"x\": 1\n  }\n}\n"
        );
        let inner = |text: &str| set(text, "k", &json!(1));
        assert_eq!(edit(PRETTY, "ab", inner).expect("JSON"), PRETTY.replace("{}", "{\"k\": 1}"));
        assert_eq!(edit(PRETTY, "absent", inner).expect("JSON"), PRETTY);
        assert_eq!(get(PRETTY, "eps").expect("JSON"), Some("1e-06"));
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(set("{\"a\": 1, \"b\": 2}", "c", &json!(3)).expect("JSON"), "{\"a\": 1, \"b\": 2, \"c\": 3}");
        assert_eq!(set("{\"a\":1}", "c", &json!([3, 4])).expect("JSON"), "{\"a\":1,\"c\":[3,4]}");
        assert_eq!(set("{}", "c", &json!(3)).expect("JSON"), "{\"c\": 3}");
        assert_eq!(set("{\"a\":1,\"a\":2}", "a", &json!(3)).expect("JSON"), "{\"a\":1,\"a\":3}", "the last one counts");
        assert_eq!(
            push("[{\"id\":0},{\"id\":1}]", &json!({ "id": 2 })).expect("JSON"),
            "[{\"id\":0},{\"id\":1},{\"id\":2}]"
        );
        assert_eq!(push("[]", &json!(1)).expect("JSON"), "[1]");
        assert_eq!(push("[\n  0\n]", &json!(1)).expect("JSON"), "[\n  0,\n  1\n]");
    }

    #[test]
    fn a_removed_member_leaves_json() {
        for (key, expected) in [
            ("eps", "{\n  \"of\": [\n    \"A\"\n  ],\n  \"a\\u0062\": {}\n}\n"),
            ("of", "{\n  \"eps\": 1e-06,\n  \"a\\u0062\": {}\n}\n"),
            ("ab", "{\n  \"eps\": 1e-06,\n  \"of\": [\n    \"A\"\n  ]\n}\n"),
            ("absent", PRETTY),
        ] {
            assert_eq!(remove(PRETTY, key).expect("JSON"), expected);
        }
        assert_eq!(remove("{ \"a\": 1 }", "a").expect("JSON"), "{ }");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["", "{", "3", "{\"a\": }", "{\"a\": 1} x"] {
            assert!(set(text, "a", &json!(1)).is_err(), "{text}");
        }
    }
}
