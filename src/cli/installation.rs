//! Finds out how the program was installed: by pip, by `cargo install`, or not at all, if it still lies where cargo built it.
//! The answer comes from the records that these tools keep beside a program, because a name compiled into the program would
//! be wrong in a copy of it.

use std::fs::{metadata, read_dir, read_to_string};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// How the running program was installed, in one line.
pub fn installation() -> String {
    match std::env::current_exe().and_then(|program| program.canonicalize()) {
        Ok(program) => describe(&program),
        Err(_) => "unknown; the system doesn't name the program's file".to_owned(),
    }
}

/// Every record that lists the program. There are two if `cargo install` wrote into a virtual environment where pip had
/// installed Weft before. The file may then be from either of them, and both are named.
fn describe(program: &Path) -> String {
    let records: Vec<String> = [by_pip(program), by_cargo(program), of_build(program)].into_iter().flatten().collect();
    match records.is_empty() {
        true => format!("unknown; no record of pip or cargo lists {}", program.display()),
        false => records.join(", or "),
    }
}

/// The folder that `bin/` or `Scripts/` lies in.
fn prefix(program: &Path) -> Option<&Path> {
    program.parent()?.parent()
}

/// The Python package that lists the program among its files, the tool that installed it (`pip`, `uv`), and its source.
fn by_pip(program: &Path) -> Option<String> {
    let package = packages(prefix(program)?).into_iter().find(|package| lists(package, program))?;
    let installer = read_to_string(package.join("INSTALLER")).unwrap_or_default();
    let installer = Some(installer.trim()).filter(|name| !name.is_empty()).unwrap_or("a Python installer");
    Some(format!("by {installer}{} ({})", source(&package).unwrap_or_default(), package.display()))
}

/// What a package was installed from: a folder, a wheel file, or a repository with its commit; `None` for a package index.
fn source(package: &Path) -> Option<String> {
    let source: Value = serde_json::from_str(&read_to_string(package.join("direct_url.json")).ok()?).ok()?;
    let commit = source["vcs_info"]["commit_id"].as_str().map(|commit| format!(" at {commit}"));
    Some(format!(" from {}{}", source["url"].as_str()?, commit.unwrap_or_default()))
}

/// Weft's records below a prefix, in the places where Python's installers put packages: `lib/python3.N/site-packages`, Debian's
/// `dist-packages`, Windows' `Lib/site-packages`, and, for `pip install --target`, beside `bin/`.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let is_python = |name: &str| name.starts_with("python");
    let pythons = ["lib", "lib64"].into_iter().flat_map(|lib| entries(&prefix.join(lib), is_python));
    let places = pythons.chain([prefix.join("Lib")]);
    let sites = places.flat_map(|place| ["site-packages", "dist-packages"].map(|site| place.join(site)));
    let is_weft = |name: &str| name.starts_with("weft_dllm-") && name.ends_with(".dist-info");
    sites.chain([prefix.to_owned()]).flat_map(|site| entries(&site, is_weft)).collect()
}

/// The entries of a folder whose names are of this kind.
fn entries(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| is_wanted(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

/// Whether a package's RECORD, lines of `path,hash,size`, lists the program with its size. A different program that was put in
/// its place usually has a different size.
fn lists(package: &Path, program: &Path) -> bool {
    let record = read_to_string(package.join("RECORD")).unwrap_or_default();
    let size = metadata(program).map_or(0, |file| file.len()).to_string();
    let name = |path: &Path| path.iter().rev().take(2).map(|part| part.to_owned()).collect::<Vec<_>>();
    record.lines().any(|line| {
        let mut fields = line.split(',');
        let path = fields.next().unwrap_or_default();
        name(Path::new(path)) == name(program) && fields.nth(1) == Some(&size)
    })
}

/// The crate that `cargo install` recorded for the program, if it is of this version.
fn by_cargo(program: &Path) -> Option<String> {
    let record = prefix(program)?.join(".crates.toml");
    let table: toml::Table = toml::from_str(&read_to_string(&record).ok()?).ok()?;
    let of_weft = concat!("weft-dllm ", env!("CARGO_PKG_VERSION"), " (");
    let is_ours = |programs: &toml::Value| {
        let name = program.file_name().and_then(|name| name.to_str());
        programs.as_array().is_some_and(|programs| programs.iter().any(|one| one.as_str() == name))
    };
    let mut crates = table.get("v1")?.as_table()?.iter();
    let source = crates.find_map(|(id, programs)| id.strip_prefix(of_weft).filter(|_| is_ours(programs)))?;
    let source = source.trim_end_matches(')');
    let source = source.strip_prefix("path+").unwrap_or(source);
    Some(format!("by cargo install from {source} ({})", record.display()))
}

/// The folder in which cargo built the program, if the program still lies there. Cargo builds `deps/weft-HASH` and hard-links
/// it to `weft`, so the two have the same size.
fn of_build(program: &Path) -> Option<String> {
    let folder = program.parent()?;
    let name = format!("{}-", program.file_stem()?.to_str()?);
    let size = metadata(program).ok()?.len();
    let built = entries(&folder.join("deps"), |file| file.starts_with(&name));
    let is_there = built.iter().any(|file| metadata(file).is_ok_and(|file| file.len() == size));
    is_there.then(|| format!("no; built by cargo in {}", folder.display()))
}
