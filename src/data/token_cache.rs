//! A cache of tokens between runs. The key covers everything they depend on: the files' bytes, which rows, their form,
//! which rows and answers are skipped, tokenizer and chat template, the longest sequence. The cache lies in the user's
//! cache folder and not in a run folder, because the runs of a comparison share their rows. A damaged file counts as a
//! miss and is written anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use twox_hash::XxHash3_128;

use super::sources::Source;
use super::{Dataset, Example, Reading};
use crate::error::{Error, Result};
use crate::files::{content_hash, make_folder, user_cache, write_whole};

/// The magic at the start of a file. It also versions the tokenization: any change to that gets another number.
const MAGIC: &[u8; 16] = b"weft tokens v05\n";
/// The number of files that are kept, the most recently used ones.
const KEPT: usize = 32;
/// Sources with fewer tokens aren't cached, because tokenizing them takes no noticeable time.
const MIN_TOKENS: usize = 1 << 18;

/// A folder of cached tokens.
#[derive(Clone, Debug)]
pub struct TokenCache {
    folder: PathBuf,
    min_tokens: usize,
}

impl TokenCache {
    /// A cache that keeps sources of at least `min_tokens` tokens.
    pub fn new(folder: &Path, min_tokens: usize) -> Self {
        Self { folder: folder.to_owned(), min_tokens }
    }

    /// The user's cache, in [`user_cache`].
    pub(crate) fn of_user() -> Option<Self> {
        user_cache().map(|folder| Self::new(&folder.join("tokens"), MIN_TOKENS))
    }

    /// The cached tokens of some files under a key; `None` if they are missing, incomplete, or impossible for such a reading.
    pub(super) fn read(&self, key: u128, files: &[PathBuf], reading: &Reading) -> Option<Dataset> {
        let path = self.path(key);
        let mut dataset = decode(&fs::read(&path).ok()?, key).filter(|dataset| is_of(dataset, reading))?;
        dataset.notes = dataset.notes.with_places(|place| absolute(place, files))?;
        // The modification time is the time of the last use, which decides which files are dropped first.
        let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(dataset)
    }

    /// Stores tokens and drops the least recently used files. A failure costs only time and is reported as a warning.
    pub(super) fn keep(&self, (key, files): (u128, &[PathBuf]), dataset: &Dataset) {
        let tokens: usize = dataset.examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
        if tokens < self.min_tokens {
            return;
        }
        let written =
            make_folder(&self.folder).and_then(|()| write_whole(&self.path(key), &encode(key, dataset, files)));
        if let Err(error) = written {
            eprintln!("warning: the tokens can't be cached for the next run: {error}");
            return;
        }
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        // Files that a crash left half written are dropped in the same order.
        let is_ours = |path: &PathBuf| path.extension().is_some_and(|e| e == "tokens" || e == "partial");
        let used = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut files: Vec<(SystemTime, PathBuf)> = entries.filter(is_ours).map(|path| (used(&path), path)).collect();
        files.sort();
        for (_, old) in files.into_iter().rev().skip(KEPT) {
            // Another run may have dropped it.
            let _ = fs::remove_file(old);
        }
    }

    fn path(&self, key: u128) -> PathBuf {
        self.folder.join(format!("{key:032x}.tokens"))
    }
}

/// The key of a source's tokens, and the source's files.
///
/// # Errors
/// A file that can't be read.
pub(super) fn key(source: &Source, reading: &Reading) -> Result<(u128, Vec<PathBuf>)> {
    let mut hash = XxHash3_128::new();
    hash.write(MAGIC);
    let (Source { rows, format, policy, .. }, train_on) = (source, source.train_on.unwrap_or_default());
    let Reading { text, mask_token_id, max_seq_len, .. } = reading;
    let settings = format!(
        "{rows:?} {format:?} {train_on:?} {policy:?} {mask_token_id} {max_seq_len} {:032x}",
        text.content_key()
    );
    write_part(&mut hash, settings.as_bytes());
    // Settings that most sources don't use are hashed only if they are set, so that the keys of other sources don't change.
    if let Some(side) = source.side {
        write_part(&mut hash, format!("{side:?}").as_bytes());
    }
    let parts = source.parts()?;
    for (i, (files, most)) in parts.iter().enumerate() {
        if let Some(most) = most {
            write_part(&mut hash, format!("the first {most} of part {i} with {} files", files.len()).as_bytes());
        }
    }
    let files: Vec<PathBuf> = parts.into_iter().flat_map(|(files, _)| files).collect();
    for path in &files {
        let read_error = |source| Error::Read { path: path.clone(), source };
        // The same bytes mean something else in a file of another kind.
        write_part(&mut hash, path.extension().unwrap_or_default().as_encoded_bytes());
        hash.write(&content_hash(path).map_err(read_error)?.to_le_bytes());
    }
    Ok((hash.finish_128(), files))
}

/// A hash of several texts, each with its length.
pub(super) fn text_key(parts: &[&[u8]]) -> u128 {
    let mut hash = XxHash3_128::new();
    parts.iter().for_each(|part| write_part(&mut hash, part));
    hash.finish_128()
}

/// A hash of the tokens of examples, and of where their chats begin if answers are drawn.
pub(super) fn content_key(examples: &[Example], chats: Option<&[usize]>) -> u128 {
    let mut hash = XxHash3_128::new();
    chats.into_iter().flatten().for_each(|first| hash.write(&(*first as u64).to_le_bytes()));
    for ids in examples.iter().flat_map(|e| [&e.prompt_ids, &e.answer_ids]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        write_part(&mut hash, &bytes);
    }
    hash.finish_128()
}

