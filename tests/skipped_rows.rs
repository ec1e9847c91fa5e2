//! Rows that can't be used as they are: reported all at once, or skipped, which is the same as a file without them; what is
//! said of them, from the cache too; and rows that are both trained on and held out.

mod scratch;

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use scratch::folder;
use serde_json::json;
use weft::data::chat_template::TextModel;
use weft::data::settings::{OnLongAnswer, OnRow, RowPolicy, TrainOn};
use weft::data::sources::{MAX_LINE_BYTES, Source};
use weft::data::token_cache::TokenCache;
use weft::data::{Dataset, Reading, load, load_mixed, place, tokenizer};
use weft::eval::Task;
use weft::eval::any_task::AnyTask;

/// The longest sequence of these tests, and a word that is longer.
const MAX_SEQ_LEN: usize = 60;

const SKIP: RowPolicy = RowPolicy { bad_row: OnRow::Skip, long_prompt: OnRow::Skip, long_answer: OnLongAnswer::Skip };

fn text_model(folder: &Path) -> TextModel {
    tokenizer::train(&folder.join("text"), &["one two three".to_owned()], 300).expect("the tokenizer trains");
    TextModel::open(&folder.join("text")).expect("the tokenizer opens")
}

fn reading(text: &TextModel) -> Reading<'_> {
    let mask_token_id = text.token_id(tokenizer::MASK).expect("it has one");
    Reading { text, mask_token_id, max_seq_len: MAX_SEQ_LEN, cache: None }
}

fn source(path: &Path, policy: RowPolicy) -> Source {
    Source { policy, ..Source::at(path, "train") }
}

fn pair(prompt: &str, response: &str) -> String {
    json!({ "prompt": prompt, "response": response }).to_string()
}

/// A chat of so many answers.
fn chat(answers: usize) -> String {
    let turn = |role: &str, content: String| json!({ "role": role, "content": content });
    let turns = (0..answers).flat_map(|i| [turn("user", format!("q{i}")), turn("assistant", format!("a{i}"))]);
    json!({ "messages": turns.collect::<Vec<_>>() }).to_string()
}

/// Lines that can't be used, and what is said of them.
fn bad_lines() -> Vec<(Vec<u8>, &'static str)> {
    let long = "x".repeat(200);
    let line = |line: &str| line.as_bytes().to_vec();
    vec![
        (line("{\"prompt\": "), "not JSON (EOF while parsing a value at column 11)"),
        (line("[3]"), "not a JSON object"),
        (b"{\"prompt\": \"\xff\"}".to_vec(), "byte 13 is not UTF-8"),
        (line("{\"prompt\": \"a\", \"prompt\": \"b\"}"), "the key \"prompt\" appears twice at column 24"),
        (line("{\"id\": 3}"), "the keys [\"id\"] match no known format"),
        (line(&pair("a", " ")), "the answer is empty"),
        (line("{\"prompt\": \"a\", \"response\": null}"), "response is null"),
        (line("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}"), "messages ends with a turn of user"),
        (line(&pair("a", "<|mdm_mask|>")), "the text contains the model's mask token"),
        (line(&pair("a", "b<|eot_id|>c")), "the answer contains an end token before its end"),
        (
            line("{\"text\": \"a plain text\"}"),
            "of this row and the first one, one is a plain text and the other a conversation",
        ),
        (line(&pair(&long, "a")), "the prompt leaves no room for an answer within data.max_seq_len"),
        (line(&pair("a", &long)), "prompt and answer together are longer than data.max_seq_len"),
    ]
}

fn write(path: &Path, lines: &[&[u8]]) {
    let bytes = lines.join(&b'\n');
    let name = path.display().to_string();
    let written = match () {
        () if name.ends_with(".gz") => {
            let mut file = GzEncoder::new(fs::File::create(path).expect("it is made"), Compression::fast());
            file.write_all(&bytes).and_then(|()| file.finish().map(drop))
        }
        () if name.ends_with(".zst") => zstd::encode_all(&*bytes, 1).and_then(|bytes| fs::write(path, bytes)),
        () => fs::write(path, bytes),
    };
    written.expect("it is written");
}

