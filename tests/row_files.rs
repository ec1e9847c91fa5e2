//! Files of rows as people have them: compressed, of one object, begun with a byte order mark, written by save_to_disk, or
//! named from the home folder. Each is read, or refused with what makes it readable.

mod scratch;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use scratch::folder;
use weft::data::sources::{Fields, Source};

const ROWS: &str = "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"c\", \"response\": \"d\"}\n";

fn read(source: &Source) -> Result<Vec<Fields>, String> {
    let rows = source.rows().and_then(|rows| rows.map(|row| row.map(|row| row.fields)).collect());
    rows.map_err(|e| e.to_string())
}

fn rows() -> Vec<Fields> {
    ROWS.lines().map(|line| serde_json::from_str(line).expect("it is an object")).collect()
}

/// A file's rows, read by its name, as its folder's split, and counted by a range from the end.
fn read_as_all(name: &str, bytes: &[u8]) -> Vec<Result<Vec<Fields>, String>> {
    let folder = folder("all");
    let path = folder.join(name);
    fs::write(&path, bytes).expect("it is written");
    fs::write(folder.join("LICENSE.txt"), "a licence").expect("it is written");
    [Source::at(&path, "train"), Source::at(&folder, "train")]
        .iter()
        .map(|source| read(source).map_err(|e| e.replace(&folder.display().to_string(), "DIR")))
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    to.write_all(bytes).and_then(|()| to.finish()).expect("it is compressed")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("it is compressed")
}

#[test]
fn compressed_rows_are_those_of_the_plain_file() {
    let array = format!("[{}]", ROWS.trim().replace('\n', ","));
    // Files that were written in parts have a member or a frame for each.
    let half = ROWS.len() / 2;
    let members = [gzip(&ROWS.as_bytes()[..half]), gzip(&ROWS.as_bytes()[half..])].concat();
    let frames = [zstd(&ROWS.as_bytes()[..half]), zstd(&ROWS.as_bytes()[half..])].concat();
    for (name, bytes) in [
        ("train.jsonl.gz", gzip(ROWS.as_bytes())),
        ("train.jsonl.gz", members),
        ("train.jsonl.zst", zstd(ROWS.as_bytes())),
        ("train.JSONL.ZST", frames),
        ("train.json.gz", gzip(array.as_bytes())),
        ("train.json.gz", gzip(ROWS.as_bytes())),
        ("train-00000-of-00001.json.zst", zstd(array.as_bytes())),
    ] {
        assert_eq!(read_as_all(name, &bytes), [Ok(rows()), Ok(rows())], "{name}");
    }
    let text = folder("texts");
    fs::write(text.join("a.txt.gz"), gzip(b"one text")).expect("it is written");
    let read = read(&Source::at(&text, "train")).expect("the folder has texts");
    assert_eq!(read[0]["text"], "one text");
}

#[test]
fn what_cannot_be_decompressed_is_told() {
    let whole = gzip(ROWS.repeat(1000).as_bytes());
    for (name, bytes) in [
        ("train.jsonl.gz", ROWS.as_bytes().to_vec()),
        ("train.jsonl.gz", whole[..whole.len() / 2].to_vec()),
        ("train.jsonl.zst", ROWS.as_bytes().to_vec()),
        ("train.json.zst", zstd(ROWS.repeat(1000).as_bytes())[..40].to_vec()),
    ] {
        for told in read_as_all(name, &bytes) {
            let told = told.expect_err(name);
            let expected = format!("DIR/{name} is damaged or in another format: it can't be decompressed (");
            assert!(told.starts_with(&expected) && !told.contains('\n'), "{told}");
        }
    }
    let folder = folder("other");
    for (name, told) in [
        ("rows.jsonl.xz", "files named .xz aren't read; decompress it: xz -d "),
        ("rows.jsonl.bz2", "files named .bz2 aren't read; decompress it: bzip2 -d "),
        ("rows.parquet.gz", "files named .gz aren't read; decompress it: gzip -d "),
        ("rows.zip", "files named .zip aren't read; decompress it: unzip "),
    ] {
        let path = folder.join(name);
        fs::write(&path, "x").expect("it is written");
        let expected = format!("{}: {told}{}", path.display(), path.display());
        assert_eq!(read(&Source::at(&path, "train")), Err(expected));
    }
    // A decompressed line is bounded as a plain one is.
    let path = folder.join("long.jsonl.zst");
    fs::write(&path, zstd(&vec![b' '; 65 << 20])).expect("it is written");
    let told = read(&Source::at(&path, "train")).expect_err("the line is too long");
    assert!(told.ends_with("the line is longer than 64 MiB, the most that is read; cut the row"), "{told}");
}

