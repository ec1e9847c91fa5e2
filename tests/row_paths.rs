//! How rows are named: lists and patterns of files, dLLM's splits with counts, and a part of the training rows that is
//! held out; and the rows of CSV files.

mod fixtures;
mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{stdout, weft};
use flate2::Compression;
use flate2::write::GzEncoder;
use scratch::folder;
use serde_json::{Value, json};
use weft::data::hold_out::{HeldOut, divide};
use weft::data::paths::Paths;
use weft::data::row_range::RowRange;
use weft::data::sources::Source;
use weft::recipe::Recipe;

/// The field `prompt` of a source's rows, or the error without the folder's name.
fn read(source: &Source, folder: &Path) -> Result<Vec<String>, String> {
    let prompt = |row: weft::data::sources::Row| row.fields["prompt"].as_str().unwrap_or("null").to_owned();
    let rows = source.rows().and_then(|rows| rows.map(|row| row.map(prompt)).collect());
    rows.map_err(|e| e.to_string().replace(&folder.display().to_string(), "DIR"))
}

fn named(paths: &[&str], folder: &Path) -> Source {
    let paths: Vec<PathBuf> =
        paths.iter().map(|path| PathBuf::from(path.replace("DIR", &folder.display().to_string()))).collect();
    Source { path: Paths::from(paths), ..Source::default() }
}

/// Writes files of rows whose prompts are `NAME0`, `NAME1` and so on.
fn files(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it is made");
        let stem = name.split('.').next().expect("it has one");
        let rows: String =
            (0..3).map(|i| format!("{}\n", json!({ "prompt": format!("{stem}{i}"), "response": "b" }))).collect();
        fs::write(path, rows).expect("it is written");
    }
}

fn of(stems: &[&str]) -> Vec<String> {
    stems.iter().flat_map(|stem| (0..3).map(move |i| format!("{stem}{i}"))).collect()
}

#[test]
fn lists_and_patterns_are_read_in_order() {
    let dir = folder("patterns");
    files(&dir, &["b/two.jsonl", "b/one.jsonl", "b/deep/three.jsonl", "b/.hidden.jsonl", "a.jsonl", "c.d/train.jsonl"]);
    fs::write(dir.join("b/notes.md"), "no rows").expect("it is written");
    for (paths, stems) in [
        (&["DIR/a.jsonl", "DIR/b/*.jsonl"][..], &["a", "b/one", "b/two"][..]),
        (&["DIR/b/*.jsonl", "DIR/a.jsonl"], &["b/one", "b/two", "a"]),
        (&["DIR/b/t??.jsonl"], &["b/two"]),
        (&["DIR/b/[a-o]*.jsonl"], &["b/one"]),
        (&["DIR/**/t*.jsonl"], &["b/deep/three", "b/two", "c"]),
        (&["DIR/c.*"], &["c"]),
        (&["DIR/b/.h*.jsonl"], &["b/"]),
    ] {
        assert_eq!(read(&named(paths, &dir), &dir), Ok(of(stems)), "{paths:?}");
    }
    let slice = serde_json::from_value::<RowRange>(json!("2:4")).expect("a slice");
    let two = Source { rows: Some(slice), ..named(&["DIR/a.jsonl", "DIR/b/one.jsonl"], &dir) };
    assert_eq!(read(&two, &dir), Ok(vec!["a2".to_owned(), "b/one0".to_owned()]), "slices are of all files");
    // A name that is there isn't a pattern.
    files(&dir, &["x[1].jsonl", "x1.jsonl"]);
    assert_eq!(read(&named(&["DIR/x[1].jsonl"], &dir), &dir), Ok(of(&["x[1]"])));
    assert_eq!(read(&named(&["DIR/x[0-9].jsonl"], &dir), &dir), Ok(of(&["x1"])));
    for (paths, told) in [
        (
            &["DIR/b/*.parquet"][..],
            "DIR/b/*.parquet: no file matches this pattern; DIR/b/ holds .hidden.jsonl, one.jsonl, two.jsonl",
        ),
        (&["DIR/none/*.jsonl"], "DIR/none/*.jsonl: no file matches this pattern: there is no folder DIR/none/"),
        (
            &["DIR/b[train]"],
            "DIR/b[train]: no file matches this pattern; for the first rows of a split write their number: DIR/b[train:1000]",
        ),
        (&["DIR/a***.jsonl"], "DIR/a***.jsonl: the pattern can't be read (Pattern syntax error near position "),
        (&["DIR/b/n*"], "DIR/b/notes.md: files named .md aren't read; give the rows as "),
        // A folder that a pattern names is read like one that is named itself.
        (&["DIR/b/*"], "DIR/b/deep: it has no train-*.parquet, .jsonl or .json, nor has its data folder; "),
        (
            &["DIR/b/one.jsonl", "DIR/b/*.jsonl"],
            "DIR/b/one.jsonl: DIR/b/one.jsonl, DIR/b/*.jsonl names it twice; name it once, ",
        ),
        (&["DIR/a.jsonl", "DIR/b/../a.jsonl"], "DIR/b/../a.jsonl: DIR/a.jsonl, DIR/b/../a.jsonl names it twice"),
    ] {
        let error = read(&named(paths, &dir), &dir).expect_err("it is refused");
        assert!(error.starts_with(told), "{error}\n{told}");
    }
}