/// What must be equal for equal tokens.
fn tokens(dataset: &Dataset) -> (&[weft::data::Example], usize, usize, &[u32]) {
    (&dataset.examples, dataset.truncated, dataset.documents, &dataset.starts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn skipping_is_the_file_without_the_rows(
        rows in prop::collection::vec(0_usize..20, 1..30),
        name in prop::sample::select(vec!["rows.jsonl", "rows.jsonl.gz", "rows.json.zst"]),
        train_on in prop::sample::select(vec![TrainOn::Last, TrainOn::All, TrainOn::Drawn]),
        percent in 0_usize..=100,
    ) {
        let folder = folder("property");
        let (text, bad, good) = (text_model(&folder), bad_lines(), [pair("1 + 1?", "2"), chat(1), chat(2)]);
        // A first good row, which tells the kind of the others; it also makes JSONL of a file named .json.
        let is_bad = |i: &usize| *i < bad.len();
        let line = |i: &usize| if is_bad(i) { bad[*i].0.as_slice() } else { good[*i % good.len()].as_bytes() };
        let rows: Vec<usize> = [19, 19].into_iter().chain(rows).collect();
        let (with, without) = (folder.join(name), folder.join(format!("without-{name}")));
        write(&with, &rows.iter().map(line).collect::<Vec<_>>());
        write(&without, &rows.iter().filter(|i| !is_bad(i)).map(line).collect::<Vec<_>>());
        let read = |path: &Path, slice: Option<String>| {
            let rows = slice.map(|slice| serde_json::from_value(json!(slice)).expect("a slice"));
            let source = Source { train_on: Some(train_on), rows, ..source(path, SKIP) };
            load(&source, &reading(&text))
        };
        let (skipping, plain) = (read(&with, None).expect("it is read"), read(&without, None).expect("it is read"));
        prop_assert_eq!(tokens(&skipping), tokens(&plain));
        let skipped: Vec<u32> = (0..rows.len() as u32).filter(|i| is_bad(&rows[*i as usize])).collect();
        prop_assert_eq!(&skipping.skipped_rows, &skipped);
        prop_assert_eq!((skipping.passed_over, skipping.notes.rows), (skipped.len(), rows.len()));
        prop_assert_eq!(skipping.notes.num_skipped(), skipped.len());
        for (i, (_, reason)) in bad.iter().enumerate() {
            let count = rows.iter().filter(|row| **row == i).count();
            let Some(told) = skipping.notes.skipped.get(*reason) else {
                // Ten reasons are counted separately.
                prop_assert!(count == 0 || skipping.notes.skipped.contains_key("other reasons"), "{}", reason);
                continue;
            };
            prop_assert_eq!(told.count, count, "{}", reason);
            let first = 1 + rows.iter().position(|row| *row == i).expect("it is there");
            prop_assert_eq!(&told.first, &format!("{}:{first}", with.display()));
        }
        // Each example's row is found.
        let of_source = Source { train_on: Some(train_on), ..source(&with, SKIP) };
        let mixed = load_mixed(std::slice::from_ref(&of_source), &reading(&text)).expect("it is read");
        let expected = rows.iter().zip(1..).filter(|(i, _)| !is_bad(i)).flat_map(|(i, line)| {
            let answers = if *i % good.len() == 2 && train_on != TrainOn::Last { 2 } else { 1 };
            vec![line; answers]
        });
        for (example, line) in expected.enumerate() {
            let found = place(&of_source, mixed.parts[0].row_of(example)).expect("it is there");
            prop_assert_eq!(found, format!("{}:{line}", with.display()));
        }
        // Parts of a file are disjoint and leave nothing out.
        let parts = [format!(":{percent}%"), format!("{percent}%:")].map(|slice| read(&with, Some(slice)).ok());
        let examples: Vec<_> = parts.into_iter().flatten().flat_map(|part| part.examples).collect();
        if rows.iter().all(|i| *i != 10) {
            prop_assert_eq!(&examples, &plain.examples);
        }
    }
}

#[test]
fn all_bad_rows_are_told_at_once() {
    let folder = folder("told");
    let text = text_model(&folder);
    let path = folder.join("rows.jsonl");
    let told = |lines: &[&[u8]], policy: RowPolicy| {
        write(&path, lines);
        let error = load_mixed(&[source(&path, policy)], &reading(&text)).expect_err("it is refused");
        assert!(error.is_users());
        error.to_string().replace(&format!("{}/", folder.display()), "")
    };
    let (good, empty, long) = (pair("a", "b"), pair("a", ""), pair(&"x".repeat(200), "b"));
    let (good, empty, long) = (good.as_bytes(), empty.as_bytes(), long.as_bytes());
    let stop = RowPolicy::default();
    let of_empty = "the answer is empty; drop the row or give it an answer";
    assert_eq!(
        told(&[good, empty, good], stop),
        format!("rows.jsonl:2: {of_empty}; data.on_bad_row = \"skip\" skips and counts such rows")
    );
    assert_eq!(
        told(&[empty, good, b"{", empty], stop),
        format!(
            "3 rows of rows.jsonl can't be used:\n  rows.jsonl:1: {of_empty}\n  rows.jsonl:3: not JSON (EOF while parsing an \
             object at column 1); write one object per line\n  rows.jsonl:4: {of_empty}\nfix them, or \
             data.on_bad_row = \"skip\" skips and counts such rows"
        )
    );
    let many = told(&[&[good][..], &[empty; 13]].concat(), stop);
    let lines: Vec<&str> = many.lines().collect();
    assert_eq!((lines[0], lines.len()), ("13 rows of rows.jsonl can't be used:", 12));
    assert_eq!(lines[10], format!("  rows.jsonl:11: {of_empty}"));
    let last = "and 3 more; fix them, or data.on_bad_row = \"skip\" skips and counts such rows";
    assert_eq!(lines[11], last);
    // Each setting is named where it would help, and does.
    let of_prompt = "data.on_long_prompt = \"skip\" skips and counts such rows";
    assert!(told(&[good, long], stop).ends_with(&format!("shorten the prompt; {of_prompt}")));
    let both = told(&[good, long, empty], stop);
    assert!(
        both.ends_with("data.on_bad_row = \"skip\", data.on_long_prompt = \"skip\" skips and counts such rows"),
        "{both}"
    );
    let skips_bad = RowPolicy { bad_row: OnRow::Skip, ..stop };
    assert!(told(&[good, long, empty], skips_bad).starts_with("rows.jsonl:2: the prompt's "), "the other still stops");
    write(&path, &[good, long, empty]);
    let all = RowPolicy { long_prompt: OnRow::Skip, ..skips_bad };
    assert_eq!(load(&source(&path, all), &reading(&text)).expect("both are skipped").examples.len(), 1);
    // A file without any other rows is refused with a reason.
    let none = "rows.jsonl: all its 2 rows are skipped, for this reason: the answer is empty (the first in \
                rows.jsonl:1); fix the rows";
    assert_eq!(told(&[empty, empty], all), none);
}

#[test]
fn a_row_that_the_template_rejects_is_a_bad_row() {
    let folder = folder("rejected");
    text_model(&folder);
    let template = "{% for m in messages %}{% if 'q1' in m.content %}{{ raise_exception('no q1') }}{% endif %}{{ m.content }}\
                    {% endfor %}";
    fs::write(folder.join("text/chat_template.jinja"), template).expect("it is written");
    let text = TextModel::open(&folder.join("text")).expect("it opens");
    let path = folder.join("rows.jsonl");
    let told = |lines: &[String], policy: RowPolicy| {
        write(&path, &lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>());
        load(&source(&path, policy), &reading(&text)).map_err(|e| e.to_string())
    };
    let rows = [chat(1), chat(2), chat(1), chat(2)];
    let error = told(&rows, RowPolicy::default()).expect_err("two rows are rejected");
    let line = |line: usize| format!("\n  {}:{line}: ", path.display());
    assert!(error.contains(&line(2)) && error.contains(&line(4)) && error.contains("no q1"), "{error}");
    let read = told(&rows, SKIP).expect("two rows are left");
    assert_eq!((read.examples.len(), read.notes.num_skipped()), (2, 2));
    // A problem that every row has is reported once.
    let error = told(&[chat(2), chat(3)], RowPolicy::default()).expect_err("all are rejected");
    assert!(error.contains("no q1") && !error.contains('\n'), "{error}");
}

#[test]
fn lines_follow_one_that_is_too_long() {
    let folder = folder("long-line");
    let (text, path) = (text_model(&folder), folder.join("rows.jsonl"));
    let long = vec![b'x'; 2 * MAX_LINE_BYTES];
    let good = pair("a", "b");
    write(&path, &[good.as_bytes(), &long, good.as_bytes()]);
    let read = load(&source(&path, SKIP), &reading(&text)).expect("it is read");
    assert_eq!((read.examples.len(), read.skipped_rows), (2, vec![1]));
}

#[test]
fn damage_is_no_row_that_is_skipped() {
    let folder = folder("damage");
    let text = text_model(&folder);
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rows").join(name);
    let reading = Reading { max_seq_len: 1000, ..reading(&text) };
    let skipping = |path: &Path| load(&source(path, SKIP), &reading);
    // A row of null is a bad row, and the only one here.
    let null = skipping(&fixture("null.parquet")).expect_err("no row is left").to_string();
    assert!(null.contains("its only row is skipped") && null.contains("null.parquet row 1"), "{null}");
    let whole = fs::read(fixture("messages.parquet")).expect("it is there");
    assert_eq!(skipping(&fixture("messages.parquet")).expect("it is read").examples.len(), 8);
    let path = folder.join("rows.parquet");
    let mut in_the_middle = 0;
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0xff;
        fs::write(&path, &flipped).expect("it is written");
        let Ok(rows) = Source::at(&path, "train").rows() else { continue };
        let rows: Vec<bool> = rows.map(|row| row.is_ok()).collect();
        if rows.first() == Some(&true) && rows.last() == Some(&false) {
            in_the_middle += 1;
            let error = skipping(&path).expect_err("the rows behind the damage are lost").to_string();
            assert!(error.contains("the parquet file can't be read here"), "{error}");
        }
    }
    assert!(in_the_middle > 0, "some damage lies behind the first row");
    // What can't be decompressed to its end is no row either.
    let lines: Vec<String> = (0..2000).map(|i| pair(&format!("{i}?"), &i.to_string())).collect();
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    for name in ["rows.jsonl.gz", "rows.jsonl.zst"] {
        let path = folder.join(name);
        write(&path, &lines);
        let whole = fs::read(&path).expect("it is there");
        fs::write(&path, &whole[..whole.len() / 2]).expect("it is written");
        let error = skipping(&path).expect_err("a half").to_string();
        assert!(error.contains("can't be decompressed"), "{error}");
    }
}

