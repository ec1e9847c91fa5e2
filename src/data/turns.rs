//! Turns read back from the tokens of a prompt that a chat template rendered, so that people can see who says what. Formats
//! are recognised by their special tokens alone; the text of a template that marks roles otherwise is shown as it is.

use super::Message;
use super::chat_template::TextModel;

/// The words by which templates name who speaks.
const ROLES: [&str; 9] =
    ["system", "developer", "user", "human", "assistant", "model", "tool", "ipython", "observation"];

/// The turns of a tokenized prompt, without special tokens. If no role is found, one turn without a role holds the whole
/// text, special tokens included.
pub fn turns(text: &TextModel, ids: &[u32]) -> Vec<Message> {
    let mut turns: Vec<Message> = vec![];
    let mut named: Option<String> = None;
    let special = text.special_ids();
    for part in ids.split(|id| special.contains(id)).filter(|part| !part.is_empty()) {
        let content = text.decode_canvas(part);
        let (first, rest) = content.split_once('\n').unwrap_or((&content, ""));
        match (named.take(), role(first)) {
            // The role stands alone between two special tokens, as in LLaDA and Llama 3; the content follows them.
            (None, Some(role)) if rest.is_empty() && !content.contains('\n') => named = Some(role),
            // The role is on its own line before the content, as in ChatML.
            (None, Some(role)) => turns.push(turn(role, rest)),
            (Some(role), _) => turns.push(turn(role, &content)),
            (None, None) if content.trim().is_empty() => {}
            (None, None) => match turns.last_mut() {
                Some(last) => last.content += &content,
                None => turns.push(turn(String::new(), &content)),
            },
        }
    }
    // The header of the answer has no content.
    turns.retain(|turn| !(turn.role == "assistant" && turn.content.is_empty()));
    match turns.iter().any(|turn| !turn.role.is_empty()) {
        true => turns,
        false if ids.is_empty() => vec![],
        false => vec![turn(String::new(), &text.decode_canvas(ids))],
    }
}

fn turn(role: String, content: &str) -> Message {
    Message { role, content: content.trim_matches('\n').to_owned() }
}

fn role(word: &str) -> Option<String> {
    let word = word.trim().to_lowercase();
    ROLES.contains(&word.as_str()).then_some(word)
}
