//! What a program of an answer takes in all: the memory of its processes and the files in its folder. The kernel limits each
//! process and each file for `sandbox`; this file looks at their sums while a program runs.

use std::fs;
use std::path::{Path, PathBuf};

use super::sandbox::Limits;

/// The number of processes' worth of memory that all processes together may have.
const MEMORY_OF: u64 = 2;
/// The number of files' worth of bytes that all files together may have.
const BYTES_OF: u64 = 16;
/// The largest number of files and folders.
const MOST_FILES: usize = 10_000;
/// The length of a path, in bytes, at which folders are nested too deeply.
const LONGEST_PATH: usize = 2000;

/// Why a program is stopped: what it takes too much of; `None` if it takes no more than it may.
pub(super) fn excess(process: u32, folder: &Path, limits: &Limits) -> Option<String> {
    let most = MEMORY_OF * limits.memory_bytes;
    if memory(process) > most {
        return Some(format!("its processes took more than {} MiB of memory", most >> 20));
    }
    let most = BYTES_OF * limits.file_bytes;
    match files(folder) {
        Some((_, bytes)) if bytes > most => Some(format!("it wrote more than {} MiB", most >> 20)),
        Some((count, _)) if count > MOST_FILES => Some(format!("it made more than {MOST_FILES} files")),
        Some(_) => None,
        None => Some("it nested folders too deeply".to_owned()),
    }
}

/// The memory of a process and of all that descend from it, in bytes; 0 where there is no /proc. Memory that processes share
/// counts for each of them.
fn memory(process: u32) -> u64 {
    let (mut waiting, mut bytes) = (vec![process], 0);
    while let Some(process) = waiting.pop() {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        bytes += 1024 * kib.unwrap_or(0);
        let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        waiting.extend(children.flat_map(|line| numbers(&line)));
    }
    bytes
}

fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The number of files and folders in a folder, and the bytes of the files, or as many as are too many; `None` if they are
/// nested too deeply.
fn files(folder: &Path) -> Option<(usize, u64)> {
    let mut waiting: Vec<PathBuf> = vec![folder.to_owned()];
    let (mut count, mut bytes) = (0, 0);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            count += 1;
            if count > MOST_FILES {
                return Some((count, bytes));
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                let path = entry.path();
                if path.as_os_str().len() > LONGEST_PATH {
                    return None;
                }
                waiting.push(path);
            } else {
                bytes += metadata.len();
            }
        }
    }
    Some((count, bytes))
}
