//! Finds answers in generated texts: where they stand, which number they are, and whether two LaTeX answers are equal.
//! The rules follow d1's exactly, oddities included, so that figures can be compared.

use std::sync::LazyLock;

use regex::Regex;

/// The content of the last `\boxed{...}`, or the text between the last `\boxed ` and a dollar sign. `None` if the last
/// box is never closed; the whole text if there is no box. A box of another form, such as `\fbox{...}`, is returned as
/// it stands.
///
/// # Source
/// d1's `last_boxed_only_string` and `remove_boxed` (dllm-reasoning/d1, eval/parser_helper.py).
pub fn boxed(text: &str) -> Option<&str> {
    if let Some((_, after)) = text.rsplit_once("\\boxed ") {
        return Some(after.split('$').next().unwrap_or(after));
    }
    let Some(start) = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox")) else { return Some(text) };
    let mut depth = 0_i64;
    let end = text[start..].char_indices().find_map(|(i, c)| {
        depth += i64::from(c == '{') - i64::from(c == '}');
        (c == '}' && depth == 0).then_some(start + i)
    })?;
    Some(text[start..end].strip_prefix("\\boxed{").unwrap_or(&text[start..=end]))
}

/// The text between the first `<answer>` and the next `</answer>`.
pub fn answered(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("<answer>")?;
    after.split_once("</answer>").map(|(answer, _)| answer)
}

/// A number as Python's `float` reads it: `inf` and `nan`, digits of any script, underscores between digits.
pub fn number(text: &str) -> Option<f64> {
    plain_digits(text)?.parse().ok()
}

/// Whether two LaTeX answers are equal once both are normalized; if one of them can't be, they are compared as they
/// stand.
///
/// # Source
/// d1's `is_equiv` (dllm-reasoning/d1, eval/parser_helper.py), which follows MATH (Hendrycks et al., arXiv 2103.03874).
pub fn is_equivalent(a: &str, b: &str) -> bool {
    match (rewritten(a), rewritten(b)) {
        (Some(rewritten_a), Some(rewritten_b)) => rewritten_a == rewritten_b,
        _ => a == b,
    }
}

/// Normalizes LaTeX: removes spaces, units, the signs of degree, dollar and percent, and a short left side of an
/// equation, and puts braces around the arguments of `\sqrt` and `\frac`. `None` if d1's code fails on the text.
fn rewritten(latex: &str) -> Option<String> {
    const REPLACED: [(&str, &str); 10] = [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ];
    let replace = |text: String, pair: &(&str, &str)| text.replace(pair.0, pair.1);
    let mut text = REPLACED.iter().fold(latex.to_owned(), replace);
    if let Some((quantity, unit)) = text.split_once("\\text{ ") {
        if unit.contains("\\text{ ") {
            return None;
        }
        text = quantity.to_owned();
    }
    text = [("\\%", ""), (" .", " 0."), ("{.", "{0.")].iter().fold(text, replace);
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    if let Some((left, right)) = text.split_once('=')
        && !right.contains('=')
        && left.chars().nth(2).is_none()
    {
        text = right.to_owned();
    }
    // Spaces are removed after the braces are added, because the argument of a root may be a space.
    text = braced_fractions(&braced_roots(&text)?.replace(' ', ""))?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    slash_as_fraction(text)
}

/// Rewrites `\sqrt3` as `\sqrt{3}`; `None` if a root has no argument at the end of the text.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        let mut rest = part.chars();
        match rest.next()? {
            '{' => braced.extend(["\\sqrt", part]),
            c => braced += &format!("\\sqrt{{{c}}}{}", rest.as_str()),
        }
    }
    Some(braced)
}

/// Rewrites `\frac12` as `\frac{1}{2}`. `None` if a fraction has no argument; the text is unchanged if one has a single
/// argument.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        let mut rest = part.chars();
        match (rest.next()?, rest.next()) {
            ('{', _) => braced.extend(["\\frac", part]),
            (_, None) => return Some(text.to_owned()),
            (a, Some('{')) => braced += &format!("\\frac{{{a}}}{{{}", rest.as_str()),
            (a, Some(b)) => braced += &format!("\\frac{{{a}}}{{{b}}}{}", rest.as_str()),
        }
    }
    Some(braced)
}

/// Rewrites `3/4` as `\frac{3}{4}` if both are integers as Python writes them; `None` if one isn't an integer.
fn slash_as_fraction(text: String) -> Option<String> {
    let Some((a, b)) = text.split_once('/').filter(|(_, b)| !b.contains('/')) else { return Some(text) };
    let is_whole = |side: &str| {
        let digits = plain_digits(side)?;
        let digits = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(())
    };
    is_whole(a)?;
    is_whole(b)?;
    let is_canonical = |side: &str| {
        let digits = side.strip_prefix('-').unwrap_or(side);
        let starts_well = !digits.starts_with('0') || side == "0";
        starts_well && digits.bytes().all(|b| b.is_ascii_digit())
    };
    Some(if is_canonical(a) && is_canonical(b) { format!("\\frac{{{a}}}{{{b}}}") } else { text })
}

/// The text of a number with ASCII digits, without surrounding space and without underscores between digits; `None` if
/// an underscore stands elsewhere.
fn plain_digits(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut chars = text.trim().chars().peekable();
    while let Some(c) = chars.next() {
        match digit(c) {
            Some(digit) => plain.push(digit),
            None if c == '_' => {
                let is_between = plain.ends_with(|c: char| c.is_ascii_digit())
                    && chars.peek().is_some_and(|next| digit(*next).is_some());
                if !is_between {
                    return None;
                }
            }
            None => plain.push(c),
        }
    }
    Some(plain)
}

/// The ASCII digit for a decimal digit of any script.
fn digit(c: char) -> Option<char> {
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\d$").expect("the pattern is valid"));
    if c.is_ascii() {
        return c.is_ascii_digit().then_some(c);
    }
    let is_digit = |c: char| DIGIT.is_match(c.encode_utf8(&mut [0; 4]));
    if !is_digit(c) {
        return None;
    }
    // Unicode has decimal digits in runs of ten that begin with zero.
    let before = (1..=u32::from(c)).take_while(|back| char::from_u32(u32::from(c) - back).is_some_and(is_digit));
    char::from_digit(before.count() as u32 % 10, 10)
}
