//! Files and folders that appear whole under their final name or not at all, and the reading of small text files.
//! A writer fills a neighbour, flushes it to the disk and renames it; what a crash leaves is the neighbour.

use std::fs::{self, File};
use std::io;
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
    write_whole_by(path, |partial| fs::write(partial, bytes))
}

/// As [`write_whole`], for a file that `write` fills piece by piece.
///
/// # Errors
/// As [`write_whole`].
pub fn write_whole_by(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let partial = partial_name(path);
    let whole = || {
        write(&partial)?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path)
    };
    whole().map_err(|source| {
        // The first error is the one worth telling.
        let _ = fs::remove_file(&partial);
        Error::Write { path: path.to_owned(), source }
    })
}

/// Fills a folder that is there whole after any crash, or not at all; one of the same name is replaced.
///
/// # Errors
/// What `fill` or the operating system answers; an earlier folder is untouched then, but for an error while it is
/// replaced.
pub fn write_folder_whole(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = partial_name(folder);
    let write_error = |source| Error::Write { path: folder.to_owned(), source };
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(write_error)?;
    }
    make_folder(&partial)?;
    if let Err(error) = fill(&partial) {
        // The first error is the one worth telling.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(write_error)?;
    }
    fs::rename(&partial, folder).and_then(|()| sync_folder(folder)).map_err(write_error)
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
