//! Rewrites the source text of chat templates before it is parsed, so that parts of transformers' Jinja that the engine
//! lacks become something that it has, and lists the names that a template reads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::clock::Clock;
use super::{template_filters, template_formats};

/// A piece of a template.
enum Piece {
    /// A statement between `{%` and `%}`, whose range excludes the delimiters but includes signs of whitespace control.
    Statement(Range<usize>),
    /// An expression between `{{` and `}}`, without the delimiters.
    Expression(Range<usize>),
    /// The tag that begins a raw block, as a statement.
    Raw(Range<usize>),
}

/// The tags that transformers adds to Jinja, each with the tag of the engine that stands for it. A `with` block without
/// assignments renders its content, takes part in whitespace control and has a scope of its own, as the original has.
const TAGS: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark what the assistant wrote and render as nothing;
/// replaces the operator `%` after a string by a filter; and passes what a loop runs over through a filter that refuses
/// none. Strings, comments and the content of raw blocks stay as they are.
pub(super) fn for_engine(source: &str) -> String {
    let (mut replaced, mut copied) = (String::with_capacity(source.len()), 0);
    for piece in pieces(source) {
        let (range, code) = match piece {
            Piece::Expression(range) => (range.clone(), with_formats(&source[range], 0)),
            // Jinja keeps the line break after this tag, unlike after all others.
            Piece::Raw(range) if source[range.clone()].ends_with(['-', '+']) => continue,
            Piece::Raw(range) => (range.clone(), format!("{}+", &source[range])),
            Piece::Statement(range) => match tag(source, &range) {
                Some((name, other)) => (name, other.to_owned()),
                None => {
                    let code = with_formats(&source[range.clone()], 0);
                    (range, with_looped(&code).unwrap_or(code))
                }
            },
        };
        replaced.push_str(&source[copied..range.start]);
        replaced.push_str(&code);
        copied = range.end;
    }
    replaced.push_str(&source[copied..]);
    replaced
}

/// The name of a tag that only transformers has, and the tag that replaces it.
fn tag(source: &str, range: &Range<usize>) -> Option<(Range<usize>, &'static str)> {
    let name = name_of(source, range);
    let (_, other) = TAGS.into_iter().find(|(tag, _)| *tag == &source[name.clone()])?;
    let is_bare = source[name.end..range.end].trim_matches(['-', '+', ' ', '\t', '\r', '\n']).is_empty();
    is_bare.then_some((name, other))
}

/// A `for` statement whose list goes through a filter; `None` for other statements.
fn with_looped(code: &str) -> Option<String> {
    let words = outer_words(code);
    let mut words = words.into_iter().map(|range| (&code[range.clone()], range));
    words.next().filter(|(word, _)| *word == "for")?;
    let start = words.find(|(word, _)| *word == "in")?.1.end;
    let behind = words.find(|(word, _)| matches!(*word, "if" | "recursive"));
    let end = behind.map_or(code.trim_end_matches(['-', '+']).len(), |(_, range)| range.start);
    let list = code[start..end].trim();
    Some(format!("{} ({list}) | {} {}", &code[..start], template_filters::LOOPED, &code[end..]))
}

