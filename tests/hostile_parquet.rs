//! Parquet files that lie about their pages: each is refused in one sentence before their rows are read. The files are
//! written here byte by byte, since no writer would.

mod scratch;

use std::fs;
use std::time::{Duration, Instant};

use scratch::folder;
use weft::data::sources::Source;

const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A number that may be negative.
fn int(value: i64) -> Vec<u8> {
    number(((value << 1) ^ (value >> 63)) as u64)
}

fn binary(text: &str) -> Vec<u8> {
    [number(text.len() as u64), text.as_bytes().to_vec()].concat()
}

fn list(kind: u8, items: &[Vec<u8>]) -> Vec<u8> {
    [vec![0xf0 | kind], number(items.len() as u64), items.concat()].concat()
}

/// A structure of fields by number, type and bytes, in the numbers' order.
fn fields(fields: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut last) = (vec![], 0);
    for (id, kind, value) in fields {
        bytes.push(((id - last) << 4) | kind);
        bytes.extend(value);
        last = *id;
    }
    bytes.push(0);
    bytes
}

/// A file of one optional column of texts that are all null, and what it says of it.
struct Lying {
    /// Rows of each row group, and how many groups name the same pages.
    rows: i64,
    groups: usize,
    /// Values of each page, and how many there are.
    values: i64,
    pages: usize,
    codec: i64,
    uncompressed: Option<i64>,
    compressed: Option<i64>,
    /// Added to where the column begins.
    shift: i64,
    /// A field that nobody knows, of a page's head and of the footer.
    in_head: Vec<u8>,
    in_footer: Vec<u8>,
}

impl Default for Lying {
    fn default() -> Self {
        let (in_head, in_footer) = (vec![], vec![]);
        let (uncompressed, compressed) = (None, None);
        Self {
            rows: 1000,
            groups: 1,
            values: 1000,
            pages: 1,
            codec: 0,
            uncompressed,
            compressed,
            shift: 0,
            in_head,
            in_footer,
        }
    }
}

impl Lying {
    fn bytes(&self) -> Vec<u8> {
        let run = [number((self.values as u64) << 1), vec![0]].concat();
        let body = [(run.len() as u32).to_le_bytes().to_vec(), run].concat();
        let data = fields(&[(1, I32, int(self.values)), (2, I32, int(0)), (3, I32, int(3)), (4, I32, int(3))]);
        let mut head = vec![(1, I32, int(0))];
        head.push((2, I32, int(self.uncompressed.unwrap_or(body.len() as i64))));
        head.push((3, I32, int(self.compressed.unwrap_or(body.len() as i64))));
        head.push((5, STRUCT, data));
        if !self.in_head.is_empty() {
            head.push((9, LIST, self.in_head.clone()));
        }
        let pages = [fields(&head), body].concat().repeat(self.pages);
        let size = int(pages.len() as i64);
        let of_column = fields(&[
            (1, I32, int(6)),
            (2, LIST, list(I32, &[int(0), int(3)])),
            (3, LIST, list(BINARY, &[binary("a")])),
            (4, I32, int(self.codec)),
            (5, I64, int(self.values)),
            (6, I64, size.clone()),
            (7, I64, size.clone()),
            (9, I64, int(4 + self.shift)),
        ]);
        let column = fields(&[(2, I64, int(4)), (3, STRUCT, of_column)]);
        let group = fields(&[(1, LIST, list(STRUCT, &[column])), (2, I64, size), (3, I64, int(self.rows))]);
        let root = fields(&[(4, BINARY, binary("root")), (5, I32, int(1))]);
        let schema = fields(&[(1, I32, int(6)), (3, I32, int(1)), (4, BINARY, binary("a")), (6, I32, int(0))]);
        let mut footer = vec![(1, I32, int(1)), (2, LIST, list(STRUCT, &[root, schema]))];
        footer.push((3, I64, int(self.rows)));
        footer.push((4, LIST, list(STRUCT, &vec![group; self.groups])));
        if !self.in_footer.is_empty() {
            footer.push((12, LIST, self.in_footer.clone()));
        }
        let footer = fields(&footer);
        let len = (footer.len() as u32).to_le_bytes();
        [b"PAR1", &*pages, &footer, &len, b"PAR1"].concat()
    }

