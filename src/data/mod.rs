//! From files to examples: rows (`sources`), their forms (`formats`), the chat template, tokens, and how often each
//! example occurs (`mixing`). `noising` decides what is masked.

pub mod chat_template;
pub mod formats;
pub mod generated;
mod guarded;
pub mod lengths;
pub mod mixing;
mod packed_texts;
pub mod packing;
mod parquet_file;
mod parquet_pages;
mod qwen_tokenizer;
pub mod row_range;
pub mod settings;
pub mod sources;
mod splits;
mod strict_json;
pub mod synthetic;
mod template_environment;
mod template_variables;
pub mod token_cache;
pub mod tokenizer;
mod tokenizer_files;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use chat_template::TextModel;
use mixing::Mixture;
use packed_texts::PackedTexts;
use sources::{Row, Source};
use token_cache::TokenCache;

/// A turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
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
    /// The number of rows passed over because their own checks call none of their answers right, or because they are
    /// texts of white space.
    pub passed_over: usize,
    /// The number of texts that are packed into the examples; 0 if the rows are conversations.
    pub documents: usize,
    /// The text in which each example begins, counted from 0. Empty if the rows are conversations, and where several
    /// sources are mixed.
    pub starts: Vec<u32>,
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

/// The error for a row with the mask token.
const HAS_MASK: &str = "the text contains the model's mask token; remove it";
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
        let read: Vec<Result<Content>> = chunk.into_par_iter().map(|row| content(row?)).collect();
        for content in read {
            match content? {
                Content::Example(example, is_cut) => {
                    dataset.truncated += usize::from(is_cut);
                    dataset.examples.push(example);
                }
                Content::Text(ids) => texts.push(&ids, &mut dataset),
                Content::Nothing => dataset.passed_over += 1,
            }
        }
    }
    texts.finish(&mut dataset);
    if dataset.examples.is_empty() {
        let (path, passed) = (source.path.clone(), dataset.passed_over);
        let reason = match (passed, source.rows) {
            (0, None) => "it has no rows; give a row per example".to_owned(),
            (0, Some(rows)) => format!("it has no rows within {rows}: it has fewer rows, or the slice is empty"),
            _ if has_texts == Some(true) => format!("all its {passed} texts are empty; give some text"),
            _ => format!(
                "the checks of all its {passed} rows mark no answer as correct; set its format to train on other answers"
            ),
        };
        return Err(Error::Config { path, reason });
    }
    if let Some((cache, key)) = reading.cache.as_ref().zip(key) {
        cache.keep(key, &dataset);
    }
    Ok(dataset)
}

/// The examples of a source with the numbers of their rows, counted from 1; in JSONL files these are line numbers. A
/// text is an example of its own.
///
/// # Errors
/// The errors of [`load`], except that a source may have no rows.
pub fn numbered(source: &Source, reading: &Reading) -> Result<Vec<(usize, Example)>> {
    let numbered = |row: Result<Row>| {
        let row = row?;
        let example = match content(&row, source, reading)? {
            Content::Example(example, _) => example,
            Content::Text(ids) => {
                Example { prompt_ids: vec![], answer_ids: [ids, vec![reading.text.eos_token_id()]].concat() }
            }
            Content::Nothing => return Ok(None),
        };
        Ok(Some((row.number, example)))
    };
    source.rows()?.map(numbered).filter_map(Result::transpose).collect()
}

/// The file and number of a row, given its index among the rows that [`load`] doesn't pass over, counted from 0. `None`
/// if the file has changed since.
pub fn place(source: &Source, row: usize) -> Option<String> {
    let is_used = |row: &Row| matches!(formats::conversation(&row.fields, source.format), Ok(Some(_)));
    source.rows().ok()?.filter_map(Result::ok).filter(is_used).nth(row).map(|row| row.place())
}

/// What a row becomes.
enum Content {
    /// An example, and whether its answer was cut.
    Example(Example, bool),
    /// The tokens of a text.
    Text(Vec<u32>),
    /// Nothing: the row is passed over.
    Nothing,
}

fn content(row: &Row, source: &Source, reading: &Reading) -> Result<Content> {
    let Reading { text, max_seq_len, .. } = *reading;
    let wrong = |reason: &str| row.wrong(reason.to_owned());
    let conversation = formats::conversation(&row.fields, source.format).map_err(|reason| row.wrong(reason))?;
    let Some(conversation) = conversation else { return Ok(Content::Nothing) };
    if formats::is_text(&row.fields, source.format) {
        let ids = text.encode(&conversation.answer)?;
        return match ids.contains(&reading.mask_token_id) {
            true => Err(wrong(HAS_MASK)),
            false => Ok(Content::Text(ids)),
        };
    }
    let mut example = text.example(&conversation)?;
    if example.prompt_ids.iter().chain(&example.answer_ids).any(|id| *id == reading.mask_token_id) {
        return Err(wrong(HAS_MASK));
    }
    let (ends, (_, before_end)) =
        (text.end_token_ids(), example.answer_ids.split_last().expect("it has its end token"));
    if before_end.iter().any(|id| ends.contains(id)) {
        return Err(wrong("the answer contains an end token before its end; remove it"));
    }
    let prompt = example.prompt_ids.len();
    if prompt >= max_seq_len {
        return Err(row.wrong(format!(
            "the prompt's {prompt} tokens leave no room for an answer within max_seq_len {max_seq_len}; raise \
             data.max_seq_len or shorten the prompt"
        )));
    }
    let is_cut = prompt + example.answer_ids.len() > max_seq_len;
    example.answer_ids.truncate(max_seq_len - prompt);
    Ok(Content::Example(example, is_cut))
}

/// Reads several sources to be mixed.
///
/// # Errors
/// The errors of [`load`]; a weight that leaves none of a source's rows.
pub fn load_mixed(sources: &[Source], reading: &Reading) -> Result<Mixed> {
    let (mut all, mut parts, mut sizes) = (Dataset::default(), vec![], vec![]);
    for source in sources {
        let Dataset { examples, truncated, passed_over, documents, starts } = load(source, reading)?;
        let (name, weight, size) = (source.name(), source.weight, (examples.len(), source.weight));
        if Mixture::new(vec![size]).epoch_len(size.0) == 0 {
            return Err(Error::Usage(format!(
                "the weight {weight} of {name} leaves none of its {} rows in an epoch; raise it",
                size.0
            )));
        }
        let key = format!("{:032x}", token_cache::content_key(&examples));
        parts.push(Part { name, weight, examples: size.0, truncated, passed_over, documents, key, starts });
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
