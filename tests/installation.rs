//! `weft --version` tells how the program was installed, from the records of pip and of cargo beside it. The records are
//! written here as the tools write them; `scripts/wheel_check` looks at what a real pip leaves.
#![cfg(unix)]

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The program in `bin/` below a folder of its own.
fn installed(name: &str) -> (PathBuf, PathBuf) {
    let prefix = scratch::folder(name).canonicalize().expect("the folder is there");
    let program = prefix.join("bin/weft");
    write(&program, "");
    fs::remove_file(&program).expect("the file is there");
    if fs::hard_link(PROGRAM, &program).is_err() {
        fs::copy(PROGRAM, &program).expect("the program can be copied");
    }
    (prefix, program)
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("the folder can be made");
    fs::write(path, text).expect("the file can be written");
}

/// The line of `weft --version` behind `installed: `.
fn told(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("the version is text");
    let line = text.lines().find_map(|line| line.strip_prefix("installed: "));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// The records of a package that lists the program by this path and size.
fn package(site: &Path, path: &str, size: u64) -> PathBuf {
    let package = site.join(format!("weft_dllm-{VERSION}.dist-info"));
    let record = format!("{path},sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,{size}\nweft_dllm/RECORD,,\n");
    write(&package.join("RECORD"), &record);
    write(&package.join("INSTALLER"), "pip\n");
    package
}

/// Cargo's record of a crate.
fn crates(prefix: &Path, version: &str, source: &str) {
    write(&prefix.join(".crates.toml"), &format!("[v1]\n\"weft-dllm {version} ({source})\" = [\"weft\"]\n"));
}

fn size() -> u64 {
    fs::metadata(PROGRAM).expect("the program is there").len()
}

#[test]
fn a_built_program_names_its_folder() {
    let program = Path::new(PROGRAM).canonicalize().expect("the program is there");
    let folder = program.parent().expect("it lies in a folder");
    assert_eq!(told(&program), format!("no; built by cargo in {}", folder.display()));
}

#[test]
fn a_program_without_a_record_is_unknown() {
    let (_, program) = installed("copied");
    assert_eq!(told(&program), format!("unknown; no record of pip or cargo lists {}", program.display()));
}

#[test]
fn a_program_in_the_place_of_a_built_one_is_unknown() {
    let (prefix, program) = installed("moved");
    write(&prefix.join("bin/deps/weft-0123456789abcdef"), "another program");
    assert_eq!(told(&program), format!("unknown; no record of pip or cargo lists {}", program.display()));
}

#[test]
fn pip_is_told_with_its_source() {
    for (site, path) in [
        ("lib/python3.11/site-packages", "../../../bin/weft"),
        ("local/../lib/python3/dist-packages", "../../../bin/weft"),
        ("", "../../bin/weft"), // pip install --target
    ] {
        let (prefix, program) = installed("pip");
        fs::create_dir_all(prefix.join("local")).expect("the folder can be made");
        let package = package(&prefix.join(site), path, size());
        let package = package.canonicalize().expect("it is there");
        assert_eq!(told(&program), format!("by pip ({})", package.display()));
        write(&package.join("direct_url.json"), r#"{"dir_info": {}, "url": "file:///some/weft"}"#);
        assert_eq!(told(&program), format!("by pip from file:///some/weft ({})", package.display()));
        let cloned = r#"{"url": "ssh://example.org/weft", "vcs_info": {"commit_id": "0123abc", "vcs": "git"}}"#;
        write(&package.join("direct_url.json"), cloned);
        write(&package.join("INSTALLER"), "uv");
        assert_eq!(told(&program), format!("by uv from ssh://example.org/weft at 0123abc ({})", package.display()));
    }
}

#[test]
fn a_link_to_the_program_is_followed() {
    let (prefix, _) = installed("linked");
    let package = package(&prefix.join("lib/python3.11/site-packages"), "../../../bin/weft", size());
    let link = scratch::folder("links").join("weft");
    std::os::unix::fs::symlink(prefix.join("bin/weft"), &link).expect("a link can be made");
    assert_eq!(told(&link), format!("by pip ({})", package.display()));
}

#[test]
fn a_record_of_another_file_is_none() {
    let (prefix, program) = installed("replaced");
    let unknown = format!("unknown; no record of pip or cargo lists {}", program.display());
    let site = prefix.join("lib/python3.11/site-packages");
    // pip had installed a program of another size; a package that has no program; cargo had installed another version.
    package(&site, "../../../bin/weft", size() - 1);
    assert_eq!(told(&program), unknown);
    package(&site, "../../../bin/other", size());
    assert_eq!(told(&program), unknown);
    crates(&prefix, "0.0.1", "path+file:///some/weft");
    assert_eq!(told(&program), unknown);
    write(&prefix.join(".crates.toml"), "not = [toml");
    assert_eq!(told(&program), unknown);
}

#[test]
fn cargo_is_told_with_its_source() {
    let (prefix, program) = installed("cargo");
    let record = prefix.join(".crates.toml");
    for (source, shown) in [
        ("path+file:///some/weft", "file:///some/weft"),
        ("git+ssh://example.org/weft#0123abc", "git+ssh://example.org/weft#0123abc"),
    ] {
        crates(&prefix, VERSION, source);
        assert_eq!(told(&program), format!("by cargo install from {shown} ({})", record.display()));
    }
}

#[test]
fn two_records_are_both_told() {
    let (prefix, program) = installed("both");
    let package = package(&prefix.join("lib/python3.11/site-packages"), "../../../bin/weft", size());
    crates(&prefix, VERSION, "path+file:///some/weft");
    let by_cargo = format!("by cargo install from file:///some/weft ({})", prefix.join(".crates.toml").display());
    assert_eq!(told(&program), format!("by pip ({}), or {by_cargo}", package.display()));
}
