//! Files and folders of rows: JSONL, JSON, parquet as pyarrow writes it (scripts/parquet_rows.py), slices, the hub's
//! layout, and every way in which such a file can be wrong.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scratch::folder;
use serde_json::{Value, json};
use weft::data::sources::{MAX_JSON_BYTES, MAX_LINE_BYTES, Source};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rows").join(name)
}

fn read(source: &Source) -> Result<Vec<Value>, String> {
    let rows = source.rows().map_err(|e| e.to_string())?;
    rows.map(|row| row.map(|row| Value::Object(row.fields)).map_err(|e| e.to_string())).collect()
}

/// Reads a file of this content; paths in errors are relative to its folder.
fn read_text(name: &str, content: &[u8]) -> Result<Vec<Value>, String> {
    let folder = folder(name);
    let path = folder.join(name);
    fs::write(&path, content).expect("the file is written");
    read(&Source::at(&path, "train")).map_err(|e| e.replace(&format!("{}/", folder.display()), ""))
}

fn sliced(path: &Path, rows: &str) -> Result<Vec<Value>, String> {
    let rows = serde_json::from_value(json!(rows)).map_err(|e| e.to_string())?;
    read(&Source { rows: Some(rows), ..Source::at(path, "train") })
}

fn error(name: &str, content: impl AsRef<[u8]>) -> String {
    read_text(name, content.as_ref()).expect_err(name)
}

#[test]
fn every_kind_of_file_has_the_same_rows() {
    let rows =
        [json!({ "prompt": "a", "response": "b", "n": [1, -2, 0.5, null, true] }), json!({ "prompt": "\u{e9}" })];
    let [first, second] = &rows;
    let lines = format!("\u{feff}{first}\r\n\n{second}");
    assert_eq!(read_text("rows.jsonl", lines.as_bytes()).expect("it is read"), rows);
    assert_eq!(read_text("ROWS.JSONL", lines.as_bytes()).expect("it is read"), rows);
    assert_eq!(read_text("rows.json", format!("[{first},\n{second}]").as_bytes()).expect("it is read"), rows);
    assert_eq!(read_text("rows.json", lines.as_bytes()).expect("it is read"), rows, "JSONL by another name");
    let object = format!("{{\"version\": 1, \"data\": [{first}, {second}]}}");
    assert_eq!(read_text("rows.json", object.as_bytes()).expect("it is read"), rows);
}

#[test]
fn parquet_columns_are_fields_nested_ones_too() {
    let turns = |i: usize| {
        json!({ "messages": [
            { "content": format!("What is {i} + 1?"), "role": "user" },
            { "content": (i + 1).to_string(), "role": "assistant" },
        ], "num_tokens": 7 })
    };
    let rows = read(&Source::at(&fixture("messages.parquet"), "train")).expect("it is read");
    assert_eq!(rows, (0..8).map(turns).collect::<Vec<_>>(), "two row groups, zstd, pages of version 2");
    let rows = read(&Source::at(&fixture("open-r1.parquet"), "train")).expect("it is read");
    assert_eq!(rows[0]["correctness_math_verify"], json!([false, true]));
    assert_eq!(rows[0]["correctness_llama"], Value::Null);
    assert_eq!(rows[1]["generations"][1], "<think>\nSo six");
    assert_eq!((&rows[0]["uuid"], &rows[0]["score"], &rows[1]["score"]), (&Value::Null, &json!(1.5), &Value::Null));
    assert_eq!(rows[2]["messages"], turns(2)["messages"], "lists as older writers name them");
}

