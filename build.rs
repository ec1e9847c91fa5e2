//! Tells the program which commit it is built from: `WEFT_COMMIT`, empty where that isn't known. A debug build has none,
//! so that a new commit doesn't make a developer compile everything again.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = if is_release { of_git().or_else(of_package) } else { None };
    println!("cargo:rustc-env=WEFT_COMMIT={}", commit.unwrap_or_default());
}

/// The commit of the checkout, marked if tracked files differ from it.
fn of_git() -> Option<String> {
    // In a package within somebody else's repository, that repository's commit says nothing.
    let prefix = git(&["rev-parse", "--show-prefix"])?;
    if !prefix.is_empty() || git(&["ls-files", "--error-unmatch", "build.rs"]).is_none() {
        return None;
    }
    let reference = git(&["rev-parse", "--symbolic-full-name", "HEAD"])?;
    for name in ["HEAD", &reference] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_changed { format!("{commit} with changes") } else { commit })
}

/// The commit that `cargo package` wrote beside the sources.
fn of_package() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let hash = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    Some(hash.chars().take(12).collect())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