#[test]
fn the_cache_tells_the_same() {
    let folder = folder("cache");
    let text = text_model(&folder);
    let long = pair("a", &"y ".repeat(60));
    let mut lines: Vec<Vec<u8>> = bad_lines().into_iter().map(|(line, _)| line).collect();
    lines.extend([long.as_bytes().to_vec(), pair("c", "d").into_bytes(), chat(3).into_bytes()]);
    lines.insert(0, pair("a", "b").into_bytes());
    let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    let cached = || Reading { cache: Some(TokenCache::new(&folder.join("tokens"), 1)), ..reading(&text) };
    let files = || fs::read_dir(folder.join("tokens")).map_or(0, Iterator::count);
    let cuts = RowPolicy { long_answer: OnLongAnswer::Cut, ..SKIP };
    let mut known = 0;
    for policy in [SKIP, cuts] {
        for train_on in [TrainOn::Last, TrainOn::All] {
            let of = |path: &Path| Source { train_on: Some(train_on), ..source(path, policy) };
            let path = folder.join("rows.jsonl");
            write(&path, &lines);
            let fresh = load(&of(&path), &reading(&text)).expect("it is read");
            assert_eq!(load(&of(&path), &cached()).expect("it is read"), fresh);
            known += 1;
            assert_eq!(files(), known, "each setting has tokens of its own");
            assert_eq!(load(&of(&path), &cached()).expect("it is read"), fresh, "a hit tells the same");
            // The same bytes elsewhere are a hit whose places are those of that file.
            let copy = folder.join("copy.jsonl");
            write(&copy, &lines);
            let hit = load(&of(&copy), &cached()).expect("it is read");
            assert_eq!(hit, load(&of(&copy), &reading(&text)).expect("it is read"));
            assert_eq!(files(), known);
            let told = hit.notes.lines().join("\n");
            assert!(told.contains("copy.jsonl:2)") && !told.contains("rows.jsonl"), "{told}");
            assert_eq!(hit.notes.cut_rows, if policy == cuts { 2 } else { 0 });
        }
    }
}

