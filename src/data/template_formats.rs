//! Python's `%` between a text and its values, as the filter `format` and as the operator. The engine lacks the operator,
//! so `template_source` writes it as a filter if its left side is a string of the template.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::python_text;
use super::template_environment::pay_for_format;

/// The filter that replaces the operator.
pub(super) const PERCENT: &str = "weft_percent";

/// Adds both to an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("format", |state: &mut State, text: &str, args: Rest<ValueOrKwargs>| {
        let values = args.into_values();
        let (placed, kwargs): (&[Value], Kwargs) = from_args(&values)?;
        let named = kwargs.args().map(|name| Ok((Value::from(name), kwargs.peek::<Value>(name)?)));
        let named = named.collect::<Result<Vec<_>, Error>>()?;
        match named.is_empty() {
            true => formatted(state, text, placed, None),
            false => formatted(state, text, &[], Some(&Value::from_pairs(named))),
        }
    });
    environment.add_filter(PERCENT, |state: &mut State, text: &str, values: &Value| match values.kind() {
        ValueKind::Map => formatted(state, text, std::slice::from_ref(values), Some(values)),
        _ if values.is_tuple() => formatted(state, text, &values.try_iter()?.collect::<Vec<_>>(), None),
        _ => formatted(state, text, std::slice::from_ref(values), None),
    });
}

fn wrong(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_owned())
}

/// A format's text, whose values are given by place or by name.
fn formatted(state: &mut State, format: &str, placed: &[Value], named: Option<&Value>) -> Result<String, Error> {
    let all: Vec<Value> = placed.iter().chain(named).cloned().collect();
    pay_for_format(state, &format.replace('%', "%{"), &all)?;
    let (mut text, mut rest, mut placed, mut by_name) = (String::new(), format, placed.iter(), false);
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let (name, after) = match after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            Some((name, after)) => (Some(name), after),
            None => (None, after),
        };
        let end = after.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | ' ' | '#'));
        let (options, after) = after.split_at(end.ok_or_else(|| wrong("incomplete format"))?);
        let kind = after.chars().next().ok_or_else(|| wrong("incomplete format"))?;
        rest = &after[kind.len_utf8()..];
        if kind == '%' {
            text.push('%');
            continue;
        }
        by_name |= name.is_some();
        let value = match (name, named) {
            (Some(name), Some(named)) => named.get_attr(name).ok().filter(|value| !value.is_undefined()),
            (Some(_), None) => return Err(wrong("format requires a mapping")),
            (None, _) => placed.next().cloned(),
        };
        let value = value.ok_or_else(|| wrong("not enough arguments for format string"))?;
        text.push_str(&one(state, (options, kind), &value)?);
    }
    text.push_str(rest);
    match placed.next() {
        Some(_) if named.is_none() && !by_name => Err(wrong("not all arguments converted during string formatting")),
        _ => Ok(text),
    }
}

fn one(state: &mut State, (options, kind): (&str, char), value: &Value) -> Result<String, Error> {
    let (kind, value) = match kind {
        's' => ('s', Value::from(python_text::text(value))),
        'r' => ('s', Value::from(python_text::repr(value))),
        _ => (kind, value.clone()),
    };
    let format = Value::from(format!("%{options}{kind}"));
    filters::format(state, &format, Rest(vec![value.into()])).map(|text| text.to_string())
}
