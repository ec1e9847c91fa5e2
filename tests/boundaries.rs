//! What stands in one place alone: unsafe code in crates/kernels, the network in `hub`.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten();
    let of = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    };
    entries.flat_map(|entry| of(entry.path())).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

#[test]
fn unsafe_code_is_the_kernels_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The compiler holds what these two crates promise; nothing within them can take it back.
    for name in ["src/lib.rs", "src/main.rs"] {
        let text = fs::read_to_string(root.join(name)).expect("the crate is there");
        assert!(text.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{name} forbids unsafe code");
    }
    // Tests and examples are crates of their own. The words are put together here, lest this file holds them.
    let words = ["fn", "impl", "{", "extern"].map(|next| format!("un{} {next}", "safe"));
    for folder in ["tests", "examples"] {
        for path in sources(&root.join(folder)) {
            let text = fs::read_to_string(&path).expect("it is there");
            let found = words.iter().find(|word| text.contains(word.as_str()));
            assert_eq!(found, None, "{}", path.display());
        }
    }
}

/// Each unsafe block of the kernels says why it is sound.
#[test]
fn unsafe_blocks_of_the_kernels_say_why() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/kernels/src");
    let block = format!("un{} {{", "safe");
    let mut count = 0;
    for path in sources(&kernels) {
        let text = fs::read_to_string(&path).expect("it is there");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(&block)) {
            let before = lines[i.saturating_sub(6)..=i].iter();
            assert!(before.rev().any(|l| l.contains("// SAFETY:")), "{}:{}: {line}", path.display(), i + 1);
            count += 1;
        }
    }
    assert!(count > 10, "{count} blocks are looked at");
}

#[test]
fn the_network_is_the_hubs_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let words = ["std::net", "TcpStream", "UdpSocket", "ureq::", "ToSocketAddrs"];
    let crates = [root.join("src"), root.join("crates/kernels/src")];
    let mut of_hub = 0;
    for path in crates.iter().flat_map(|folder| sources(folder)) {
        let text = fs::read_to_string(&path).expect("it is there");
        let found = words.iter().find(|word| text.contains(**word));
        let is_hub = path.starts_with(root.join("src/hub")) || path == root.join("src/hub.rs");
        assert!(is_hub || found.is_none(), "{}: {found:?}", path.display());
        of_hub += usize::from(found.is_some());
    }
    assert!(of_hub > 0, "the hub is reached somewhere");
    // Its client is a dependency of that feature alone.
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
    let client = manifest.lines().find(|line| line.starts_with("ureq = ")).expect("the client is a dependency");
    assert!(client.contains("optional = true"), "{client}");
}
