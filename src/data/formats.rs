//! Turns rows of every known form into conversations; the keys of a row tell its form. docs/data.md shows a row of
//! each.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sources::Fields;
use super::{Conversation, Message};

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// `messages`: turns of `role` and `content`.
    #[serde(rename = "messages")]
    Messages,
    /// `conversations`: turns of `from` and `value`; perhaps with `system` beside them.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `prompt` and `response`, or `completion` in place of `response` (TRL).
    #[serde(rename = "prompt-response")]
    PromptResponse,
    /// `question` and `answer` (GSM8K).
    #[serde(rename = "question-answer", alias = "gsm8k")]
    QuestionAnswer,
    /// `problem` and `solution`, or `answer` where there is no `solution` (MATH).
    #[serde(rename = "problem-solution", alias = "math")]
    ProblemSolution,
    /// `instruction`, `output` (or `response`, Dolly), and perhaps `input`.
    #[serde(rename = "alpaca")]
    Alpaca,
    /// s1K: `question`, `thinking_trajectories`, `attempt`.
    #[serde(rename = "s1k")]
    S1k,
    /// s1K-1.1: `question`, `deepseek_thinking_trajectory`, `deepseek_attempt`.
    #[serde(rename = "s1k-1.1")]
    S1k11,
    /// OpenR1-Math: `problem` and `generations` with the results of their checks; Mixture-of-Thoughts: `messages`. The
    /// thinking is marked by `<think>`.
    #[serde(rename = "open-r1")]
    OpenR1,
    /// `text`: plain text without a prompt, which is packed.
    #[serde(rename = "text")]
    Text,
}

/// The instruction before the questions of thinking sets, which d1 words differently. It asks for the form of the
/// answer, so that a model trained on it doesn't answer in that form when nobody asks for it.
pub const THINKING_INSTRUCTION: &str =
    "Think between <reasoning> and </reasoning>, then write the final answer between <answer> and </answer>.";

/// The forms in the order in which they are tried, each with the keys that identify it. The forms of particular data
/// sets come first, because their rows often have the keys of a plainer form as well.
const KEYS: [(Form, &[&str]); 13] = [
    (Form::S1k11, &["question", "deepseek_thinking_trajectory", "deepseek_attempt"]),
    (Form::S1k, &["question", "thinking_trajectories", "attempt"]),
    (Form::OpenR1, &["problem", "generations"]),
    (Form::Messages, &["messages"]),
    (Form::ShareGpt, &["conversations"]),
    (Form::PromptResponse, &["prompt", "response"]),
    (Form::PromptResponse, &["prompt", "completion"]),
    (Form::QuestionAnswer, &["question", "answer"]),
    (Form::ProblemSolution, &["problem", "solution"]),
    (Form::ProblemSolution, &["problem", "answer"]),
    (Form::Alpaca, &["instruction", "output"]),
    (Form::Alpaca, &["instruction", "response"]),
    (Form::Text, &["text"]),
];

/// Reads a row as a conversation, in the given form or else in the form that its keys tell. A text has an empty prompt.
/// Returns `None` if the row's own checks call none of its answers right, or if it is a text of white space. GSM8K's
/// answers keep their calculator annotations (`<<3*4=12>>`), as in LLaDA's and d1's training.
///
/// # Errors
/// A key that is missing or has the wrong type, as one sentence.
pub fn conversation(row: &Fields, form: Option<Form>) -> Result<Option<Conversation>, String> {
    let form = form.map_or_else(|| detect(row), Ok)?;
    let conversation = match form {
        Form::Text => match text(row, form, "text")? {
            blank if blank.trim().is_empty() => return Ok(None),
            text => Conversation { prompt: vec![], answer: text.to_owned() },
        },
        Form::Messages => from_messages(row)?,
        Form::ShareGpt => from_sharegpt(row)?,
        Form::PromptResponse => {
            let reply = either(row, "response", "completion");
            pair(text(row, form, "prompt")?, text(row, form, reply)?)
        }
        Form::QuestionAnswer => pair(text(row, form, "question")?, text(row, form, "answer")?),
        Form::ProblemSolution => {
            let reply = either(row, "solution", "answer");
            pair(text(row, form, "problem")?, text(row, form, reply)?)
        }
        Form::Alpaca => from_alpaca(row)?,
        Form::S1k => {
            let thinking = match value(row, form, "thinking_trajectories")? {
                Value::Array(items) => items.first().and_then(Value::as_str),
                other => other.as_str(),
            };
            let wrong = "thinking_trajectories holds no text; give a list with one";
            thought(text(row, form, "question")?, thinking.ok_or(wrong)?, text(row, form, "attempt")?)
        }
        Form::S1k11 => {
            let thinking = text(row, form, "deepseek_thinking_trajectory")?;
            thought(text(row, form, "question")?, thinking, text(row, form, "deepseek_attempt")?)
        }
        Form::OpenR1 => match from_open_r1(row)? {
            Some(conversation) => conversation,
            None => return Ok(None),
        },
    };
    match conversation.answer.trim().is_empty() {
        true => Err("the answer is empty; drop the row or give it an answer".to_owned()),
        false => Ok(Some(conversation)),
    }
}

