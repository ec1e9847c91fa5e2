//! A conversion that is killed, or whose disk fails, at any of its calls: the folder is there complete or not at all,
//! and the next conversion ends with the same bytes.

mod autoregressive;
mod scratch;
mod strace;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use autoregressive::{Source, TOKENS};
use scratch::{folder, names};
use strace::{Call, Fault};

/// `weft convert --model source --out out/new` in a folder.
fn weft(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(["convert", "--model", "source", "--out", "out/new"]);
    command
}

/// A folder with the checkpoint to convert.
fn start(name: &str) -> PathBuf {
    let source = Source { rows: TOKENS, is_tied: false, is_sharded: true, ..Source::QWEN3 }.write(name);
    let folder = folder(name);
    fs::rename(source, folder.join("source")).expect("it can be moved");
    folder
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| (name.clone(), fs::read(folder.join(name)).expect("it is there"));
    names(folder).into_iter().map(read).collect()
}

#[test]
fn a_folder_is_complete_or_absent_after_a_fault_at_any_call() {
    if let Some(reason) = strace::missing() {
        // The harness keeps what a test that passes prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no fault is injected: {reason}");
        return;
    }
    let folder = start("whole");
    let calls = strace::calls(&folder, &weft(&folder));
    let whole = contents(&folder.join("out/new"));
    let is_file = |path: &Path| !path.to_string_lossy().starts_with("pipe:");
    let changing: Vec<_> =
        calls.into_iter().filter(|call| call.changes && !call.fails && is_file(&call.path)).collect();
    assert!(changing.len() > 30, "{changing:?}");
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(call) = changing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    [Fault::Kill, Fault::Error("EIO")].into_iter().for_each(|fault| survives(call, fault, &whole));
                }
            });
        }
    });
}

/// Disturbs a conversion, and holds what it leaves and what the next one makes against the undisturbed result.
fn survives(call: &Call, fault: Fault, whole: &BTreeMap<String, Vec<u8>>) {
    let folder = start("disturbed");
    let output = strace::disturb(&folder, &weft(&folder), call, fault);
    let (out, new) = (folder.join("out"), folder.join("out/new"));
    let is_there = new.exists();
    assert!(!is_there || contents(&new) == *whole, "{call:?} {fault:?}: half a folder");
    if fault != Fault::Kill {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_told = told.starts_with("error: cannot write ") && output.status.code() == Some(2);
        assert!(is_told || output.status.success() && is_there, "{call:?} {fault:?}: {told}");
        // The next conversion removes a folder that couldn't be removed, or whose making couldn't be flushed.
        let may_stay = call.name.contains("unlink") || ["", "out"].map(Path::new).contains(&&*call.path);
        let left = if out.exists() { names(&out) } else { vec![] };
        assert!(may_stay || left.iter().all(|name| name == "new"), "{call:?}: {left:?}");
    }
    if !is_there {
        let again = weft(&folder).output().expect("weft starts");
        assert!(again.status.success(), "{call:?} {fault:?}: {}", String::from_utf8_lossy(&again.stderr));
        assert_eq!(names(&out), ["new"], "{call:?} {fault:?}");
        assert!(contents(&new) == *whole, "{call:?} {fault:?}");
    }
    fs::remove_dir_all(folder).expect("it can be removed");
}
