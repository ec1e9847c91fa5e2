//! Answers the rows of a file into another file, for `weft generate --data`. It goes on where it stopped: rows whose
//! answers are in the output are not asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use super::asked::turns_of_row;
use super::generations::batch_sizes;
use crate::base::Base;
use crate::counted::counted;
use crate::data::bad_rows::{BadRow, BadRows, of_reader};
use crate::data::notes::Notes;
use crate::data::prompt;
use crate::data::settings::{OnRow, RowPolicy};
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
    /// The split where the rows are a folder or a data set of the hub; default: test.
    pub split: Option<String>,
    /// What happens to rows that can't be asked.
    pub on_bad_row: OnRow,
}

/// How many rows were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Rows whose answers were in the output already.
    pub before: usize,
    /// Rows that were answered now.
    pub now: usize,
    /// Rows that can't be asked and are skipped.
    pub skipped: usize,
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

/// Answers every row of `data` and appends it to `out` with all its keys and its answer under `generation`. Batching,
/// stopping and skipping change no answer: a row's draws belong to its number.
///
/// # Errors
/// All rows that ask nothing or contain a mask token, before any row is answered, unless such rows are skipped; an output
/// file of other rows, or with answers that this model and these options don't give; a file that can't be read or written.
pub fn answer_rows(base: &Base, (data, out): (&Path, &Path), asking: &Asking, progress: &Progress) -> Result<Answered> {
    asking.sampling.for_model(&base.model.config).check()?;
    if out.canonicalize().is_ok_and(|out| data.canonicalize().is_ok_and(|data| data == out)) {
        return Err(Error::Usage(format!("--out {} is the file of --data; name another one", out.display())));
    }
    let policy = RowPolicy { bad_row: asking.on_bad_row, ..RowPolicy::default() };
    let source = Source { policy, ..Source::at(data, asking.split.as_deref().unwrap_or("test")) };
    let mut rows = (0..).zip(source.rows()?);
    let mut passed = Passed::default();
    passed.answered((base, asking), &mut rows, out)?;
    let first = passed.rows;
    // All bad rows are reported before the first answer is computed.
    passed.check((base, asking), rows, &source)?;
    passed.check_answers((base, asking), out)?;
    let mut answered = Answered { before: passed.answers, skipped: passed.bad.len(), ..Answered::default() };
    let mut waiting: Vec<Asked> = vec![];
    let mut file: Option<File> = None;
    let mut idle: [BTreeMap<String, usize>; 2] = Default::default();
    let rows = (0..).zip(source.rows()?).skip(first);
    for (index, row) in rows.filter(|(index, _)| !passed.bad.contains(index)) {
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
    answered.told = passed.notes.lines().into_iter().chain(told(idle, asking.raw.is_some())).collect();
    match answered.before + answered.now {
        0 => Err(Error::Config { path: data.to_owned(), reason: passed.nothing() }),
        _ => Ok(answered),
    }
}

/// The rows that are passed over before the first one is asked.
#[derive(Default)]
struct Passed {
    /// The number of rows up to the last one that is answered in the output.
    rows: usize,
    /// The number of answers in the output.
    answers: usize,
    /// The indices of the rows that can't be asked and are skipped.
    bad: BTreeSet<u64>,
    /// Why they are skipped.
    notes: Notes,
    /// The first and the last row that are answered in the output, with their lines there and their answers.
    asked_again: Vec<(Asked, usize, String)>,
}

impl Passed {
    /// Passes over the rows whose answers are in `out`, each of which must be the row that it answers. A last line that a
    /// crash left unfinished is removed.
    fn answered(
        &mut self,
        (base, asking): (&Base, &Asking),
        rows: &mut impl Iterator<Item = (u64, Result<Row>)>,
        out: &Path,
    ) -> Result<()> {
        if !out.exists() {
            return Ok(());
        }
        if out.is_dir() {
            return Err(Error::Usage(format!("--out {} is a folder; name a file", out.display())));
        }
        let written = fs::read(out).map_err(|source| Error::Read { path: out.to_owned(), source })?;
        let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in written[..whole].split_inclusive(|byte| *byte == b'\n') {
            self.answers += 1;
            let answered = answered_row(line);
            loop {
                let Some((index, row)) = rows.next() else { return Err(other_row(out, self.answers)) };
                self.rows += 1;
                if let (Ok(row), Some((fields, answer))) = (&row, &answered)
                    && row.fields == *fields
                {
                    self.asked_again.truncate(1);
                    self.asked_again.push((ask(base, row, index, asking)?, self.answers, answer.clone()));
                    break;
                }
                match read((base, asking), (index, row))? {
                    Some(bad) if asking.on_bad_row == OnRow::Skip => self.skip(index, &bad),
                    _ => return Err(other_row(out, self.answers)),
                }
            }
        }
        self.notes.rows = self.rows;
        if whole < written.len() {
            let file = OpenOptions::new().write(true).open(out).and_then(|file| file.set_len(whole as u64));
            file.map_err(|source| Error::Write { path: out.to_owned(), source })?;
        }
        Ok(())
    }

    /// Passes over the rows that can't be asked, or returns an error that lists them.
    fn check(
        &mut self,
        (base, asking): (&Base, &Asking),
        rows: impl Iterator<Item = (u64, Result<Row>)>,
        source: &Source,
    ) -> Result<()> {
        let mut bad = BadRows::default();
        for (index, row) in rows {
            match read((base, asking), (index, row))? {
                Some(row) if row.is_skipped(source.policy) => self.skip(index, &row),
                Some(row) => bad.push(row),
                None => {}
            }
            bad.rows += 1;
        }
        self.notes.rows += bad.rows;
        match bad.is_empty() {
            true => Ok(()),
            false => Err(bad.into_error_of_option(&source.name())),
        }
    }

    /// Asks the first and the last answered row again: other answers show that the output was made in another way.
    fn check_answers(&mut self, (base, asking): (&Base, &Asking), out: &Path) -> Result<()> {
        for (asked, line, answer) in self.asked_again.drain(..) {
            let prompt = Prompt { ids: &asked.ids, example: asked.index };
            let output = generate(&base.model, &[prompt], &asking.sampling)?.remove(0);
            if shown(base, &output.ids[asked.ids.len()..], asking.keep_special_tokens) != answer {
                let reason = "the model and the options of this command give another answer, so this file was made in \
                              another way; name another file as --out, or remove this one";
                return Err(Error::Row { path: out.to_owned(), line, reason: reason.to_owned() });
            }
        }
        Ok(())
    }

    fn skip(&mut self, index: u64, row: &BadRow) {
        self.bad.insert(index);
        self.notes.skip(&row.reason(), &row.place);
    }

    /// Why nothing was asked.
    fn nothing(&self) -> String {
        match self.notes.most_skipped(|_| true) {
            Some(most) => format!("all its {} are skipped, {most}; fix the rows", counted(self.notes.rows, "row")),
            None => "it has no rows; give a row per question".to_owned(),
        }
    }
}

/// The row that a line of the output answers, and the answer; `None` if the line is no answer.
fn answered_row(line: &[u8]) -> Option<(Fields, String)> {
    let mut answered: Fields = serde_json::from_slice(line).ok()?;
    match answered.remove(GENERATION) {
        Some(Value::String(answer)) => Some((answered, answer)),
        _ => None,
    }
}

/// The error for a line of the output that answers another row than the one at its place.
fn other_row(out: &Path, line: usize) -> Error {
    let reason = "it is not the answer to the same row of --data; name another file as --out, or remove this one";
    Error::Row { path: out.to_owned(), line, reason: reason.to_owned() }
}

/// Why a row can't be asked; `None` if it can be.
fn read((base, asking): (&Base, &Asking), (index, row): (u64, Result<Row>)) -> Result<Option<BadRow>> {
    match row {
        Err(error) => of_reader(error).map(Some),
        Ok(row) => Ok(ask(base, &row, index, asking).err().map(|error| BadRow::new(error, row.place()))),
    }
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
