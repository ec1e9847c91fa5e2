//! From files to examples: rows (`sources`), their forms (`formats`), the chat template, tokens, and how often each
//! example occurs (`mixing`). `noising` decides what is masked.

pub mod chat;
pub mod chat_template;
pub mod formats;
pub mod generated;
mod guarded;
pub mod lengths;
pub mod mixing;
pub mod notes;
mod packed_texts;
pub mod packing;
mod parquet_file;
mod parquet_pages;
mod qwen_tokenizer;
mod row_content;
pub mod row_range;
pub mod settings;
pub mod sources;
mod splits;
mod strict_json;
pub mod synthetic;
mod template_environment;
mod template_source;
mod template_variables;
pub mod token_cache;
pub mod tokenizer;
pub(crate) mod tokenizer_files;
pub mod turns;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use chat_template::TextModel;
use mixing::Mixture;
use notes::Notes;
use packed_texts::PackedTexts;
use row_content::{Content, NOT_TRAINED, content, num_examples};
use settings::TrainOn;
use sources::{Row, Source};
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
    /// The number of rows passed over because their own checks call none of their answers right, because they are texts
    /// of white space, or because they say that they aren't trained on.
    pub passed_over: usize,
    /// The number of texts that are packed into the examples; 0 if the rows are conversations.
    pub documents: usize,
    /// The row in which each example begins, counted from 0 without rows passed over. Empty if each row is one example,
    /// and where several sources are mixed.
    pub starts: Vec<u32>,
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
    /// [`Dataset::starts`] of the source.
    starts: Vec<u32>,
}

impl Part {
    /// The index, among the rows that weren't passed over, of the row in which an example begins.
    pub fn row_of(&self, example: usize) -> usize {
        self.starts.get(example).map_or(example, |row| *row as usize)
    }

    /// The number of its examples, and for texts of their documents, as part of a sentence.
    pub fn how_many(&self) -> String {
        match self.documents {
            0 => format!("{} examples", self.examples),
            documents => format!("{documents} texts in {} sequences", self.examples),
        }
    }

    /// How often each row of the source occurs in an epoch, as part of a sentence.
    pub fn how_often(&self) -> String {
        if self.weight == 1.0 { "once".to_owned() } else { format!("{} times", self.weight) }
    }
}

/// The number of rows that all threads together tokenize at a time.
const CHUNK: usize = 512;

/// The error for a row of another kind than the first.
const MIXED_FORMS: &str =
    "of this row and the first one, one is a plain text and the other a conversation; give them as two sources";

/// Reads the rows of a source. An example of more than `max_seq_len` tokens loses the end of its answer, end token
/// included, and is counted. Texts are packed into examples of `max_seq_len` tokens and lose nothing.
///
/// # Errors
/// The file and place of a row that can't be read, whose prompt leaves no room for an answer, or that contains the mask
/// token, which would count as masked, or an end token within its answer; a source without rows, or one of texts and
/// conversations.
pub fn load(source: &Source, reading: &Reading) -> Result<Dataset> {
    let key = match &reading.cache {
        Some(_) => Some(token_cache::key(source, reading)?),
        None => None,
    };
    if let Some(dataset) = reading.cache.as_ref().zip(key).and_then(|(cache, key)| cache.read(key, reading)) {
        return Ok(dataset);
    }
    let mut dataset = Dataset::default();
    let mut texts = PackedTexts::new(reading.max_seq_len, reading.text.eos_token_id());
    let mut has_texts = None;
    let mut rows = source.rows()?;
    loop {
        // The error reported is that of the first bad row, whichever thread finds one first.
        let chunk: Vec<Result<Row>> = rows.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        let is_text = |row: &Row| formats::is_text(&row.fields, source.format);
        if has_texts.is_none() {
            has_texts = chunk[0].as_ref().ok().map(is_text);
        }
        let content = |row: Row| match Some(is_text(&row)) == has_texts {
            true => content(&row, source, reading),
            false => Err(row.wrong(MIXED_FORMS.to_owned())),
        };
        let read: Vec<Result<_>> = chunk.into_par_iter().map(|row| content(row?)).collect();
        for read in read {
            let (content, notes) = read?;
            let answers = if let Content::Examples(examples) = &content { examples.len() } else { 0 };
            dataset.notes.add(notes, answers);
            match content {
                Content::Examples(examples) => dataset.add(examples),
                Content::Text(ids) => texts.push(&ids, &mut dataset),
                Content::Nothing(reason) => {
                    dataset.passed_over += 1;
                    dataset.notes.skip(reason);
                }
            }
        }
    }
    texts.finish(&mut dataset);
    if dataset.examples.is_empty() {
        return Err(no_examples(source, &dataset, has_texts == Some(true)));
    }
    if source.train_on.unwrap_or_default() == TrainOn::Last && dataset.documents == 0 {
        dataset.starts.clear();
    }
    if let Some((cache, key)) = reading.cache.as_ref().zip(key) {
        cache.keep(key, &dataset);
    }
    Ok(dataset)
}

