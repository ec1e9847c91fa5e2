//! Filters, tests and functions of Jinja, with the arguments and results that they have in Python, where the engine's
//! own differ.

use minijinja::value::{Kwargs, Rest, StringInput, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions};

use super::python_methods::{is_space, lines};
use super::python_text::{self, Json};
use super::template_environment::{pay_for_items, pay_for_text};
use super::template_formats;

/// The filter that [`super::template_source`] writes around what a loop runs over.
pub(super) const LOOPED: &str = "weft_looped";

/// Adds them to an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("list", list);
    environment.add_filter("indent", indent);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("sort", |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        filters::sort(state, value, named(args, &["reverse", "case_sensitive", "attribute"])?)
    });
    environment.add_filter("unique", |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        filters::unique(state, value, named(args, &["case_sensitive", "attribute"])?)
    });
    environment.add_filter("dictsort", |state: &mut State, value: &Value, args: Rest<ValueOrKwargs>| {
        pay_for_items(state, Some(value))?;
        filters::dictsort(value, named(args, &["case_sensitive", "by", "reverse"])?)
    });
    environment.add_filter("trim", |state: &mut State, value: &Value, chars: Option<&str>| {
        pay_for_text(state, value)?;
        let is_cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
        Ok::<_, Error>(python_text::text(value).trim_matches(is_cut).to_owned())
    });
    environment.add_filter("title", title);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter(LOOPED, looped);
    template_formats::add(environment);
    environment.add_test("sequence", |value: &Value| {
        // Of what can be looped over, `range(n)` has a length.
        value.is_undefined()
            || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
            || value.kind() == ValueKind::Iterable && value.len().is_some()
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.is_undefined() || value.kind() == ValueKind::Plain);
    environment.add_function("namespace", namespace);
    environment.add_function("raise_exception", |state: &mut State, message: &Value| -> Result<String, Error> {
        pay_for_text(state, message)?;
        Err(Error::new(ErrorKind::InvalidOperation, python_text::text(message)))
    });
}

/// Arguments by name; the first ones may be given by position.
fn named(args: Rest<ValueOrKwargs>, names: &[&str]) -> Result<Kwargs, Error> {
    let values = args.into_values();
    let (placed, kwargs): (&[Value], Kwargs) = from_args(&values)?;
    if placed.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let by_name = kwargs.args().map(|name| Ok((name.to_owned(), kwargs.peek::<Value>(name)?)));
    let by_place = names.iter().zip(placed).map(|(name, value)| Ok(((*name).to_owned(), value.clone())));
    by_place.chain(by_name).collect::<Result<Vec<_>, Error>>().map(Kwargs::from_iter)
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    pay_for_text(state, value)?;
    let args = named(args, &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let flag = |name| args.get::<Option<Value>>(name).map(|flag| flag.is_some_and(|flag| flag.is_true()));
    let (ensure_ascii, sort_keys) = (flag("ensure_ascii")?, flag("sort_keys")?);
    let indent = args.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let indent = match indent.as_ref().map(|indent| (indent.as_str(), usize::try_from(indent.clone()))) {
        None => None,
        Some((Some(text), _)) => Some(text.to_owned()),
        Some((None, Ok(width))) if width <= 64 => Some(" ".repeat(width)),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "indent is neither a text nor a small number")),
    };
    let separators = match args.get::<Option<Value>>("separators")?.filter(|separators| !separators.is_none()) {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(pair) => [0, 1].map(|i| {
            pair.get_item_by_index(i).ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
        }),
    };
    args.assert_all_used()?;
    // Each item of a list may be preceded by one indentation for each level.
    if let Some(indent) = &indent {
        pay_for_indents(state, value, indent.len() as u64, 1)?;
    }
    Json { indent, separators, ensure_ascii, sort_keys }.dumps(value)
}

fn pay_for_indents(state: &State, value: &Value, width: u64, depth: u64) -> Result<(), Error> {
    let Some(object) = value.as_object() else { return Ok(()) };
    let pay = |item: &Value| {
        state.consume_fuel(1 + width * depth / 64)?;
        pay_for_indents(state, item, width, depth + 1)
    };
    match value.kind() {
        ValueKind::Map => object.try_iter_pairs().into_iter().flatten().try_for_each(|(_, value)| pay(&value)),
        _ => object.try_iter().into_iter().flatten().try_for_each(|item| pay(&item)),
    }
}

fn string(state: &mut State, value: &Value) -> Result<Value, Error> {
    pay_for_text(state, value)?;
    match python_text::is_other(value) {
        true => Ok(python_text::text(value).into()),
        false => filters::string(state, value),
    }
}

fn join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, Error> {
    if value.is_none() {
        return Err(not_iterable());
    }
    pay_for_items(state, Some(value))?;
    let is_plain = attribute.is_some() || options.has("attribute") || value.as_str().is_some();
    let texts = if is_plain { None } else { value.try_iter().ok() };
    let texts = texts.map(|items| {
        let text = |item: Value| if python_text::is_other(&item) { python_text::text(&item).into() } else { item };
        items.map(text).collect::<Value>()
    });
    filters::join(state, texts.as_ref().unwrap_or(value), joiner, attribute, options)
}

fn list(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(not_iterable()) } else { filters::list(state, value) }
}

