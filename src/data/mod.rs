//! From files to examples: rows (`sources`), their forms (`formats`), the chat template, tokens (`loading`), and how often each
//! example occurs (`mixing`). `noising` decides what is masked.

pub(crate) mod bad_rows;
pub mod chat;
pub mod chat_template;
mod clock;
mod csv_file;
pub mod formats;
pub mod generated;
mod guarded;
mod hidden_tokens;
pub mod hold_out;
mod json_file;
pub mod lengths;
mod loading;
pub mod mixing;
pub mod notes;
mod numbered;
mod packed_texts;
pub mod packing;
pub(crate) mod parquet_file;
mod parquet_pages;
pub mod paths;
pub mod prompt;
mod python_methods;
mod python_text;
mod qwen_tokenizer;
mod row_content;
pub mod row_range;
pub mod settings;
pub mod shared_rows;
pub mod sources;
mod splits;
pub(crate) mod strict_json;
pub(crate) mod synthetic;
mod template_environment;
mod template_filters;
mod template_formats;
mod template_source;
mod template_variables;
pub mod token_cache;
pub mod tokenizer;
pub(crate) mod tokenizer_files;
pub mod turns;
pub mod typed_tokens;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::counted::counted;
use crate::error::{Error, Result};
use bad_rows::Unread;
use chat::Turn;
use chat_template::TextModel;
use mixing::Mixture;
use notes::Notes;
pub use numbered::{numbered, numbered_with_notes};
use settings::TrainOn;
use sources::Source;
use token_cache::TokenCache;

/// A turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

/// A prompt and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Every turn before the answer.
    pub prompt: Vec<Message>,
    /// The assistant's last turn.
    pub answer: String,
}

/// A tokenized conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The prompt, which is never masked.
    pub prompt_ids: Vec<u32>,
    /// The answer with its end token.
    pub answer_ids: Vec<u32>,
}

/// The examples of one or several sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// The examples, one source after the other, each in the order of its files.
    pub examples: Vec<Example>,
    /// The number of answers that were cut because of the longest sequence.
    pub truncated: usize,
    /// The number of rows skipped because their own checks call none of their answers right, because they are texts
    /// of white space, because they say that they aren't trained on, or because the recipe skips such rows.
    pub passed_over: usize,
    /// The number of texts that are packed into the examples; 0 if the rows are conversations.
    pub documents: usize,
    /// The row in which each example begins, counted from 0 without skipped rows. Empty if each row is one example,
    /// and where several sources are mixed.
    pub starts: Vec<u32>,
    /// The skipped rows, counted from 0 among all rows of the source. Empty where several sources are mixed.
    pub skipped_rows: Vec<u32>,
    /// What is said of the rows. Empty where several sources are mixed.
    pub notes: Notes,
}

/// How rows become examples.
pub struct Reading<'a> {
    /// Tokenizer and chat template.
    pub text: &'a TextModel,
    /// The mask token's id, which no row may contain.
    pub mask_token_id: u32,
    /// The longest sequence, in tokens.
    pub max_seq_len: usize,
    /// The cache that keeps tokens between runs; `None` keeps none.
    pub cache: Option<TokenCache>,
}

/// Several sources and how they are mixed.
#[derive(Clone, Debug, Default)]
pub struct Mixed {
    /// All examples.
    pub dataset: Dataset,
    /// How often each example occurs in an epoch.
    pub mixture: Mixture,
    /// The sources.
    pub parts: Vec<Part>,
}

/// The name and the counts of a source.
#[derive(Clone, Debug)]
pub struct Part {
    /// The source's path, with split and rows.
    pub name: String,
    /// How often each of its rows occurs in an epoch.
    pub weight: f64,
    /// The number of its examples.
    pub examples: usize,
    /// The number of its answers that were cut.
    pub truncated: usize,
    /// The number of its rows that were passed over.
    pub passed_over: usize,
    /// The number of texts that are packed into its examples; 0 if its rows are conversations.
    pub documents: usize,
    /// What is said of its rows.
    pub notes: Notes,
    /// A hash of the tokens of its examples: equal for equal examples, whatever file they come from.
    pub key: String,
    /// The first example of each chat, if an epoch trains on one example of each.
    chats: Option<Vec<usize>>,
    /// [`Dataset::starts`] of the source.
    starts: Vec<u32>,
    /// [`Dataset::skipped_rows`] of the source.
    skipped_rows: Vec<u32>,
}

