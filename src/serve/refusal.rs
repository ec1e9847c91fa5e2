//! The reason for which a request isn't answered, as OpenAI's error object.

use serde_json::{Value, json};

/// A request that isn't answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// One sentence that says what is wrong and how to fix it.
    pub message: String,
    /// The field that is at fault.
    pub param: Option<String>,
    /// A code for programs, such as `model_not_found`.
    pub code: Option<&'static str>,
    /// The seconds after which a client may try again.
    pub retry_after: Option<u64>,
    /// The methods that the path allows, if the request's method isn't one of them.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// A refusal with a status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: bounded(message.into()), param: None, code: None, retry_after: None, allow: None }
    }

    /// A request whose field has a value that can't be used.
    pub fn of_field(field: &str, message: impl Into<String>) -> Self {
        Self { param: Some(field.chars().take(MOST).collect()), ..Self::new(400, message) }
    }

    /// The refusal with a code for programs.
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// OpenAI's error object.
    pub fn to_json(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

/// The largest number of characters of a client's text that an error quotes.
const MOST: usize = 60;
/// The numbers of characters that are kept at the beginning and at the end of a message that quotes too much.
const KEPT: [usize; 2] = [400, 200];

/// A message without its middle, if a text of the client's makes it too long. Its end, which has the fix, stays.
fn bounded(message: String) -> String {
    let [first, last] = KEPT;
    let start = message.char_indices().nth(first).map(|(at, _)| at);
    let end = message.char_indices().rev().nth(last - 1).map(|(at, _)| at);
    match start.zip(end) {
        Some((start, end)) if start < end => format!("{}...{}", &message[..start], &message[end..]),
        _ => message,
    }
}

/// A client's text as errors quote it: in quotation marks, on one line, and shortened.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MOST).collect();
    let more = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{more}")
}
