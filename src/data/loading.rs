//! Reads a source into a dataset: its rows in chunks, which all threads tokenize together, or its tokens from the cache.
//! `row_content` decides what a row becomes; this file counts the rows that can't be used, or reports them all at once.

use rayon::prelude::*;

use super::bad_rows::{BadRow, BadRows, Unread, of_reader};
use super::notes::RowNotes;
use super::packed_texts::PackedTexts;
use super::row_content::{Content, EMPTY, NO_CORRECT, NOT_TRAINED, content};
use super::settings::TrainOn;
use super::sources::{Fields, Row, Source};
use super::{Dataset, Example, Reading, token_cache};
use crate::counted::counted;
use crate::error::{Error, Result};

/// The number of rows that all threads together tokenize at a time.
const CHUNK: usize = 512;

/// The error for a row if, of it and the first one, one is a text and the other a conversation.
const MIXED_FORMS: &str =
    "of this row and the first one, one is a plain text and the other a conversation; give them as two sources";

/// Reads the rows of a source, or their tokens from the cache.
pub(super) fn read(source: &Source, reading: &Reading) -> std::result::Result<Dataset, Unread> {
    let Some(cache) = &reading.cache else { return read_rows(source, reading) };
    let (key, files) = token_cache::key(source, reading)?;
    let is_last = source.train_on.unwrap_or_default() == TrainOn::Last;
    let has_starts = |dataset: &Dataset| is_last || !dataset.starts.is_empty();
    if let Some(dataset) = cache.read(key, &files, reading).filter(has_starts) {
        return Ok(dataset);
    }
    let dataset = read_rows(source, reading)?;
    cache.keep((key, &files), &dataset);
    Ok(dataset)
}

/// What a thread makes of a row: its content, its notes, and the row without its fields.
type Made = std::result::Result<(Content, RowNotes, Row), Unmade>;

/// Why nothing is made of a row.
enum Unmade {
    /// The row can't be used.
    Bad(BadRow),
    /// No row can be read from here on.
    Fatal(Error),
}

fn read_rows(source: &Source, reading: &Reading) -> std::result::Result<Dataset, Unread> {
    let make = |row: Result<Row>| -> Made {
        let mut row = row.map_err(|error| of_reader(error).map_or_else(Unmade::Fatal, Unmade::Bad))?;
        let (content, notes) = content(&row, source, reading).map_err(Unmade::Bad)?;
        row.fields = Fields::new();
        Ok((content, notes, row))
    };
    let mut loading = Loading::new(source, reading);
    let mut rows = source.rows()?;
    loop {
        let chunk: Vec<Result<Row>> = rows.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        // Rows are added in their order, whichever thread finishes first.
        let made: Vec<Made> = chunk.into_par_iter().map(make).collect();
        for made in made {
            match made {
                Ok(made) => loading.add(made),
                Err(Unmade::Bad(bad)) => loading.add_bad(bad),
                Err(Unmade::Fatal(error)) => return Err(loading.end(error)),
            }
        }
    }
    loading.finish()
}

/// A dataset whose rows are being read.
struct Loading<'a> {
    source: &'a Source,
    dataset: Dataset,
    texts: PackedTexts,
    /// Whether the rows are plain texts; `None` before the first one.
    has_texts: Option<bool>,
    bad: BadRows,
}

impl<'a> Loading<'a> {
    fn new(source: &'a Source, reading: &Reading) -> Self {
        let texts = PackedTexts::new(reading.max_seq_len, reading.text.eos_token_id());
        Self { source, dataset: Dataset::default(), texts, has_texts: None, bad: BadRows::default() }
    }

    /// Adds the content of a row.
    fn add(&mut self, (content, notes, row): (Content, RowNotes, Row)) {
        let is_text = matches!(content, Content::Text(_) | Content::Nothing(EMPTY));
        if *self.has_texts.get_or_insert(is_text) != is_text {
            return self.add_bad(BadRow::new(row.wrong(MIXED_FORMS.to_owned()), row.place()));
        }
        let place = notes.place.clone();
        self.dataset.notes.add(notes);
        match content {
            // A source with bad rows is refused, so its other rows need no examples.
            _ if !self.bad.is_empty() => {}
            Content::Examples(examples) => self.add_examples(examples, &place),
            Content::Text(ids) => self.texts.push(&ids, &mut self.dataset),
            Content::Nothing(reason) => self.skip(reason, &place),
        }
    }