impl Part {
    fn of(source: &Source, dataset: &Dataset) -> Self {
        let Dataset { examples, truncated, passed_over, documents, starts, skipped_rows, notes } = dataset;
        let is_drawn = source.train_on == Some(TrainOn::Drawn) && *documents == 0;
        let is_first = |i: &usize| *i == 0 || starts.get(*i) != starts.get(*i - 1);
        let chats: Option<Vec<usize>> = is_drawn.then(|| (0..examples.len()).filter(is_first).collect());
        Self {
            name: source.name(),
            weight: source.weight,
            examples: examples.len(),
            truncated: *truncated,
            passed_over: *passed_over,
            documents: *documents,
            notes: notes.clone(),
            key: format!("{:032x}", token_cache::content_key(examples, chats.as_deref())),
            chats,
            starts: starts.clone(),
            skipped_rows: skipped_rows.clone(),
        }
    }

    /// The number of chats of which an epoch trains on one answer each; `None` if it trains on every example.
    pub fn num_chats(&self) -> Option<usize> {
        self.chats.as_ref().map(Vec::len)
    }

    /// The number of its rows that an epoch chooses from, and its weight.
    fn size(&self) -> (usize, f64) {
        (self.num_chats().unwrap_or(self.examples), self.weight)
    }

    /// The index, among all rows of the source, of the row in which an example begins.
    pub fn row_of(&self, example: usize) -> usize {
        let used = self.starts.get(example).map_or(example, |row| *row as usize);
        let mut before = 0;
        while self.skipped_rows.get(before).is_some_and(|row| *row as usize <= used + before) {
            before += 1;
        }
        used + before
    }

    /// The number of its examples, and for texts of their documents, as part of a sentence.
    pub fn how_many(&self) -> String {
        match (self.documents, self.num_chats()) {
            (0, None) => counted(self.examples, "example"),
            (0, Some(chats)) => {
                format!(
                    "{} ({}, one drawn at each occurrence)",
                    counted(chats, "chat"),
                    counted(self.examples, "answer")
                )
            }
            (documents, _) => format!("{} in {}", counted(documents, "text"), counted(self.examples, "sequence")),
        }
    }

    /// A warning if more than a tenth of its rows are skipped.
    pub fn warning(&self) -> Option<String> {
        self.notes.warning(&self.name)
    }

    /// How often each row of the source occurs in an epoch, as part of a sentence.
    pub fn how_often(&self) -> String {
        if self.weight == 1.0 { "once".to_owned() } else { format!("{} times", self.weight) }
    }
}

/// Reads the rows of a source. An example of more than `max_seq_len` tokens loses the end of its answer, end token
/// included, and is counted. Texts are packed into examples of `max_seq_len` tokens and lose nothing.
///
/// # Errors
/// Lists each row that can't be read, whose prompt leaves no room for an answer, that contains the mask token (which would
/// count as masked), or that contains an end token within its answer, unless the source skips such rows. A source without
/// rows, and one with both texts and conversations, are errors too.
pub fn load(source: &Source, reading: &Reading) -> Result<Dataset> {
    loading::read(source, reading).map_err(|unread| told(unread, source, false))
}

/// The error for a source that can't be read. If `hints` is set, the error of a single bad row names the setting that skips
/// it.
fn told(unread: Unread, source: &Source, hints: bool) -> Error {
    match unread {
        Unread::Rows(bad) => bad.into_error(&source.name(), hints),
        Unread::Other(error) => error,
    }
}

