//! Turns rows of every known form into conversations; the keys of a row tell its form. docs/data.md shows a row of
//! each.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Conversation;
use super::chat::{self, Chat, Turn, known_role};
use super::sources::Fields;
use crate::error::{self, Error};

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// `messages`: turns of `role` and `content`; perhaps with `system` beside them.
    #[serde(rename = "messages")]
    Messages,
    /// `conversations`: turns of `from` and `value`; perhaps with `system` beside them.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `prompt` and `response`, or `completion` in place of `response` (TRL), each a text or a list of turns.
    #[serde(rename = "prompt-response")]
    PromptResponse,
    /// `question` and `answer` (GSM8K), and perhaps `context`.
    #[serde(rename = "question-answer", alias = "gsm8k")]
    QuestionAnswer,
    /// `problem` and `solution`, or `answer` where there is no `solution` (MATH).
    #[serde(rename = "problem-solution", alias = "math")]
    ProblemSolution,
    /// `instruction`, `output` (or `response`, Dolly), and perhaps `input` or `context`.
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

/// A row as a prompt and an answer, in the given form or else in the form that its keys show; `None` if the row is passed
/// over. Tools and other fields of turns are left out.
///
/// # Errors
/// A key that is missing or has the wrong type.
pub fn conversation(row: &Fields, form: Option<Form>) -> error::Result<Option<Conversation>> {
    Ok(chat(row, form).map_err(Error::Usage)?.map(Conversation::from))
}

/// Reads a row as a chat, in the given form or else in the form that its keys tell. A text has an empty prompt. Returns
/// `None` if the row's own checks call none of its answers right, or if it is a text of white space. GSM8K's answers
/// keep their calculator annotations (`<<3*4=12>>`), as in LLaDA's and d1's training.
///
/// # Errors
/// A key that is missing or has the wrong type, as one sentence.
pub(crate) fn chat(row: &Fields, form: Option<Form>) -> Result<Option<Chat>, String> {
    let form = form.map_or_else(|| detect(row), Ok)?;
    let chat = match form {
        Form::Text => match text(row, form, "text")? {
            blank if blank.trim().is_empty() => return Ok(None),
            text => Chat { turns: vec![Turn::new("assistant", text)], tools: None, key: "text" },
        },
        Form::Messages => from_turns(row, form, "messages", ["role", "content"])?,
        Form::ShareGpt => from_turns(row, form, "conversations", ["from", "value"])?,
        Form::PromptResponse => from_prompt(row)?,
        Form::QuestionAnswer => {
            let ask = joined([text(row, form, "question")?, beside(row, "context")?]);
            with_turns_before(row, pair(&ask, text(row, form, "answer")?))?
        }
        Form::ProblemSolution => {
            let reply = either(row, "solution", "answer");
            with_turns_before(row, pair(text(row, form, "problem")?, text(row, form, reply)?))?
        }
        Form::Alpaca => {
            let reply = text(row, form, either(row, "output", "response"))?;
            let ask = joined([text(row, form, "instruction")?, beside(row, "input")?]);
            with_turns_before(row, pair(&joined([&ask, beside(row, "context")?]), reply))?
        }
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
            Some(chat) => chat,
            None => return Ok(None),
        },
    };
    match chat.turns.last().is_none_or(Turn::is_empty) {
        true => Err("the answer is empty; drop the row or give it an answer".to_owned()),
        false => Ok(Some(chat)),
    }
}

/// The form in which a row is read.
pub(super) fn form_of(row: &Fields, form: Option<Form>) -> Option<Form> {
    form.or_else(|| detect(row).ok())
}

