//! The source text of chat templates, before it is parsed: the tags of transformers that the engine lacks are replaced,
//! and the names that a template reads are listed.

use std::collections::BTreeSet;
use std::ops::Range;

/// A piece of a template.
enum Piece {
    /// A statement between `{%` and `%}`, whose range excludes the delimiters but includes signs of whitespace control.
    Statement(Range<usize>),
    /// An expression between `{{` and `}}`, without the delimiters.
    Expression(Range<usize>),
}

/// The tags that transformers adds to Jinja, each with the tag of the engine that stands for it. A `with` block without
/// assignments renders its content, takes part in whitespace control and has a scope of its own, as the original has.
const TAGS: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark what the assistant wrote and render as nothing.
/// Strings, comments and raw blocks stay as they are.
pub(super) fn without_generation_tags(source: &str) -> String {
    let (mut replaced, mut copied) = (String::with_capacity(source.len()), 0);
    for piece in pieces(source) {
        let Piece::Statement(range) = piece else { continue };
        let name = name_of(source, &range);
        let Some((_, other)) = TAGS.into_iter().find(|(tag, _)| *tag == &source[name.clone()]) else { continue };
        if !source[name.end..range.end].trim_matches(['-', '+', ' ', '\t', '\r', '\n']).is_empty() {
            continue;
        }
        replaced.push_str(&source[copied..name.start]);
        replaced.push_str(other);
        copied = name.end;
    }
    replaced.push_str(&source[copied..]);
    replaced
}

/// The names in a template's statements and expressions, including strings that look like names, because
/// `turn['name']` and `'name' in turn` read a key too.
pub(super) fn names(source: &str) -> BTreeSet<String> {
    let is_inside = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = BTreeSet::new();
    for piece in pieces(source) {
        let (Piece::Statement(range) | Piece::Expression(range)) = piece;
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
