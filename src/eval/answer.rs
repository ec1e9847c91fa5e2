//! Finding the answer in a generated text.

/// What stands in the last `\boxed{...}`, or after the last `\boxed `; `None` without a whole one.
pub fn boxed(text: &str) -> Option<&str> {
    if let Some((_, after)) = text.rsplit_once("\\boxed ") {
        return Some(after.split('$').next().unwrap_or(after));
    }
    let start = text.rfind("\\boxed{")? + "\\boxed{".len();
    let mut depth = 1;
    for (i, c) in text[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[start..start + i]);
        }
    }
    None
}

/// What stands after `<answer>`, up to `</answer>` or an end token.
pub fn tagged(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("<answer>")?;
    let ends = ["<|eot_id|>", "<|endoftext|>", "</answer>"];
    let end = ends.iter().filter_map(|end| after.find(end)).min()?;
    Some(&after[..end])
}
