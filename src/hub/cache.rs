//! The user's cache of the hub's files, in the layout of huggingface_hub, so that each program finds what the other
//! downloaded: `models--ORG--NAME/{blobs,refs,snapshots}` in `HF_HUB_CACHE`. In addition `.weft/COMMIT.json` records
//! the list of a commit's files: with it, cached files are known to be complete without asking the hub.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::download::{Client, Failure};
use super::{Id, Kind, is_inside, is_quiet};
use crate::error::{Error, Result};
use crate::files::{make_folder, partial_name, write_whole};
use crate::progress::{Progress, Unit, as_bytes, tell};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteFile {
    pub name: String,
    pub size: u64,
    /// The hash of its content: SHA-256 for large files, git's SHA-1 for small ones; empty if the hub's list is not
    /// known.
    pub blob: String,
}

/// A repository at a commit.
pub(super) struct Repository<'a> {
    id: &'a Id,
    client: Client,
    /// The repository's folder in the cache.
    root: PathBuf,
    commit: String,
    files: Vec<RemoteFile>,
    /// Whether the list of files was recorded earlier.
    is_from_record: bool,
    /// Why the hub can't be asked.
    cut_off: Option<String>,
}

impl<'a> Repository<'a> {
    /// Finds the commit of the id's revision and its files: from the cache's record, else from the hub, else from the
    /// files that happen to be in the cache.
    pub fn open(id: &'a Id) -> Result<Self> {
        let cache = folder_of_user();
        let root = cache.join(format!("{}--{}", id.kind.plural(), id.name.replace('/', "--")));
        let client = Client::of_user(token()).map_err(|reason| id.error(reason))?;
        let cut_off = is_offline().then(|| "HF_HUB_OFFLINE is set".to_owned());
        let mut own = Self { id, client, root, commit: String::new(), files: vec![], is_from_record: false, cut_off };
        let known = own.known_commit();
        if let Some(files) = known.as_ref().and_then(|commit| own.recorded(commit)) {
            own.commit = known.expect("its files were found");
            own.files = files;
            own.is_from_record = true;
            return Ok(own);
        }
        if own.cut_off.is_none() {
            match own.client.list(id, known.as_deref().unwrap_or(&id.revision)) {
                Ok((commit, files)) => {
                    own.commit = commit;
                    own.files = files;
                    own.record();
                    return Ok(own);
                }
                Err(Failure::Unreachable(reason) | Failure::Busy(reason)) => own.cut_off = Some(reason),
                Err(failure) => return Err(own.client.explain(id, failure)),
            }
        }
        match known.filter(|commit| own.root.join("snapshots").join(commit).is_dir()) {
            Some(commit) => {
                own.commit = commit;
                own.files = files_below(&own.folder(), "");
                if !is_offline() {
                    tell(&format!("warning: {}; continuing with the files in {}", own.reason(), own.root.display()));
                }
                Ok(own)
            }
            None => Err(own.lacking("none of its files is there")),
        }
    }

    /// Whether the list of files was recorded earlier and isn't the hub's current one.
    pub(crate) fn is_from_record(&self) -> bool {
        self.is_from_record
    }

    /// The same commit with the hub's current list; `None` if the hub can't be asked or has the same list.
    ///
    /// # Errors
    /// A repository that the hub no longer shows.
    pub fn renewed(&self) -> Result<Option<Self>> {
        if self.cut_off.is_some() {
            return Ok(None);
        }
        match self.client.list(self.id, &self.commit) {
            Ok((commit, files)) if files != self.files => {
                let client = self.client.clone();
                let root = self.root.clone();
                let renewed = Self { id: self.id, client, root, commit, files, is_from_record: false, cut_off: None };
                renewed.record();
                Ok(Some(renewed))
            }
            Ok(_) | Err(Failure::Unreachable(_) | Failure::Busy(_)) => Ok(None),
            Err(failure) => Err(self.client.explain(self.id, failure)),
        }
    }

    /// The names of the repository's files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// The folder with the commit's files.
    pub fn folder(&self) -> PathBuf {
        self.root.join("snapshots").join(&self.commit)
    }

