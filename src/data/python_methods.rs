//! Methods of Python's strings and lists that chat templates call and that `pycompat` lacks, or has with other arguments
//! or another result. `template_environment` looks here first.

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method of a value; `None` if there is none of that name here.
///
/// # Errors
/// Arguments that Python refuses.
pub(super) fn call(state: &State, value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    match value.as_str() {
        Some(text) => of_string(state, text, method, args),
        None if value.try_iter().is_ok() && value.len().is_some() => of_list(value, method, args),
        None => None,
    }
}

fn of_string(state: &State, text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "split" | "rsplit" => split(text, method == "rsplit", args),
        "splitlines" if args.is_empty() => Ok(lines(text).into_iter().map(Value::from).collect()),
        "strip" | "lstrip" | "rstrip" => strip(text, method, args),
        "partition" | "rpartition" => partition(text, method == "rpartition", args),
        "removeprefix" => one(args).map(|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "title" => from_args::<()>(args).map(|()| title(text).into()),
        "swapcase" => from_args::<()>(args).map(|()| swapped(text).into()),
        "isdecimal" => from_args::<()>(args).map(|()| (!text.is_empty() && text.chars().all(char::is_numeric)).into()),
        "ljust" | "rjust" | "center" | "zfill" => justify(state, text, method, args),
        "index" | "rindex" => one(args).and_then(|part| {
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            at.map(|at| text[..at].chars().count().into()).ok_or_else(|| wrong("substring not found"))
        }),
        "startswith" | "endswith" if args.len() > 1 => from_place(text, method, args),
        "join" => return refused_item(args).map(Err),
        _ => return None,
    })
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "index" => from_args::<(&Value,)>(args).and_then(|(what,)| {
            let at = list.try_iter()?.position(|item| item == *what);
            at.map(Value::from).ok_or_else(|| wrong("the value is not in list"))
        }),
        "copy" => from_args::<()>(args).map(|()| list.clone()),
        _ => return None,
    })
}

fn wrong(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_owned())
}

fn one(args: &[Value]) -> Result<&str, Error> {
    from_args::<(&str,)>(args).map(|(arg,)| arg)
}

/// Python's whitespace, which has four separators of ASCII that Unicode's doesn't have.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// The lines of a text, without their ends, as Python's `splitlines` gives them.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (vec![], text);
    while let Some(end) = rest.find(is_end) {
        lines.push(&rest[..end]);
        let length =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(1, char::len_utf8) };
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?).filter(|separator| !separator.is_none());
    let most = most.or(kwargs.get("maxsplit")?).and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    kwargs.assert_all_used()?;
    let mut parts: Vec<&str> = match separator.as_ref().map(|separator| (separator.as_str(), most.saturating_add(1))) {
        Some((None, _)) => return Err(wrong("must be str or None")),
        Some((Some(""), _)) => return Err(wrong("empty separator")),
        Some((Some(separator), count)) if from_right => text.rsplitn(count, separator).collect(),
        Some((Some(separator), count)) => text.splitn(count, separator).collect(),
        None => at_spaces(text, most, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The parts between runs of whitespace, of which the last one has the rest; from the right, the first part comes last.
fn at_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let (mut parts, mut rest) = (vec![], text);
    loop {
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return parts;
        }
        let border = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(border) = border.filter(|_| parts.len() < most) else {
            parts.push(if from_right { rest.trim_start_matches(is_space) } else { rest.trim_end_matches(is_space) });
            // With a limit, Python keeps the spaces at the far end of the rest.
            if parts.len() > most {
                parts.pop();
                parts.push(rest);
            }
            return parts;
        };
        let (before, after) = rest.split_at(border);
        let width = after.chars().next().map_or(0, char::len_utf8);
        parts.push(if from_right { &after[width..] } else { before });
        rest = if from_right { before } else { &after[width..] };
    }
}

fn strip(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<Value>,) = from_args(args)?;
    let chars = match chars.as_ref().filter(|chars| !chars.is_none()) {
        None => None,
        Some(chars) => Some(chars.as_str().ok_or_else(|| wrong("strip arg must be None or str"))?),
    };
    let is_cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(Value::from(match method {
        "strip" => text.trim_matches(is_cut),
        "lstrip" => text.trim_start_matches(is_cut),
        _ => text.trim_end_matches(is_cut),
    }))
}

fn partition(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let separator = one(args)?;
    if separator.is_empty() {
        return Err(wrong("empty separator"));
    }
    let parts = match (if from_right { text.rsplit_once(separator) } else { text.split_once(separator) }, from_right) {
        (Some((before, after)), _) => [before, separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from(Tuple::new(parts.into_iter().map(Value::from).collect())))
}

/// A text with a capital after everything that isn't a letter.
fn title(text: &str) -> String {
    let is_cased = |c: char| c.is_lowercase() || c.is_uppercase();
    let (mut titled, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        match inside {
            true => titled.extend(c.to_lowercase()),
            false => titled.extend(c.to_uppercase()),
        }
        inside = is_cased(c);
    }
    titled
}

fn swapped(text: &str) -> String {
    let swap = |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
    text.chars().map(swap).collect()
}

fn justify(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    state.consume_fuel(1 + missing as u64 / 64)?;
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(wrong("The fill character must be exactly one character long"));
    }
    let pad = |count: usize| fill.repeat(count);
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", pad(missing)),
        "rjust" => format!("{}{text}", pad(missing)),
        "zfill" => {
            let sign = text.len() - text.strip_prefix(['+', '-']).unwrap_or(text).len();
            format!("{}{}{}", &text[..sign], pad(missing), &text[sign..])
        }
        _ => {
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            format!("{}{text}{}", pad(left), pad(missing - left))
        }
    }))
}

/// `startswith` and `endswith` of the part of a text between two places.
fn from_place(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at.min(length) };
    let [start, end] = [place(start.unwrap_or(0)), place(end.unwrap_or(length))];
    let count = usize::try_from(end - start).unwrap_or(0);
    let part: String = text.chars().skip(usize::try_from(start).unwrap_or(0)).take(count).collect();
    Ok(Value::from(if method == "startswith" { part.starts_with(what) } else { part.ends_with(what) }))
}

/// The error for the first item that `str.join` doesn't take: it joins strings only.
fn refused_item(args: &[Value]) -> Option<Error> {
    let items = args.first()?.try_iter().ok()?;
    let (at, item) = items.enumerate().find(|(_, item)| item.as_str().is_none())?;
    Some(wrong(&format!("sequence item {at}: expected str instance, {} found", item.kind())))
}