    /// How many rows are read, which takes no longer than a file of a few bytes may.
    fn read(&self) -> Result<usize, String> {
        let folder = folder("lying");
        let path = folder.join("rows.parquet");
        fs::write(&path, self.bytes()).expect("it is written");
        let started = Instant::now();
        let rows = Source::at(&path, "train").rows().expect("the folder is there");
        let count = rows.map(|row| row.map_err(|e| e.to_string())).try_fold(0, |n, row| row.map(|_| n + 1));
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        count.map_err(|e| e.replace(&folder.display().to_string(), "DIR"))
    }
}

#[test]
fn pages_that_say_what_they_hold_are_read() {
    assert_eq!(Lying::default().read(), Ok(1000));
    assert_eq!(Lying { pages: 3, rows: 3000, groups: 2, ..Lying::default() }.read(), Ok(6000));
    assert_eq!(
        Lying { rows: 1 << 20, values: 1 << 20, ..Lying::default() }.read(),
        Ok(1 << 20),
        "a column without texts"
    );
    // Nine booleans that nobody knows, as the crate passes over them.
    assert_eq!(Lying { in_head: vec![0x91], in_footer: vec![0x91], ..Lying::default() }.read(), Ok(1000));
}

#[test]
fn pages_that_lie_are_errors() {
    let many = [vec![0xf1], number(i32::MAX as u64)].concat();
    let doubles = [vec![0xf7], number(i32::MAX as u64)].concat();
    let deep = [vec![0x19; 100], vec![0x03]].concat();
    let rows = |rows| Lying { rows, ..Lying::default() };
    let cases = [
        (rows(1001), "it declares 1001 rows where a column has 1000 values"),
        (rows(1 << 60), "it declares 1152921504606846976 rows where a column has 1000 values"),
        (rows(-1), "it declares -1 rows where a column has 1000 values"),
        (
            Lying { rows: 1 << 30, values: 1 << 30, ..Lying::default() },
            "it declares more than 1056256 values, which is too much for 120 bytes",
        ),
        (Lying { values: -1, ..Lying::default() }, "a page header is damaged (a count is -1), in its column \"a\""),
        (
            Lying { codec: 1, uncompressed: Some(1 << 30), ..Lying::default() },
            "a page of 7 bytes declares an uncompressed size of 1073741824",
        ),
        (Lying { compressed: Some(1 << 30), ..Lying::default() }, "a page ends outside its column"),
        (Lying { shift: 1 << 40, ..Lying::default() }, "pages lie outside the file"),
        (Lying { shift: 4000, ..Lying::default() }, "pages lie outside the file"),
        (Lying { pages: 100, groups: 100, rows: 1, values: 1, ..Lying::default() }, "it declares more pages than its "),
        (Lying { in_head: many.clone(), ..Lying::default() }, "damaged (a list has more elements than bytes)"),
        (Lying { in_footer: many, ..Lying::default() }, "its footer is damaged (a list has more elements than bytes)"),
        (Lying { in_head: doubles.clone(), ..Lying::default() }, "damaged (it ends too early)"),
        (Lying { in_footer: doubles, ..Lying::default() }, "its footer is damaged (it ends too early)"),
        (Lying { in_footer: deep, ..Lying::default() }, "its footer is damaged (fields are nested more than 32 deep)"),
    ];
    for (lying, expected) in cases {
        let told = lying.read().expect_err(expected);
        assert!(told.starts_with("DIR/rows.parquet is damaged or in another format: "), "{told}");
        assert!(told.contains(expected) && !told.contains('\n'), "{told}");
    }
}
