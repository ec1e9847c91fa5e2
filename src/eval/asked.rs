//! What is asked: turns, or rows of a file that may or may not hold an answer. Rows to train on, which always hold one,
//! are `data::formats`'.

use serde_json::{Map, Value, json};

use crate::data::Message;
use crate::data::formats::{self, Form};
use crate::data::sources::Fields;

/// Stands for the answer of a row that has none; it is never shown.
const NO_ANSWER: &str = "-";

/// The keys of a question and of its answer in the forms of rows that have both.
const PAIRS: [(&str, &[&str]); 4] = [
    ("prompt", &["response", "completion"]),
    ("question", &["answer"]),
    ("problem", &["solution", "answer"]),
    ("instruction", &["output", "response"]),
];

/// The turns before the answer of a row: its `messages` or `conversations` up to the assistant's last turn, if that is
/// the end, or the question of a pair such as `{"prompt"}`. Only the form is taken from an answer in the row.
///
/// # Errors
/// What is wrong with the row, as one sentence.
pub fn turns_of_row(row: &Fields) -> Result<Vec<Message>, String> {
    let mut row = row.clone();
    for key in ["messages", "conversations"] {
        if let Some(Value::Array(turns)) = row.get_mut(key)
            && turns.last().is_some_and(|turn| !is_answer(turn))
        {
            turns.push(json!({ "role": "assistant", "content": NO_ANSWER }));
            let is_sharegpt = turns[0].get("from").is_some();
            if is_sharegpt && let Some(last) = turns.last_mut() {
                *last = json!({ "from": "gpt", "value": NO_ANSWER });
            }
        }
    }
    let is_given = |row: &Fields, key: &str| row.get(key).is_some_and(|value| !value.is_null());
    for (question, answers) in PAIRS {
        if is_given(&row, question) && answers.iter().all(|answer| !is_given(&row, answer)) {
            row.insert(answers[0].to_owned(), NO_ANSWER.into());
            break;
        }
    }
    let turns = formats::conversation(&row, None)?.map(|conversation| conversation.prompt).unwrap_or_default();
    match turns.is_empty() {
        true => Err("the row asks nothing; give it a prompt, or messages with a turn of the user".to_owned()),
        false => Ok(turns),
    }
}

/// The turns of a JSON text: a list of them, or an object with the list under `messages`. The last turn may be anyone's.
///
/// # Errors
/// What is wrong with the text, as one sentence.
pub fn turns_of_text(text: &str) -> Result<Vec<Message>, String> {
    let form = "give a list of turns, such as [{\"role\": \"user\", \"content\": \"...\"}]";
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON ({e}); {form}"))?;
    let list = match value {
        Value::Object(mut fields) => fields.remove("messages").unwrap_or_default(),
        list => list,
    };
    let Value::Array(mut turns) = list else { return Err(format!("it holds no list; {form}")) };
    if turns.is_empty() {
        return Err(format!("the list is empty; {form}"));
    }
    turns.push(json!({ "role": "assistant", "content": NO_ANSWER }));
    let row = Map::from_iter([("messages".to_owned(), Value::Array(turns))]);
    let conversation = formats::conversation(&row, Some(Form::Messages))?;
    Ok(conversation.map(|conversation| conversation.prompt).unwrap_or_default())
}

/// The turns with a system turn in front.
///
/// # Errors
/// Turns that have one, as one sentence.
pub fn with_system(mut turns: Vec<Message>, system: &str) -> Result<Vec<Message>, String> {
    if turns.first().is_some_and(|turn| turn.role == "system") {
        return Err("there is a system turn already; leave out --system, or remove that turn".to_owned());
    }
    turns.insert(0, Message { role: "system".to_owned(), content: system.to_owned() });
    Ok(turns)
}

fn is_answer(turn: &Value) -> bool {
    let speaker = turn.get("role").or_else(|| turn.get("from")).and_then(Value::as_str);
    matches!(speaker, Some("assistant" | "gpt"))
}
