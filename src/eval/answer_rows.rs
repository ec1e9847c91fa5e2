//! Answers the rows of a file into another file, for `weft generate --data`. It goes on where it stopped: rows whose
//! answers are in the output are not asked again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use super::asked::turns_of_row;
use super::generations::batch_sizes;
use crate::base::Base;
use crate::counted::counted;
use crate::data::bad_rows::{BadRow, BadRows, of_reader};
use crate::data::prompt;
use crate::data::sources::{Fields, Row, Source};
use crate::data::typed_tokens::SpecialTokens;
use crate::error::{Error, Result};
use crate::files::make_folder;
use crate::progress::Progress;
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
    /// Gives a row's only turn to the model as it is, without the chat template; the value says how special tokens in it are
    /// read.
    pub raw: Option<SpecialTokens>,
    /// Whether special tokens are written.
    pub keep_special_tokens: bool,
}

/// How many rows were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Rows whose answers were in the output already.
    pub before: usize,
    /// Rows that were answered now.
    pub now: usize,
    /// The most tokens of a prompt and its answer.
    pub longest: usize,
    /// The warnings about the rows that were answered in this call, one sentence each.
    pub told: Vec<String>,
}

/// A row to be answered, with its tokens and its index.
struct Asked {
    fields: Fields,
    ids: Vec<u32>,
    index: u64,
    /// The parts of the row that nothing reads, and its special tokens that are read as text.
    idle: [Vec<String>; 2],
}

/// Answers every row of `data` and appends it to `out` with all its keys and its answer under `generation`. Batching and
/// stopping change no answer: a row's draws belong to its number.
///
/// # Errors
/// All rows that ask nothing or contain a mask token, before any row is answered; an output file of other rows; a file that
/// can't be read or written.
pub fn answer_rows(base: &Base, (data, out): (&Path, &Path), asking: &Asking, progress: &Progress) -> Result<Answered> {
    asking.sampling.for_model(&base.model.config).check()?;
    if out.canonicalize().is_ok_and(|out| data.canonicalize().is_ok_and(|data| data == out)) {
        return Err(Error::Usage(format!("--out {} is the file of --data; name another one", out.display())));
    }
    let source = Source::at(data, "test");
    let mut rows = source.rows()?;
    let before = skip_answered(&mut rows, out)?;
    // All bad rows are reported before the first answer is computed.
    check_rows(base, (rows, before as u64), asking, &source)?;
    let rows = source.rows()?.skip(before);
    let mut answered = Answered { before, ..Answered::default() };
    let mut waiting: Vec<Asked> = vec![];
    let mut file: Option<File> = None;
    let mut idle: [BTreeMap<String, usize>; 2] = Default::default();
    for (index, row) in (before as u64..).zip(rows) {
        let mut asked = ask(base, &row?, index, asking)?;
        for (counts, names) in idle.iter_mut().zip(std::mem::take(&mut asked.idle)) {
            names.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
        }
        waiting.push(asked);
        let lengths: Vec<usize> = waiting.iter().map(|asked| asked.ids.len()).collect();
        answered.longest = answered.longest.max(lengths.last().unwrap_or(&0) + asking.sampling.gen_length);
        // The row that begins another batch shows that this one is full.
        if let [size, _] = batch_sizes(&lengths, asking.sampling.gen_length)[..] {
            let batch: Vec<Asked> = waiting.drain(..size).collect();
            write(base, batch, asking, (out, &mut file))?;
            answered.now += size;
            progress.add(size as u64);
        }
    }
    let size = waiting.len();
    if size > 0 {
        write(base, waiting, asking, (out, &mut file))?;
        answered.now += size;
    }
    progress.finish();
    answered.told = told(idle, asking.raw.is_some());
    match answered.before + answered.now {
        0 => Err(Error::Config { path: data.to_owned(), reason: "it has no rows; give a row per question".to_owned() }),
        _ => Ok(answered),
    }
}

/// Returns an error that lists the rows that can't be asked, if there are any; the first row has the given index.
fn check_rows(
    base: &Base,
    (rows, first): (impl Iterator<Item = Result<Row>>, u64),
    asking: &Asking,
    source: &Source,
) -> Result<()> {
    let mut bad = BadRows::default();
    for (index, row) in (first..).zip(rows) {
        match row {
            Err(error) => bad.push(of_reader(error)?),
            Ok(row) => {
                let asked = ask(base, &row, index, asking);
                asked.err().into_iter().for_each(|error| bad.push(BadRow::new(error, row.place())));
            }
        }
        bad.rows += 1;
    }
    match bad.is_empty() {
        true => Ok(()),
        false => Err(bad.into_error_without_skipping(&source.name())),
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
    let question = turns_of_row(&row.fields).map_err(|e| wrong(e.to_string()))?;
    let (prompt, unread) = match (asking.raw, &question.turns[..]) {
        (Some(special_tokens), [turn]) => {
            let tools = question.tools.as_ref().map(|_| "tools".to_owned());
            (base.text.prompt_of_text(turn.text(), special_tokens)?, tools.into_iter().collect())
        }
        (Some(_), _) => {
            return Err(wrong("--raw takes rows of one turn, and this one has more; leave it out".to_owned()));
        }
        (None, _) => {
            let question = match &asking.system {
                Some(system) => question.with_system(system).map_err(|e| wrong(e.to_string()))?,
                None => question,
            };
            let tools = question.tools.as_ref();
            (base.text.prompt_of_turns(&question.turns, tools)?, base.text.unread(&question.turns, tools))
        }
    };
    let prompt::Prompt { ids, typed } = prompt;
    let mask = base.model.config.mask_token_id;
    if ids.contains(&mask) || typed.iter().any(|token| base.text.token_id(token) == Some(mask)) {
        return Err(wrong("the prompt contains the mask token; remove it".to_owned()));
    }
    Ok(Asked { fields: row.fields.clone(), ids, index, idle: [unread, typed] })
}

/// The warnings about rows: the parts that nothing reads, and the special tokens that are read as text, each with its
/// number of rows.
fn told([unread, typed]: [BTreeMap<String, usize>; 2], is_raw: bool) -> Vec<String> {
    let list = |counts: &BTreeMap<String, usize>| {
        counts.iter().map(|(name, count)| format!("{name} ({})", counted(*count, "row"))).collect::<Vec<_>>().join(", ")
    };
    let unread = (!unread.is_empty()).then(|| match is_raw {
        true => format!("--raw leaves out {}", list(&unread)),
        false => format!("the chat template does not read {}", list(&unread)),
    });
    let typed = (!typed.is_empty()).then(|| {
        let tokens = list(&typed);
        format!("special tokens in prompts are read as text: {tokens}; --special-tokens tokens reads them as tokens")
    });
    unread.into_iter().chain(typed).collect()
}

/// Answers a batch and appends it to the output, which is created with the first one.
fn write(base: &Base, batch: Vec<Asked>, asking: &Asking, (out, file): (&Path, &mut Option<File>)) -> Result<()> {
    let prompts: Vec<Prompt> = batch.iter().map(|asked| Prompt { ids: &asked.ids, example: asked.index }).collect();
    let outputs = generate(&base.model, &prompts, &asking.sampling)?;
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
