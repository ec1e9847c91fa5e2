//! Chats with everything that a chat template may read of them: turns with fields of their own, and tools. `formats`
//! reads them from rows, `chat_template` renders them.

use serde::Serialize;
use serde_json::{Map, Value};

use super::sources::Fields;
use super::{Conversation, Message};

/// A turn as a chat template sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Turn {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn; a turn of tool calls may have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The turn's other fields, such as `tool_calls`, `reasoning_content` and `name`.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// Whether the turn may be trained on: not if its `weight` is 0 or its `train` is false.
    #[serde(skip)]
    pub is_trained: bool,
}

/// A chat whose last turn is the assistant's.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// The turns, of which the last one is the answer.
    pub turns: Vec<Turn>,
    /// The tools that the assistant may call; `None` leaves them to the chat template's variables.
    pub tools: Option<Value>,
    /// The key under which the row holds its turns, as remarks name it.
    pub(super) key: &'static str,
}

/// The fields of a turn that say whether it is trained on.
const OF_TRAINING: [&str; 2] = ["weight", "train"];
/// The fields that hold an assistant's thinking in data sets and chat templates.
const THINKING: [&str; 2] = ["reasoning_content", "thinking"];

impl Turn {
    /// A turn without further fields.
    pub fn new(role: &str, content: &str) -> Self {
        let content = Some(content.to_owned());
        Self { role: role.to_owned(), content, fields: Map::new(), is_trained: true }
    }

    /// The text of the turn; empty if it has none.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Whether the turn says nothing and calls nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.text().trim().is_empty() && !calls_tools(self.fields.get("tool_calls"))
    }

    /// Whether the turn has thinking, in its text or in a field of its own.
    pub(super) fn thinks(&self) -> bool {
        let field = |key: &str| self.fields.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        self.text().contains("</think>") || THINKING.iter().any(|key| field(key))
    }

    /// The names of the fields that only a chat template can use.
    pub(super) fn for_template(&self) -> impl Iterator<Item = &str> {
        let is_content = |(key, value): &(&String, &Value)| *key == "content" && value.is_null();
        let fields = self.fields.iter().filter(move |field| !is_content(field)).map(|(key, _)| key.as_str());
        fields.filter(|key| !OF_TRAINING.contains(key))
    }
}

impl From<Message> for Turn {
    fn from(Message { role, content }: Message) -> Self {
        Self { role, content: Some(content), fields: Map::new(), is_trained: true }
    }
}

impl From<Conversation> for Chat {
    fn from(Conversation { prompt, answer }: Conversation) -> Self {
        let mut turns: Vec<Turn> = prompt.into_iter().map(Turn::from).collect();
        turns.push(Turn::new("assistant", &answer));
        Self { turns, tools: None, key: "messages" }
    }
}

impl From<Chat> for Conversation {
    /// The texts alone.
    fn from(chat: Chat) -> Self {
        let mut turns = chat.turns;
        let answer = turns.pop().and_then(|turn| turn.content).unwrap_or_default();
        let message = |turn: Turn| Message { role: turn.role, content: turn.content.unwrap_or_default() };
        Self { prompt: turns.into_iter().map(message).collect(), answer }
    }
}

/// Reads a list of turns, given the keys of speaker and text.
pub(super) fn turns(list: &Value, of: &str, [speaker, text]: [&str; 2]) -> Result<Vec<Turn>, String> {
    let Value::Array(items) = list else {
        return Err(format!("{of} is {:.40}, not a list of {{{speaker:?}, {text:?}}}", list.to_string()));
    };
    // Some data sets use one form's name for the list and the other form's keys for its turns.
    let is_other = items.first().is_some_and(|item| item.get(speaker).is_none());
    let other = [["role", "content"], ["from", "value"]].into_iter().find(|keys| keys[0] != speaker);
    let other = other.filter(|keys| is_other && items.iter().all(|item| item.get(keys[0]).is_some()));
    let keys = other.unwrap_or([speaker, text]);
    items.iter().enumerate().map(|(i, item)| turn(item, &format!("{of}[{i}]"), keys)).collect()
}

