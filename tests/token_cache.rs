//! Tokens kept from run to run: a hit where nothing has changed, a miss where anything has, and damaged files that are
//! made anew.

mod scratch;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use scratch::folder;
use serde_json::json;
use weft::data::chat_template::TextModel;
use weft::data::settings::TrainOn;
use weft::data::sources::Source;
use weft::data::token_cache::TokenCache;
use weft::data::{Dataset, Reading, load, tokenizer};

/// A tokenizer with that many tokens.
fn text(folder: &Path, vocab_size: usize) -> TextModel {
    let folder = folder.join(format!("text-{vocab_size}"));
    tokenizer::train(&folder, &["What is 7 + 5? It is 12. It is.".to_owned()], vocab_size).expect("it trains");
    TextModel::open(&folder).expect("it opens")
}

fn rows(folder: &Path, name: &str) -> Source {
    let row = |i: usize| {
        json!({ "prompt": format!("What is {i} + 5?"), "response": (i + 5).to_string(),
                                 "question": "?", "answer": "12 12 12 12 12 12 12 12" })
    };
    let lines: String = (0..20).map(|i| format!("{}\n", row(i))).collect();
    fs::write(folder.join(name), lines).expect("the rows are written");
    Source::at(&folder.join(name), "train")
}

fn reading<'a>(text: &'a TextModel, folder: &Path) -> Reading<'a> {
    let mask_token_id = text.token_id(tokenizer::MASK).expect("the tokenizer has it");
    Reading { text, mask_token_id, max_seq_len: 100, cache: Some(TokenCache::new(&folder.join("tokens"), 1)) }
}

/// The cache's files; a file that is written again is another inode.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(folder.join("tokens")).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|e| (e.path(), e.metadata().expect("it is there").ino())).collect();
    files.sort();
    files
}

#[test]
fn unchanged_rows_hit_and_changed_ones_miss() {
    let folder = folder("keys");
    let (text_model, source) = (text(&folder, 300), rows(&folder, "rows.jsonl"));
    let base = reading(&text_model, &folder);
    let fresh = load(&source, &Reading { cache: None, ..reading(&text_model, &folder) }).expect("it is read");
    assert_eq!(load(&source, &base).expect("it is read"), fresh);
    let first = files(&folder);
    assert_eq!(first.len(), 1);
    assert_eq!(load(&source, &base).expect("it is read"), fresh);
    assert_eq!(files(&folder), first, "nothing is written for a hit");
    // The same content under another name and split is the same.
    assert_eq!(load(&rows(&folder, "copy.jsonl"), &base).expect("it is read"), fresh);
    assert_eq!(files(&folder), first);

    let mut known = first.len();
    let mut misses = |what: &str, source: &Source, reading: &Reading| {
        let read = load(source, reading).expect(what);
        let Reading { text, mask_token_id, max_seq_len, .. } = *reading;
        let uncached = Reading { text, mask_token_id, max_seq_len, cache: None };
        assert_eq!(read, load(source, &uncached).expect(what), "{what}");
        known += 1;
        assert_eq!(files(&folder).len(), known, "{what} is a miss");
        assert_eq!(load(source, reading).expect(what), read, "{what}: a hit from then on");
        assert_eq!(files(&folder).len(), known, "{what}: a hit from then on");
    };
    let form = serde_json::from_value(json!("gsm8k")).expect("a form");
    misses("a form", &Source { format: Some(form), ..source.clone() }, &base);
    let slice = serde_json::from_value(json!("3:7")).expect("a slice");
    misses("a slice", &Source { rows: Some(slice), ..source.clone() }, &base);
    let all = Source { train_on: Some(TrainOn::All), ..source.clone() };
    misses("the turns trained on", &all, &reading(&text_model, &folder));
    misses("a length", &source, &Reading { max_seq_len: 30, ..reading(&text_model, &folder) });
    misses("a mask token", &source, &Reading { mask_token_id: 1 << 20, ..reading(&text_model, &folder) });
    let other = text(&folder, 262);
    misses("a tokenizer", &source, &reading(&other, &folder));
    let template = folder.join("text-300/chat_template.jinja");
    fs::write(&template, "{% for m in messages %}{{ m.content }} {% endfor %}").expect("it is written");
    let templated = TextModel::open(&folder.join("text-300")).expect("it opens");
    misses("a template", &source, &reading(&templated, &folder));
    let content = fs::read_to_string(source.path.to_path()).expect("it is there");
    fs::write(source.path.to_path(), content.replacen("\"6\"", "\"7\"", 1)).expect("it is written");
    misses("a byte of the file", &source, &base);
}