/// Whether a row, in the given form or else in the form that its keys tell, is a text without a prompt.
pub(super) fn is_text(row: &Fields, form: Option<Form>) -> bool {
    form.map_or_else(|| detect(row), Ok) == Ok(Form::Text)
}

/// The form that a row's keys tell: the first form whose keys all have values, else the first with one such key. A row
/// is a text only if it has no key of a plain conversation.
fn detect(row: &Fields) -> Result<Form, String> {
    let is_text = |form: &Form| *form == Form::Text;
    let is_told = |(form, keys): &&(Form, &[&str])| {
        let is_other = |(other, keys): &(Form, &[&str])| !is_text(other) && keys.iter().any(|key| is_given(row, key));
        let is_alone = !is_text(form) || !plain_forms().any(is_other);
        is_alone && keys.iter().all(|key| is_given(row, key))
    };
    let whole = KEYS.iter().find(is_told);
    let has_all = |(form, keys): &&(Form, &[&str])| !is_text(form) && keys.iter().all(|key| row.contains_key(*key));
    let found = whole.or_else(|| KEYS.iter().find(has_all));
    let found = found.or_else(|| {
        // `question` alone hardly suggests a thinking set, so the error names the plainer forms.
        plain_forms().find(|(_, keys)| keys.iter().any(|key| row.contains_key(*key)))
    });
    found.map(|(form, _)| *form).ok_or_else(|| {
        let keys: Vec<&str> = row.keys().map(String::as_str).collect();
        format!(
            "the keys {keys:?} match no known format; give messages, conversations, prompt and response (or completion), \
             question and answer, problem and solution, instruction and output, text, or the columns of s1k, s1k-1.1 or \
             open-r1"
        )
    })
}

/// The forms that aren't those of particular data sets.
fn plain_forms() -> impl Iterator<Item = &'static (Form, &'static [&'static str])> {
    KEYS.iter().skip_while(|(form, _)| *form != Form::Messages)
}

/// The key that has a value; the first one if both or neither do.
fn either<'a>(row: &Fields, first: &'a str, second: &'a str) -> &'a str {
    if is_given(row, first) || !is_given(row, second) { first } else { second }
}

fn is_given(row: &Fields, key: &str) -> bool {
    row.get(key).is_some_and(|value| !value.is_null())
}

fn value<'a>(row: &'a Fields, form: Form, key: &str) -> Result<&'a Value, String> {
    match row.get(key) {
        Some(Value::Null) => Err(format!("{key} is null; give it a value or drop the row")),
        Some(value) => Ok(value),
        None => {
            let (_, keys) = KEYS.iter().find(|(of, _)| *of == form).expect("every form has its keys");
            let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            Err(format!("the key {key:?} is missing; a row needs {}", keys.join(" and ")))
        }
    }
}

fn text<'a>(row: &'a Fields, form: Form, key: &str) -> Result<&'a str, String> {
    match value(row, form, key)? {
        Value::String(text) => Ok(text),
        other => Err(format!("{key} is {:.40}, not a string", other.to_string())),
    }
}

fn user(content: &str) -> Message {
    Message { role: "user".to_owned(), content: content.to_owned() }
}

fn pair(ask: &str, reply: &str) -> Conversation {
    Conversation { prompt: vec![user(ask)], answer: reply.to_owned() }
}

/// A conversation in which a question is answered after thinking.
///
/// # Source
/// d1, arXiv 2504.12216: its public code trains on s1K with answers of this wording, the instruction before the question.
fn thought(question: &str, thinking: &str, answer: &str) -> Conversation {
    let ask = format!("{THINKING_INSTRUCTION}\n\n{question}");
    pair(&ask, &format!("<reasoning>{thinking}</reasoning>\n<answer>{answer}</answer>"))
}

fn from_alpaca(row: &Fields) -> Result<Conversation, String> {
    let reply = text(row, Form::Alpaca, either(row, "output", "response"))?;
    let ask = text(row, Form::Alpaca, "instruction")?;
    let input = if is_given(row, "input") { text(row, Form::Alpaca, "input")? } else { "" };
    Ok(match input.trim().is_empty() {
        true => pair(ask, reply),
        false => pair(&format!("{ask}\n\n{input}"), reply),
    })
}

fn from_messages(row: &Fields) -> Result<Conversation, String> {
    let list = value(row, Form::Messages, "messages")?;
    let mut turns = turns(list, "messages", ["role", "content"])?;
    for Message { role, .. } in &mut turns {
        let known = known_role(role);
        let unknown = || format!("messages holds the role {role:?}; the known ones are system, user and assistant");
        *role = known.ok_or_else(unknown)?.to_owned();
    }
    as_conversation(turns, "messages")
}