#[test]
fn answers_are_skipped_one_by_one() {
    let folder = folder("answers");
    let (text, path) = (text_model(&folder), folder.join("rows.jsonl"));
    let long = "z".repeat(200);
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let turns = [turn("user", "q"), turn("assistant", "a"), turn("user", "q"), turn("assistant", &long)];
    let row = json!({ "messages": turns }).to_string();
    let longer = [&turns[..], &[turn("user", "q"), turn("assistant", "a")]].concat();
    let behind = json!({ "messages": longer }).to_string();
    write(&path, &[row.as_bytes(), behind.as_bytes()]);
    let all = Source { train_on: Some(TrainOn::All), ..source(&path, SKIP) };
    let read = load(&all, &reading(&text)).expect("it is read");
    assert_eq!((read.examples.len(), read.passed_over, &*read.starts), (2, 0, &[0, 1][..]));
    let (at, prompt) = (path.display(), "the prompt leaves no room for an answer within data.max_seq_len");
    let answer = "prompt and answer together are longer than data.max_seq_len";
    let lines = [
        format!("2 answers skipped: {answer} (the first in {at}:1)"),
        format!("1 answer skipped: {prompt} (the first in {at}:2)"),
    ];
    assert_eq!(read.notes.lines(), lines);
    // Of a chat's last answer alone, nothing is left here.
    let error = load(&source(&path, SKIP), &reading(&text)).expect_err("both rows are skipped").to_string();
    assert!(error.contains("all its 2 rows are skipped, 1 of them for this reason"), "{error}");
}