/// Whether a row of a form is read at a key.
pub(super) fn is_read(row: &Fields, form: Form, key: &str) -> bool {
    let list = |list: &str| match key {
        "system" => row.get(list).is_none_or(|turns| !begins_with_system(turns)),
        _ => key == list || key == "tools",
    };
    let of_pair = |keys: &[&str]| keys.contains(&key) || ["system", "history", "tools"].contains(&key);
    match form {
        Form::Text => key == "text",
        // Scoring reads the problem of a row and its right answer.
        Form::Messages if ["question", "ground_truth"].contains(&key) => row.contains_key("ground_truth"),
        Form::Messages => list("messages"),
        Form::ShareGpt => list("conversations"),
        Form::PromptResponse => match key {
            "system" => row.get("prompt").is_none_or(|turns| !begins_with_system(turns)),
            _ => of_pair(&["prompt", either(row, "response", "completion")]),
        },
        Form::QuestionAnswer => of_pair(&["question", "answer", "context"]),
        Form::ProblemSolution => of_pair(&["problem", either(row, "solution", "answer")]),
        Form::Alpaca => of_pair(&["instruction", "input", "context", either(row, "output", "response")]),
        Form::S1k => ["question", "thinking_trajectories", "attempt"].contains(&key),
        Form::S1k11 => ["question", "deepseek_thinking_trajectory", "deepseek_attempt"].contains(&key),
        Form::OpenR1 if reads_messages(row) => list("messages"),
        Form::OpenR1 => {
            let keys = ["problem", "generations", "is_reasoning_complete"];
            keys.contains(&key) || CHECKS.contains(&key)
        }
    }
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
        None if is_given(row, "chosen") && is_given(row, "rejected") => {
            Err("a pair of a chosen and a rejected answer is not trained on; rename chosen to response to train on it"
                .to_owned())
        }
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

/// The text of a column beside the question; empty if the row doesn't have it.
fn beside<'a>(row: &'a Fields, key: &str) -> Result<&'a str, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!(
            "{key} is {:.40}, not a string; give it as text, or rename the column if it isn't part of the prompt",
            other.to_string()
        )),
    }
}

/// Two texts with a blank line between them, or the first one alone if the second one is blank.
fn joined([first, second]: [&str; 2]) -> String {
    if second.trim().is_empty() { first.to_owned() } else { format!("{first}\n\n{second}") }
}

fn pair(ask: &str, reply: &str) -> Chat {
    Chat { turns: vec![Turn::new("user", ask), Turn::new("assistant", reply)], tools: None, key: "messages" }
}

/// A conversation in which a question is answered after thinking.
///
/// # Source
/// d1, arXiv 2504.12216: its public code trains on s1K with answers of this wording, the instruction before the question.
fn thought(question: &str, thinking: &str, answer: &str) -> Chat {
    let ask = format!("{THINKING_INSTRUCTION}\n\n{question}");
    pair(&ask, &format!("<reasoning>{thinking}</reasoning>\n<answer>{answer}</answer>"))
}

/// Puts what a row holds beside its turns into the chat: the turns of `history`, the `system` turn before them unless
/// there is one, and `tools`.
fn with_turns_before(row: &Fields, mut chat: Chat) -> Result<Chat, String> {
    chat.turns.splice(..0, chat::history(row)?);
    with_system(row, chat)
}

fn with_system(row: &Fields, mut chat: Chat) -> Result<Chat, String> {
    let has_one = chat.turns.first().is_some_and(|turn| turn.role == "system");
    let system = if has_one { "" } else { beside(row, "system")? };
    if !system.trim().is_empty() {
        chat.turns.insert(0, Turn::new("system", system));
    }
    chat.tools = chat::tools(row)?;
    Ok(chat)
}

/// Whether a list of turns begins with one of the system.
fn begins_with_system(turns: &Value) -> bool {
    let first = turns.get(0);
    first.is_some_and(|turn| turn.get("role").or_else(|| turn.get("from")).is_some_and(|role| role == "system"))
}

/// The chat of a list of turns, under a key of the row.
fn from_turns(row: &Fields, form: Form, key: &'static str, keys: [&str; 2]) -> Result<Chat, String> {
    let turns = known_turns(value(row, form, key)?, key, keys)?;
    let chat = with_system(row, Chat { turns, tools: None, key })?;
    check_answer(&chat, key)?;
    Ok(chat)
}