/// The words of code outside of strings and brackets.
fn outer_words(code: &str) -> Vec<Range<usize>> {
    let (bytes, mut words, mut at, mut depth) = (code.as_bytes(), vec![], 0, 0_usize);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'\'' | b'"' => at = end_of_string(bytes, at).unwrap_or(bytes.len()),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            byte if is_word(byte) => {
                at = end_of_word(bytes, at);
                if depth == 0 {
                    words.push(start..at);
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    words
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of_word(bytes: &[u8], start: usize) -> usize {
    start + bytes[start..].iter().take_while(|byte| is_word(**byte)).count()
}

/// How deep operands of `%` may be nested; deeper ones are left to the engine, which refuses them.
const MAX_FORMATS: usize = 16;

/// Code in which a filter stands for the operator `%` wherever its left side is a string.
fn with_formats(code: &str, depth: usize) -> String {
    let (bytes, mut replaced, mut copied, mut at) = (code.as_bytes(), String::new(), 0, 0);
    while at < bytes.len() && depth < MAX_FORMATS {
        if !matches!(bytes[at], b'\'' | b'"') {
            at += 1;
            continue;
        }
        let Some(end) = end_of_string(bytes, at) else { break };
        let Some(rest) = code[end + 1..].trim_start().strip_prefix('%') else {
            at = end + 1;
            continue;
        };
        let start = code.len() - rest.trim_start().len();
        // An operand without an end doesn't parse either.
        let Some(operand_end) = end_of_operand(code, start) else { break };
        let values = with_formats(&code[start..operand_end], depth + 1);
        replaced.push_str(&code[copied..at]);
        replaced.push_str(&format!("({} | {}({values}))", &code[at..=end], template_formats::PERCENT));
        (copied, at) = (operand_end, operand_end);
    }
    replaced.push_str(&code[copied..]);
    replaced
}

/// The end of the operand that begins at `start`: a name, a number, a string or brackets, with the calls, look-ups and
/// filters after it.
fn end_of_operand(code: &str, start: usize) -> Option<usize> {
    let bytes = code.as_bytes();
    let start = code.len() - code[start..].trim_start_matches(['-', ' ']).len();
    let mut at = match bytes.get(start)? {
        b'\'' | b'"' => end_of_string(bytes, start)? + 1,
        b'(' | b'[' | b'{' => end_of_brackets(bytes, start)?,
        byte if is_word(*byte) => end_of_word(bytes, start),
        _ => return None,
    };
    loop {
        let rest = &code[at..];
        let filter = rest.trim_start().strip_prefix('|').map(|rest| code.len() - rest.trim_start().len());
        at = match (bytes.get(at), filter) {
            (Some(b'(' | b'['), _) => end_of_brackets(bytes, at)?,
            (Some(b'.'), _) => end_of_word(bytes, at + 1),
            (_, Some(name)) => end_of_word(bytes, name),
            _ => return Some(at),
        };
    }
}

/// The place after the bracket that closes the one at `start`.
fn end_of_brackets(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = end_of_string(bytes, at)?,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The names in a template's statements and expressions, including strings that look like names, because
/// `turn['name']` and `'name' in turn` read a key too.
pub(super) fn names(source: &str) -> BTreeSet<String> {
    let is_inside = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = BTreeSet::new();
    for piece in pieces(source) {
        let (Piece::Statement(range) | Piece::Expression(range)) = piece else { continue };
        for (code, is_string) in parts(&source[range]) {
            match is_string {
                true if code.chars().all(is_inside) => _ = names.insert(code.to_owned()),
                true => {}
                false => names.extend(code.split(|c| !is_inside(c)).filter(|name| !name.is_empty()).map(str::to_owned)),
            }
        }
    }
    names
}

/// The times that a template writes, as far as their formats are strings of the template. They are part of the key of cached
/// tokens.
pub(super) fn times(source: &str, clock: &Result<Clock, String>) -> String {
    let codes = pieces(source).into_iter().filter_map(|piece| match piece {
        Piece::Statement(range) | Piece::Expression(range) => Some(&source[range]),
        Piece::Raw(_) => None,
    });
    let formats = codes.flat_map(parts).filter(|(text, is_string)| *is_string && text.contains('%'));
    let Ok(clock) = clock else { return String::new() };
    formats.filter_map(|(format, _)| clock.strftime(format).ok()).collect::<Vec<_>>().join("\n")
}

/// The statements and expressions of a template, in order. What follows an unclosed delimiter is left out: the parser
/// reports it.
fn pieces(source: &str) -> Vec<Piece> {
    let (mut pieces, mut at) = (vec![], 0);
    while let Some(start) = find(source, at, "{").filter(|start| *start + 1 < source.len()) {
        let inside = start + 2;
        match source.as_bytes()[start + 1] {
            b'#' => match find(source, inside, "#}") {
                Some(end) => at = end + 2,
                None => break,
            },
            kind @ (b'%' | b'{') => {
                let closing = if kind == b'%' { "%}" } else { "}}" };
                let Some(end) = end_of_code(source, inside, closing) else { break };
                at = end + 2;
                if kind == b'{' {
                    pieces.push(Piece::Expression(inside..end));
                } else if &source[name_of(source, &(inside..end))] == "raw" {
                    let Some(after) = end_of_raw(source, at) else { break };
                    pieces.push(Piece::Raw(inside..end));
                    at = after;
                } else {
                    pieces.push(Piece::Statement(inside..end));
                }
            }
            _ => at = start + 1,
        }
    }
    pieces
}

fn find(source: &str, from: usize, what: &str) -> Option<usize> {
    source[from..].find(what).map(|at| from + at)
}

/// The range of a statement's first word.
fn name_of(source: &str, statement: &Range<usize>) -> Range<usize> {
    let code = &source[statement.clone()];
    let trimmed = code.trim_start_matches(['-', '+']).trim_start();
    let start = statement.end - trimmed.len();
    let length = trimmed.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(trimmed.len());
    start..start + length
}

/// Where code that begins at `from` ends: at its closing delimiter outside of strings and of a dictionary's braces.
fn end_of_code(source: &str, from: usize, closing: &str) -> Option<usize> {
    let (bytes, mut at, mut depth) = (source.as_bytes(), from, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = end_of_string(bytes, at)?,
            _ if depth == 0 && source.as_bytes()[at..].starts_with(closing.as_bytes()) => return Some(at),
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place of the quote that ends the string whose first quote is at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != bytes[start] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at < bytes.len()).then_some(at)
}

/// The place behind the tag that ends a raw block.
fn end_of_raw(source: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let inside = find(source, at, "{%")? + 2;
        let end = find(source, inside, "%}")?;
        if &source[name_of(source, &(inside..end))] == "endraw" {
            return Some(end + 2);
        }
        at = inside;
    }
}

/// The parts of code, each with whether it is the content of a string.
fn parts(code: &str) -> Vec<(&str, bool)> {
    let (mut parts, mut at, mut plain) = (vec![], 0, 0);
    while at < code.len() {
        if matches!(code.as_bytes()[at], b'\'' | b'"') {
            let end = end_of_string(code.as_bytes(), at).unwrap_or(code.len() - 1).max(at);
            parts.push((&code[plain..at], false));
            parts.push((code.get(at + 1..end).unwrap_or_default(), true));
            at = end;
            plain = end + 1;
        }
        at += 1;
    }
    parts.push((code.get(plain..).unwrap_or_default(), false));
    parts
}
