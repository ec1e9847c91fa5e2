//! The examples of a source with the numbers of their rows, for commands that answer row by row. Training reads rows in
//! `loading`, which caches their tokens.

use super::bad_rows::{BadRows, of_reader};
use super::notes::Notes;
use super::row_content::{Content, content};
use super::sources::{Row, Source};
use super::{Example, Reading};
use crate::error::Result;

/// The examples of a source with the numbers of their rows, counted from 1; in JSONL files these are line numbers. A
/// text is an example of its own.
///
/// # Errors
/// The errors of [`super::load`], except that a source may have no rows.
pub fn numbered(source: &Source, reading: &Reading) -> Result<Vec<(usize, Example)>> {
    Ok(numbered_with_notes(source, reading)?.0)
}

/// Like [`numbered`], and also returns the notes on the rows.
///
/// # Errors
/// The errors of [`numbered`].
pub fn numbered_with_notes(source: &Source, reading: &Reading) -> Result<(Vec<(usize, Example)>, Notes)> {
    let (mut numbered, mut notes, mut bad) = (vec![], Notes::default(), BadRows::default());
    for row in source.rows()? {
        let made = row.map_or_else(
            |error| of_reader(error).map(Err),
            |row| Ok(content(&row, source, reading).map(|(content, notes)| (row, content, notes))),
        )?;
        match made {
            Err(row) if row.is_skipped(source.policy) => {
                notes.rows += 1;
                notes.skip(&row.reason(), &row.place);
            }
            Err(row) => bad.push(row),
            Ok((row, content, of_row)) => {
                let place = of_row.place.clone();
                notes.add(of_row);
                if let Content::Nothing(reason) = content {
                    notes.skip(reason, &place);
                }
                numbered.extend(examples(&row, content, reading));
            }
        }
        bad.rows += 1;
    }
    match bad.is_empty() {
        true => Ok((numbered, notes)),
        false => Err(bad.into_error_of_option(&source.name())),
    }
}

/// The examples of a row, each with the row's number.
fn examples(row: &Row, content: Content, reading: &Reading) -> Vec<(usize, Example)> {
    match content {
        Content::Examples(examples) => examples.into_iter().map(|(example, _)| (row.number, example)).collect(),
        Content::Text(ids) => {
            let answer_ids = [ids, vec![reading.text.eos_token_id()]].concat();
            vec![(row.number, Example { prompt_ids: vec![], answer_ids })]
        }
        Content::Nothing(_) => vec![],
    }
}