#[test]
fn problems_skip_the_rows_that_held_out_rows_skip() {
    let folder = folder("problems");
    let path = folder.join("rows.jsonl");
    let good = json!({ "question": "1 + 1?", "answer": "#### 2" }).to_string();
    write(&path, &[good.as_bytes(), b"{", b"{\"question\": \"a\"}", good.as_bytes()]);
    assert_eq!(AnyTask::from(Task::Gsm8k).problems(&source(&path, SKIP)).expect("they are read").len(), 2);
    let error = AnyTask::from(Task::Gsm8k).problems(&Source::at(&path, "test")).expect_err("a row is bad").to_string();
    assert!(error.contains("rows.jsonl:2: not JSON"), "{error}");
    // A row that can be held out but not scored isn't skipped in silence.
    write(&path, &[good.as_bytes(), pair("a", "b").as_bytes()]);
    AnyTask::from(Task::Gsm8k).problems(&source(&path, SKIP)).expect_err("it is no problem of the task");
}

#[test]
fn a_tenth_is_not_more_than_a_tenth() {
    let folder = folder("tenth");
    let text = text_model(&folder);
    let path = folder.join("rows.jsonl");
    let good = pair("a", "b");
    let warning = |bad: usize| {
        write(&path, &[vec![good.as_bytes(); 10 - bad], vec![&b"{"[..]; bad]].concat());
        let mixed = load_mixed(&[source(&path, SKIP)], &reading(&text)).expect("it is read");
        mixed.warnings().collect::<Vec<_>>().len()
    };
    assert_eq!([0, 1, 2].map(warning), [0, 0, 1]);
}