fn parquet(path: &Path, codec: Compression) {
    parquet_of(path, codec, &rows());
}

fn parquet_of(path: &Path, codec: Compression, rows: &[Fields]) {
    let schema = parse_message_type("message rows { required binary prompt (UTF8); required binary response (UTF8); }");
    let properties = WriterProperties::builder().set_compression(codec).set_dictionary_enabled(false).build();
    let file = fs::File::create(path).expect("it is made");
    let schema = Arc::new(schema.expect("it is a schema"));
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).expect("it is begun");
    let mut group = writer.next_row_group().expect("a group is begun");
    for key in ["prompt", "response"] {
        let values: Vec<ByteArray> = rows.iter().map(|row| row[key].as_str().expect("a text").into()).collect();
        let mut column = group.next_column().expect("it is begun").expect("there is one");
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("it is written");
        column.close().expect("it is closed");
    }
    group.close().expect("it is closed");
    writer.close().expect("it is closed");
}

#[test]
fn parquet_of_every_usual_codec_is_read() {
    let folder = folder("codecs");
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let path = folder.join("rows.parquet");
        parquet(&path, codec);
        assert_eq!(read(&Source::at(&path, "train")), Ok(rows()), "{codec}");
    }
}

/// The crate `parquet` expands gzip and brotli pages to their ends, whatever size the page declares.
#[test]
fn a_page_has_the_size_that_it_declares() {
    has_the_size_that_it_declares(Compression::GZIP(GzipLevel::default()), 3_000_000);
    // One byte of brotli may expand to any number of them, so every page is checked.
    for size in [3000, 100_000] {
        has_the_size_that_it_declares(Compression::BROTLI(BrotliLevel::default()), size);
    }
}

fn has_the_size_that_it_declares(codec: Compression, size: usize) {
    let path = folder("pages").join("rows.parquet");
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(32 + (state >> 33) as u8 % 95)
    };
    let text: String = (0..size).map(|_| letter()).collect();
    let row = Fields::from_iter([("prompt".to_owned(), text.into()), ("response".to_owned(), "b".into())]);
    parquet_of(&path, codec, std::slice::from_ref(&row));
    assert_eq!(read(&Source::at(&path, "train")), Ok(vec![row]));
    // The head of the first page: its type, then its size before compression, whose lowest bits become 0.
    let mut bytes = fs::read(&path).expect("it is there");
    assert!(bytes[4] == 0x15 && bytes[6] == 0x15 && bytes[7] > 0x80, "{:?}", &bytes[..12]);
    bytes[7] = 0x80;
    fs::write(&path, bytes).expect("it is written");
    let told = read(&Source::at(&path, "train")).expect_err("it is refused");
    assert!(told.contains("a page declares an uncompressed size of ") && told.contains(" and has more, "), "{told}");
}

/// No codec that is refused can be written here, so a footer's number of the codec is changed: 3 is LZO's, 6 zstd's.
#[test]
fn other_codecs_of_parquet_are_named() {
    let path = folder("lzo").join("rows.parquet");
    parquet(&path, Compression::ZSTD(ZstdLevel::default()));
    let mut bytes = fs::read(&path).expect("it is there");
    // Field 4, an i32 of zigzag 12, behind the column's name; as LZO's it is 6.
    let name = bytes.windows(8).rposition(|of| of == b"\x06prompt\x15").expect("the footer names the column");
    assert_eq!(bytes[name + 8], 12, "zstd");
    bytes[name + 8] = 6;
    fs::write(&path, bytes).expect("it is written");
    let told = read(&Source::at(&path, "train")).expect_err("it is refused");
    let expected = "rows.parquet: its column \"prompt\" is compressed by LZO, and Weft reads Snappy, gzip, brotli, zstd, LZ4 and \
                    no compression; write it again with pandas: to_parquet(FILE, compression=\"zstd\")";
    assert!(told.ends_with(expected), "{told}");
    parquet(&path, Compression::ZSTD(ZstdLevel::default()));
    assert_eq!(read(&Source::at(&path, "train")), Ok(rows()), "the fix works");
}