fn write_part(hash: &mut XxHash3_128, part: &[u8]) {
    hash.write(&(part.len() as u64).to_le_bytes());
    hash.write(part);
}

/// Names the place of a row by the index of its file, since the same bytes may be another file's next time.
fn relative(place: &str, files: &[PathBuf]) -> Option<String> {
    let in_file = |file: &PathBuf| {
        let rest = place.strip_prefix(&file.display().to_string())?;
        (rest.starts_with(':') || rest.starts_with(" row ")).then(|| rest.to_owned())
    };
    files.iter().enumerate().find_map(|(i, file)| Some(format!("{i}{}", in_file(file)?)))
}

/// The place that [`relative`] made relative.
fn absolute(place: &str, files: &[PathBuf]) -> Option<String> {
    let (index, rest) = place.split_at(place.find(|c: char| !c.is_ascii_digit())?);
    Some(format!("{}{rest}", files.get(index.parse::<usize>().ok()?)?.display()))
}

/// Encodes magic, key, counts (of examples, cut answers, skipped rows, documents, starts, indices of skipped rows and bytes
/// of the notes), the lengths of prompts and answers, their ids, the row in which each example begins (if there are
/// starts), the skipped rows, the notes as JSON that spaces fill to a multiple of 4 bytes, and a hash of all that. Numbers
/// have 4 bytes, little-endian.
fn encode(key: u128, dataset: &Dataset, files: &[PathBuf]) -> Vec<u8> {
    let Dataset { examples, truncated, passed_over, documents, starts, skipped_rows, notes } = dataset;
    // A place that lies in none of the files can't be restored: reading this file again is a miss.
    let notes = notes.clone().with_places(|place| Some(relative(place, files).unwrap_or_default()));
    let mut notes = serde_json::to_vec(&notes).expect("notes are JSON");
    notes.resize(notes.len().next_multiple_of(4), b' ');
    let mut bytes = [MAGIC.as_slice(), &key.to_le_bytes()].concat();
    let mut write = |number: u32| bytes.extend(number.to_le_bytes());
    let lists = [starts.len(), skipped_rows.len(), notes.len()];
    let counts = [examples.len(), *truncated, *passed_over, *documents].into_iter().chain(lists);
    counts.for_each(|count| write(count as u32));
    for Example { prompt_ids, answer_ids } in examples {
        write(prompt_ids.len() as u32);
        write(answer_ids.len() as u32);
    }
    examples.iter().flat_map(|e| e.prompt_ids.iter().chain(&e.answer_ids)).for_each(|id| write(*id));
    starts.iter().chain(skipped_rows).for_each(|row| write(*row));
    bytes.extend(notes);
    let hash = XxHash3_128::oneshot(&bytes).to_le_bytes();
    bytes.extend(hash);
    bytes
}

fn decode(bytes: &[u8], key: u128) -> Option<Dataset> {
    let (body, hash) = bytes.split_last_chunk::<16>()?;
    let numbers = body.strip_prefix(MAGIC)?.strip_prefix(&key.to_le_bytes())?;
    if XxHash3_128::oneshot(body).to_le_bytes() != *hash {
        return None;
    }
    let (words, _) = numbers.as_chunks::<4>();
    let mut numbers = words.iter().map(|n| u32::from_le_bytes(*n));
    let mut next = || numbers.next().map(|n| n as usize);
    let [count, truncated, passed_over] = [next()?, next()?, next()?];
    let [documents, num_starts, num_skipped, bytes_of_notes] = [next()?, next()?, next()?, next()?];
    let lengths: Vec<[usize; 2]> = (0..count).map(|_| Some([next()?, next()?])).collect::<Option<_>>()?;
    let behind = numbers.len().checked_sub(lengths.iter().flatten().sum())?;
    if (num_starts != 0 && num_starts != count)
        || behind != num_starts.checked_add(num_skipped)?.checked_add(bytes_of_notes.div_ceil(4))?
    {
        return None;
    }
    let mut take = |len: usize| numbers.by_ref().take(len).collect();
    let examples =
        lengths.into_iter().map(|[prompt, answer]| Example { prompt_ids: take(prompt), answer_ids: take(answer) });
    let examples = examples.collect();
    let mut rows = |len: usize| numbers.by_ref().take(len).collect();
    let (starts, skipped_rows) = (rows(num_starts), rows(num_skipped));
    let notes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    let notes = serde_json::from_slice(&notes).ok()?;
    Some(Dataset { examples, truncated, passed_over, documents, starts, skipped_rows, notes })
}

/// Whether a reading could have made these tokens; the hash doesn't prove it, since whoever writes a file can write its
/// hash too.
fn is_of(dataset: &Dataset, reading: &Reading) -> bool {
    let is_of = |Example { prompt_ids, answer_ids }: &Example| {
        let mut ids = prompt_ids.iter().chain(answer_ids);
        let length = prompt_ids.len() + answer_ids.len();
        !answer_ids.is_empty() && length <= reading.max_seq_len && ids.all(|id| *id <= reading.text.last_id())
    };
    let rows = if dataset.documents > 0 { dataset.documents } else { dataset.examples.len() };
    let are_starts = dataset.starts.is_sorted() && dataset.starts.iter().all(|s| (*s as usize) < rows);
    let is_row = |row: &u32| (*row as usize) < dataset.notes.rows;
    let are_skipped = dataset.skipped_rows.is_sorted() && dataset.skipped_rows.iter().all(is_row);
    are_starts && are_skipped && !dataset.examples.is_empty() && dataset.examples.iter().all(is_of)
}
