//! Checks the sizes that a parquet file declares for its pages against its bytes before the crate `parquet` trusts
//! them: that crate allocates what a dictionary declares, repeats a row as often as the footer declares, and loops over
//! lists that don't exist.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use crate::counted::counted;

type Result<T> = std::result::Result<T, String>;

/// The number of values, over all columns and nulls included, that any file may have.
const MIN_VALUES: u64 = 1 << 20;
/// The number of further values allowed per byte of the file; text files have less than one.
const VALUES_PER_BYTE: u64 = 64;
/// The size of the smallest page header, in bytes.
const MIN_HEAD_BYTES: u64 = 8;
/// The most bytes that one compressed byte can expand to: a zstd block makes 2^17 bytes of 4.
const MAX_RATIO: u64 = 1 << 16;
/// The most bytes that one byte expands to in gzip and in LZ4's frames; brotli has no such limit.
const GZIP_RATIO: u64 = 1032;
const LZ4_RATIO: u64 = 255;
/// The number of bytes of a brotli page that are read at a time.
const BROTLI_BUFFER: usize = 4096;
/// The deepest nesting of fields that is read.
const MAX_DEPTH: usize = 32;

/// The Thrift types that are interpreted.
const I32: u8 = 5;
const STRUCT: u8 = 12;

/// Refuses a footer with a list of more elements than bytes. The crate itself reports files without a footer.
pub(super) fn check_footer(file: &File) -> Result<()> {
    let mut file = BufReader::new(file);
    let mut tail = [0; 8];
    if file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut tail)).is_err() || &tail[4..] != b"PAR1" {
        return Ok(());
    }
    let len = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    if file.seek(SeekFrom::End(-8 - i64::from(len))).is_err() {
        return Ok(());
    }
    Thrift::new(&mut file, u64::from(len)).skip(STRUCT, 0).map_err(|e| format!("its footer is damaged ({e})"))
}

/// Refuses pages that declare more than their bytes can hold, and row groups with more rows than values.
pub(super) fn check_pages(file: &File, metadata: &ParquetMetaData) -> Result<()> {
    let bytes = file.metadata().map_err(|e| e.to_string())?.len();
    let mut pages = Pages { file: BufReader::new(file), bytes, pages: 0, values: 0 };
    metadata.row_groups().iter().try_for_each(|group| pages.check_group(group))
}

struct Pages<'a> {
    file: BufReader<&'a File>,
    bytes: u64,
    /// Pages and values of the columns so far.
    pages: u64,
    values: u64,
}

impl Pages<'_> {
    fn check_group(&mut self, group: &RowGroupMetaData) -> Result<()> {
        let mut fewest = if group.num_columns() == 0 { 0 } else { u64::MAX };
        for column in group.columns() {
            let values = self.values_of(column).map_err(|e| format!("{e}, in its column {}", column.column_path()))?;
            fewest = fewest.min(values);
        }
        match u64::try_from(group.num_rows()) {
            Ok(rows) if rows <= fewest => Ok(()),
            _ => Err(format!(
                "it declares {} where a column has {}",
                counted(group.num_rows(), "row"),
                counted(fewest, "value")
            )),
        }
    }

    /// The number of values in a column's pages.
    fn values_of(&mut self, column: &ColumnChunkMetaData) -> Result<u64> {
        let (mut at, len) = column.byte_range();
        let end = at.checked_add(len).filter(|end| *end <= self.bytes).ok_or("pages lie outside the file")?;
        let before = self.values;
        while at < end {
            self.file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
            let mut thrift = Thrift::new(&mut self.file, end - at);
            let head = Head::read(&mut thrift).map_err(|e| format!("a page header is damaged ({e})"))?;
            at = end - thrift.left;
            let data = at;
            at = at.checked_add(head.compressed).filter(|at| *at <= end).ok_or("a page ends outside its column")?;
            self.check(&head, column.compression() == Compression::UNCOMPRESSED)?;
            self.check_expansion(&head, data, column.compression())?;
        }
        Ok(self.values - before)
    }

    fn check(&mut self, head: &Head, is_plain: bool) -> Result<()> {
        let Head { compressed, uncompressed, values, in_dictionary, .. } = *head;
        self.pages += 1;
        self.values += values;
        let most = MIN_VALUES + VALUES_PER_BYTE * self.bytes;
        if self.pages > self.bytes / MIN_HEAD_BYTES {
            return Err(format!("it declares more pages than its {} bytes can hold", self.bytes));
        }
        if uncompressed / MAX_RATIO > compressed {
            return Err(format!("a page of {compressed} bytes declares an uncompressed size of {uncompressed}"));
        }
        let bytes = if is_plain { compressed } else { uncompressed };
        if in_dictionary > bytes {
            return Err(format!("a dictionary of {bytes} bytes declares {in_dictionary} values"));
        }
        if self.values > most {
            return Err(format!("it declares more than {most} values, which is too much for {} bytes", self.bytes));
        }
        Ok(())
    }

    /// Refuses pages that expand to more than they declare, where the crate expands them to the end whatever they declare,
    /// and their bytes suffice for more than any page may have.
    fn check_expansion(&mut self, head: &Head, data: u64, codec: Compression) -> Result<()> {
        let most = |ratio: u64| head.compressed.saturating_mul(ratio) > i32::MAX as u64;
        match codec {
            Compression::GZIP(_) if most(GZIP_RATIO) => {
                self.expand(head, data, |page| Box::new(MultiGzDecoder::new(page)))
            }
            Compression::BROTLI(_) => {
                self.expand(head, data, |page| Box::new(brotli::Decompressor::new(page, BROTLI_BUFFER)))
            }
            Compression::LZ4 if most(LZ4_RATIO) => {
                Err(format!("a page of {} bytes in the old form of LZ4 is more than is read", head.compressed))
            }
            _ => Ok(()),
        }
    }

    /// Expands a page and refuses it if it has more bytes than it declares.
    fn expand(
        &mut self,
        head: &Head,
        data: u64,
        reader: impl for<'a> FnOnce(Box<dyn BufRead + 'a>) -> Box<dyn Read + 'a>,
    ) -> Result<()> {
        let compressed = head.compressed.saturating_sub(head.levels);
        self.file.seek(SeekFrom::Start(data + head.levels)).map_err(|e| e.to_string())?;
        let page = reader(Box::new((&mut self.file).take(compressed)));
        // The crate itself reports what it can't expand.
        match io::copy(&mut page.take(head.uncompressed + 1), &mut io::sink()) {
            Ok(bytes) if bytes > head.uncompressed => {
                Err(format!("a page declares an uncompressed size of {} and has more", head.uncompressed))
            }
            _ => Ok(()),
        }
    }
}