#[test]
fn dllms_splits_with_counts_are_read() {
    let dir = folder("counts");
    files(
        &dir,
        &["set/train.jsonl", "set/test.jsonl", "main/set/train.jsonl", "rows.jsonl", "c++.jsonl", "a + b.jsonl"],
    );
    for (path, stems) in [
        ("DIR/set[train:2]", &["set/train0", "set/train1"][..]),
        ("DIR/set[ train : 2 , test:1 ]", &["set/train0", "set/train1"]),
        ("DIR/set[train:1_000]", &["set/train0", "set/train1", "set/train2"]),
        ("DIR/rows.jsonl[train:1]", &["rows0"]),
        ("DIR/set[train:1] + DIR/rows.jsonl[train:2]", &["set/train0", "rows0", "rows1"]),
        ("DIR/set[train:1]+DIR/rows.jsonl[train:1]", &["set/train0", "rows0"]),
        ("DIR/set[train:1] | DIR/rows.jsonl[train:1]", &["set/train0", "rows0"]),
        ("DIR/main[name:set,train:1]", &["main/set/train0"]),
        ("DIR/c++.jsonl", &["c++0", "c++1", "c++2"]),
        ("DIR/a + b.jsonl", &["a + b0", "a + b1", "a + b2"]),
    ] {
        assert_eq!(read(&named(&[path], &dir), &dir), Ok(stems.iter().map(|s| (*s).to_owned()).collect()), "{path}");
    }
    let last = serde_json::from_value::<RowRange>(json!("50%:")).expect("a slice");
    let half = Source { rows: Some(last), ..named(&["DIR/set[train:2] + DIR/rows.jsonl[train:2]"], &dir) };
    assert_eq!(read(&half, &dir), Ok(vec!["rows0".to_owned(), "rows1".to_owned()]), "of the rows that are counted");
    for (path, told) in [
        (
            "DIR/set[dev:2]",
            "DIR/set[dev:2] counts rows of the split dev, and the split that is read is train; write train:2",
        ),
        (
            "DIR/set[lang:python]",
            "DIR/set[lang:python]: \"lang:python\" is not a split with the number of its first rows, such as",
        ),
        ("DIR/set[train:-1]", "DIR/set[train:-1]: \"train:-1\" is not a split"),
        ("DIR/set[train:2,test]", "DIR/set[train:2,test]: \"test\" is not a split"),
    ] {
        let error = read(&named(&[path], &dir), &dir).expect_err("it is refused");
        assert!(error.starts_with(told), "{error}\n{told}");
    }
}

