//! Files that appear whole under their final name or not at all, and the reading of small text files.
//! A writer fills a neighbour of the file, flushes it to the disk and renames it; what a crash leaves is the neighbour.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Reads a small text file.
///
/// # Errors
/// What the operating system answers.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Writes a file that is there whole after any crash, or not at all.
///
/// # Errors
/// What the operating system answers, a full disk for one; nothing is left then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_name(path);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path)
    };
    write().map_err(|source| {
        // The first error is the one worth telling.
        let _ = fs::remove_file(&partial);
        Error::Write { path: path.to_owned(), source }
    })
}

/// Makes a folder and its parents.
///
/// # Errors
/// What the operating system answers.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Makes a rename in `path`'s folder last.
///
/// # Errors
/// What the operating system answers.
pub fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The name a file has while it is written.
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}
