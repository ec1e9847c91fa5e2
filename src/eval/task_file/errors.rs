//! The errors of task files: the line of each key that they name.

use crate::error::Error;

/// An error of a task file, with the line of each key that it names, and with this kind of file's own hint.
pub(super) fn with_lines(error: Error, text: &str) -> Error {
    let Error::Recipe { path, problems } = error else { return error };
    let recipes = "\"weft recipe\" prints those that are known";
    let told = |problem: String| {
        let problem = problem.replace(recipes, "docs/tasks.md lists those that are known");
        match line_of(&problem, text) {
            Some(line) => format!("line {line}: {problem}"),
            None => problem,
        }
    };
    // A value that can't be read counts as missing too, which its own problem says better.
    let is_missing = |problem: &&String| problem.contains(" is missing");
    let unreadable: Vec<String> = problems.iter().filter(|p| !is_missing(p)).map(|p| key_of(p).to_owned()).collect();
    let problems = problems.into_iter().filter(|p| !is_missing(&p) || unreadable.iter().all(|key| key != key_of(p)));
    let problems: Vec<String> = problems.map(told).collect();
    match &problems[..] {
        [_] => Error::Recipe { path, problems },
        several => {
            let lines: String = several.iter().map(|problem| format!("\n  {}: {problem}", path.display())).collect();
            Error::Usage(format!("the task has {} problems:{lines}", several.len()))
        }
    }
}

/// The key or table with which a problem begins.
fn key_of(problem: &str) -> &str {
    let unknown = ["unknown key ", "unknown table "].iter().find_map(|start| problem.strip_prefix(start));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    unknown.unwrap_or(problem).split(|c| !is_word(c)).next().unwrap_or_default()
}

/// The line of the key with which a problem begins.
fn line_of(problem: &str, text: &str) -> Option<usize> {
    let name = key_of(problem);
    if name.is_empty() {
        return None;
    }
    let (table, key) = name.split_once('.').map_or((name, None), |(table, key)| (table, Some(key)));
    let mut within = String::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim_start)) {
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            within = header.trim().to_owned();
            if key.is_none() && within == table {
                return Some(number);
            }
        }
        let own = line.split('=').next().unwrap_or_default().trim();
        let is_it = match key {
            Some(key) => within == table && own == key,
            None => within.is_empty() && own == table,
        };
        if is_it && line.contains('=') {
            return Some(number);
        }
    }
    None
}
