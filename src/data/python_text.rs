//! Values of chat templates as Python writes them: `str`, `repr` and `json.dumps`. The engine's own texts differ in
//! floats of many digits and in characters that can't be printed.

use std::fmt::{self, Write};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// The text of a value, as Python's `str` gives it.
pub(super) fn text(value: &Value) -> String {
    match (value.as_str(), is_float(value) || is_collection(value)) {
        (Some(text), _) => text.to_owned(),
        (None, true) => repr(value),
        (None, false) => value.to_string(),
    }
}

/// Whether the engine's text of a value may differ from Python's.
pub(super) fn is_other(value: &Value) -> bool {
    is_float(value) || is_collection(value)
}

fn is_float(value: &Value) -> bool {
    value.is_number() && !value.is_integer()
}

fn is_collection(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// The text of a value inside a list, as Python's `repr` gives it.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(&mut out, value).expect("strings can be written to");
    out
}

fn write_repr(out: &mut String, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Number if is_float(value) => out.write_str(&float(as_float(value))),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
            out.write_char('{')?;
            for (i, (key, value)) in pairs.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value)?;
            }
            out.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let [open, close] = if value.is_tuple() { ['(', ')'] } else { ['[', ']'] };
            out.write_char(open)?;
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                out.write_str(if count > 0 { ", " } else { "" })?;
                write_repr(out, &item)?;
                count += 1;
            }
            out.write_str(if value.is_tuple() && count == 1 { "," } else { "" })?;
            out.write_char(close)
        }
        _ => write!(out, "{value}"),
    }
}

fn write_quoted(out: &mut String, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c => match u32::from(c) {
                code @ ..=0xff => write!(out, "\\x{code:02x}")?,
                code @ ..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// Whether Python prints a character as it is. It escapes spaces other than the ASCII one and invisible characters.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Soft hyphens and the other format characters of Unicode, and the private areas.
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}' => {
            false
        }
        '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => false,
        '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{10ffff}' => {
            false
        }
        c if c.is_control() || c.is_whitespace() => false,
        // Combining characters are printed; Rust's table of what can be printed knows the unassigned ones.
        c => format!("a{c}").escape_debug().count() == 2,
    }
}

fn as_float(value: &Value) -> f64 {
    f64::try_from(value.clone()).unwrap_or(f64::NAN)
}

/// A float as Python's `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "nan".to_owned() } else { format!("{x}") };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is an integer");
    match exponent {
        -4..16 => {
            let plain = x.to_string();
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// The options of Python's `json.dumps`, with the defaults of transformers' `tojson`.
pub(super) struct Json {
    /// The text that indents one level; `None` writes one line.
    pub(super) indent: Option<String>,
    /// The texts between items, and between a key and its value.
    pub(super) separators: [String; 2],
    /// Whether characters beyond ASCII are escaped.
    pub(super) ensure_ascii: bool,
    /// Whether keys are sorted.
    pub(super) sort_keys: bool,
}

impl Json {
    /// A value as JSON.
    ///
    /// # Errors
    /// A value that Python refuses, such as an undefined one, with Python's message.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(out, ['[', ']'], depth, &items, |out, item| self.write(out, item, depth + 1))?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
                let pairs = pairs.map(|(key, value)| Ok((json_key(&key)?, value)));
                let mut pairs = pairs.collect::<Result<Vec<_>, Error>>()?;
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_all(out, ['{', '}'], depth, &pairs, |out, (key, value)| {
                    self.write_string(out, key);
                    out.push_str(&self.separators[1]);
                    self.write(out, value, depth + 1)
                })?;
            }
            ValueKind::Undefined => return Err(refused("Undefined")),
            _ => return Err(refused(&value.kind().to_string())),
        }
        Ok(())
    }

    fn write_all<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: &[T],
        write: impl Fn(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !items.is_empty()) {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { &self.separators[0] } else { "" });
            new_line(out, depth + 1);
            write(out, item)?;
        }
        new_line(out, depth);
        out.push(close);
        Ok(())
    }

    fn write_string(&self, out: &mut String, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            match c.is_ascii() {
                true => out.push(c),
                false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
            }
        }
    }
}

fn refused(kind: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("Object of type {kind} is not JSON serializable"))
}

fn json_number(value: &Value) -> String {
    match is_float(value) {
        false => value.to_string(),
        true => match as_float(value) {
            x if x.is_nan() => "NaN".to_owned(),
            x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            x => float(x),
        },
    }
}

/// The key of an object: Python also writes numbers, booleans and none as keys.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        _ => {
            let told = "keys must be str, int, float, bool or None";
            Err(Error::new(ErrorKind::InvalidOperation, told))
        }
    }
}