/// The sizes in a page's header.
#[derive(Default)]
struct Head {
    compressed: u64,
    uncompressed: u64,
    /// The bytes before the compressed ones in a data page of version 2.
    levels: u64,
    /// The number of values of a data page, and of a dictionary page.
    values: u64,
    in_dictionary: u64,
}

impl Head {
    fn read(thrift: &mut Thrift<impl BufRead>) -> Result<Self> {
        let mut head = Self::default();
        let mut id = 0;
        while let Some(kind) = thrift.field(&mut id)? {
            match (id, kind) {
                (1 | 4, I32) => thrift.skip(kind, 0)?,
                (2, I32) => head.uncompressed = thrift.count()?,
                (3, I32) => head.compressed = thrift.count()?,
                (5, STRUCT) => (head.values, _) = thrift.values()?,
                (7, STRUCT) => (head.in_dictionary, _) = thrift.values()?,
                (8, STRUCT) => (head.values, head.levels) = thrift.values()?,
                (1..=5 | 7 | 8, _) => return Err(format!("field {id} is of type {kind}")),
                _ => thrift.skip(kind, 0)?,
            }
        }
        Ok(head)
    }
}

/// A reader of Thrift's compact protocol that stays within a given number of bytes and accepts no more elements than
/// bytes.
///
/// # Source
/// The specification `thrift-compact-protocol.md` of Apache Thrift.
struct Thrift<R> {
    file: R,
    /// The number of bytes left.
    left: u64,
    /// How many more elements may come. Some take no bytes: the crate skips booleans without reading any.
    spare: u64,
}

impl<R: BufRead> Thrift<R> {
    fn new(file: R, left: u64) -> Self {
        Self { file, left, spare: left }
    }

    fn pass(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or("it ends too early")?;
        let passed = io::copy(&mut (&mut self.file).take(bytes), &mut io::sink()).map_err(|e| e.to_string())?;
        if passed == bytes { Ok(()) } else { Err("it ends too early".to_owned()) }
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.left = self.left.checked_sub(1).ok_or("it ends too early")?;
        self.file.read_exact(&mut byte).map_err(|e| e.to_string())?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is longer than 64 bits".to_owned())
    }

    /// Reads a 32-bit number that counts something.
    fn count(&mut self) -> Result<u64> {
        let number = self.number()?;
        let signed = (number >> 1) as i64 ^ -((number & 1) as i64);
        let count = u64::try_from(signed).ok().filter(|count| *count <= i32::MAX as u64);
        count.ok_or_else(|| format!("a count is {signed}"))
    }

    /// Reads the type of a structure's next field and updates the field's number; `None` at the end.
    fn field(&mut self, id: &mut u64) -> Result<Option<u8>> {
        let byte = self.byte()?;
        let kind = byte & 0xf;
        if kind == 0 {
            return Ok(None);
        }
        *id = match byte >> 4 {
            0 => self.count()?,
            step => *id + u64::from(step),
        };
        Ok(Some(kind))
    }

    /// Reads a page's inner header: its number of values, and the bytes of the levels in a data page of version 2.
    fn values(&mut self) -> Result<(u64, u64)> {
        let (mut values, mut levels, mut id) = (0, 0, 0);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (1, I32) => values = self.count()?,
                (1, _) => return Err(format!("its count of values is of type {kind}")),
                (5 | 6, I32) => levels += self.count()?,
                _ => self.skip(kind, 0)?,
            }
        }
        Ok((values, levels))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(format!("fields are nested more than {MAX_DEPTH} deep"));
        }
        match kind {
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.number().map(|_| ()),
            7 => self.pass(8),
            8 => self.number().and_then(|bytes| self.pass(bytes)),
            9 | 10 => {
                let byte = self.byte()?;
                let size = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
                self.elements(size, [byte & 0xf, 3], 1, depth)
            }
            11 => {
                let size = self.number()?;
                let kinds = if size > 0 { self.byte()? } else { 0 };
                self.elements(size, [kinds >> 4, kinds & 0xf], 2, depth)
            }
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            13 => self.pass(16),
            _ => Err(format!("{kind} is not a type")),
        }
    }

    /// Skips this many elements of one type, or pairs of two types.
    fn elements(&mut self, size: u64, kinds: [u8; 2], each: usize, depth: usize) -> Result<()> {
        for _ in 0..size {
            self.spare = self.spare.checked_sub(1).ok_or("a list has more elements than bytes")?;
            for kind in &kinds[..each] {
                self.skip(*kind, depth + 1)?;
            }
        }
        Ok(())
    }
}