/// The file and number of a row, given its index among the rows of a source, counted from 0. `None` if the file has
/// changed since.
pub fn place(source: &Source, row: usize) -> Option<String> {
    source.rows().ok()?.nth(row)?.ok().map(|row| row.place())
}

/// The question of the first row of a source that becomes an example: the turns before its answer, and the tools. For a text,
/// its first words. `None` if there is no such row.
pub fn first_question(source: &Source) -> Option<(Vec<Turn>, Option<Value>)> {
    source.rows().ok()?.filter_map(Result::ok).find_map(|row| row_content::first_question(&row, source))
}

/// Reads several sources to be mixed.
///
/// # Errors
/// The errors of [`load`]; a weight that leaves none of a source's rows.
pub fn load_mixed(sources: &[Source], reading: &Reading) -> Result<Mixed> {
    let (mut all, mut parts) = (Dataset::default(), vec![]);
    for source in sources {
        let dataset = loading::read(source, reading).map_err(|unread| told(unread, source, true))?;
        let part = Part::of(source, &dataset);
        let size = part.size();
        if Mixture::new(vec![size]).epoch_len(size.0) == 0 {
            return Err(Error::Usage(format!(
                "the weight {} of {} leaves none of its {} in an epoch; raise it",
                part.weight,
                part.name,
                counted(size.0, "row")
            )));
        }
        parts.push(part);
        all.examples.extend(dataset.examples);
        all.truncated += dataset.truncated;
        all.passed_over += dataset.passed_over;
        all.documents += dataset.documents;
    }
    let mixture = mixture(&parts);
    Ok(Mixed { dataset: all, mixture, parts })
}

/// How sources are mixed. Sources of weight 1 are treated like the parts of one file.
fn mixture(parts: &[Part]) -> Mixture {
    let is_even = parts.iter().all(|part| part.weight == 1.0);
    let mixture = Mixture::new(if is_even { vec![] } else { parts.iter().map(Part::size).collect() });
    if parts.iter().all(|part| part.chats.is_none()) {
        return mixture;
    }
    let (mut chats, mut first) = (vec![], 0);
    for part in parts {
        match &part.chats {
            None => chats.extend(first..first + part.examples),
            Some(of_part) => chats.extend(of_part.iter().map(|chat| first + chat)),
        }
        first += part.examples;
    }
    mixture.with_chats(chats)
}

impl Mixed {
    /// Each source with its examples.
    pub fn by_source(&self) -> impl Iterator<Item = (&Part, &[Example])> {
        let mut rest = self.dataset.examples.as_slice();
        self.parts.iter().map(move |part| {
            let own;
            (own, rest) = rest.split_at(part.examples);
            (part, own)
        })
    }

    /// The number of examples in an epoch.
    pub fn epoch_len(&self) -> usize {
        self.mixture.epoch_len(self.dataset.examples.len())
    }

    /// The number of tokens in an epoch without padding: exact if all weights are whole numbers and no answers are drawn,
    /// else an expected value.
    pub fn tokens_per_epoch(&self) -> f64 {
        let tokens = |examples: &[Example]| -> f64 {
            examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum::<usize>() as f64
        };
        let of_source = |(part, examples): (&Part, &[Example])| {
            let (chats, weight) = part.size();
            let occurrences = Mixture::new(vec![(chats, weight)]).epoch_len(chats) as f64;
            let of_all = match &part.chats {
                None => tokens(examples),
                Some(firsts) => {
                    let ends = firsts.iter().skip(1).copied().chain([examples.len()]);
                    let chats = firsts.iter().zip(ends).map(|(first, end)| &examples[*first..end]);
                    chats.map(|answers| tokens(answers) / answers.len() as f64).sum()
                }
            };
            occurrences / chats as f64 * of_all
        };
        self.by_source().map(of_source).sum()
    }

    /// The warnings of sources of which more than a tenth of the rows are skipped.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.parts.iter().filter_map(Part::warning)
    }
}
