//! Writes files and folders that appear complete under their final name or not at all, and reads small text files. A
//! writer fills a neighbouring file, flushes it to disk and renames it; a crash leaves only the neighbour behind.

pub(crate) mod rows_file;
pub(crate) mod stand_in;

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_128;

use crate::error::{Error, Result};

/// The size limit of a small file; the largest tokenizers have a tenth of it.
const MAX_SMALL_BYTES: u64 = 1 << 28;

/// Whether a path has the name of a file with rows.
pub(crate) fn is_named_as_rows(path: &Path) -> bool {
    rows_file::kind_of_name(path).is_some()
}

/// A path whose leading `~` is replaced by the user's folder, as a shell does; any other path as it is.
pub(crate) fn with_home(path: &Path) -> Cow<'_, Path> {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty());
    match path.strip_prefix("~").ok().zip(home()) {
        Some((rest, home)) => Cow::Owned(PathBuf::from(home).join(rest)),
        None => Cow::Borrowed(path),
    }
}

/// Reads a small text file that may be absent.
///
/// # Errors
/// Those of [`read_text`].
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>> {
    path.exists().then(|| read_text(path)).transpose()
}

/// The file of a run folder that has the run's resolved recipe; it is written as soon as the run begins.
pub const RECIPE: &str = "recipe.json";

/// A path as a shell takes it.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-@:+=".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Reads a small text file.
///
/// # Errors
/// An error of the operating system; a file that isn't text, is too large, or is a Git LFS pointer.
pub fn read_text(path: &Path) -> Result<String> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    String::from_utf8(read_small(path)?).map_err(|e| read_error(io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// Reads a small file.
///
/// # Errors
/// An error of the operating system; a file that isn't small, or is a Git LFS pointer.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let mut bytes = vec![];
    let file = File::open(path).map_err(|source| stand_in::cannot_open(path, source))?;
    file.take(MAX_SMALL_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    stand_in::check_bytes(path, &bytes)?;
    match bytes.len() as u64 > MAX_SMALL_BYTES {
        true => {
            let reason = format!(
                "it has more than {MAX_SMALL_BYTES} bytes, the most that Weft reads of such a file; shorten it"
            );
            Err(Error::Config { path: path.to_owned(), reason })
        }
        false => Ok(bytes),
    }
}

/// Writes a file that after any crash is either complete or absent.
///
/// # Errors
/// An error of the operating system, such as a full disk; nothing is left behind.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole_by(path, |partial| fs::write(partial, bytes))
}

/// Writes a file like [`write_whole`], with contents that `write` produces piece by piece.
///
/// # Errors
/// The errors of [`write_whole`].
pub(crate) fn write_whole_by(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let partial = partial_name(path);
    let whole = || {
        write(&partial)?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path)
    };
    whole().map_err(|source| {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&partial);
        Error::Write { path: path.to_owned(), source }
    })
}

/// Writes a folder that after any crash is either complete or absent; an existing folder is replaced. `fill` creates
/// files but no folders.
///
/// # Errors
/// An error of `fill` or of the operating system. An earlier folder then stays as it was, unless the error came after
/// the new one had taken its place.
pub fn write_folder_whole(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (partial, earlier) = (partial_name(folder), earlier_name(folder));
    let write_error = |source| Error::Write { path: folder.to_owned(), source };
    settle_folder(folder)?;
    make_folder(&partial)?;
    let filled = fill(&partial).and_then(|()| sync_files(&partial).map_err(write_error));
    if let Err(error) = filled {
        // The first error is the one worth reporting.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    let replace = || {
        // At any moment the old or the new folder is complete: a crash between the renames leaves both.
        if folder.exists() {
            fs::rename(folder, &earlier)?;
        }
        fs::rename(&partial, folder)?;
        sync_folder(folder)
    };
    let replaced = replace().map_err(write_error);
    let settled = settle_folder(folder);
    replaced.and(settled)
}

/// Repairs what a crash of [`write_folder_whole`] left: an earlier folder without a new one gets its name back, and
/// everything else beside the folder is removed.
///
/// # Errors
/// An error of the operating system.
pub(crate) fn settle_folder(folder: &Path) -> Result<()> {
    let (partial, earlier) = (partial_name(folder), earlier_name(folder));
    let settle = || {
        if earlier.exists() && !folder.exists() {
            fs::rename(&earlier, folder)?;
        }
        [&partial, &earlier].into_iter().filter(|left| left.exists()).try_for_each(fs::remove_dir_all)
    };
    settle().map_err(|source| Error::Write { path: folder.to_owned(), source })
}

/// Creates a folder and its parents durably: they survive a crash.
///
/// # Errors
/// An error of the operating system.
pub fn make_folder(path: &Path) -> Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    let made = fs::create_dir_all(path).and_then(|()| missing.into_iter().rev().try_for_each(sync_folder));
    made.map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Flushes a folder and its files to disk.
fn sync_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(folder)?.sync_all()
}

/// Makes a rename in `path`'s folder durable.
///
/// # Errors
/// An error of the operating system.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The name that a file has while it is being written.
pub(crate) fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// The name that an earlier folder has while it is being replaced.
fn earlier_name(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".earlier");
    folder.with_file_name(name)
}

/// The XXH3 hash, of 128 bits, of a file's bytes.
///
/// # Errors
/// An error of the operating system.
pub fn content_hash(path: &Path) -> io::Result<u128> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (XxHash3_128::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finish_128()),
            read => hash.write(&buffer[..read]),
        }
    }
}

/// The user's folder for data that can be recreated: `WEFT_CACHE`, or `weft` in `XDG_CACHE_HOME` or `~/.cache`. `None`
/// if the first is set but empty, or if the user's folders are unknown.
pub(crate) fn user_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let is_some = |path: &PathBuf| !path.as_os_str().is_empty();
    match variable("WEFT_CACHE") {
        Some(folder) => Some(folder).filter(is_some),
        None => {
            let home = || variable("HOME").filter(is_some).map(|home| home.join(".cache"));
            variable("XDG_CACHE_HOME").filter(is_some).or_else(home).map(|cache| cache.join("weft"))
        }
    }
}
