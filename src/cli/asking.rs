//! The options of `weft generate` that say what is asked: a text, a chat, or the text on standard input.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use weft::base::Base;
use weft::data::chat::Turn;
use weft::error::{Error, Result};
use weft::eval::asked::{Question, turns_of_text};
use weft::files::read_text;

/// The options that say what is asked.
#[derive(Args)]
pub struct AskingArgs {
    /// The user's turn; default: standard input
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The turns of a chat: a JSON list of {"role", "content"} that ends with the user's; or {"messages", "tools"}
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    messages: Option<PathBuf>,
    /// A system turn before the others
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Pass the prompt as it is, without the chat template
    #[arg(long, conflicts_with = "messages")]
    pub raw: bool,
}

impl AskingArgs {
    /// The tokens before the answer.
    pub fn prompt_ids(&self, base: &Base) -> Result<Vec<u32>> {
        if self.raw {
            return base.text.encode(&self.content()?);
        }
        let Question { turns, tools } = self.question()?;
        if let (Some(path), Some("assistant")) = (&self.messages, turns.last().map(|turn| turn.role.as_str())) {
            let reason = "its last turn is the assistant's; end it with the user's turn, or add --infill".to_owned();
            return Err(Error::Config { path: path.clone(), reason });
        }
        base.text.prompt_ids_of_turns(&turns, tools.as_ref())
    }

    /// The tokens before the text that is filled in, those of the text, and those behind it.
    pub fn parts(&self, base: &Base) -> Result<[Vec<u32>; 3]> {
        let parts = match self.raw {
            true => [String::new(), self.content()?, String::new()],
            false => {
                let Question { turns, tools } = self.question()?;
                let content = turns.last().map(Turn::text).unwrap_or_default();
                let plain = || turns.iter().map(|turn| format!("{}\n", turn.text())).collect();
                let rendered = base.text.render_turns(&turns, tools.as_ref(), false)?.unwrap_or_else(plain);
                // Many templates trim what a turn says.
                let found = [content, content.trim()].into_iter().find_map(|text| {
                    let start = rendered.rfind(text)?;
                    Some([&rendered[..start], text, &rendered[start + text.len()..]].map(str::to_owned))
                });
                found.ok_or_else(|| {
                    Error::Usage("--infill: the chat template changes the text of the last turn; add --raw".to_owned())
                })?
            }
        };
        let [before, text, after] = parts;
        Ok([base.text.encode(&before)?, base.text.encode(&text)?, base.text.encode(&after)?])
    }

    fn question(&self) -> Result<Question> {
        let question = match &self.messages {
            Some(path) => {
                turns_of_text(&read_text(path)?).map_err(|reason| Error::Config { path: path.clone(), reason })?
            }
            None => Question { turns: vec![Turn::new("user", &self.content()?)], tools: None },
        };
        match &self.system {
            Some(system) => question.with_system(system).map_err(Error::Usage),
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

/// Refuses a prompt that holds the mask token, which the sampler would take for a token to be found.
pub fn refuse_masks(base: &Base, ids: &[u32]) -> Result<()> {
    let mask = base.model.config.mask_token_id;
    match ids.contains(&mask) {
        false => Ok(()),
        true => Err(Error::Usage(format!(
            "the prompt contains the mask token {}; remove it, or add --infill to fill the masks of the last turn in place",
            base.text.decode_canvas(&[mask])
        ))),
    }
}
