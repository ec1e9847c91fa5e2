//! The options of `weft generate` that say what is asked: a text, a chat, or the text on standard input.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use weft::base::Base;
use weft::data::chat::Turn;
use weft::data::prompt::Prompt;
use weft::data::typed_tokens::SpecialTokens;
use weft::error::{Error, Result};
use weft::eval::asked::{Question, turns_of_text};
use weft::files::read_text;

/// The options that say what is asked.
#[derive(Args)]
pub struct AskingArgs {
    /// The user's turn; default: a chat on a terminal, else the text on standard input
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The turns of a chat: a JSON list of {"role", "content"} that ends with the user's; or {"messages", "system", "tools"}
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    messages: Option<PathBuf>,
    /// A system turn before the others
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Pass the prompt as it is, without the chat template. Special tokens in it are tokens, unless --special-tokens says
    /// otherwise
    #[arg(long, conflicts_with = "messages")]
    pub raw: bool,
}

impl AskingArgs {
    /// Whether the command line asks nothing and standard input is a terminal, so that a person can chat.
    pub fn is_chat(&self) -> bool {
        let is_asked = self.prompt.is_some() || self.messages.is_some() || self.raw;
        !is_asked && std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
    }

    /// The tokens before the answer; what special tokens in a text without template are.
    pub fn prompt_ids(&self, base: &Base, raw_tokens: SpecialTokens) -> Result<Vec<u32>> {
        if self.raw {
            return asked(base, base.text.prompt_of_text(&self.content()?, raw_tokens)?);
        }
        let Question { turns, tools } = self.question(base)?;
        if let (Some(path), Some("assistant")) = (&self.messages, turns.last().map(|turn| turn.role.as_str())) {
            let reason = "its last turn is the assistant's; end it with the user's turn, or add --infill".to_owned();
            return Err(Error::Config { path: path.clone(), reason });
        }
        asked(base, base.text.prompt_of_turns(&turns, tools.as_ref())?)
    }

    /// The tokens before the text that is filled in, those of the text, and those behind it.
    pub fn parts(&self, base: &Base, raw_tokens: SpecialTokens) -> Result<[Vec<u32>; 3]> {
        let mask = base.text.token(base.model.config.mask_token_id).unwrap_or_default();
        let holes = match self.raw {
            true => base.text.holes_of_text(&self.content()?, raw_tokens, &mask)?,
            false => {
                let Question { turns, tools } = self.question(base)?;
                base.text.holes_of_turns(&turns, tools.as_ref(), &mask)?.ok_or_else(|| {
                    Error::Usage("--infill: the chat template changes the text of the last turn; add --raw".to_owned())
                })?
            }
        };
        let [before, text, after] = holes.parts;
        let around = Prompt { ids: [&before[..], &after].concat(), typed: holes.typed };
        asked(base, around)?;
        Ok([before, text, after])
    }

    fn question(&self, base: &Base) -> Result<Question> {
        let (question, unread) = match &self.messages {
            Some(path) => turns_of_text(&read_text(path)?).map_err(|e| {
                let is_rows =
                    path.extension().is_some_and(|end| ["jsonl", "csv", "tsv"].iter().any(|rows| end == *rows));
                let rows = if is_rows { "; --data FILE --out FILE answers rows" } else { "" };
                Error::Config { path: path.clone(), reason: format!("{e}{rows}") }
            })?,
            None => (Question { turns: vec![Turn::new("user", &self.content()?)], tools: None }, vec![]),
        };
        if let (Some(path), false) = (&self.messages, unread.is_empty()) {
            tell!("warning: {}: the keys {} are not read", path.display(), unread.join(", "));
        }
        let unread = base.text.unread(&question.turns, question.tools.as_ref());
        if !unread.is_empty() {
            tell!("warning: the chat template does not read {}", unread.join(", "));
        }
        match &self.system {
            Some(system) => question.with_system(system),
            None => Ok(question),
        }
    }

    /// The text of --prompt or of standard input.
    fn content(&self) -> Result<String> {
        let content = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => {
                let mut text = String::new();
                let path = PathBuf::from("standard input");
                std::io::stdin().read_to_string(&mut text).map_err(|source| Error::Read { path, source })?;
                text
            }
        };
        match content.trim().is_empty() {
            true => {
                Err(Error::Usage("the prompt is empty; give --prompt 'TEXT', or the text on standard input".to_owned()))
            }
            false => Ok(content),
        }
    }
}

/// The tokens of a prompt. Warns of special tokens in it that are read as text.
///
/// # Errors
/// A prompt that holds the mask token, which the sampler would take for a token to be found.
pub fn asked(base: &Base, prompt: Prompt) -> Result<Vec<u32>> {
    let mask = base.model.config.mask_token_id;
    if prompt.ids.contains(&mask) || prompt.typed.iter().any(|token| base.text.token_id(token) == Some(mask)) {
        return Err(Error::Usage(format!(
            "the prompt contains the mask token {}; remove it, or add --infill to fill the masks of the last turn in place",
            base.text.decode_canvas(&[mask])
        )));
    }
    if !prompt.typed.is_empty() {
        let tokens = prompt.typed.join(", ");
        tell!(
            "warning: {tokens} in the prompt is read as text; --special-tokens tokens reads special tokens as tokens"
        );
    }
    Ok(prompt.ids)
}