    /// Adds the examples of a row, each with whether its answer was cut.
    fn add_examples(&mut self, examples: Vec<(Example, bool)>, place: &str) {
        let dataset = &mut self.dataset;
        let row = dataset.notes.rows - dataset.passed_over - 1;
        if examples.iter().any(|(_, is_cut)| *is_cut) {
            dataset.notes.cut(place);
        }
        for (example, is_cut) in examples {
            dataset.truncated += usize::from(is_cut);
            dataset.starts.push(row as u32);
            dataset.examples.push(example);
        }
    }

    /// Skips the last row that was added.
    fn skip(&mut self, reason: &str, place: &str) {
        let dataset = &mut self.dataset;
        dataset.skipped_rows.push((dataset.notes.rows - 1) as u32);
        dataset.passed_over += 1;
        dataset.notes.skip(reason, place);
    }

    /// Skips a row that can't be used, or collects it for the error.
    fn add_bad(&mut self, bad: BadRow) {
        self.dataset.notes.rows += 1;
        if bad.is_skipped(self.source.policy) {
            self.skip(&bad.reason(), &bad.place);
        } else {
            self.bad.push(bad);
        }
    }

    /// The error for a source that can't be read further; it lists the bad rows before that place.
    fn end(mut self, error: Error) -> Unread {
        if self.bad.is_empty() {
            return Unread::Other(error);
        }
        self.bad.push(BadRow::new(error, String::new()));
        Unread::Rows(self.bad)
    }

    /// The dataset, once all rows were added.
    fn finish(mut self) -> std::result::Result<Dataset, Unread> {
        if !self.bad.is_empty() {
            self.bad.rows = self.dataset.notes.rows;
            return Err(Unread::Rows(self.bad));
        }
        self.texts.finish(&mut self.dataset);
        let (source, mut dataset) = (self.source, self.dataset);
        if dataset.examples.is_empty() {
            return Err(no_examples(source, &dataset).into());
        }
        if source.train_on.unwrap_or_default() == TrainOn::Last && dataset.documents == 0 {
            dataset.starts.clear();
        }
        Ok(dataset)
    }
}

/// The error for a source without examples.
fn no_examples(source: &Source, dataset: &Dataset) -> Error {
    let (path, passed) = (source.path.to_path(), dataset.passed_over);
    let skipped = &dataset.notes.skipped;
    let is_known = |reason: &str| [EMPTY, NO_CORRECT, NOT_TRAINED].contains(&reason);
    let other = dataset.notes.most_skipped(|reason| !is_known(reason));
    // Of rows that are divided, a source is one side.
    let side = source.side.as_ref().map_or("", |side| if side.is_held_out() { " held out" } else { " for training" });
    let all = |noun: &str, [one, several]: [&'static str; 2]| match passed {
        1 => format!("its only {noun}{side} {one}"),
        _ => format!("all its {}{side} {several}", counted(passed, noun)),
    };
    let reason = match (passed, source.rows, other) {
        (0, None, _) => "it has no rows; give a row per example".to_owned(),
        (0, Some(rows), _) => format!("it has no rows within {rows}: it has fewer rows, or the slice is empty"),
        (.., Some(most)) => format!("{}, {most}; fix the rows", all("row", ["is skipped", "are skipped"])),
        _ if skipped.contains_key(EMPTY) => format!("{}; give some text", all("text", ["is empty", "are empty"])),
        _ if skipped.contains_key(NOT_TRAINED) => format!(
            "no turn of its {} is trained on; remove weight 0 or train false from the turns to be trained on",
            counted(passed, "row")
        ),
        _ => format!(
            "the checks of its {} mark no answer as correct; set its format to train on other answers",
            counted(passed, "row")
        ),
    };
    Error::Config { path, reason }
}