#[test]
fn counts_of_the_held_out_split_hold_it_out() {
    let dir = folder("counted");
    files(&dir, &["set/train.jsonl", "set/test.jsonl", "other.jsonl"]);
    let parse = |settings: &[&str]| {
        let path = format!("{}/set[train:2,test:1]", dir.display());
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(&format!("[data]\ntrain = {path:?}\n"), Path::new("r.toml"), &settings)
    };
    let recipe = parse(&[]).expect("it is whole");
    assert!(recipe.data.has_held_out() && recipe.warnings().is_empty());
    let [held_out] = &recipe.data.held_out()[..] else { panic!("one source") };
    assert_eq!(read(held_out, &dir), Ok(vec!["set/test0".to_owned()]));
    assert!(held_out.name().ends_with("set[train:2,test:1] test"), "{}", held_out.name());
    let error = |settings: &[&str]| parse(settings).expect_err("it is refused").to_string();
    let both = error(&["data.held_out=other.jsonl"]);
    assert!(
        both.contains("counts rows of the split test to hold them out, and data.held_out = other.jsonl holds out"),
        "{both}"
    );
    let unread = error(&["data.held_out_split=dev"]);
    assert!(unread.contains("counts rows of the split test, which nothing reads; leave that count out"), "{unread}");
}

#[test]
fn csv_rows_are_read_as_json_rows_are() {
    let dir = folder("csv");
    let text = "\u{feff},prompt,response,messages,score\r\n\
                0,\"two\r\nlines\",\"she said \"\"b\"\"\",\"[{\"\"role\"\": \"\"user\"\"}]\",NaN\r\n\
                1,c,,\"[not JSON\",2\r\n";
    let expected = json!([
        { "Unnamed: 0": "0", "prompt": "two\r\nlines", "response": "she said \"b\"", "messages": [{ "role": "user" }], "score": "NaN" },
        { "Unnamed: 0": "1", "prompt": "c", "response": null, "messages": "[not JSON", "score": "2" },
    ]);
    let fields = |path: &Path| -> Vec<Value> {
        let rows = Source::at(path, "train").rows().expect("it opens");
        rows.map(|row| Value::Object(row.unwrap_or_else(|e| panic!("{e}")).fields)).collect()
    };
    let write = |name: &str, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).expect("it is written");
        dir.join(name)
    };
    let mut gzip = GzEncoder::new(vec![], Compression::default());
    std::io::Write::write_all(&mut gzip, text.as_bytes()).expect("it is compressed");
    let gzip = gzip.finish().expect("it is compressed");
    let tabs = text.replace("\"role\"\": \"\"", "\"role\"\":\"\"").replace(',', "\t");
    for (name, bytes) in [("rows.csv", text.as_bytes()), ("rows.csv.gz", &gzip), ("rows.tsv", tabs.as_bytes())] {
        assert_eq!(json!(fields(&write(name, bytes))), expected, "{name}");
    }
    fs::create_dir_all(dir.join("set")).expect("it is made");
    fs::rename(write("rows.csv", text.as_bytes()), dir.join("set/train.csv")).expect("it is moved");
    assert_eq!(json!(fields(&dir.join("set"))), expected, "as a split's file");

    let places: Vec<String> = Source::at(&write("rows.csv", text.as_bytes()), "train")
        .rows()
        .expect("it opens")
        .map(|row| row.expect("it is a row").place().rsplit_once('/').expect("a path").1.to_owned())
        .collect();
    assert_eq!(places, ["rows.csv:2", "rows.csv:4"], "lines, not rows");
    let told = |bytes: &[u8]| read(&Source::at(&write("bad.csv", bytes), "train"), &dir).expect_err("it is refused");
    for (bytes, expected) in [
        (
            &b"prompt,response\na,b\nc,d,e\n"[..],
            "DIR/bad.csv:3: the row has 3 cells and the header 2; quote the cells that hold separators, line breaks or quotes",
        ),
        (b"prompt,prompt\na,b\n", "DIR/bad.csv: the column \"prompt\" appears twice; keep one of them"),
        (b"prompt,response\na,\xff\n", "DIR/bad.csv:2: cell 2 is not UTF-8; convert the file to UTF-8"),
        (
            b"prompt,response\na,b\nc,\"d\ne,f\ng,h\n",
            "DIR/bad.csv:3: a quote of this row is not closed before the end of the file; close it",
        ),
    ] {
        assert_eq!(told(bytes), expected);
    }
    let all: Vec<Result<usize, String>> =
        Source::at(&write("bad.csv", b"prompt,response\na,b,c\nd,\xff\ne,f\n"), "train")
            .rows()
            .expect("it opens")
            .map(|row| {
                row.map(|row| row.fields.len()).map_err(|e| e.to_string().split(':').nth(1).expect("a line").to_owned())
            })
            .collect();
    assert_eq!(all, [Err("2".to_owned()), Err("3".to_owned()), Ok(2)], "the rows behind a bad one are read");
    let long = ["prompt,response\na,\"".as_bytes(), &vec![b' '; 65 << 20]].concat();
    let told = told(&long);
    assert!(
        told.contains(
            "bad.csv: line 2: the record is longer than 64 MiB, the most that is read; close its quote, or cut it"
        ),
        "{told}"
    );
    assert_eq!(read(&Source::at(&write("empty.csv", b""), "train"), &dir), Ok(vec![]));
    let slice = serde_json::from_value::<RowRange>(json!("50%:")).expect("a slice");
    let half = Source { rows: Some(slice), ..Source::at(&dir.join("rows.csv"), "train") };
    assert_eq!(read(&half, &dir), Ok(vec!["c".to_owned()]));
}