/// Jinja's `title`: a capital after white space, a hyphen or an opening bracket, and small letters after it.
fn title(state: &mut State, value: &Value) -> Result<String, Error> {
    pay_for_text(state, value)?;
    let text = python_text::text(value);
    let is_border = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let words = text.split_inclusive(is_border).map(|word| {
        let mut rest = word.chars();
        rest.next().into_iter().flat_map(char::to_uppercase).collect::<String>() + &rest.as_str().to_lowercase()
    });
    Ok(words.collect())
}

/// Jinja's `int(value, default=0, base=10)`.
fn int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = named(args, &["default", "base"])?;
    let default = args.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0));
    let base = args.get::<Option<u32>>("base")?.filter(|base| (2..=36).contains(base)).unwrap_or(10);
    args.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return match number(value)? {
            Some(_) if value.is_integer() => Ok(value.clone()),
            Some(x) if x.is_finite() => Ok(Value::from(x.trunc() as i128)),
            _ => Ok(default),
        };
    };
    let digits = text.trim_matches(is_space).replace('_', "").to_lowercase();
    let (sign, digits) = digits.strip_prefix('-').map_or((1, digits.trim_start_matches('+')), |digits| (-1, digits));
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let whole = i128::from_str_radix(digits.strip_prefix(prefix).unwrap_or(digits), base).ok();
    let cut = || digits.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x.trunc() as i128);
    Ok(whole.or_else(cut).map_or(default, |x| Value::from(sign * x)))
}

/// Jinja's `float(value, default=0.0)`.
fn float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = named(args, &["default"])?;
    let default = args.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0.0));
    args.assert_all_used()?;
    let x = match value.as_str() {
        Some(text) => text.trim_matches(is_space).replace('_', "").parse::<f64>().ok(),
        None => number(value)?,
    };
    Ok(x.map_or(default, Value::from))
}

/// A number or boolean as a float; `None` for other values. Python refuses to convert what is undefined.
fn number(value: &Value) -> Result<Option<f64>, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Bool => Ok(Some(f64::from(u8::from(value.is_true())))),
        _ => Ok(f64::try_from(value.clone()).ok()),
    }
}

/// A text for HTML, with the names that Jinja gives to quotes.
fn escape(state: &mut State, value: &Value) -> Result<Value, Error> {
    pay_for_text(state, value)?;
    if value.is_safe() {
        return Ok(value.clone());
    }
    let names = [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('\'', "&#39;"), ('"', "&#34;")];
    let name =
        |c: char| names.iter().find(|(of, _)| *of == c).map_or_else(|| c.to_string(), |(_, name)| (*name).to_owned());
    Ok(Value::from_safe_string(python_text::text(value).chars().map(name).collect()))
}

/// Checks the value that a loop runs over: Python refuses none, which the engine takes for an empty list.
fn looped(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(not_iterable()) } else { Ok(value) }
}

fn not_iterable() -> Error {
    Error::new(ErrorKind::InvalidOperation, "'NoneType' object is not iterable")
}

/// Jinja's `indent(s, width=4, first=False, blank=False)`.
fn indent(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    pay_for_text(state, value)?;
    let args = named(args, &["width", "first", "blank"])?;
    let width = args.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4));
    let flag = |name| args.get::<Option<Value>>(name).map(|flag| flag.is_some_and(|flag| flag.is_true()));
    let (first, blank) = (flag("first")?, flag("blank")?);
    args.assert_all_used()?;
    let text = format!("{}\n", python_text::text(value));
    let lines = lines(&text);
    let width = match width.as_str() {
        Some(indent) => indent.to_owned(),
        None => {
            let width = i64::try_from(width)?;
            let width = usize::try_from(width).unwrap_or(0);
            state.consume_fuel((width as u64 / 64).saturating_mul(lines.len() as u64))?;
            " ".repeat(width)
        }
    };
    state.consume_fuel((width.len() as u64).saturating_mul(lines.len() as u64) / 64)?;
    let indented = lines.iter().enumerate().map(|(i, line)| match (i, line.is_empty()) {
        (0, _) if first => format!("{width}{line}"),
        (0, _) => (*line).to_owned(),
        (_, true) if !blank => String::new(),
        _ => format!("{width}{line}"),
    });
    Ok(indented.collect::<Vec<_>>().join("\n"))
}

/// Jinja's `default(value, default_value='', boolean=False)`.
fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = named(args, &["default_value", "boolean"])?;
    let other = args.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from(""));
    let boolean = args.get::<Option<Value>>("boolean")?.is_some_and(|boolean| boolean.is_true());
    args.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value })
}

/// Jinja's `namespace`, which takes a dictionary, pairs by name, or both.
fn namespace(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let values = args.into_values();
    let (first, kwargs): (Option<Value>, Kwargs) = from_args(&values)?;
    let pairs = first.as_ref().and_then(Value::as_object).and_then(|map| map.try_iter_pairs()).into_iter().flatten();
    let named = kwargs.args().map(|name| Ok((Value::from(name), kwargs.peek::<Value>(name)?)));
    let all = pairs.map(Ok).chain(named).collect::<Result<Vec<_>, Error>>()?;
    functions::namespace(Some(Value::from_pairs(all).into()))
}
