//! Files of rows by their names: of which kind their rows are, how they are compressed, and why other files aren't read.
//! Opens them as streams of decompressed bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::stand_in::{self, UNFINISHED};
use crate::error::{Error, Result};

/// The kinds of files with rows, which are their extensions.
const KINDS: [&str; 6] = ["jsonl", "json", "parquet", "csv", "tsv", "txt"];
/// The kind whose files are compressed within.
const PARQUET: &str = "parquet";

/// How a file is compressed as a whole.
#[derive(Clone, Copy)]
enum Codec {
    Gzip,
    Zstd,
}

/// The endings of compressed files.
const CODECS: [(&str, Codec); 2] = [("gz", Codec::Gzip), ("zst", Codec::Zstd)];

/// Commands that unpack what isn't read, by the ending of its name.
const UNPACK: [(&str, &str); 8] = [
    ("gz", "gzip -d"),
    ("zst", "zstd -d"),
    ("bz2", "bzip2 -d"),
    ("xz", "xz -d"),
    ("lz4", "lz4 -d"),
    ("zip", "unzip"),
    ("tar", "tar -xf"),
    ("tgz", "tar -xf"),
];

/// The kind of a file of rows by its name, which for compressed files stands before the last ending.
pub(crate) fn kind_of_name(path: &Path) -> Option<&'static str> {
    let (name, codec) = without_codec(path)?;
    let (_, extension) = name.rsplit_once('.')?;
    let kind = KINDS.into_iter().find(|kind| extension.eq_ignore_ascii_case(kind))?;
    (codec.is_none() || kind != PARQUET).then_some(kind)
}

/// The name of a file of rows before its kind's extension, and that extension with the compression's.
pub(crate) fn stem_and_extension(name: &str) -> Option<(&str, &str)> {
    let path = Path::new(name);
    kind_of_name(path)?;
    let (plain, _) = without_codec(path)?;
    let at = plain.rfind('.')?;
    Some((&name[..at], &name[at + 1..]))
}

/// A file's name without the ending of its compression.
fn without_codec(path: &Path) -> Option<(&str, Option<Codec>)> {
    let name = path.file_name()?.to_str()?;
    let codec = |(_, ending): (&str, &str)| CODECS.iter().find(|(own, _)| ending.eq_ignore_ascii_case(own));
    Some(match name.rsplit_once('.').and_then(codec) {
        Some((ending, codec)) => (&name[..name.len() - ending.len() - 1], Some(*codec)),
        None => (name, None),
    })
}

/// The kind of a file of rows, or why it isn't one.
///
/// # Errors
/// A file of another name, with what makes it one that is read.
pub(crate) fn kind(path: &Path) -> Result<&'static str> {
    kind_of_name(path).ok_or_else(|| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let named = if extension.is_empty() { "without an ending".to_owned() } else { format!("named .{extension}") };
        let unpack = UNPACK.iter().find(|(ending, _)| *ending == extension).map(|(_, unpack)| unpack);
        let fix = match &*extension {
            ending if UNFINISHED.contains(&ending) => {
                "it is a download that isn't finished, download it again".to_owned()
            }
            "arrow" => format!("it is Arrow, {}", rewrite("Dataset.from_file(FILE)")),
            _ => match unpack {
                Some(unpack) => format!("decompress it: {unpack} {}", path.display()),
                None => "give the rows as .jsonl, .json, .parquet or .csv, or a text as .txt".to_owned(),
            },
        };
        match File::open(path) {
            Ok(_) => Error::Config { path: path.to_owned(), reason: format!("files {named} aren't read; {fix}") },
            Err(source) => stand_in::cannot_open(path, source),
        }
    })
}

/// Opens the decompressed contents of a file of rows.
///
/// # Errors
/// A file that can't be opened, or that is a Git LFS pointer.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(|source| stand_in::cannot_open(path, source))?;
    Ok(match without_codec(path).and_then(|(_, codec)| codec) {
        None => Box::new(file),
        Some(Codec::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file))),
        Some(Codec::Zstd) => Box::new(zstd::Decoder::new(file).map_err(|source| read_error(path, source))?),
    })
}

/// The error for bytes that [`open`]'s stream can't give.
pub(crate) fn read_error(path: &Path, source: io::Error) -> Error {
    let is_plain = without_codec(path).is_none_or(|(_, codec)| codec.is_none());
    match is_plain || source.raw_os_error().is_some() {
        true => Error::Read { path: path.to_owned(), source },
        false => Error::Format { path: path.to_owned(), reason: format!("it can't be decompressed ({source})") },
    }
}

/// The sentence for a folder that the library `datasets` saved for itself, if it is one.
pub(crate) fn saved_to_disk(folder: &Path) -> Option<String> {
    let has = |name: &str| folder.join(name).is_file();
    let dataset = match (has("dataset_dict.json"), has("state.json") && has("dataset_info.json")) {
        (true, _) => "load_from_disk(DIR)[\"train\"]",
        (false, true) => "load_from_disk(DIR)",
        (false, false) => return None,
    };
    Some(format!("it was written by save_to_disk (Arrow), {}", rewrite(dataset)))
}

fn rewrite(dataset: &str) -> String {
    format!(
        "which Weft doesn't read; write it with to_parquet or to_json of the library datasets: \
         {dataset}.to_parquet(\"train.parquet\")"
    )
}