fn rows_of(folder: &Path, prompts: impl Iterator<Item = String>) -> Source {
    let rows: String =
        prompts.enumerate().map(|(id, p)| format!("{}\n", json!({ "id": id, "prompt": p, "response": "b" }))).collect();
    fs::write(folder.join("rows.jsonl"), rows).expect("it is written");
    named(&["DIR/rows.jsonl"], folder)
}

/// The prompts that are trained on and those that are held out.
fn divided(sources: &[Source], held_out: &HeldOut, seed: u64, folder: &Path) -> [Vec<String>; 2] {
    let (train, held) = divide(sources.to_vec(), held_out, seed).expect("it is divided");
    [train, held].map(|sources| sources.iter().flat_map(|source| read(source, folder).expect("it is read")).collect())
}

#[test]
fn a_part_of_the_training_rows_is_held_out() {
    let dir = folder("part");
    let source = rows_of(&dir, (0..200).map(|i| format!("p{i}")));
    for (held_out, count) in
        [(HeldOut::Percent(10.0), 20), (HeldOut::Rows(7), 7), (HeldOut::Percent(0.1), 1), (HeldOut::Rows(199), 199)]
    {
        let [train, held] = divided(std::slice::from_ref(&source), &held_out, 1, &dir);
        assert_eq!((train.len(), held.len()), (200 - count, count), "{held_out}");
        let all: BTreeSet<&String> = train.iter().chain(&held).collect();
        assert_eq!(all.len(), 200, "each row is on one side");
    }
    let ten = HeldOut::Percent(10.0);
    let [_, held] = divided(std::slice::from_ref(&source), &ten, 1, &dir);
    assert_eq!(held, divided(std::slice::from_ref(&source), &ten, 1, &dir)[1]);
    assert_ne!(held, divided(std::slice::from_ref(&source), &ten, 2, &dir)[1], "another seed chooses others");
    let fewer = divided(std::slice::from_ref(&source), &HeldOut::Rows(5), 1, &dir);
    assert!(fewer[1].iter().all(|prompt| held.contains(prompt)), "a smaller part is part of a larger one");

    // Equal rows are on one side, whatever their unread columns and files; rows of several sources are divided together.
    let twice = rows_of(&dir, (0..300).map(|i| format!("p{}", i % 60)));
    fs::copy(dir.join("rows.jsonl"), dir.join("copy.jsonl")).expect("it is copied");
    let sources = [twice, named(&["DIR/copy.jsonl"], &dir)];
    let [train, held] = divided(&sources, &ten, 1, &dir);
    assert_eq!((train.len(), held.len()), (540, 60));
    assert!(held.iter().all(|prompt| !train.contains(prompt)));

    let refused =
        |sources: Vec<Source>, held_out: HeldOut| divide(sources, &held_out, 1).expect_err("it is refused").to_string();
    let told = refused(sources.to_vec(), HeldOut::Rows(600));
    assert_eq!(
        told,
        "data.held_out = 600 rows of 600 rows leaves no distinct rows on one side; give more rows, or another part"
    );
    let same = rows_of(&dir, (0..9).map(|_| "p".to_owned()));
    assert!(refused(vec![same], ten).starts_with("data.held_out = 10% of 9 rows leaves no distinct rows"));
}

