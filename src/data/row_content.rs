//! What a row becomes: tokens of a text, or an example for each of the turns that are trained on, with what is said of
//! the row.

use serde_json::Value;

use super::bad_rows::{BadRow, ON_LONG_PROMPT};
use super::chat::{Chat, Turn};
use super::notes::RowNotes;
use super::settings::{OnLongAnswer, OnRow, TrainOn};
use super::sources::{Row, Source};
use super::{Example, Reading, formats};
use crate::error::{Error, Result};

/// The error for a row with the mask token.
const HAS_MASK: &str = "the text contains the model's mask token; remove it";
/// Why a row is skipped whose own checks call none of its answers right.
pub(super) const NO_CORRECT: &str = "their checks mark no answer as correct";
/// Why a text of white space is skipped.
pub(super) const EMPTY: &str = "they are empty";
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

/// What an answer becomes.
enum Answer {
    /// An example that holds all of it.
    Whole(Example),
    /// An example that holds its beginning.
    Cut(Example),
    /// Nothing, for a reason.
    Skipped(&'static str),
}

/// Why an answer is skipped whose prompt leaves no room for it.
const LONG_PROMPT: &str = "the prompt leaves no room for an answer within data.max_seq_len";
/// Why an answer is skipped of which the chat template shows nothing, such as one that only calls tools.
const RENDERS_EMPTY: &str = "the chat template renders the answer as nothing";
/// Why an answer is skipped that would be cut.
const LONG_ANSWER: &str = "prompt and answer together are longer than data.max_seq_len";

/// Reads a row as examples or as a text.
pub(super) fn content(
    row: &Row,
    source: &Source,
    reading: &Reading,
) -> std::result::Result<(Content, RowNotes), BadRow> {
    let bad = |error| BadRow::new(error, row.place());
    let (chat, mut notes) = match read(row, source, reading).map_err(bad)? {
        (Read::Chat(chat), notes) => (chat, notes),
        (Read::Content(content), mut notes) => {
            if let Content::Nothing(_) = content {
                notes.place = row.place();
            }
            return Ok((content, notes));
        }
    };
    let answers = answers(&chat, source.train_on.unwrap_or_default());
    notes.answers = answers.len();
    let mut examples = Vec::with_capacity(answers.len());
    for last in answers {
        match answer(row, (&chat, last), (source, reading), &mut notes)? {
            Answer::Whole(example) => examples.push((example, false)),
            Answer::Cut(example) => examples.push((example, true)),
            Answer::Skipped(reason) => notes.skipped_answers.push(reason),
        }
    }
    if examples.iter().any(|(_, is_cut)| *is_cut) || examples.len() < notes.answers.max(1) {
        notes.place = row.place();
    }
    if !examples.is_empty() {
        return Ok((Content::Examples(examples), notes));
    }
    let reason = notes.skipped_answers.first().copied().unwrap_or(NOT_TRAINED);
    notes.skipped_answers.clear();
    notes.answers = 0;
    Ok((Content::Nothing(reason), notes))
}

/// What a row holds before the answers of a chat are tokenized.
enum Read {
    Chat(Chat),
    Content(Content),
}

fn read(row: &Row, source: &Source, reading: &Reading) -> Result<(Read, RowNotes)> {
    let form = formats::form_of(&row.fields, source.format);
    let mut notes = RowNotes::default();
    check_not_json(row, source)?;
    if let Some(form) = form {
        let is_given =
            |(key, value): &(&String, &Value)| !value.is_null() || row.not_json.iter().any(|(of, _)| of == *key);
        let given = row.fields.iter().filter(is_given).map(|(key, _)| key);
        notes.unread = given.filter(|key| !formats::is_read(&row.fields, form, key)).cloned().collect();
    }
    let chat = formats::chat(&row.fields, source.format).map_err(|reason| row.wrong(reason))?;
    let is_text = form == Some(formats::Form::Text);
    let Some(mut chat) = chat else {
        return Ok((Read::Content(Content::Nothing(if is_text { EMPTY } else { NO_CORRECT })), notes));
    };
    if is_text {
        let ids = reading.text.encode(chat.turns[0].text())?;
        return match ids.contains(&reading.mask_token_id) {
            true => Err(row.wrong(HAS_MASK.to_owned())),
            false => Ok((Read::Content(Content::Text(ids)), notes)),
        };
    }
    note_template(&chat, reading, &mut notes);
    notes.own_ends = take_own_ends(&mut chat, reading);
    Ok((Read::Chat(chat), notes))
}

/// Removes the end tokens at the ends of the assistant's turns, because the chat template or the format writes its own;
/// returns the number of turns that had one.
fn take_own_ends(chat: &mut Chat, reading: &Reading) -> usize {
    let mut count = 0;
    for turn in chat.turns.iter_mut().filter(|turn| turn.role == "assistant") {
        let Some(before) = turn.content.as_deref().and_then(|text| reading.text.before_end_token(text)) else {
            continue;
        };
        turn.content = Some(before.to_owned());
        count += 1;
    }
    count
}

/// Returns an error if a key that is read holds NaN, which is read as null, or half of a surrogate pair.
fn check_not_json(row: &Row, source: &Source) -> Result<()> {
    for (key, found) in &row.not_json {
        // As if the key had a value, which decides the form and between two names of a column.
        let mut fields = row.fields.clone();
        fields.insert(key.clone(), Value::Bool(true));
        if formats::form_of(&fields, source.format).is_some_and(|form| formats::is_read(&fields, form, key)) {
            return Err(row.wrong(found.told(key)));
        }
    }
    Ok(())
}

/// The question of a row's first example: the turns before the answer, and the tools. For a text, it is the text's first
/// words, which the model continues.
pub(super) fn first_question(row: &Row, source: &Source) -> Option<(Vec<Turn>, Option<Value>)> {
    let Chat { mut turns, tools, .. } = formats::chat(&row.fields, source.format).ok()??;
    if formats::form_of(&row.fields, source.format) == Some(formats::Form::Text) {
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

/// Whether an answer of a row is trained on that isn't empty, as far as that is known before the row is tokenized. A text has
/// one.
pub(super) fn has_answer(row: &Row, chat: &Chat, source: &Source) -> bool {
    formats::form_of(&row.fields, source.format) == Some(formats::Form::Text)
        || answers(chat, source.train_on.unwrap_or_default()).into_iter().any(|i| !chat.turns[i].is_empty())
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
        let is_wanted = if is_last { turn.is_trained } else { train_on != TrainOn::Last && is_answer };
        is_wanted.then_some(i)
    };
    turns.filter_map(is_answer).collect()
}

/// What becomes of the answer `last` of a chat, whose prompt is the chat up to there.
fn answer(
    row: &Row,
    (chat, last): (&Chat, usize),
    (source, reading): (&Source, &Reading),
    notes: &mut RowNotes,
) -> std::result::Result<Answer, BadRow> {
    let mut example = example(row, (chat, last), reading, notes).map_err(|error| BadRow::new(error, row.place()))?;
    let (max_seq_len, policy) = (reading.max_seq_len, source.policy);
    let prompt = example.prompt_ids.len();
    if example.answer_ids.len() <= 1 && last + 1 < chat.turns.len() {
        return Ok(Answer::Skipped(RENDERS_EMPTY));
    }
    if prompt >= max_seq_len {
        if policy.long_prompt == OnRow::Skip {
            return Ok(Answer::Skipped(LONG_PROMPT));
        }
        let error = row.wrong(of_turn(
            (chat, last),
            format!(
                "the prompt's {prompt} tokens leave no room for an answer within max_seq_len {max_seq_len}; raise \
             data.max_seq_len or shorten the prompt"
            ),
        ));
        return Err(BadRow { setting: ON_LONG_PROMPT, ..BadRow::new(error, row.place()) });
    }
    if prompt + example.answer_ids.len() <= max_seq_len {
        return Ok(Answer::Whole(example));
    }
    if policy.long_answer == OnLongAnswer::Skip {
        return Ok(Answer::Skipped(LONG_ANSWER));
    }
    example.answer_ids.truncate(max_seq_len - prompt);
    Ok(Answer::Cut(example))
}

/// What is wrong with the answer `last` of a chat; an answer that isn't the last turn is named by its number.
fn of_turn((chat, last): (&Chat, usize), reason: String) -> String {
    match last + 1 == chat.turns.len() {
        true => reason,
        false => format!("turn {} of {}: {reason}", last + 1, chat.turns.len()),
    }
}

/// The example of a chat up to the turn `last`, which is its answer.
fn example(row: &Row, (chat, last): (&Chat, usize), reading: &Reading, notes: &mut RowNotes) -> Result<Example> {
    let text = reading.text;
    let turns = &chat.turns[..=last];
    let wrong = |reason: &str| row.wrong(of_turn((chat, last), reason.to_owned()));
    if turns[last].is_empty() {
        return Err(wrong("the answer is empty; set its weight to 0, or give it an answer"));
    }
    let rendered = text.example_with_typed(turns, chat.tools.as_ref());
    let (example, typed) = rendered.map_err(|error| with_turn_without_content(error, turns))?;
    let mask = reading.mask_token_id;
    let has_mask = example.prompt_ids.iter().chain(&example.answer_ids).any(|id| *id == mask);
    if has_mask || typed.iter().any(|token| text.token_id(token) == Some(mask)) {
        return Err(wrong(HAS_MASK));
    }
    typed.into_iter().for_each(|token| _ = notes.typed.insert(token));
    if example.answer_ids.len() <= 1 && last + 1 == chat.turns.len() {
        return Err(wrong("the chat template renders the answer as nothing; set its weight to 0, or give it a text"));
    }
    let (ends, (_, before_end)) =
        (text.end_token_ids(), example.answer_ids.split_last().expect("it has its end token"));
    if before_end.iter().any(|id| ends.contains(id)) {
        return Err(wrong("the answer contains an end token before its end; remove it"));
    }
    Ok(example)
}

/// An error of the chat template, with the turn that may have caused it: one that calls tools and has no content.
fn with_turn_without_content(error: Error, turns: &[Turn]) -> Error {
    let without = turns.iter().position(|turn| turn.content.is_none());
    match (error, without) {
        (Error::Config { path, reason }, Some(turn)) => {
            let (turn, of) = (turn + 1, turns.len());
            let reason = format!("{reason} (turn {turn} of {of} has no content beside its tool calls; give it \"\")");
            Error::Config { path, reason }
        }
        (error, _) => error,
    }
}
