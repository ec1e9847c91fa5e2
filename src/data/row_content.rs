//! What a row becomes: tokens of a text, or an example for each of the turns that are trained on, with what is said of
//! the row.

use serde_json::Value;

use super::chat::{Chat, Turn};
use super::notes::RowNotes;
use super::settings::TrainOn;
use super::sources::{Row, Source};
use super::{Example, Reading, formats};
use crate::error::Result;

/// The error for a row with the mask token.
const HAS_MASK: &str = "the text contains the model's mask token; remove it";
/// Why a row is skipped whose own checks call none of its answers right.
const NO_CORRECT: &str = "their checks mark no answer as correct";
/// Why a text of white space is skipped.
const EMPTY: &str = "they are empty";
/// Why a row is skipped that has no turn to train on.
pub(super) const NOT_TRAINED: &str = "weight 0 or train false says that their answers are not trained on";

/// How many words of a text are shown as the beginning that a model continues.
const FIRST_WORDS: usize = 8;

/// What a row becomes.
pub(super) enum Content {
    /// An example for each answer, with whether the answer was cut.
    Examples(Vec<(Example, bool)>),
    /// The tokens of a text.
    Text(Vec<u32>),
    /// Nothing, for a reason: the row is passed over.
    Nothing(&'static str),
}

/// Reads a row as examples or as a text.
pub(super) fn content(row: &Row, source: &Source, reading: &Reading) -> Result<(Content, RowNotes)> {
    let form = formats::form_of(&row.fields, source.format);
    let mut notes = RowNotes::default();
    check_nan(row, source)?;
    if let Some(form) = form {
        let is_given = |(key, value): &(&String, &Value)| !value.is_null() || row.not_json.contains(key);
        let given = row.fields.iter().filter(is_given).map(|(key, _)| key);
        notes.unread = given.filter(|key| !formats::is_read(&row.fields, form, key)).cloned().collect();
    }
    let chat = formats::chat(&row.fields, source.format).map_err(|reason| row.wrong(reason))?;
    let is_text = form == Some(formats::Form::Text);
    let Some(chat) = chat else {
        return Ok((Content::Nothing(if is_text { EMPTY } else { NO_CORRECT }), notes));
    };
    if is_text {
        let ids = reading.text.encode(chat.turns[0].text())?;
        return match ids.contains(&reading.mask_token_id) {
            true => Err(row.wrong(HAS_MASK.to_owned())),
            false => Ok((Content::Text(ids), notes)),
        };
    }
    note_template(&chat, reading, &mut notes);
    let answers = answers(&chat, source.train_on.unwrap_or_default());
    if answers.is_empty() {
        return Ok((Content::Nothing(NOT_TRAINED), notes));
    }
    let example = |last: usize| example(row, (&chat, last), reading, &mut notes);
    let examples = answers.into_iter().map(example).collect::<Result<_>>()?;
    Ok((Content::Examples(examples), notes))
}

/// Returns an error if a key that is read holds NaN, which is read as null.
fn check_nan(row: &Row, source: &Source) -> Result<()> {
    for key in &row.not_json {
        // As if the key had a value, which decides the form and between two names of a column.
        let mut fields = row.fields.clone();
        fields.insert(key.clone(), Value::Bool(true));
        if formats::form_of(&fields, source.format).is_some_and(|form| formats::is_read(&fields, form, key)) {
            let reason = format!("{key} holds NaN or Infinity, and NaN is not JSON; write null, or drop the row");
            return Err(row.wrong(reason));
        }
    }
    Ok(())
}

/// Whether a row becomes no example, as [`content`] decides it, and else how many.
pub(super) fn num_examples(row: &Row, source: &Source) -> usize {
    match formats::chat(&row.fields, source.format) {
        Ok(Some(chat)) => answers(&chat, source.train_on.unwrap_or_default()).len(),
        _ => 0,
    }
}

/// What a row asks where its first example is made of it: the turns before the answer, and the tools. A text asks to be
/// continued from its first words.
pub(super) fn first_question(row: &Row, source: &Source) -> Option<(Vec<Turn>, Option<Value>)> {
    let Chat { mut turns, tools, .. } = formats::chat(&row.fields, source.format).ok()??;
    if formats::is_text(&row.fields, source.format) {
        let words: Vec<&str> =
            turns[0].text().lines().find(|line| !line.trim().is_empty())?.split_whitespace().collect();
        return Some((vec![Turn::new("user", &words[..words.len().min(FIRST_WORDS)].join(" "))], None));
    }
    let chat = Chat { turns, tools, key: "messages" };
    let first = *answers(&chat, source.train_on.unwrap_or_default()).first()?;
    turns = chat.turns;
    turns.truncate(first);
    Some((turns, chat.tools))
}

/// Notes the fields of a chat that the chat template doesn't read.
fn note_template(chat: &Chat, reading: &Reading, notes: &mut RowNotes) {
    notes.assistant_turns = chat.turns.iter().filter(|turn| turn.role == "assistant").count();
    notes.has_unread_tools = chat.tools.is_some() && !reading.text.reads("tools");
    for key in chat.turns.iter().flat_map(Turn::for_template).filter(|key| !reading.text.reads(key)) {
        let named = format!("{}[].{key}", chat.key);
        if !notes.unread.contains(&named) {
            notes.unread.push(named);
        }
    }
}

/// The turns that are trained on, in order.
fn answers(chat: &Chat, train_on: TrainOn) -> Vec<usize> {
    let turns = chat.turns.iter().enumerate();
    // The assistant's greeting before anybody has asked is context.
    let mut is_asked = false;
    let is_answer = |(i, turn): (usize, &Turn)| {
        let is_answer = match turn.role.as_str() {
            "assistant" => is_asked && turn.is_trained,
            _ => false,
        };
        is_asked |= turn.role == "user";
        let is_last = i + 1 == chat.turns.len();
        // A chat is checked to end with an answer.
        let is_wanted = if is_last { turn.is_trained } else { train_on == TrainOn::All && is_answer };
        is_wanted.then_some(i)
    };
    turns.filter_map(is_answer).collect()
}

/// The example of a chat up to the turn `last`, which is its answer, and whether the answer was cut.
fn example(
    row: &Row,
    (chat, last): (&Chat, usize),
    reading: &Reading,
    notes: &mut RowNotes,
) -> Result<(Example, bool)> {
    let Reading { text, max_seq_len, .. } = *reading;
    let turns = &chat.turns[..=last];
    let of_turn = |reason: String| match last + 1 == chat.turns.len() {
        true => row.wrong(reason),
        false => row.wrong(format!("turn {} of {}: {reason}", last + 1, chat.turns.len())),
    };
    let wrong = |reason: &str| of_turn(reason.to_owned());
    if turns[last].is_empty() {
        return Err(wrong("the answer is empty; set its weight to 0, or give it an answer"));
    }
    let (mut example, typed) = text.example_with_typed(turns, chat.tools.as_ref())?;
    let mask = reading.mask_token_id;
    let has_mask = example.prompt_ids.iter().chain(&example.answer_ids).any(|id| *id == mask);
    if has_mask || typed.iter().any(|token| text.token_id(token) == Some(mask)) {
        return Err(wrong(HAS_MASK));
    }
    typed.into_iter().for_each(|token| _ = notes.typed.insert(token));
    let (ends, (_, before_end)) =
        (text.end_token_ids(), example.answer_ids.split_last().expect("it has its end token"));
    if before_end.iter().any(|id| ends.contains(id)) {
        return Err(wrong("the answer contains an end token before its end; remove it"));
    }
    let prompt = example.prompt_ids.len();
    if prompt >= max_seq_len {
        return Err(of_turn(format!(
            "the prompt's {prompt} tokens leave no room for an answer within max_seq_len {max_seq_len}; raise \
             data.max_seq_len or shorten the prompt"
        )));
    }
    let is_cut = prompt + example.answer_ids.len() > max_seq_len;
    example.answer_ids.truncate(max_seq_len - prompt);
    Ok((example, is_cut))
}