/// Reads a turn, which errors call `of`.
fn turn(item: &Value, of: &str, [speaker, text]: [&str; 2]) -> Result<Turn, String> {
    let lacks = |key: &str| format!("{of} has no {key:?}; a turn is {{{speaker:?}, {text:?}}}");
    let role = match item.get(speaker) {
        Some(Value::String(role)) => role.clone(),
        Some(other) => return Err(format!("{of}.{speaker} is {:.40}, not a string", other.to_string())),
        None => return Err(lacks(speaker)),
    };
    // Arrow fills gaps with null, and templates ask whether a key is there.
    let fields = item.as_object().into_iter().flatten();
    let fields = fields.filter(|(key, value)| *key != speaker && *key != text && !value.is_null());
    let mut fields: Map<String, Value> = fields.map(|(key, value)| (key.clone(), value.clone())).collect();
    let calls = calls_tools(fields.get("tool_calls"));
    let content = match item.get(text) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => Some(joined(parts, &format!("{of}.{text}"))?),
        None if calls => None,
        Some(Value::Null) if calls => {
            fields.insert("content".to_owned(), Value::Null);
            None
        }
        Some(other) => return Err(format!("{of}.{text} is {:.40}, not a string", other.to_string())),
        None => return Err(lacks(text)),
    };
    let is_trained = is_trained(&fields, of)?;
    Ok(Turn { role, content, fields, is_trained })
}

/// Whether a turn's `tool_calls` hold any.
pub(crate) fn calls_tools(calls: Option<&Value>) -> bool {
    calls.and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

/// The text of a content that is given in parts.
fn joined(parts: &[Value], of: &str) -> Result<String, String> {
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let text = if kind == "text" { part.get("text").unwrap_or(part).as_str() } else { None };
        joined.push_str(text.ok_or_else(|| match kind {
            "text" => format!(
                "{of}[{i}] is {:.40}, which has no text; give {{\"type\": \"text\", \"text\": ...}}",
                part.to_string()
            ),
            _ => format!("{of}[{i}] is of type {kind:?}, but only text can be trained on; remove the part or the row"),
        })?);
    }
    Ok(joined)
}

/// Whether a turn may be trained on, by its own fields.
fn is_trained(fields: &Map<String, Value>, of: &str) -> Result<bool, String> {
    let train = match fields.get("train") {
        None => true,
        Some(Value::Bool(train)) => *train,
        Some(other) => return Err(format!("{of}.train is {:.40}; give true or false", other.to_string())),
    };
    match fields.get("weight") {
        None => Ok(train),
        Some(weight) if weight.as_f64() == Some(0.0) => Ok(false),
        Some(weight) if weight.as_f64() == Some(1.0) => Ok(train),
        Some(other) => Err(format!(
            "{of}.weight is {:.40}; give 1, or 0 for a turn that is not trained on, since other weights aren't supported",
            other.to_string()
        )),
    }
}

/// A speaker's role, by its name in either of the two forms of turns.
pub(super) fn known_role(name: &str) -> Option<&'static str> {
    match name {
        "human" | "user" => Some("user"),
        "gpt" | "assistant" => Some("assistant"),
        "system" => Some("system"),
        "developer" => Some("developer"),
        "tool" => Some("tool"),
        _ => None,
    }
}

/// The tools of a row: a list, or the JSON text of one; `None` if it has none.
pub(super) fn tools(row: &Fields) -> Result<Option<Value>, String> {
    let parsed = match row.get("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(list) => Some(list.clone()),
    };
    match parsed {
        Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(Value::Array(tools))),
        _ => {
            let told = row["tools"].to_string();
            Err(format!(
                "tools is {told:.40}; give a list of objects, one for each tool, or the JSON text of such a list"
            ))
        }
    }
}

/// The pairs of a row's `history` as turns.
pub(super) fn history(row: &Fields) -> Result<Vec<Turn>, String> {
    let pairs = match row.get("history") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => {
            return Err(format!("history is {:.40}; give a list of pairs [user, assistant]", other.to_string()));
        }
    };
    let mut turns = vec![];
    for (i, pair) in pairs.iter().enumerate() {
        let texts = pair.as_array().filter(|pair| pair.len() == 2).map(|pair| [pair[0].as_str(), pair[1].as_str()]);
        let Some([Some(user), Some(assistant)]) = texts else {
            return Err(format!("history[{i}] is {:.40}; give a pair of strings [user, assistant]", pair.to_string()));
        };
        turns.extend([Turn::new("user", user), Turn::new("assistant", assistant)]);
    }
    Ok(turns)
}
