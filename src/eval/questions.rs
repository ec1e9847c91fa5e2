//! NaturalQuestions in its open form: questions with short answers, scored by normalised exact match and F1 (`text_answer`).

use serde_json::{Value, json};

use super::Problem;
use super::asked::Question;
use super::multiple_choice::texts;
use crate::data::chat::Turn;
use crate::data::sources::Fields;

/// The instruction before a question.
const INSTRUCTION: &str = "Answer with a few words, without a sentence.";

/// A row of `nq_open`: `{"question": "...", "answer": ["...", ...]}`; every text of the list counts as right.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Kwiatkowski et al., Natural Questions (2019), in the open form of Lee et al., arXiv 1906.00300; the instruction is ours.
pub fn problem(row: &Fields) -> Result<Problem, String> {
    let form = "a row is {\"question\": \"...\", \"answer\": [\"...\"]}";
    let question = row.get("question").and_then(Value::as_str);
    let question = question.ok_or_else(|| format!("the text \"question\" is missing; {form}"))?;
    let answers = match row.get("answer") {
        Some(Value::String(answer)) => vec![answer.clone()],
        list => texts(list)
            .filter(|list| !list.is_empty())
            .ok_or_else(|| format!("\"answer\" is no text and no list of texts; {form}"))?,
    };
    let content = format!("{INSTRUCTION}\n\nQuestion: {question}");
    let prompt = Question { turns: vec![Turn::new("user", &content)], tools: None };
    Ok(Problem {
        question: question.to_owned(),
        prompt,
        prefill: String::new(),
        ground_truth: json!(answers),
        choices: vec![],
    })
}