#[test]
fn a_folder_of_the_hub_is_read_shard_after_shard() {
    let hub = fixture("hub");
    let rows = read(&Source::at(&hub, "train")).expect("it is read");
    let questions: Vec<&str> = rows.iter().map(|row| row["question"].as_str().expect("a text")).collect();
    let expected: Vec<String> = (0..12).map(|i| format!("What is {i} + 1?")).collect();
    assert_eq!(questions, expected);
    assert_eq!(rows[3]["thinking_trajectories"], json!(["One more than 3 is 4."]));
    assert_eq!(read(&Source::at(&hub.join("data"), "train")).expect("it is read"), rows);
    assert_eq!(Source::default().split, None, "the split is train where none is said");
    assert_eq!(read(&Source { path: hub.clone().into(), ..Source::default() }).expect("it is read"), rows);
    let refused = |folder: &Path, split: &str| {
        let error = read(&Source::at(folder, split)).expect_err("it is refused");
        error.strip_prefix(&format!("{}: ", folder.display())).unwrap_or(&error).to_owned()
    };
    assert_eq!(
        refused(&hub, "test"),
        "it has no test-*.parquet, .jsonl or .json, nor has its data folder; it has train; set the split"
    );
    let folder = folder("hub");
    assert!(refused(&folder, "train").ends_with("it has no files of rows; set the split"));
    let shard = |i: usize| format!("train-{i:05}-of-00002.parquet");
    fs::copy(hub.join("data").join(shard(1)), folder.join(shard(1))).expect("it is copied");
    assert_eq!(refused(&folder, "train"), "1 of the 2 files of the split \"train\" is present; fetch the rest");
    fs::write(folder.join("train.jsonl"), "{}").expect("it is written");
    assert_eq!(
        refused(&folder, "train"),
        "the split \"train\" has files of several kinds; name one of them as the path"
    );
    fs::write(folder.join("test.json"), "[{\"prompt\": 1}]").expect("it is written");
    assert_eq!(read(&Source::at(&folder, "test")).expect("it is read"), [json!({ "prompt": 1 })]);
}

#[test]
fn slices_are_pythons() {
    let folder = folder("slices");
    let rows: Vec<Value> = (0..7).map(|i| json!({ "i": i })).collect();
    let lines: String = rows.iter().map(|row| format!("{row}\n\n")).collect();
    fs::write(folder.join("rows.jsonl"), lines).expect("it is written");
    fs::write(folder.join("rows.json"), json!(rows).to_string()).expect("it is written");
    for file in ["rows.jsonl", "rows.json"] {
        let sliced = |slice: &str| sliced(&folder.join(file), slice).expect("it is read");
        for (slice, expected) in
            [("2:4", 2..4), (":3", 0..3), ("5:", 5..7), (":", 0..7), ("0:99", 0..7), ("50%:6", 3..6)]
        {
            assert_eq!(sliced(slice), rows[expected], "{slice}");
        }
        for percent in ["0", "10", "33.3", "50", "99.9", "100"] {
            let parts = [sliced(&format!(":{percent}%")), sliced(&format!("{percent}%:"))];
            assert_eq!(parts.concat(), rows, "{percent}");
        }
    }
    let hub = read(&Source::at(&fixture("hub"), "train")).expect("it is read");
    assert_eq!(sliced(&fixture("hub"), "25%:75%").expect("it is read"), hub[3..9], "over the border of two files");
    for slice in ["", "3", "1:2:3", "a:", "-1:", "120%:", "%:"] {
        let refused = sliced(&folder.join("rows.json"), slice).expect_err(slice);
        assert!(
            refused
                .starts_with(&format!("{slice:?} is not a range of rows; give the number of first rows, or a slice"))
        );
    }
    let written = |rows: Value| serde_json::from_value::<weft::data::row_range::RowRange>(rows).map(Value::from);
    assert_eq!(written(json!(":12")).expect("a range"), json!(12), "the first rows are a number, as before");
    assert_eq!(written(json!("10%:")).expect("a range"), json!("10%:"));
    written(json!(-1)).expect_err("no number of rows");
}

