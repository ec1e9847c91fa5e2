//! Commands of the program that a test runs in a folder: one that prints its result, and one that is refused.
#![allow(dead_code)] // each test binary uses a part

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a command.
pub fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).stdin(Stdio::null()).output().expect("weft starts")
}

/// What a command prints that succeeds.
pub fn printed(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The error's one line, after exit status 2.
pub fn refused(folder: &Path, args: &[&str]) -> String {
    let output = weft(folder, args);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{args:?} takes more than a line: {text}") };
    line.to_owned()
}
