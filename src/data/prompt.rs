//! From turns to tokens: prompts, examples whose last turn is the answer, and texts whose masks are filled. `chat_template`
//! renders the turns, and `typed_tokens` handles special tokens that somebody typed in them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::chat::{Chat, Turn};
use super::chat_template::TextModel;
use super::hidden_tokens::Hidden;
use super::typed_tokens::SpecialTokens;
use super::{Conversation, Example, Message};
use crate::error::{Error, Result};

/// The tokens of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// The special tokens in the turns, where they are text.
    pub typed: Vec<String>,
}

/// A chat whose last turn has holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holes {
    /// The tokens before the text of the last turn, those of the text, and those after it.
    pub parts: [Vec<u32>; 3],
    /// The special tokens in the turns, where they are text.
    pub typed: Vec<String>,
}

impl TextModel {
    /// The tokens of a prompt, up to where the assistant begins. Without a template they are the turns' texts, each
    /// followed by a line break. Special tokens in the turns are read as [`TextModel::set_special_tokens`] says.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn prompt_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let turns: Vec<Turn> = messages.iter().cloned().map(Turn::from).collect();
        self.prompt_ids_of_turns(&turns, None)
    }

    /// The tokens of a prompt, as [`TextModel::prompt_ids`] gives them. The chat template is given all fields of the
    /// turns, and the tools.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn prompt_ids_of_turns(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Vec<u32>> {
        Ok(self.prompt_of_turns(turns, tools)?.ids)
    }

    /// Like [`TextModel::prompt_ids_of_turns`], and also returns the special tokens that are read as text.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn prompt_of_turns(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Prompt> {
        self.with_hidden((turns, turns.len()), tools, |turns, tools, hidden| {
            let rendered = self.rendered_or_plain(turns, tools)?;
            Ok(Prompt { ids: self.encode_beside(&rendered, hidden)?, typed: hidden.within(&rendered) })
        })
    }

    /// The tokens of a text that isn't rendered; special tokens in it are read as `special_tokens` says.
    ///
    /// # Errors
    /// An error of the tokenizer.
    pub fn prompt_of_text(&self, text: &str, special_tokens: SpecialTokens) -> Result<Prompt> {
        let (hidden, text) = self.hidden_in_text(text, special_tokens, None);
        Ok(Prompt { ids: self.encode_beside(&text, &hidden)?, typed: hidden.within(&text) })
    }

    /// What the chat template doesn't read of turns and tools: `tools`, and fields such as `messages[].name`.
    pub fn unread(&self, turns: &[Turn], tools: Option<&Value>) -> Vec<String> {
        let fields: BTreeSet<&str> = turns.iter().flat_map(Turn::for_template).filter(|key| !self.reads(key)).collect();
        let tools = tools.filter(|_| !self.reads("tools")).map(|_| "tools".to_owned());
        tools.into_iter().chain(fields.into_iter().map(|key| format!("messages[].{key}"))).collect()
    }

    /// The tokens of a conversation. Prompt and answer are tokenized separately, so that the border between them is
    /// where generation starts. The answer ends with exactly one end token: the template's end-of-turn token if it has
    /// one, else `eos_token`. Special tokens in the answer are always tokens.
    ///
    /// # Errors
    /// An error that the template raises, or a template that changes the prompt once an answer follows.
    pub fn example(&self, conversation: &Conversation) -> Result<Example> {
        self.example_of_turns(&Chat::from(conversation.clone()).turns, None)
    }

    /// The tokens of turns, of which the last one is the answer, as in [`TextModel::example`]. The chat template is given
    /// all fields of the turns, and the tools.
    ///
    /// # Errors
    /// The errors of [`TextModel::example`].
    ///
    /// # Panics
    /// If there is no turn.
    pub(crate) fn example_of_turns(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Example> {
        Ok(self.example_with_typed(turns, tools)?.0)
    }

    /// Like [`TextModel::example_of_turns`], and also returns the special tokens in the prompt that are read as text.
    pub(super) fn example_with_typed(&self, turns: &[Turn], tools: Option<&Value>) -> Result<(Example, Vec<String>)> {
        self.with_hidden((turns, turns.len() - 1), tools, |turns, tools, hidden| {
            let (last, asked) = turns.split_last().expect("a chat has an answer");
            let prompt = self.render_turns(asked, tools, true)?;
            let asked = prompt.clone().unwrap_or_else(|| plain(asked));
            let prompt_ids = self.encode_beside(&asked, hidden)?;
            let answer = match (self.render_turns(turns, tools, false)?, prompt) {
                (Some(all), Some(prompt)) => match all.strip_prefix(&prompt) {
                    Some(answer) => answer.to_owned(),
                    None => return Err(self.no_beginning(&prompt, last.thinks())),
                },
                _ => last.text().to_owned(),
            };
            let answer_ids = self.ended(self.encode_beside(&answer, hidden)?, &answer, last.text().trim())?;
            Ok((Example { prompt_ids, answer_ids }, hidden.within(&asked)))
        })
    }

    /// An answer's tokens with exactly one end token at the end.
    fn ended(&self, mut answer_ids: Vec<u32>, answer: &str, content: &str) -> Result<Vec<u32>> {
        let ends = self.end_token_ids();
        // An end token ends the answer only if the template wrote it after the content.
        let is_ended = match self.holds_end_token(content) {
            false => true,
            true => {
                let tail = answer.rfind(content).map_or("", |start| &answer[start + content.len()..]);
                self.encode(tail)?.iter().any(|id| ends.contains(id))
            }
        };
        match answer_ids.iter().rposition(|id| ends.contains(id)).filter(|_| is_ended) {
            Some(end) => answer_ids.truncate(end + 1),
            None => answer_ids.push(self.eos_token_id),
        }
        Ok(answer_ids)
    }

    /// The tokens of a chat whose last turn has holes. The text `mask` in that turn is read as a token, however the other
    /// special tokens in the turns are read. `None` if the template changes the text of that turn.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn holes_of_turns(&self, turns: &[Turn], tools: Option<&Value>, mask: &str) -> Result<Option<Holes>> {
        let Some((last, before)) = turns.split_last() else { return Ok(None) };
        let mut hidden = Hidden::default();
        let mut shown: Vec<Turn> = turns.to_vec();
        let mut given = tools.cloned();
        if self.special_tokens == SpecialTokens::Text && self.special.is_in(turns, tools) {
            hidden = Hidden::of(turns, tools);
            shown = before.iter().map(|turn| hidden.turn(&self.special, turn, None)).collect();
            shown.push(hidden.turn(&self.special, last, Some(mask)));
            given = tools.map(|tools| hidden.value(&self.special, tools));
        }
        let content = shown.last().map(Turn::text).unwrap_or_default().to_owned();
        let rendered = self.render_turns(&shown, given.as_ref(), false)?.unwrap_or_else(|| plain(&shown));
        // Many templates trim the content of a turn.
        let found = [content.as_str(), content.trim()].into_iter().find_map(|text| Some((rendered.rfind(text)?, text)));
        let Some((start, text)) = found else { return Ok(None) };
        let [before, after] = [&rendered[..start], &rendered[start + text.len()..]];
        let parts = [before, text, after].map(|part| self.encode_beside(part, &hidden));
        let [before, inner, after] = parts;
        Ok(Some(Holes { parts: [before?, inner?, after?], typed: hidden.within(&rendered) }))
    }

    /// The tokens of a text with holes that isn't rendered, like [`TextModel::holes_of_turns`].
    ///
    /// # Errors
    /// An error of the tokenizer.
    pub fn holes_of_text(&self, text: &str, special_tokens: SpecialTokens, mask: &str) -> Result<Holes> {
        let (hidden, text) = self.hidden_in_text(text, special_tokens, Some(mask));
        let ids = self.encode_beside(&text, &hidden)?;
        Ok(Holes { parts: [vec![], ids, vec![]], typed: hidden.within(&text) })
    }

    fn hidden_in_text(&self, text: &str, special_tokens: SpecialTokens, stays: Option<&str>) -> (Hidden, String) {
        if special_tokens == SpecialTokens::Tokens || !self.special.is_in_text(text) {
            return (Hidden::default(), text.to_owned());
        }
        let mut hidden = Hidden::beside(text);
        let text = hidden.text(&self.special, text, stays);
        (hidden, text)
    }

    /// Calls `render` with turns and tools in which special tokens that are read as text are hidden, in the first `asked`
    /// turns.
    fn with_hidden<T>(
        &self,
        (turns, asked): (&[Turn], usize),
        tools: Option<&Value>,
        render: impl FnOnce(&[Turn], Option<&Value>, &Hidden) -> Result<T>,
    ) -> Result<T> {
        if self.special_tokens == SpecialTokens::Tokens || !self.special.is_in(&turns[..asked], tools) {
            return render(turns, tools, &Hidden::default());
        }
        let mut hidden = Hidden::of(turns, tools);
        let mut shown: Vec<Turn> = turns[..asked].iter().map(|turn| hidden.turn(&self.special, turn, None)).collect();
        shown.extend_from_slice(&turns[asked..]);
        let tools = tools.map(|tools| hidden.value(&self.special, tools));
        render(&shown, tools.as_ref(), &hidden)
    }

    fn rendered_or_plain(&self, turns: &[Turn], tools: Option<&Value>) -> Result<String> {
        Ok(self.render_turns(turns, tools, true)?.unwrap_or_else(|| plain(turns)))
    }

    /// The tokens of a rendered text in which special tokens are hidden.
    fn encode_beside(&self, rendered: &str, hidden: &Hidden) -> Result<Vec<u32>> {
        // The ordinary path: a text without hidden tokens is encoded as it is.
        if hidden.within(rendered).is_empty() {
            return self.encode(rendered);
        }
        let config = |reason| Error::Config { path: self.path.clone(), reason };
        self.special.ids(&self.tokenizer, rendered, hidden).map_err(config)
    }
}

/// The texts of turns as one text, for a checkpoint without a template.
fn plain(turns: &[Turn]) -> String {
    turns.iter().map(|turn| format!("{}\n", turn.text())).collect()
}