#[test]
fn held_out_is_a_part_or_rows() {
    let parse = |value: Value| serde_json::from_value::<HeldOut>(value).map_err(|e| e.to_string());
    for (given, expected) in [
        (json!("10%"), Ok(HeldOut::Percent(10.0))),
        (json!("0.5 %"), Ok(HeldOut::Percent(0.5))),
        (json!(500), Ok(HeldOut::Rows(500))),
        (json!("500 rows"), Ok(HeldOut::Rows(500))),
        (json!("rows"), Ok(HeldOut::Files(Paths::from(Path::new("rows"))))),
        (json!("a.jsonl"), Ok(HeldOut::Files(Paths::from(Path::new("a.jsonl"))))),
    ] {
        assert_eq!(parse(given.clone()), expected, "{given}");
        let written = serde_json::to_value(expected.expect("it is one")).expect("it is JSON");
        assert_eq!(parse(written), parse(given), "it is written as it is read");
    }
    for wrong in [json!("0%"), json!("100%"), json!("-5%"), json!(0), json!(0.1), json!(true), json!("0 rows")] {
        let told = parse(wrong.clone()).expect_err("it is refused");
        let end = "is neither rows nor a part of them; give a path, a share of the training rows such as \"10%\", or their number";
        assert_eq!(told, format!("{wrong} {end}"));
    }
    let list = json!(["a.jsonl", "b/*.jsonl"]);
    let paths: Paths = serde_json::from_value(list.clone()).expect("a list");
    assert_eq!(serde_json::to_value(&paths).expect("it is JSON"), list);
    for (wrong, start) in
        [(json!([]), "the list is empty; give a path"), (json!([1]), "give a path in quotes, or a list of them")]
    {
        let told = serde_json::from_value::<Paths>(wrong).expect_err("it is refused").to_string();
        assert!(told.starts_with(start), "{told}");
    }
}

#[test]
fn a_run_holds_out_a_part_and_tells_it() {
    let dir = folder("run");
    rows_of(&dir, (0..40).map(|i| format!("What is {i}?")));
    fs::write(dir.join("r.toml"), "[data]\ntrain = [\"rows.jsonl\"]\nheld_out = \"10%\"\n[train]\nmax_steps = 2\neval_every = 1\noutput = \"run\"\n")
        .expect("it is written");
    let shown: Value = serde_json::from_str(&stdout(&dir, &["data", "r.toml", "--json"])).expect("one object");
    assert_eq!((&shown["sources"][0]["examples"], &shown["held_out"][0]["examples"]), (&json!(36), &json!(4)));
    assert_eq!(shown["held_out"][0]["name"], "rows.jsonl (rows held out)");
    assert_eq!(shown["remarks"], json!([]));
    let key = shown["held_out"][0]["key"].clone();
    let other = stdout(&dir, &["data", "r.toml", "--json", "--set", "train.lr=1e-3", "--set", "data.max_seq_len=100"]);
    assert_eq!(serde_json::from_str::<Value>(&other).expect("one object")["held_out"][0]["key"], key);
    let all = stdout(&dir, &["data", "r.toml", "--json", "--set", "data.train_rows=40"]);
    assert_eq!(serde_json::from_str::<Value>(&all).expect("one object")["remarks"], json!([]), "all 40 are there");
    stdout(&dir, &["train", "r.toml"]);
    let resumed = weft(&dir, &["train", "r.toml", "--resume", "--set", "data.held_out=5"]);
    assert!(!resumed.status.success(), "other rows are held out");
    let idle = weft(&dir, &["data", "r.toml", "--set", "data.held_out_split=dev"]);
    let told = String::from_utf8_lossy(&idle.stderr).into_owned();
    assert!(told.contains("data.held_out_split has no effect: data.held_out is a part of the training rows"), "{told}");
}
