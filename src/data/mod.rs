//! From files to examples: rows, their forms, the chat template, tokens. What is masked of them is `noising`'s.

pub mod chat_template;
pub mod formats;
pub mod packing;
mod qwen_tokenizer;
pub mod sources;
pub mod synthetic;
pub mod tokenizer;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use chat_template::TextModel;

/// A turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// What is asked and what is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Every turn before the answer.
    pub prompt: Vec<Message>,
    /// The last turn of the assistant.
    pub answer: String,
}

/// A tokenized conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The prompt, never masked.
    pub prompt_ids: Vec<u32>,
    /// The answer with its end token.
    pub answer_ids: Vec<u32>,
}

/// The examples of a file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// In the file's order.
    pub examples: Vec<Example>,
    /// How many answers were cut at the longest sequence.
    pub truncated: usize,
}

/// How much of a file is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest sequence in tokens.
    pub max_seq_len: usize,
    /// First rows that are read; all where `None`.
    pub rows: Option<usize>,
}

/// Reads a file's rows. An example of more than `max_seq_len` tokens loses the end of its answer, end token included,
/// and is counted.
///
/// # Errors
/// The file and line of a row that can't be read, whose prompt leaves no room for an answer, or that holds the mask
/// token, which would count as masked, or an end token within its answer.
pub fn load(path: &Path, text: &TextModel, limits: Limits, mask_token_id: u32) -> Result<Dataset> {
    let Limits { max_seq_len, rows } = limits;
    let ends = text.end_token_ids();
    let mut dataset = Dataset { examples: vec![], truncated: 0 };
    for row in sources::read_jsonl(path)?.take(rows.unwrap_or(usize::MAX)) {
        let (line, fields) = row?;
        let wrong = |reason: String| Error::Row { path: path.to_owned(), line, reason };
        let conversation = formats::conversation(&fields).map_err(wrong)?;
        let mut example = text.example(&conversation)?;
        if example.prompt_ids.iter().chain(&example.answer_ids).any(|id| *id == mask_token_id) {
            return Err(wrong("the text holds the model's mask token; take it out".to_owned()));
        }
        let (_, before_end) = example.answer_ids.split_last().expect("an answer has its end token");
        if before_end.iter().any(|id| ends.contains(id)) {
            return Err(wrong("the answer holds an end token before its end; take it out".to_owned()));
        }
        let prompt = example.prompt_ids.len();
        if prompt >= max_seq_len {
            return Err(wrong(format!(
                "the prompt's {prompt} tokens leave no room for an answer within max_seq_len {max_seq_len}; raise \
                 data.max_seq_len or shorten the prompt"
            )));
        }
        if prompt + example.answer_ids.len() > max_seq_len {
            example.answer_ids.truncate(max_seq_len - prompt);
            dataset.truncated += 1;
        }
        dataset.examples.push(example);
    }
    match dataset.examples.is_empty() {
        true => Err(Error::Row { path: path.to_owned(), line: 1, reason: "no row; give a row per example".to_owned() }),
        false => Ok(dataset),
    }
}