#[test]
fn a_damaged_file_is_told_in_a_sentence() {
    let line = |reason: &str| format!("rows.jsonl:2: {reason}");
    let twice = "the key \"a\" appears twice at column 12; keep one of them";
    assert_eq!(error("rows.jsonl", "{}\n{\"a\": 1, \"a\": 1}"), line(twice));
    assert!(error("rows.jsonl", "{}\n{\"b\": [{\"a\": 1, \"a\": 2}]}").contains("the key \"a\" appears twice"));
    let pointed = error("rows.jsonl", "{}\n{\"a\": \"\\x\"}");
    assert!(pointed.starts_with(&line("not JSON (")) && pointed.ends_with("; write one object per line"), "{pointed}");
    let deep = error("rows.jsonl", format!("{{}}\n{}", "[".repeat(100_000)));
    assert!(deep.starts_with(&line("not JSON (recursion limit exceeded")), "{deep}");
    assert_eq!(error("rows.jsonl", b"{}\n{\"a\": \"\xc3\"}"), line("byte 8 is not UTF-8; convert the file to UTF-8"));
    let long = [b"{}\n{\"a\": \"".as_slice(), &vec![b'x'; MAX_LINE_BYTES]].concat();
    assert_eq!(error("rows.jsonl", long), line("the line is longer than 64 MiB, the most that is read; cut the row"));

    let file = |reason: &str| format!("rows.json is damaged or in another format: {reason}; fetch or write it again");
    let shape = "not an array of rows or an object with one array";
    assert_eq!(error("rows.json", "3"), file(&format!("it holds a single value, {shape}")));
    assert_eq!(error("rows.json", "{\"a\": 1}"), file(&format!("it holds an object without an array, {shape}")));
    assert_eq!(
        error("rows.json", "{\"a\": [], \"b\": []}"),
        file(&format!("it holds an object with 2 arrays, {shape}"))
    );
    assert_eq!(error("rows.json", ""), file("not JSON (EOF while parsing a value at line 1 column 0)"));
    assert_eq!(error("rows.json", b"[\xff]"), file("byte 2 is not UTF-8"));
    assert_eq!(
        error("rows.json", "[{}, {\"a\": 1, \"a\": 2}]"),
        file("the key \"a\" appears twice at line 1 column 17")
    );
    assert_eq!(error("rows.json", "[{}, 3]"), "rows.json row 2: not a JSON object; give an object per row");
    let large = folder("large").join("rows.json");
    fs::File::create(&large).and_then(|f| f.set_len(MAX_JSON_BYTES + 1)).expect("a sparse file");
    let told = read(&Source::at(&large, "train")).expect_err("it is too large");
    assert!(
        told.ends_with("its 1073741825 bytes are more than the 1073741824 that Weft reads of a JSON file; write JSONL")
    );

    let wanted = "aren't read; give the rows as .jsonl, .json, .parquet or .csv, or a text as .txt";
    assert_eq!(error("rows.xlsx", "{}"), format!("rows.xlsx: files named .xlsx {wanted}"));
    assert_eq!(error("rows", "{}"), format!("rows: files without an ending {wanted}"));
    let absent = read(&Source::at(Path::new("absent.txt"), "train")).expect_err("there is none");
    assert!(absent.starts_with("cannot read absent.txt: No such file"), "{absent}");
}

#[test]
fn hostile_parquet_is_an_error_and_never_a_panic() {
    assert!(error("rows.parquet", "").starts_with("rows.parquet is damaged or in another format: "));
    assert!(error("rows.parquet", "PAR1 and more bytes PAR1").starts_with("rows.parquet is damaged"));
    read(&Source::at(&fixture("gzip.parquet"), "train")).expect("gzip is read");
    // Found by fuzzing: room for 400 million values was made, for a dictionary of a few bytes.
    let dictionary = read(&Source::at(&fixture("dictionary.parquet"), "train")).expect_err("it has other bytes");
    assert!(dictionary.contains("declares "), "{dictionary}");
    // Found by fuzzing: lists in a page's head that go on behind the file's end were passed over, element by element.
    let started = Instant::now();
    let lists = read(&Source::at(&fixture("lists.parquet"), "train")).expect_err("a page header is damaged");
    assert!(lists.contains("a page header is damaged ("), "{lists}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let path = folder("hostile").join("rows.parquet");
    for name in ["messages.parquet", "open-r1.parquet", "hub/data/train-00000-of-00002.parquet"] {
        let bytes = fs::read(fixture(name)).expect("it is there");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("it is written");
            read(&Source::at(&path, "train"))
        };
        let whole = read(&bytes).expect("it is read");
        let (mut refused, mut unnoticed) = (0, 0);
        for at in (0..bytes.len()).step_by(2) {
            if at % 32 == 0 {
                read(&bytes[..at]).expect_err("a part is no file");
            }
            let mut flipped = bytes.clone();
            flipped[at] ^= [1, 0x10, 0x80, 0xff][at / 2 % 4];
            match read(&flipped) {
                Ok(rows) => unnoticed += usize::from(rows == whole),
                Err(_) => refused += 1,
            }
        }
        assert!(
            refused > bytes.len() / 5 && unnoticed > 0,
            "{name}: {refused} refused, {unnoticed} in what isn't read"
        );
    }
}