/// Turns whose roles are known.
fn known_turns(list: &Value, key: &str, keys: [&str; 2]) -> Result<Vec<Turn>, String> {
    let mut turns = chat::turns(list, key, keys)?;
    for Turn { role, .. } in &mut turns {
        let unknown = || match keys[0] {
            "from" => {
                format!("{key} holds a turn from {role:?}; the known ones are system, developer, human, gpt and tool")
            }
            _ => {
                format!("{key} holds the role {role:?}; the known ones are system, developer, user, assistant and tool")
            }
        };
        *role = known_role(role).ok_or_else(unknown)?.to_owned();
    }
    Ok(turns)
}

/// Returns an error unless a chat ends with an answer to something.
fn check_answer(chat: &Chat, key: &str) -> Result<(), String> {
    match chat.turns.as_slice() {
        [] => Err(format!("{key} is empty; the last turn must be the assistant's")),
        [.., last] if last.role != "assistant" => {
            Err(format!("{key} ends with a turn of {}; the last one must be the assistant's", last.role))
        }
        [_] => Err(format!("{key} holds the answer alone; give the turn that it answers, or the text as \"text\"")),
        _ => Ok(()),
    }
}

/// The chat of a prompt and its reply, each of them a text or, as in TRL's conversational data, a list of turns. Only
/// the reply's turns are trained on.
fn from_prompt(row: &Fields) -> Result<Chat, String> {
    let (form, reply) = (Form::PromptResponse, either(row, "response", "completion"));
    let turns_of = |key: &str, role: &str| match value(row, form, key)? {
        list @ Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            known_turns(list, key, ["role", "content"])
        }
        _ => Ok(vec![Turn::new(role, text(row, form, key)?)]),
    };
    let mut turns = turns_of("prompt", "user")?;
    turns.iter_mut().for_each(|turn| turn.is_trained = false);
    turns.extend(turns_of(reply, "assistant")?);
    let chat = Chat { turns, tools: None, key: "prompt" };
    check_answer(&chat, reply)?;
    with_turns_before(row, chat)
}

/// The columns with the results of checks, in the order in which they are asked.
const CHECKS: [&str; 2] = ["correctness_math_verify", "correctness_llama"];

/// Whether a row of OpenR1's form has messages in place of generations.
fn reads_messages(row: &Fields) -> bool {
    !row.contains_key("generations") && is_given(row, "messages")
}

/// The first complete generation that a check calls right; in a row without checks, the first complete one.
fn from_open_r1(row: &Fields) -> Result<Option<Chat>, String> {
    if reads_messages(row) {
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
    let right = |check: &str| complete.iter().find(|(i, _)| flag(check, *i) == Some(true));
    let chosen = match CHECKS.iter().any(|check| is_given(row, check)) {
        true => CHECKS.iter().find_map(|check| right(check)),
        false => complete.first(),
    };
    Ok(chosen.map(|(_, [thinking, answer])| thought(question, thinking, answer)))
}

fn from_thinking_messages(row: &Fields) -> Result<Chat, String> {
    let mut chat = from_turns(row, Form::Messages, "messages", ["role", "content"])?;
    let answer = chat.turns.pop();
    let Some([thinking, answer]) = answer.as_ref().and_then(|answer| thinking_and_answer(answer.text())) else {
        return Err("the last turn of messages has no <think> and </think>; use format = \"messages\"".to_owned());
    };
    let question = chat.turns.pop().and_then(|turn| turn.content).unwrap_or_default();
    chat.turns.extend(thought(&question, thinking, answer).turns);
    Ok(chat)
}

/// Splits `<think>...</think>...` into its two parts; the opening mark may be missing because the prompt holds it.
fn thinking_and_answer(generation: &str) -> Option<[&str; 2]> {
    let (thinking, answer) = generation.split_once("</think>")?;
    let thinking = thinking.trim_start().strip_prefix("<think>").unwrap_or(thinking);
    let parts = [thinking, answer].map(str::trim);
    (!parts[1].is_empty()).then_some(parts)
}
