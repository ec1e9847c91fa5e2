//! What stands in one place alone: unsafe code in crates/kernels, the network in `hub`. And the order of the modules:
//! imports run down only.

use std::collections::BTreeSet;
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

#[test]
fn the_command_lines_dependencies_are_the_programs_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
    for name in ["clap", "clap_complete", "console", "indicatif", "rustyline", "signal-hook", "sigpipe"] {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{name} = "))).expect("it is a dependency");
        assert!(line.contains("optional = true"), "{line}");
        let word = format!("{}::", name.replace('-', "_"));
        for path in sources(&root.join("src")) {
            let is_program = path.starts_with(root.join("src/cli")) || path == root.join("src/main.rs");
            let text = fs::read_to_string(&path).expect("it is there");
            assert!(is_program || !text.contains(&word), "{} names {name}", path.display());
        }
    }
}

/// The folders and files of src/, the lowest first: each may import those before it, and none after it. The order is
/// total, so there is no circle.
const LAYERS: [&str; 31] = [
    // What knows no model: counts in sentences, errors, the system, reading settings, files, the hub, the device.
    "counted",
    "error",
    "interrupt",
    "progress",
    "machine",
    "rng",
    "files",
    "settings",
    "hub",
    "device",
    // The method, pure functions of entropies and draws.
    "noising",
    "objective",
    // Messages between ranks.
    "parallel",
    // Examples, networks, and both together.
    "data",
    "model",
    "base",
    // What runs a network.
    "sampler",
    "eval",
    "train",
    // What composes the settings of all of the above, and what works by them.
    "recipe",
    "experiment",
    "merge",
    "convert",
    "parity",
    "report",
    "plan",
    "bench",
    "reproduce",
    "compare",
    // What a program imports of all of them.
    "prelude",
    // The program: src/cli and src/main.rs.
    "cli",
];

/// The module of the crate's root that a file below src/ belongs to, and how deep the file's own module lies; `None` for
/// lib.rs, which declares all of them.
fn module_of(file: &str) -> Option<(&str, usize)> {
    let path = file.strip_prefix("src/")?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path.split('/').next()? {
        "lib" => None,
        "main" => Some(("cli", 0)),
        module => Some((module, path.split('/').count())),
    }
}

/// The name at a place of a text, empty where there is none.
fn name_at(text: &str, at: usize) -> &str {
    let rest = &text[at..];
    &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
}

/// The names that follow a path's beginning: one, or the first ones of each branch of a group in braces, with their places.
fn names_from(text: &str, at: usize) -> Vec<(usize, &str)> {
    if !text[at..].starts_with('{') {
        return vec![(at, name_at(text, at))];
    }
    let (mut names, mut depth, mut begins) = (vec![], 0, false);
    for (i, c) in text[at..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if begins && !c.is_whitespace() => names.push((at + i, name_at(text, at + i))),
            _ => {}
        }
        begins = depth == 1 && (matches!(c, '{' | ',') || begins && c.is_whitespace());
        if depth == 0 {
            break;
        }
    }
    names
}

/// Modules in braces around each line, by the layout that rustfmt gives them.
fn inner_depths(text: &str) -> Vec<usize> {
    let mut ends: Vec<String> = vec![];
    let depth = |line: &str| {
        let code = line.trim_start();
        let is_module = code.ends_with('{') && code.split_whitespace().any(|word| word == "mod");
        if is_module {
            ends.push(format!("{}}}", &line[..line.len() - code.len()]));
        } else if ends.last().is_some_and(|end| end == line) {
            ends.pop();
        }
        ends.len()
    };
    text.lines().map(depth).collect()
}

/// What a file's code names of the crate's root: the line, counted from 1, and the name. These are paths from `crate` or
/// `weft`, in imports and in bodies, and paths from `super` that reach the root.
fn root_names(file: &str, text: &str) -> Vec<(usize, String)> {
    let Some((_, depth)) = module_of(file) else { return vec![] };
    let blank = |line: &str| if line.trim_start().starts_with("//") { String::new() } else { line.to_owned() };
    let text = text.lines().map(blank).collect::<Vec<_>>().join("\n");
    let (inner, line_of) = (inner_depths(&text), |at: usize| text[..at].matches('\n').count());
    let is_whole = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut names = vec![];
    for root in ["crate::", "weft::"] {
        let from = text.match_indices(root).filter(|(at, _)| is_whole(*at));
        names.extend(from.flat_map(|(at, root)| names_from(&text, at + root.len())));
    }
    for (at, up) in text.match_indices("super::").filter(|(at, _)| is_whole(*at)) {
        let chain = text[at..].len() - text[at..].trim_start_matches(up).len();
        let is_first = !text[..at].ends_with(up);
        if is_first && chain / up.len() == depth + inner[line_of(at)] {
            names.extend(names_from(&text, at + chain));
        }
    }
    names.sort();
    names.into_iter().map(|(at, name)| (line_of(at) + 1, name.to_owned())).collect()
}

