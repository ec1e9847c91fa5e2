//! Answers the rows of a file into another file, for `weft generate --data`. It goes on where it stopped: rows whose
//! answers are in the output are not asked again.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use indicatif::ProgressBar;
use serde_json::Value;

use super::asked::turns_of_row;
use super::generations::batch_sizes;
use crate::base::Base;
use crate::data::sources::{Fields, Row, Source};
use crate::error::{Error, Result};
use crate::files::make_folder;
use crate::sampler::generate::{Prompt, Sampling, generate};

/// The key under which a row's answer is written: `weft score` reads it there.
const GENERATION: &str = "generation";

/// How rows are asked, and how their answers are written.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The sampler's settings.
    pub sampling: Sampling,
    /// A system turn for every row.
    pub system: Option<String>,
    /// Whether a row's only turn is given to the model as it is, without the chat template.
    pub raw: bool,
    /// Whether special tokens are written.
    pub keep_special_tokens: bool,
}

/// How many rows were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Rows whose answers were in the output already.
    pub before: usize,
    /// Rows that were answered now.
    pub now: usize,
    /// The most tokens of a prompt and its answer.
    pub longest: usize,
}

/// A row to be answered, with its tokens and its index.
struct Asked {
    fields: Fields,
    ids: Vec<u32>,
    index: u64,
}

/// Answers every row of `data` and appends it to `out` with all its keys and its answer under `generation`. Batching and
/// stopping change no answer: a row's draws belong to its number.
///
/// # Errors
/// A row that asks nothing, or holds a mask token; an output of other rows; a file that can't be read or written.
pub fn answer_rows(base: &Base, (data, out): (&Path, &Path), asking: &Asking, bar: &ProgressBar) -> Result<Answered> {
    asking.sampling.for_logits(base.model.config.logits_shifted).check().map_err(Error::Usage)?;
    if out.canonicalize().is_ok_and(|out| data.canonicalize().is_ok_and(|data| data == out)) {
        return Err(Error::Usage(format!("--out {} is the file of --data; name another one", out.display())));
    }
    let mut rows = Source::at(data, "test").rows()?;
    let before = skip_answered(&mut rows, out)?;
    let mut answered = Answered { before, ..Answered::default() };
    let mut waiting: Vec<Asked> = vec![];
    let mut file: Option<File> = None;
    for (index, row) in (before as u64..).zip(rows) {
        waiting.push(ask(base, &row?, index, asking)?);
        let lengths: Vec<usize> = waiting.iter().map(|asked| asked.ids.len()).collect();
        answered.longest = answered.longest.max(lengths.last().unwrap_or(&0) + asking.sampling.gen_length);
        // The row that begins another batch shows that this one is full.
        if let [size, _] = batch_sizes(&lengths, asking.sampling.gen_length)[..] {
            let batch: Vec<Asked> = waiting.drain(..size).collect();
            write(base, batch, asking, (out, &mut file))?;
            answered.now += size;
            bar.inc(size as u64);
        }
    }
    let size = waiting.len();
    if size > 0 {
        write(base, waiting, asking, (out, &mut file))?;
        answered.now += size;
    }
    bar.finish_and_clear();
    match answered.before + answered.now {
        0 => Err(Error::Config { path: data.to_owned(), reason: "it has no rows; give a row per question".to_owned() }),
        _ => Ok(answered),
    }
}

/// Passes over the rows whose answers are in `out`, each of which must be the row that it answers; returns their number.
/// A last line that a crash left unfinished is removed.
fn skip_answered(rows: &mut impl Iterator<Item = Result<Row>>, out: &Path) -> Result<usize> {
    if !out.exists() {
        return Ok(0);
    }
    if out.is_dir() {
        return Err(Error::Usage(format!("--out {} is a folder; name a file", out.display())));
    }
    let written = fs::read(out).map_err(|source| Error::Read { path: out.to_owned(), source })?;
    let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut count = 0;
    for line in written[..whole].split_inclusive(|byte| *byte == b'\n') {
        count += 1;
        let row = rows.next().transpose()?;
        let answered: Option<Fields> = serde_json::from_slice(line).ok();
        let is_answer = row.zip(answered).is_some_and(|(row, mut answered)| {
            answered.remove(GENERATION).is_some_and(|answer| answer.is_string()) && answered == row.fields
        });
        if !is_answer {
            let reason =
                "it is not the answer to the same row of --data; name another file as --out, or remove this one";
            return Err(Error::Row { path: out.to_owned(), line: count, reason: reason.to_owned() });
        }
    }
    if whole < written.len() {
        let file = OpenOptions::new().write(true).open(out).and_then(|file| file.set_len(whole as u64));
        file.map_err(|source| Error::Write { path: out.to_owned(), source })?;
    }
    Ok(count)
}

/// The tokens of a row's question.
fn ask(base: &Base, row: &Row, index: u64, asking: &Asking) -> Result<Asked> {
    row.check_halves()?;
    let wrong = |reason| row.wrong(reason);
    if row.fields.contains_key(GENERATION) {
        return Err(wrong(format!("the row has a key {GENERATION:?} of its own, where its answer belongs; rename it")));
    }
    let question = turns_of_row(&row.fields).map_err(wrong)?;
    let ids = match (asking.raw, &question.turns[..]) {
        (true, [turn]) => base.text.encode(turn.text())?,
        (true, _) => return Err(wrong("--raw takes rows of one turn, and this one has more; leave it out".to_owned())),
        (false, _) => {
            let question = match &asking.system {
                Some(system) => question.with_system(system).map_err(wrong)?,
                None => question,
            };
            base.text.prompt_ids_of_turns(&question.turns, question.tools.as_ref())?
        }
    };
    if ids.contains(&base.model.config.mask_token_id) {
        return Err(wrong("the prompt contains the mask token; remove it".to_owned()));
    }
    Ok(Asked { fields: row.fields.clone(), ids, index })
}

/// Answers a batch and appends it to the output, which is created with the first one.
fn write(base: &Base, batch: Vec<Asked>, asking: &Asking, (out, file): (&Path, &mut Option<File>)) -> Result<()> {
    let prompts: Vec<Prompt> = batch.iter().map(|asked| Prompt { ids: &asked.ids, example: asked.index }).collect();
    let outputs = generate(&base.model, &prompts, &asking.sampling).map_err(Error::Usage)?;
    let mut lines = String::new();
    for (mut asked, output) in batch.into_iter().zip(outputs) {
        let answer = shown(base, &output.ids[asked.ids.len()..], asking.keep_special_tokens);
        asked.fields.insert(GENERATION.to_owned(), answer.into());
        lines += &format!("{}\n", Value::Object(asked.fields));
    }
    let write_error = |source| Error::Write { path: out.to_owned(), source };
    if file.is_none() {
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder)?;
        }
        *file = Some(OpenOptions::new().create(true).append(true).open(out).map_err(write_error)?);
    }
    let opened = file.as_mut().expect("it was opened above");
    opened.write_all(lines.as_bytes()).and_then(|()| opened.sync_data()).map_err(write_error)
}

/// The text of an answer up to its first end token, perhaps with its special tokens.
pub fn shown(base: &Base, ids: &[u32], keeps_special_tokens: bool) -> String {
    if !keeps_special_tokens {
        return base.text.decode_answer(ids);
    }
    let ends = base.text.end_token_ids();
    let end = ids.iter().position(|id| ends.contains(id)).unwrap_or(ids.len());
    base.text.decode_canvas(&ids[..end])
}
