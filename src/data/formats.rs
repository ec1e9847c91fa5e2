//! The forms that rows come in, told apart by their keys, as conversations.

use serde_json::Value;

use super::sources::Fields;
use super::{Conversation, Message};

/// Forms of one question and one answer, by their keys. GSM8K's answers keep their calculator annotations
/// (`<<3*4=12>>`), as LLaDA's and d1's training keep them.
const PAIRS: [[&str; 2]; 4] =
    [["prompt", "response"], ["question", "answer"], ["problem", "solution"], ["problem", "answer"]];

/// A row as a conversation: `messages`, `prompt` and `response`, `question` and `answer` (GSM8K), `problem` and
/// `solution`, or `answer` where there is none (MATH).
///
/// # Errors
/// What is missing or of another kind, as one sentence.
pub fn conversation(row: &Fields) -> Result<Conversation, String> {
    let conversation = match row.get("messages") {
        Some(messages) => from_messages(messages)?,
        None => from_pair(row)?,
    };
    match conversation.answer.trim().is_empty() {
        true => Err("the answer is empty; drop the row or give it an answer".to_owned()),
        false => Ok(conversation),
    }
}

fn from_messages(messages: &Value) -> Result<Conversation, String> {
    let mut prompt: Vec<Message> = serde_json::from_value(messages.clone())
        .map_err(|e| format!("messages is no list of {{\"role\", \"content\"}} texts ({e})"))?;
    for message in &prompt {
        if !["system", "user", "assistant"].contains(&message.role.as_str()) {
            let role = &message.role;
            return Err(format!("messages holds the role {role:?}; the known ones are system, user and assistant"));
        }
    }
    match prompt.pop() {
        Some(last) if last.role == "assistant" => Ok(Conversation { prompt, answer: last.content }),
        Some(last) => Err(format!("messages ends with a turn of {}; the last one must be the assistant's", last.role)),
        None => Err("messages is empty; the last turn must be the assistant's".to_owned()),
    }
}

fn from_pair(row: &Fields) -> Result<Conversation, String> {
    let has = |key: &&str| row.contains_key(*key);
    let whole = PAIRS.iter().find(|pair| pair.iter().all(has));
    let Some([ask, reply]) = whole.or_else(|| PAIRS.iter().find(|pair| pair.iter().any(has))) else {
        let found: Vec<&str> = row.keys().map(String::as_str).collect();
        return Err(format!(
            "the keys {found:?} are no known form; give messages, prompt and response, question and answer, or problem and solution"
        ));
    };
    let text = |key: &str| match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{key} is {:.40}, not a text", other.to_string())),
        None => Err(format!("the key {key:?} is missing; a row needs {ask:?} and {reply:?}")),
    };
    let prompt = vec![Message { role: "user".to_owned(), content: text(ask)? }];
    Ok(Conversation { prompt, answer: text(reply)? })
}