impl Dataset {
    /// Adds the examples of a row, each with whether its answer was cut.
    fn add(&mut self, examples: Vec<(Example, bool)>) {
        let row = self.notes.rows - self.passed_over - 1;
        for (example, is_cut) in examples {
            self.truncated += usize::from(is_cut);
            self.starts.push(row as u32);
            self.examples.push(example);
        }
    }
}

/// The error for a source without examples.
fn no_examples(source: &Source, dataset: &Dataset, has_texts: bool) -> Error {
    let (path, passed) = (source.path.clone(), dataset.passed_over);
    let reason = match (passed, source.rows) {
        (0, None) => "it has no rows; give a row per example".to_owned(),
        (0, Some(rows)) => format!("it has no rows within {rows}: it has fewer rows, or the slice is empty"),
        _ if has_texts => format!("all its {passed} texts are empty; give some text"),
        _ if dataset.notes.skipped.contains_key(NOT_TRAINED) => format!(
            "no turn of its {passed} rows is trained on; remove weight 0 or train false from the turns to be trained on"
        ),
        _ => format!(
            "the checks of all its {passed} rows mark no answer as correct; set its format to train on other answers"
        ),
    };
    Error::Config { path, reason }
}

/// The examples of a source with the numbers of their rows, counted from 1; in JSONL files these are line numbers. A
/// text is an example of its own.
///
/// # Errors
/// The errors of [`load`], except that a source may have no rows.
pub fn numbered(source: &Source, reading: &Reading) -> Result<Vec<(usize, Example)>> {
    let mut numbered = vec![];
    for row in source.rows()? {
        let row = row?;
        match content(&row, source, reading)?.0 {
            Content::Examples(examples) => {
                numbered.extend(examples.into_iter().map(|(example, _)| (row.number, example)));
            }
            Content::Text(ids) => {
                let answer_ids = [ids, vec![reading.text.eos_token_id()]].concat();
                numbered.push((row.number, Example { prompt_ids: vec![], answer_ids }));
            }
            Content::Nothing(_) => {}
        }
    }
    Ok(numbered)
}

/// The file and number of a row, given its index among the rows that [`load`] doesn't pass over, counted from 0. `None`
/// if the file has changed since.
pub fn place(source: &Source, row: usize) -> Option<String> {
    let is_used = |row: &Row| num_examples(row, source) > 0;
    source.rows().ok()?.filter_map(Result::ok).filter(is_used).nth(row).map(|row| row.place())
}

/// Reads several sources to be mixed.
///
/// # Errors
/// The errors of [`load`]; a weight that leaves none of a source's rows.
pub fn load_mixed(sources: &[Source], reading: &Reading) -> Result<Mixed> {
    let (mut all, mut parts, mut sizes) = (Dataset::default(), vec![], vec![]);
    for source in sources {
        let Dataset { examples, truncated, passed_over, documents, starts, notes } = load(source, reading)?;
        let (name, weight, size) = (source.name(), source.weight, (examples.len(), source.weight));
        if Mixture::new(vec![size]).epoch_len(size.0) == 0 {
            return Err(Error::Usage(format!(
                "the weight {weight} of {name} leaves none of its {} rows in an epoch; raise it",
                size.0
            )));
        }
        let key = format!("{:032x}", token_cache::content_key(&examples));
        parts.push(Part { name, weight, examples: size.0, truncated, passed_over, documents, notes, key, starts });
        sizes.push(size);
        all.examples.extend(examples);
        all.truncated += truncated;
        all.passed_over += passed_over;
        all.documents += documents;
    }
    // Sources of weight 1 are treated like one file in parts.
    let is_even = sizes.iter().all(|(_, weight)| *weight == 1.0);
    let mixture = Mixture::new(if is_even { vec![] } else { sizes });
    Ok(Mixed { dataset: all, mixture, parts })
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

    /// The number of tokens in an epoch without padding: exact if all weights are whole numbers, else an expected
    /// value.
    pub fn tokens_per_epoch(&self) -> f64 {
        let tokens = |e: &Example| e.prompt_ids.len() + e.answer_ids.len();
        let of_source = |(part, examples): (&Part, &[Example])| {
            let turns = Mixture::new(vec![(part.examples, part.weight)]).epoch_len(part.examples) as f64;
            turns / part.examples as f64 * examples.iter().map(tokens).sum::<usize>() as f64
        };
        self.by_source().map(of_source).sum()
    }
}