/// Where a module stands in the order.
fn place(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
}

/// The imports of a file that run up, a sentence each; or where its module has to be put in the order.
fn imports_that_run_up(file: &str, text: &str) -> Vec<String> {
    let Some((module, _)) = module_of(file) else { return vec![] };
    let names = root_names(file, text);
    let Some(own) = place(module) else {
        let highest = names.iter().filter_map(|(_, name)| place(name)).max();
        let after = highest.map_or("first".to_owned(), |i| format!("after \"{}\", which it imports,", LAYERS[i]));
        return vec![format!(
            "{file}: \"{module}\" has no place in LAYERS; put it {after} and before all that import it"
        )];
    };
    let up = names.iter().filter(|(_, name)| place(name).is_some_and(|other| other > own));
    up.map(|(line, name)| {
        format!(
            "{file}:{line}: {module} -> {name} runs up; move what both need down, or give it to {module} from {name}"
        )
    })
    .collect()
}

#[test]
fn imports_run_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut wrong, mut found, mut imports) = (vec![], BTreeSet::new(), 0);
    for path in sources(&root.join("src")) {
        let file = path.strip_prefix(root).expect("it lies below").to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).expect("it is there");
        found.extend(module_of(&file).map(|(module, _)| module.to_owned()));
        imports += root_names(&file, &text).len();
        wrong.extend(imports_that_run_up(&file, &text));
    }
    wrong.extend(LAYERS.iter().filter(|layer| !found.contains(**layer)).map(|layer| format!("src/ has no {layer}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(imports > 300, "{imports} imports are looked at");
}

#[test]
fn a_planted_import_that_runs_up_is_found() {
    for (file, text, line, arrow) in [
        ("src/error.rs", "use std::io;\n\nuse crate::train::run;\n", 3, "error -> train"),
        ("src/hub/cache.rs", "use crate::{\n    error::{Error, Result},\n    model::weights,\n};\n", 3, "hub -> model"),
        ("src/sampler/llada.rs", "fn f() {\n    crate::recipe::parse();\n}\n", 2, "sampler -> recipe"),
        ("src/model/lora.rs", "pub use super::super::base::Base;\n", 1, "model -> base"),
        ("src/parallel/mod.rs", "use super::train;\n", 1, "parallel -> train"),
        ("src/data/mod.rs", "mod tests {\n    use super::super::eval;\n}\n", 2, "data -> eval"),
        ("src/plan/mod.rs", "pub(in crate::bench) fn f() {}\n", 1, "plan -> bench"),
    ] {
        let found = imports_that_run_up(file, text);
        assert_eq!(found.len(), 1, "{file}: {found:?}");
        assert!(found[0].starts_with(&format!("{file}:{line}: {arrow} runs up; ")), "{}", found[0]);
    }
    for (file, text) in [
        ("src/train/run.rs", "use crate::error::{Error, train};\nuse super::super::model::block;\n"),
        ("src/train/run.rs", "//! [`crate::recipe`]\nuse super::recipe;\nuse weft_kernels::plan;\n"),
        ("src/error.rs", "mod tests {\n    use super::train;\n}\n"),
        ("src/cli/train.rs", "use weft::{plan::Plan, train::run};\nuse super::data;\n"),
        ("src/lib.rs", "pub use crate::train::run;\n"),
    ] {
        assert_eq!(imports_that_run_up(file, text), Vec::<String>::new(), "{file}: {text}");
    }
    let found = imports_that_run_up("src/quantize/mod.rs", "use crate::error::Error;\nuse crate::model::block;\n");
    let place = "src/quantize/mod.rs: \"quantize\" has no place in LAYERS; put it after \"model\", which it imports,";
    assert!(found.len() == 1 && found[0].starts_with(place), "{found:?}");
}
