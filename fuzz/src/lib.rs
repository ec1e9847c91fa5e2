//! What the targets share: a folder to lay an input's files in, and the cutting of one input into several files.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// Between the files of one input.
pub const BORDER: &[u8] = b"\n====\n";

/// A folder that the process writes its inputs into, one after the other; in memory where there is such a file system.
pub fn folder(target: &str) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let folder = parent.join(format!("weft-fuzz-{target}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
}

/// Writes a file of an input.
pub fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the input can be written");
}

/// Cuts an input at its first border; without one the second file is empty.
pub fn cut(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.windows(BORDER.len()).position(|window| window == BORDER);
    at.map_or((data, &[]), |at| (&data[..at], &data[at + BORDER.len()..]))
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// An error has to be one sentence on one line of bearable length.
pub fn check(error: &weft::error::Error) {
    let sentence = error.to_string();
    assert!(!sentence.trim().is_empty(), "an error without a sentence");
}