    /// Makes sure that these files are in the cache.
    ///
    /// # Errors
    /// A file that isn't in the cache and can't be downloaded.
    pub fn complete(&self, names: &[String]) -> Result<()> {
        let mut missing = vec![];
        for name in names {
            let file = self.files.iter().find(|file| file.name == *name);
            let size = fs::metadata(self.folder().join(name)).map(|found| found.len()).ok();
            match (file, size) {
                (Some(file), Some(size)) if size == file.size => (),
                (Some(file), _) if self.cut_off.is_none() => missing.push(file.clone()),
                _ => return Err(self.lacking(&format!("it has no {name}"))),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let total = missing.iter().map(|file| file.size).sum();
        let is_quiet = is_quiet();
        let progress = if is_quiet { Progress::hidden() } else { Progress::shown() };
        progress.begin(Unit::Bytes, Some(total));
        if !is_quiet {
            let (given, root) = (&self.id.given, self.root.display());
            let files = if missing.len() == 1 { "a file".to_owned() } else { format!("{} files", missing.len()) };
            tell(&format!("fetching {files} of {given}, {}, into {root}", as_bytes(total)));
        }
        let fetched = missing.iter().try_for_each(|file| self.fetch(file, &progress));
        progress.finish();
        fetched
    }

    /// Downloads a file's content under its hash and links it under its name.
    fn fetch(&self, file: &RemoteFile, progress: &Progress) -> Result<()> {
        let cache_name = self.root.file_name().unwrap_or_default();
        let locks = self.root.with_file_name(".locks").join(cache_name);
        let blobs = self.root.join("blobs");
        let (blob, link) = (blobs.join(&file.blob), self.folder().join(&file.name));
        for folder in [locks.as_path(), &blobs, link.parent().unwrap_or(&blobs)] {
            make_folder(folder).map_err(|error| self.unwritable(error))?;
        }
        let write_error = |path: &Path| {
            let path = path.to_owned();
            move |source| self.unwritable(Error::Write { path, source })
        };
        let lock = locks.join(format!("{}.lock", file.blob));
        let lock_file = File::create(&lock).map_err(write_error(&lock))?;
        self.wait_for(&lock_file, &file.name);
        if fs::metadata(&blob).is_ok_and(|found| found.len() == file.size) {
            progress.add(file.size);
        } else {
            // huggingface_hub doesn't mistake a file of this name for finished content.
            let partial = blobs.join(format!("{}.incomplete", file.blob));
            progress.set_message(&file.name);
            let fetched = self.client.download((self.id, &self.commit), file, &partial, progress);
            fetched.map_err(|failure| match failure {
                Failure::Unwritable(source) => write_error(&partial)(source),
                other => self.client.explain(self.id, other),
            })?;
            fs::rename(&partial, &blob).map_err(write_error(&blob))?;
        }
        place(&blob, &link, Path::new(&file.name).components().count()).map_err(write_error(&link))
    }

    /// Takes the lock that huggingface_hub also takes. On a file system without locks, simultaneous downloads only cost
    /// each other time, because content is always checked.
    fn wait_for(&self, lock: &File, name: &str) {
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            if !is_quiet() {
                tell(&format!("waiting for another process that fetches {name} of {}", self.id.given));
            }
            let _ = lock.lock();
        }
    }

    /// The commit of the revision, if the cache knows one.
    fn known_commit(&self) -> Option<String> {
        let revision = &self.id.revision;
        if is_hash(revision, 40) {
            return Some(revision.clone());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_hash(commit, 40))
    }

    fn record_path(&self, commit: &str) -> PathBuf {
        self.root.join(".weft").join(format!("{commit}.json"))
    }

    /// The recorded list of a commit's files, if there is one and the commit's folder exists.
    fn recorded(&self, commit: &str) -> Option<Vec<RemoteFile>> {
        let text = fs::read_to_string(self.record_path(commit)).ok()?;
        let files: Vec<RemoteFile> = serde_json::from_str(&text).ok()?;
        let is_whole = files.iter().all(RemoteFile::is_valid) && self.root.join("snapshots").join(commit).is_dir();
        is_whole.then_some(files)
    }

    /// Records the list of files, and the commit under the revision's name.
    fn record(&self) {
        let path = self.record_path(&self.commit);
        let text = serde_json::to_string_pretty(&self.files).expect("a list is JSON");
        let reference = self.root.join("refs").join(&self.id.revision);
        let write = || -> Result<()> {
            make_folder(&self.folder())?;
            make_folder(path.parent().expect("it lies in a folder"))?;
            write_whole(&path, text.as_bytes())?;
            if self.id.revision != self.commit && !reference.exists() {
                make_folder(reference.parent().expect("it lies in a folder"))?;
                write_whole(&reference, self.commit.as_bytes())?;
            }
            Ok(())
        };
        // If the cache can't be written, the hub is asked each time; a missing file causes an error of its own later.
        let _ = write();
    }

    /// An error about files that the repository, or the cached part of it, doesn't have.
    pub fn lacking(&self, sentence: &str) -> Error {
        let (id, root) = (self.id, self.root.display());
        if self.cut_off.is_none() {
            return id.error(sentence.to_owned());
        }
        let kind = if id.kind == Kind::Dataset { " --repo-type dataset" } else { "" };
        let revision = if id.revision == super::MAIN { String::new() } else { format!(" --revision {}", id.revision) };
        id.error(format!(
            "{}{}, and {root} isn't enough: {sentence}; run \"hf download {}{kind}{revision}\" where there is a network and \
             bring that folder here, or pass a folder",
            if id.given.starts_with(super::SCHEME) || !self.commit.is_empty() { "" } else { "there is no such file or folder; " },
            self.reason(),
            id.name
        ))
    }

    fn reason(&self) -> &str {
        self.cut_off.as_deref().unwrap_or_default()
    }

    fn unwritable(&self, error: Error) -> Error {
        match error {
            Error::Write { path, source } => {
                use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
                let fix = match source.kind() {
                    StorageFull | QuotaExceeded | FileTooLarge => {
                        "free some space or set HF_HOME to a folder with more; the part already downloaded is kept"
                    }
                    _ => "set HF_HOME to a folder that you can write to",
                };
                self.id.error(format!("cannot write {}: {source}; {fix}", path.display()))
            }
            other => other,
        }
    }
}

impl RemoteFile {
    /// Whether the name and the hash are safe to use in paths.
    pub(crate) fn is_valid(&self) -> bool {
        !self.name.is_empty() && is_inside(&self.name) && (is_hash(&self.blob, 40) || is_hash(&self.blob, 64))
    }
}

/// Whether a text consists of this many hexadecimal digits.
pub(super) fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Links content under a file's name, `depth` folders below the folder of commits, and replaces what is there.
fn place(blob: &Path, link: &Path, depth: usize) -> io::Result<()> {
    let partial = partial_name(link);
    // A crash may have left it.
    let _ = fs::remove_file(&partial);
    #[cfg(unix)]
    {
        let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
        std::os::unix::fs::symlink(up.join("blobs").join(blob.file_name().unwrap_or_default()), &partial)?;
    }
    #[cfg(not(unix))]
    {
        let _ = depth;
        fs::hard_link(blob, &partial)?;
    }
    fs::rename(&partial, link)
}

/// The files below a folder; unreadable ones are left out.
fn files_below(folder: &Path, prefix: &str) -> Vec<RemoteFile> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.flat_map(|entry| {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => files_below(&path, &format!("{name}/")),
            Ok(found) => vec![RemoteFile { name, size: found.len(), blob: String::new() }],
            Err(_) => vec![],
        }
    });
    files.collect()
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A path with its leading `~` replaced by the home folder.
fn expanded(path: String) -> PathBuf {
    match path.strip_prefix("~/").zip(variable("HOME")) {
        Some((rest, home)) => Path::new(&home).join(rest),
        None => path.into(),
    }
}

fn home_of_hub() -> PathBuf {
    let cache = || variable("XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".to_owned());
    variable("HF_HOME").map_or_else(|| expanded(cache()).join("huggingface"), expanded)
}

fn folder_of_user() -> PathBuf {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    named.map_or_else(|| home_of_hub().join("hub"), expanded)
}

fn is_offline() -> bool {
    let value = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE")).unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

fn token() -> Option<String> {
    let clean = |text: String| Some(text.replace(['\r', '\n'], "").trim().to_owned()).filter(|text| !text.is_empty());
    let named = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).and_then(clean);
    let path = variable("HF_TOKEN_PATH").map_or_else(|| home_of_hub().join("token"), expanded);
    named.or_else(|| fs::read_to_string(path).ok().and_then(clean))
}