fn from_sharegpt(row: &Fields) -> Result<Conversation, String> {
    let mut turns = turns(value(row, Form::ShareGpt, "conversations")?, "conversations", ["from", "value"])?;
    for turn in &mut turns {
        let other = &turn.role;
        let unknown = || format!("conversations holds a turn from {other:?}; the known ones are system, human and gpt");
        turn.role = known_role(other).ok_or_else(unknown)?.to_owned();
    }
    let is_first = turns.first().is_none_or(|turn| turn.role != "system");
    if let Some(system) = row.get("system").and_then(Value::as_str).filter(|s| is_first && !s.trim().is_empty()) {
        turns.insert(0, Message { role: "system".to_owned(), content: system.to_owned() });
    }
    as_conversation(turns, "conversations")
}

/// A speaker's role, by its name in either of the two forms of turns.
fn known_role(name: &str) -> Option<&'static str> {
    match name {
        "human" | "user" => Some("user"),
        "gpt" | "assistant" => Some("assistant"),
        "system" => Some("system"),
        _ => None,
    }
}

/// Reads a list of turns, given the keys of speaker and text.
fn turns(list: &Value, of: &str, [speaker, text]: [&str; 2]) -> Result<Vec<Message>, String> {
    let Value::Array(items) = list else {
        return Err(format!("{of} is {:.40}, not a list of {{{speaker:?}, {text:?}}}", list.to_string()));
    };
    // Some data sets use one form's name for the list and the other form's keys for its turns.
    let is_other = items.first().is_some_and(|item| item.get(speaker).is_none());
    let other = [["role", "content"], ["from", "value"]].into_iter().find(|keys| keys[0] != speaker);
    let other = other.filter(|keys| is_other && items.iter().all(|item| item.get(keys[0]).is_some()));
    let [speaker, text] = other.unwrap_or([speaker, text]);
    let turn = |(i, item): (usize, &Value)| {
        let field = |key: &str| match item.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("{of}[{i}].{key} is {:.40}, not a string", other.to_string())),
            None => Err(format!("{of}[{i}] has no {key:?}; a turn is {{{speaker:?}, {text:?}}}")),
        };
        Ok(Message { role: field(speaker)?, content: field(text)? })
    };
    items.iter().enumerate().map(turn).collect()
}

fn as_conversation(mut turns: Vec<Message>, of: &str) -> Result<Conversation, String> {
    match turns.pop() {
        Some(last) if last.role == "assistant" => Ok(Conversation { prompt: turns, answer: last.content }),
        Some(last) => Err(format!("{of} ends with a turn of {}; the last one must be the assistant's", last.role)),
        None => Err(format!("{of} is empty; the last turn must be the assistant's")),
    }
}

/// The first complete generation that a check calls right; in a row without checks, the first complete one.
fn from_open_r1(row: &Fields) -> Result<Option<Conversation>, String> {
    if !row.contains_key("generations") && is_given(row, "messages") {
        return from_thinking_messages(row).map(Some);
    }
    let (question, form) = (text(row, Form::OpenR1, "problem")?, Form::OpenR1);
    let Value::Array(generations) = value(row, form, "generations")? else {
        return Err("generations is not a list of strings".to_owned());
    };
    let flag = |key: &str, i: usize| row.get(key).and_then(|flags| flags.get(i)).and_then(Value::as_bool);
    let complete: Vec<(usize, [&str; 2])> = generations
        .iter()
        .enumerate()
        .filter(|(i, _)| flag("is_reasoning_complete", *i) != Some(false))
        .filter_map(|(i, generation)| Some((i, thinking_and_answer(generation.as_str()?)?)))
        .collect();
    let checks = ["correctness_math_verify", "correctness_llama"];
    let right = |check: &str| complete.iter().find(|(i, _)| flag(check, *i) == Some(true));
    let chosen = match checks.iter().any(|check| is_given(row, check)) {
        true => checks.iter().find_map(|check| right(check)),
        false => complete.first(),
    };
    Ok(chosen.map(|(_, [thinking, answer])| thought(question, thinking, answer)))
}

fn from_thinking_messages(row: &Fields) -> Result<Conversation, String> {
    let Conversation { mut prompt, answer } = from_messages(row)?;
    let Some([thinking, answer]) = thinking_and_answer(&answer) else {
        return Err("the last turn of messages has no <think> and </think>; use format = \"messages\"".to_owned());
    };
    let question = prompt.pop().map(|turn| turn.content).unwrap_or_default();
    let Conversation { prompt: asked, answer } = thought(&question, thinking, answer);
    prompt.extend(asked);
    Ok(Conversation { prompt, answer })
}

/// Splits `<think>...</think>...` into its two parts; the opening mark may be missing because the prompt holds it.
fn thinking_and_answer(generation: &str) -> Option<[&str; 2]> {
    let (thinking, answer) = generation.split_once("</think>")?;
    let thinking = thinking.trim_start().strip_prefix("<think>").unwrap_or(thinking);
    let parts = [thinking, answer].map(str::trim);
    (!parts[1].is_empty()).then_some(parts)
}