#[test]
fn damaged_tokens_are_made_anew() {
    let folder = folder("damaged");
    let (text_model, source) = (text(&folder, 300), rows(&folder, "rows.jsonl"));
    let base = reading(&text_model, &folder);
    let fresh: Dataset = load(&source, &base).expect("it is read");
    let path = files(&folder)[0].0.clone();
    let whole = fs::read(&path).expect("it is there");
    let cut = |len: usize| whole[..len].to_vec();
    let mut damaged: Vec<Vec<u8>> = [0, 5, 16, 40, whole.len() - 1].into_iter().map(cut).collect();
    damaged.push([whole.as_slice(), &[0]].concat());
    damaged.extend((0..whole.len()).step_by(37).map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        flipped
    }));
    for bytes in damaged {
        fs::write(&path, &bytes).expect("it is written");
        assert_eq!(load(&source, &base).expect("it is read"), fresh);
        assert_eq!(fs::read(&path).expect("it is there"), whole, "it is written anew");
    }
    // Another key's file under this name is no hit.
    let other = Reading { max_seq_len: 30, ..reading(&text_model, &folder) };
    load(&source, &other).expect("it is read");
    let others = files(&folder).into_iter().map(|(file, _)| file).find(|file| *file != path).expect("there are two");
    fs::copy(&others, &path).expect("it is copied");
    assert_eq!(load(&source, &base).expect("it is read"), fresh);
}

#[test]
fn few_files_are_kept_and_few_tokens_are_not() {
    let folder = folder("kept");
    let (text_model, source) = (text(&folder, 300), rows(&folder, "rows.jsonl"));
    for max_seq_len in 60..100 {
        load(&source, &Reading { max_seq_len, ..reading(&text_model, &folder) }).expect("it is read");
    }
    assert_eq!(files(&folder).len(), 32);
    let last = files(&folder);
    load(&source, &Reading { max_seq_len: 99, ..reading(&text_model, &folder) }).expect("it is read");
    assert_eq!(files(&folder), last, "the latest used are those that are kept");
    let cache = TokenCache::new(&folder.join("few"), 1 << 18);
    load(&source, &Reading { cache: Some(cache), ..reading(&text_model, &folder) }).expect("it is read");
    assert!(!folder.join("few").exists());
    // A folder that can't be written costs time, not the run.
    let cache = TokenCache::new(&source.path.to_path().join("no-folder"), 1);
    load(&source, &Reading { cache: Some(cache), ..reading(&text_model, &folder) }).expect("it is read");
}

#[test]
fn tokens_that_no_reading_makes_are_no_hit() {
    let folder = folder("forged");
    let (text_model, source) = (text(&folder, 300), rows(&folder, "rows.jsonl"));
    let base = reading(&text_model, &folder);
    let fresh: Dataset = load(&source, &base).expect("it is read");
    let path = files(&folder)[0].0.clone();
    let whole = fs::read(&path).expect("it is there");
    let (ends, last) = (text_model.eos_token_id(), text_model.last_id());
    for (what, numbers) in [
        ("no example", vec![0, 0, 0]),
        ("more examples than lengths", vec![u32::MAX, 0, 0, 1, 1]),
        ("lengths past the end", vec![1, 0, 0, u32::MAX, u32::MAX, 1, 2]),
        ("fewer tokens than lengths", vec![1, 0, 0, 1, 2, 5, ends]),
        ("more tokens than lengths", vec![1, 0, 0, 1, 1, 5, ends, ends]),
        ("no answer", vec![1, 0, 0, 2, 0, 5, ends]),
        ("a token that the tokenizer lacks", vec![1, 0, 0, 1, 1, last + 1, ends]),
        ("a longer sequence", [vec![1, 0, 0, 100, 1], vec![5; 100], vec![ends]].concat()),
    ] {
        let numbers: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        let mut forged = [&whole[..32], &numbers].concat();
        let hash = twox_hash::XxHash3_128::oneshot(&forged).to_le_bytes();
        forged.extend(hash);
        fs::write(&path, &forged).expect("it is written");
        assert_eq!(load(&source, &base).expect("it is read"), fresh, "{what}");
        assert_eq!(fs::read(&path).expect("it is there"), whole, "{what}: it is written anew");
    }
}
