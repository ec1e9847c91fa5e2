//! What is asked: turns, or rows of a file that may or may not hold an answer. Rows to train on, which always hold one,
//! are `data::formats`'.

use serde_json::{Map, Value, json};

use crate::data::chat::{Chat, Turn, calls_tools};
use crate::data::formats::{self, Form};
use crate::data::sources::Fields;
use crate::error::{self, Error};

/// Stands for the answer of a row that has none; it is never shown.
const NO_ANSWER: &str = "-";

/// The keys of a question and of its answer in the forms of rows that have both.
const PAIRS: [(&str, &[&str]); 4] = [
    ("prompt", &["response", "completion"]),
    ("question", &["answer"]),
    ("problem", &["solution", "answer"]),
    ("instruction", &["output", "response"]),
];

/// What a model is asked: turns with all their fields, and the tools that it may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Question {
    /// The turns before the answer.
    pub turns: Vec<Turn>,
    /// The tools; `None` leaves them to the chat template's variables.
    pub tools: Option<Value>,
}

impl From<Chat> for Question {
    /// The chat without its answer.
    fn from(mut chat: Chat) -> Self {
        chat.turns.pop();
        Self { turns: chat.turns, tools: chat.tools }
    }
}

impl Question {
    /// The question with a system turn in front.
    ///
    /// # Errors
    /// Turns that already begin with a system turn.
    pub fn with_system(mut self, system: &str) -> error::Result<Self> {
        if self.turns.first().is_some_and(|turn| turn.role == "system") {
            let reason = "there is a system turn already; leave out --system, or remove that turn";
            return Err(Error::Usage(reason.to_owned()));
        }
        self.turns.insert(0, Turn::new("system", system));
        Ok(self)
    }
}

/// The turns before the answer of a row, and its tools. The turns are its `messages` or `conversations` up to the
/// assistant's last turn, if that is the end, or the question of a pair such as `{"prompt"}`, which is a text or a list of
/// turns. Only the form is taken from an answer in the row.
///
/// # Errors
/// What is wrong with the row.
pub fn turns_of_row(row: &Fields) -> error::Result<Question> {
    let mut row = with_answer(row);
    let is_given = |row: &Fields, key: &str| row.get(key).is_some_and(|value| !value.is_null());
    let is_answered = |row: &Fields, key: &str| row.get(key).is_some_and(is_usable);
    for (question, answers) in PAIRS {
        if is_given(&row, question) && answers.iter().all(|answer| !is_answered(&row, answer)) {
            row.insert(answers[0].to_owned(), NO_ANSWER.into());
            break;
        }
    }
    question_of(&row, None).map_err(Error::Usage)
}

/// The question of a row's `messages`, whatever other keys the row has.
///
/// # Errors
/// What is wrong with the row, as one sentence.
pub(super) fn question_of_messages(row: &Fields) -> Result<Question, String> {
    question_of(&with_answer(row), Some(Form::Messages))
}

fn question_of(row: &Fields, form: Option<Form>) -> Result<Question, String> {
    let question = formats::chat(row, form)?.map(Question::from).unwrap_or_default();
    match question.turns.iter().all(Turn::is_empty) {
        true => Err("the row asks nothing; give it a prompt, or messages with a user's turn".to_owned()),
        false => Ok(question),
    }
}

/// A row whose list of turns ends with an answer, which takes the place of an empty one.
fn with_answer(row: &Fields) -> Fields {
    let mut row = row.clone();
    for key in ["messages", "conversations"] {
        if let Some(Value::Array(turns)) = row.get_mut(key) {
            if turns.len() > 1 && turns.last().is_some_and(is_empty_answer) {
                turns.pop();
            } else if turns.last().is_none_or(is_answer) {
                continue;
            }
            turns.push(json!({ "role": "assistant", "content": NO_ANSWER }));
            let is_sharegpt = turns[0].get("from").is_some();
            if is_sharegpt && let Some(last) = turns.last_mut() {
                *last = json!({ "from": "gpt", "value": NO_ANSWER });
            }
        }
    }
    row
}

/// The turns of a JSON text: a list of them, or an object with the list under `messages`, and perhaps `tools` and the text
/// of a `system` turn; and the object's keys that nothing reads. The last turn may be anyone's.
///
/// # Errors
/// What is wrong with the text.
pub fn turns_of_text(text: &str) -> error::Result<(Question, Vec<String>)> {
    read_turns(text).map_err(Error::Usage)
}

fn read_turns(text: &str) -> Result<(Question, Vec<String>), String> {
    let form = "give a list of turns, such as [{\"role\": \"user\", \"content\": \"...\"}]";
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON ({e}); {form}"))?;
    let (list, mut beside) = match value {
        Value::Object(mut fields) => (fields.shift_remove("messages").unwrap_or_default(), fields),
        list => (list, Map::new()),
    };
    let Value::Array(mut turns) = list else { return Err(format!("it holds no list; {form}")) };
    if turns.is_empty() {
        return Err(format!("the list is empty; {form}"));
    }
    turns.push(json!({ "role": "assistant", "content": NO_ANSWER }));
    if turns[0]["role"] == "system" && beside.get("system").is_some_and(|system| !system.is_null()) {
        return Err(
            "messages begin with a system turn, and there is \"system\" beside them; remove one of the two".to_owned()
        );
    }
    let unread = beside.keys().filter(|key| !["tools", "system"].contains(&key.as_str())).cloned().collect();
    beside.insert("messages".to_owned(), Value::Array(turns));
    let question = formats::chat(&beside, Some(Form::Messages))?.map(Question::from).unwrap_or_default();
    Ok((question, unread))
}

/// Whether an answer is one that could be trained on: a text, or a list of turns. In a CSV file, a missing answer is an empty
/// text, and the answers of a task may be numbers or lists of texts.
fn is_usable(answer: &Value) -> bool {
    match answer {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(turns) => turns.last().is_some_and(|turn| turn.is_object() && !is_empty_answer(turn)),
        _ => false,
    }
}

/// Whether a turn is the assistant's and says and calls nothing.
fn is_empty_answer(turn: &Value) -> bool {
    let content = turn.get("content").or_else(|| turn.get("value"));
    let says = content
        .is_some_and(|content| !content.is_null() && content.as_str().is_none_or(|text| !text.trim().is_empty()));
    is_answer(turn) && !says && !calls_tools(turn.get("tool_calls"))
}

fn is_answer(turn: &Value) -> bool {
    let speaker = turn.get("role").or_else(|| turn.get("from")).and_then(Value::as_str);
    matches!(speaker, Some("assistant" | "gpt"))
}