#[test]
fn folders_of_save_to_disk_are_named() {
    let folder = folder("saved");
    let write = |name: &str| fs::write(folder.join(name), "{}").expect("it is written");
    ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"].into_iter().for_each(write);
    let fix = "which Weft doesn't read; write it with to_parquet or to_json of the library datasets: ";
    let told = |source: &Source| read(source).expect_err("it is refused").replace(&folder.display().to_string(), "DIR");
    let whole =
        format!("DIR: it was written by save_to_disk (Arrow), {fix}load_from_disk(DIR).to_parquet(\"train.parquet\")");
    assert_eq!(told(&Source::at(&folder, "train")), whole);
    let file = told(&Source::at(&folder.join("data-00000-of-00001.arrow"), "train"));
    assert!(
        file.contains("files named .arrow aren't read; it is Arrow, which Weft doesn't read; write it with"),
        "{file}"
    );
    // The fix: the file that the sentence names.
    parquet(&folder.join("train.parquet"), Compression::SNAPPY);
    assert_eq!(read(&Source::at(&folder, "train")), Ok(rows()));
    fs::remove_file(folder.join("train.parquet")).expect("it is removed");
    write("dataset_dict.json");
    assert!(
        told(&Source::at(&folder, "train")).ends_with("load_from_disk(DIR)[\"train\"].to_parquet(\"train.parquet\")")
    );
}

#[test]
fn marks_and_line_ends_of_other_systems_are_no_part_of_the_rows() {
    let marked = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let array = format!("[\n{}\n]\n", ROWS.trim().replace('\n', ",\n"));
    for (name, text) in [("rows.jsonl", marked(ROWS)), ("rows.json", marked(&array)), ("rows.json", marked(ROWS))] {
        let path = folder("marked").join(name);
        fs::write(&path, text).expect("it is written");
        assert_eq!(read(&Source::at(&path, "train")), Ok(rows()), "{name}");
    }
}

#[test]
fn a_json_file_of_one_object_is_one_row() {
    let path = folder("one").join("row.json");
    for text in [
        "{\"prompt\": \"a\", \"response\": \"b\"}",
        "{\n  \"prompt\": \"a\",\n  \"response\": \"b\"\n}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
    ] {
        fs::write(&path, text).expect("it is written");
        let one: Fields = serde_json::from_str(text).expect("it is an object");
        assert_eq!(read(&Source::at(&path, "train")), Ok(vec![one]));
    }
    let wrapped = format!("{{\"version\": 1, \"data\": [{}]}}", ROWS.trim().replace('\n', ","));
    fs::write(&path, wrapped).expect("it is written");
    assert_eq!(read(&Source::at(&path, "train")), Ok(rows()));
}

#[test]
fn a_tilde_is_the_home_folder() {
    let home = folder("home");
    fs::write(home.join("rows.jsonl"), ROWS.repeat(4)).expect("it is written");
    let recipe = "[data]\ntrain = \"~/rows.jsonl\"\nheld_out = \"~/rows.jsonl\"\n[train]\noutput = \"~/run\"\n";
    fs::write(home.join("recipe.toml"), recipe).expect("it is written");
    for args in [vec!["data", "recipe.toml"], vec!["data", "recipe.toml", "--set", "data.train=~/rows.jsonl"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .current_dir(&home)
            .env("HOME", &home)
            .args(&args)
            .output()
            .expect("weft starts");
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.success(), "{args:?}: {told}");
        assert!(told.contains(&home.join("rows.jsonl").display().to_string()), "{told}");
    }
    let mut asked = Command::new(env!("CARGO_BIN_EXE_weft"));
    asked.env("HOME", &home).args(["generate", "--model=~/absent", "--prompt", "x"]);
    let told = String::from_utf8_lossy(&asked.output().expect("weft starts").stderr).into_owned();
    assert!(told.contains(&format!("there is no folder {}", home.join("absent").display())), "{told}");
}

