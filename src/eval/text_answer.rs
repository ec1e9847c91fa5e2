//! Short answers in words: normalisation, exact match and F1, as SQuAD scores them; and where a short answer stands in a
//! generated text.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// A text in lower case, without punctuation and the articles a, an and the, with single spaces.
///
/// # Source
/// `normalize_answer` of SQuAD's `evaluate-v1.1.py` (Rajpurkar et al., arXiv 1606.05250).
pub fn normalized(text: &str) -> String {
    static ARTICLES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b(a|an|the)\b").expect("the pattern is valid"));
    let plain: String = text.to_lowercase().chars().filter(|c| !PUNCTUATION.contains(*c)).collect();
    ARTICLES.replace_all(&plain, " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The F1 of the words of two normalised texts; 1 if both are empty.
///
/// # Source
/// `f1_score` of SQuAD's evaluation, with the rule for empty answers of its version 2.0.
pub fn f1(answer: &str, truth: &str) -> f64 {
    let [answer, truth] = [answer, truth].map(normalized);
    let [own, other]: [Vec<&str>; 2] = [answer.split_whitespace().collect(), truth.split_whitespace().collect()];
    if own.is_empty() || other.is_empty() {
        return f64::from(u8::from(own.is_empty() && other.is_empty()));
    }
    let counts = |words: &[&str]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        words.iter().for_each(|word| *counts.entry((*word).to_owned()).or_default() += 1);
        counts
    };
    let of_truth = counts(&other);
    let in_both = |(word, count): (&String, &usize)| of_truth.get(word).map_or(0, |of| *of.min(count));
    let common = counts(&own).iter().map(in_both).sum::<usize>() as f64;
    match common {
        0.0 => 0.0,
        _ => {
            let [precision, recall] = [common / own.len() as f64, common / other.len() as f64];
            2.0 * precision * recall / (precision + recall)
        }
    }
}

/// The short answer in a generated text: what stands between answer tags, else the first line with content.
pub fn short(generation: &str) -> &str {
    let within = super::answer::answered(generation).unwrap_or(generation);
    within.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

/// The accepted answers of a truth: a text or a list of texts.
pub fn accepted(ground_truth: &Value) -> Option<Vec<&str>> {
    match ground_truth {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) if !list.is_empty() => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// The largest F1 with one of the accepted answers.
pub fn best_f1(answer: &str, ground_truth: &Value) -> f64 {
    accepted(ground_truth).unwrap_or_default().iter().map(|truth| f1(answer, truth)).fold(0.0, f64::max)
}

/// Whether the answer is one of the accepted ones, compared after normalisation unless it is switched off.
pub fn is_one_of(answer: &str, ground_truth: &Value, normalizes: bool) -> bool {
    let form = |text: &str| if normalizes { normalized(text) } else { text.trim().to_owned() };
    let answer = form(answer);
    accepted(ground_truth).unwrap_or_default().iter().any(|truth| form(truth) == answer)
}

/// The last number in a text, with commas between its digits left out.
pub fn last_number(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)").expect("the pattern is valid"));
    let last = NUMBER.find_iter(text).last()?.as_str().replace(',', "");
    last.parse().ok()
}
