//! A cache of bases in 4 bits between runs, in `quantized` of the user's cache folder: the next start maps 4 GB instead of
//! reading 16. A file holds the quantized tensors in bitsandbytes' layout; a record beside it holds the file's checksum.
//! The key covers what the numbers depend on: the source files, the format and the settings. A damaged file is reported
//! and rebuilt; a full disk costs only time.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use super::bitsandbytes;
use super::block::Transformer;
use super::quantize::Quantization;
use super::weights::{Checkpoint, files};
use crate::error::Result;
use crate::files::{content_hash, make_folder, partial_name, user_cache, write_whole, write_whole_by};
use crate::progress::{as_bytes, tell};

/// The version of the files. It increases with any change to the files or to the quantized numbers.
const VERSION: &str = "weft nf4 v1";
/// Checkpoints with fewer bytes aren't cached, because quantizing them takes no noticeable time.
const MIN_BYTES: u64 = 256 << 20;
/// The number of bases that stay in the cache, the most recently used ones.
const KEPT: usize = 4;
/// The size in bytes of the samples that identify a file that isn't named by its content.
const SAMPLE: usize = 4096;
/// The number of samples.
const SAMPLES: u64 = 256;

/// A folder of quantized bases.
#[derive(Clone, Debug)]
pub struct QuantizedCache {
    folder: PathBuf,
    min_bytes: u64,
}

/// The place of one base in the cache.
pub(super) struct Entry<'a> {
    cache: &'a QuantizedCache,
    key: u128,
    source: PathBuf,
    quantization: Quantization,
}

/// What is recorded beside a file.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The XXH3 hash of the file's bytes, in hexadecimal digits.
    hash: String,
    /// Where the base came from, for people who look into the folder.
    source: String,
    /// How the base was quantized, also for these people.
    quantization: String,
}

impl QuantizedCache {
    /// A cache for checkpoints of at least `min_bytes` bytes.
    pub fn new(folder: &Path, min_bytes: u64) -> Self {
        Self { folder: folder.to_owned(), min_bytes }
    }

    /// The user's cache, in [`user_cache`].
    pub(crate) fn of_user() -> Option<Self> {
        user_cache().map(|folder| Self::new(&folder.join("quantized"), MIN_BYTES))
    }

    /// The place of a checkpoint; `None` if it is too small, or if its files can't be read, which is reported elsewhere.
    pub(super) fn entry(&self, folder: &Path, quantization: Quantization) -> Option<Entry<'_>> {
        let paths: Vec<PathBuf> = files(folder).ok()?.into_iter().map(|file| folder.join(file)).collect();
        let bytes = |path: &PathBuf| fs::metadata(path).map(|file| file.len()).ok();
        if paths.iter().map(bytes).sum::<Option<u64>>()? < self.min_bytes {
            return None;
        }
        let key = key(&paths, quantization).ok()?;
        Some(Entry { cache: self, key, source: folder.to_owned(), quantization })
    }

    /// Drops the least recently used bases.
    fn drop_old(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let used = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        // Files that a crash left half written are dropped in the same order.
        let is_ours = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors" || e == "partial");
        let mut files: Vec<(SystemTime, PathBuf)> = entries.filter(is_ours).map(|path| (used(&path), path)).collect();
        files.sort();
        for (_, old) in files.into_iter().rev().skip(KEPT) {
            // Another run may have dropped them.
            let _ = fs::remove_file(old.with_extension("json"));
            let _ = fs::remove_file(old);
        }
    }
}