#[test]
fn halves_of_surrogate_pairs_are_named_where_they_are_read() {
    use weft::data::formats::Form;
    let dir = folder("halves");
    let path = dir.join("rows.jsonl");
    let line = |response: &str, meta: &str| {
        format!("{{\"prompt\": \"a\", \"response\": \"{response}\", \"meta\": [\"{meta}\"]}}\n")
    };
    let read_line = |text: &str| {
        fs::write(&path, text).expect("it is written");
        let row = Source { format: Some(Form::PromptResponse), ..Source::at(&path, "train") }.rows();
        row.expect("it opens").next().expect("a row").map_err(|e| e.to_string())
    };
    for (written, text) in [
        ("\\ud83d\\ude00", "\u{1f600}"),
        ("\\\\ud83d", "\\ud83d"),
        ("x\\ud83d", "x\u{fffd}"),
        ("\\ude00\\ud83d\\n", "\u{fffd}\u{fffd}\n"),
        ("\\ud83dx\\ud83d\\ude00\\u00e9\\\u{e9}", ""),
    ] {
        match read_line(&line(written, "b")) {
            Ok(row) => assert_eq!(row.fields["response"], text, "{written}"),
            // The last text has an escape that JSON doesn't know.
            Err(told) => assert!(text.is_empty() && told.contains(" not JSON ("), "{told}"),
        }
    }
    assert_eq!(read_line(&line("b", "\\ud83d")).expect("nobody reads it").fields["meta"][0], "\u{fffd}");
    let told = read_line("{\"prompt\\ud83d\": 1}").err().expect("a key is refused");
    assert!(told.contains(" not JSON (") && told.contains("hex escape at column "), "{told}");

    let recipe = "[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\n";
    fs::write(dir.join("recipe.toml"), recipe).expect("it is written");
    let weft = |text: &str| {
        fs::write(&path, text).expect("it is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        let output = command.current_dir(&dir).args(["data", "recipe.toml"]).output().expect("weft starts");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let good = line("b", "c");
    let (is_read, told) = weft(&format!("{good}{}", line("cut \\ud83d", "c")));
    let expected = "rows.jsonl:2: response holds half of a surrogate pair (an escape from \\ud800 to \\udfff), which is no \
                    character, as a text that was cut within an emoji does; drop the row, or write it again after ";
    assert!(!is_read && told.contains(expected), "{told}");
    let (is_read, told) = weft(&format!("{good}{}", line("b", "cut \\ud83d")));
    assert!(is_read && told.contains("columns not read: meta"), "{told}");
}

#[test]
fn semicolons_and_tabs_that_separate_a_csv_are_found_by_its_header() {
    let read_csv = |name: &str, text: &str| {
        let folder = folder(name);
        fs::write(folder.join("a.csv"), text).expect("it is written");
        read(&Source::at(&folder.join("a.csv"), "train"))
    };
    for (name, text) in [
        ("semicolons", "prompt;response\n\"a\";b\nc;\"d\"\n"),
        ("semicolons-and-mark", "\u{feff}prompt;response\r\na;b\r\nc;d\r\n"),
        ("tabs", "prompt\tresponse\na\tb\nc\td\n"),
    ] {
        assert_eq!(read_csv(name, text), Ok(rows()), "{name}");
    }
    // A comma in the header decides, and commas in cells don't.
    let fields = read_csv("commas", "prompt,response\na;b,c\n").expect("it is read");
    assert_eq!((&fields[0]["prompt"], &fields[0]["response"]), (&"a;b".into(), &"c".into()));
    let fields = read_csv("decimals", "prompt;response\n1,5;2,5\n").expect("it is read");
    assert_eq!((&fields[0]["prompt"], &fields[0]["response"]), (&"1,5".into(), &"2,5".into()));
}
