//! Files that lie where another is expected: Git LFS pointers, and the parts of downloads that aren't finished. Each is
//! refused as what it is, with what fetches the whole file.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The beginning of a Git LFS pointer.
///
/// # Source
/// `docs/spec.md` of git-lfs, which also limits a pointer's size.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const MAX_POINTER_BYTES: u64 = 1024;

/// The endings that programs give to a file while they download it.
pub(crate) const UNFINISHED: [&str; 4] = ["incomplete", "part", "crdownload", "aria2"];

/// Refuses contents that are a Git LFS pointer.
///
/// # Errors
/// A Git LFS pointer.
pub(crate) fn check_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 >= MAX_POINTER_BYTES || !bytes.starts_with(POINTER) {
        return Ok(());
    }
    let reason = "it is a Git LFS pointer, not the file; run `git lfs pull` in its folder, or download it with \
                  `hf download`";
    Err(Error::Config { path: path.to_owned(), reason: reason.to_owned() })
}

/// Refuses a file that is a Git LFS pointer. Streams aren't read, and files that can't be opened are left to the reader.
///
/// # Errors
/// A Git LFS pointer.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    let is_small = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() < MAX_POINTER_BYTES);
    let mut bytes = vec![];
    let is_read =
        is_small && File::open(path).and_then(|file| file.take(MAX_POINTER_BYTES).read_to_end(&mut bytes)).is_ok();
    if is_read { check_bytes(path, &bytes) } else { Ok(()) }
}

/// The error for a file that can't be opened; it names the part of its download that is there instead.
pub(crate) fn cannot_open(path: &Path, source: std::io::Error) -> Error {
    let path = path.to_owned();
    match unfinished(&path).filter(|_| source.kind() == ErrorKind::NotFound) {
        Some(part) => {
            let reason = format!(
                "its download isn't finished, {} is the part that is there; download it again (`hf download` goes on \
                 where it stopped)",
                part.display()
            );
            Error::Config { path, reason }
        }
        None => Error::Read { path, source },
    }
}

/// The part of a file that a download left: beside it, or where `hf download` writes it.
fn unfinished(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    let mut beside = UNFINISHED.iter().map(|ending| path.with_file_name(format!("{name}.{ending}")));
    if let Some(part) = beside.find(|part| part.exists()) {
        return Some(part);
    }
    // With --local-dir in a folder of its own, otherwise among the cache's blobs, two folders above the snapshot.
    let folder = path.parent()?;
    let of_cache = folder.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
    [Some(folder.join(".cache/huggingface/download")), of_cache.map(|cache| cache.join("blobs"))]
        .into_iter()
        .flatten()
        .find_map(|folder| {
            let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
            entries.filter(|part| part.extension().is_some_and(|ending| ending == UNFINISHED[0])).min()
        })
}