impl Entry<'_> {
    fn name(&self) -> String {
        format!("{:032x}.safetensors", self.key)
    }

    fn path(&self) -> PathBuf {
        self.cache.folder.join(self.name())
    }

    /// The quantized tensors; `None` if they are missing. Damaged ones are removed and reported.
    pub(super) fn read(&self) -> Option<Checkpoint> {
        let (path, record) = (self.path(), self.path().with_extension("json"));
        let known: Record = serde_json::from_str(&fs::read_to_string(&record).ok()?).ok()?;
        let whole = || -> Result<Checkpoint> {
            let hash =
                content_hash(&path).map_err(|source| crate::error::Error::Read { path: path.clone(), source })?;
            match format!("{hash:032x}") == known.hash {
                true => Checkpoint::open_file(&self.cache.folder, &self.name()),
                false => {
                    let reason = "its bytes aren't those that were written".to_owned();
                    Err(crate::error::Error::Format { path: path.clone(), reason })
                }
            }
        };
        match whole() {
            Ok(kept) => {
                // The modification time is the time of the last use, which decides which files are dropped first.
                let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                self.say("the base in 4 bits comes from", &path);
                Some(kept)
            }
            Err(error) => {
                tell(&format!("warning: the kept base in 4 bits is damaged and is made again: {error}"));
                let _ = fs::remove_file(&record);
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Writes the quantized tensors of a model. A failure costs only time and is reported as a warning.
    pub(super) fn keep(&self, model: &Transformer) {
        let path = self.path();
        // The record is written last: a file without one doesn't count.
        let written = make_folder(&self.cache.folder).and_then(|()| {
            write_whole_by(&path, |partial| bitsandbytes::write(partial, model))?;
            let read = |source| crate::error::Error::Read { path: path.clone(), source };
            let record = Record {
                hash: format!("{:032x}", content_hash(&path).map_err(read)?),
                source: self.source.display().to_string(),
                quantization: self.quantization.to_string(),
            };
            let text = serde_json::to_string_pretty(&record).expect("a record is JSON");
            write_whole(&path.with_extension("json"), text.as_bytes())
        });
        match written {
            Ok(()) => {
                self.say("the base in 4 bits is saved for later runs in", &path);
                self.cache.drop_old();
            }
            Err(error) => {
                let _ = fs::remove_file(partial_name(&path));
                let _ = fs::remove_file(&path);
                tell(&format!(
                    "warning: the base in 4 bits couldn't be saved, so the next run will quantize it again: {error}"
                ));
            }
        }
    }

    fn say(&self, what: &str, path: &Path) {
        if !crate::hub::is_quiet() {
            let bytes = fs::metadata(path).map_or(0, |file| file.len());
            tell(&format!("{what} {} ({})", path.display(), as_bytes(bytes)));
        }
    }
}

/// The key of a checkpoint's files. A file of the hub's cache is named by its content; another file is identified by its
/// path, its length, the time of its last change, and samples of its bytes.
fn key(paths: &[PathBuf], quantization: Quantization) -> std::io::Result<u128> {
    let mut hash = XxHash3_128::new();
    let mut write = |part: &[u8]| {
        hash.write(&(part.len() as u64).to_le_bytes());
        hash.write(part);
    };
    write(VERSION.as_bytes());
    write(&[u8::from(quantization.double_quant)]);
    for path in paths {
        let whole = path.canonicalize()?;
        let (name, metadata) = (whole.file_name().unwrap_or_default(), fs::metadata(&whole)?);
        write(path.file_name().unwrap_or_default().as_encoded_bytes());
        write(&metadata.len().to_le_bytes());
        if is_content_hash(name.as_encoded_bytes()) {
            write(name.as_encoded_bytes());
            continue;
        }
        let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        write(whole.as_os_str().as_encoded_bytes());
        write(&modified.as_nanos().to_le_bytes());
        let (mut file, mut sample) = (File::open(&whole)?, vec![0; SAMPLE]);
        for index in 0..SAMPLES {
            file.seek(SeekFrom::Start(metadata.len() / SAMPLES * index))?;
            let read = file.read(&mut sample)?;
            write(&sample[..read]);
        }
    }
    Ok(hash.finish_128())
}

/// Whether a file of the hub's cache has this name: the SHA-256 of its content.
fn is_content_hash(name: &[u8]) -> bool {
    name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit)
}
