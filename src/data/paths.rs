//! How a recipe names rows: a file, a folder, an id of the hub, a pattern of file names, or dLLM's splits with counts
//! (`ID[train:1000,test:100]`, joined by `+`); one of these or a list of them. `sources` reads what they name.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::splits::{files_of_split, names_needed};
use crate::error::{Error, Result};
use crate::files::rows_file::kind;
use crate::files::{is_named_as_rows, with_home};
use crate::hub;

/// One or several paths of rows, which are read one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Paths(Vec<PathBuf>);

/// A file, folder, id or pattern, with the counts that dLLM's brackets give its splits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// The text that names it, brackets included.
    pub given: PathBuf,
    /// The file, folder, id or pattern.
    path: PathBuf,
    /// The number of first rows that are used of each named split.
    pub counts: Vec<(String, usize)>,
}

impl Paths {
    /// The path, if there is exactly one.
    pub fn as_one(&self) -> Option<&Path> {
        if let [path] = &self.0[..] { Some(path) } else { None }
    }

    /// The paths as they are given.
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }

    /// Whether no path is given, or an empty one.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(|path| path.as_os_str().is_empty())
    }

    /// Whether every path is named as a file of rows, which has no splits.
    pub(crate) fn are_files(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|path| is_named_as_rows(path))
    }

    /// The paths as text for errors.
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// What the paths name.
    ///
    /// # Errors
    /// Brackets that can't be read.
    pub(super) fn places(&self) -> Result<Vec<Place>> {
        let places = self.0.iter().map(|path| match path.to_str() {
            Some(text) if !with_home(path).exists() => parts(text).into_iter().map(Place::parse).collect(),
            _ => Ok(vec![Place::plain(path)]),
        });
        Ok(places.collect::<Result<Vec<Vec<Place>>>>()?.concat())
    }
}

impl From<PathBuf> for Paths {
    fn from(path: PathBuf) -> Self {
        Self(vec![path])
    }
}

impl From<&Path> for Paths {
    fn from(path: &Path) -> Self {
        Self(vec![path.to_owned()])
    }
}

impl From<Vec<PathBuf>> for Paths {
    fn from(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

impl TryFrom<Value> for Paths {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let form = "give a path in quotes, or a list of them in [ ]";
        let path = |value: &Value| value.as_str().map(PathBuf::from).ok_or_else(|| form.to_owned());
        match &value {
            Value::Array(items) if items.is_empty() => Err(format!("the list is empty; {form}")),
            Value::Array(items) => items.iter().map(path).collect::<std::result::Result<_, _>>().map(Self),
            one => path(one).map(Self::from),
        }
    }
}

impl From<Paths> for Value {
    fn from(Paths(paths): Paths) -> Self {
        let text = |path: &PathBuf| Value::from(path.to_string_lossy());
        match &paths[..] {
            [] => Value::from(""),
            [path] => text(path),
            paths => paths.iter().map(text).collect(),
        }
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<String> = self.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&names.join(", "))
    }
}

/// Splits a text at the signs that join dLLM's data sets: `+`, or `|` in its older releases, after brackets or between
/// spaces. File names may have such signs elsewhere.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut start) = (vec![], 0);
    for (at, sign) in text.match_indices(['+', '|']) {
        let (before, behind) = (&text[start..at], &text[at + sign.len()..]);
        let is_spaced = before.ends_with(' ') && behind.starts_with(' ');
        if (is_spaced || before.trim_end().ends_with(']')) && !before.trim().is_empty() && !behind.trim().is_empty() {
            parts.push(before.trim());
            start = at + sign.len();
        }
    }
    // A text without such signs is one path, spaces included.
    parts.push(if start == 0 { text } else { text[start..].trim() });
    parts
}

/// The characters that make a path a pattern.
const WILD: [char; 3] = ['*', '?', '['];

impl Place {
    fn plain(path: &Path) -> Self {
        Self { given: path.to_owned(), path: path.to_owned(), counts: vec![] }
    }

    /// Reads a text as dLLM does: brackets at its end hold counts of splits, and the name of a configuration.
    fn parse(text: &str) -> Result<Self> {
        let brackets = text.strip_suffix(']').and_then(|text| text.split_once('['));
        let Some((name, inside)) = brackets.filter(|(_, inside)| inside.contains(':')) else {
            return Ok(Self::plain(Path::new(text)));
        };
        let (mut path, mut counts) = (name.trim_end().to_owned(), vec![]);
        for entry in inside.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (key, value) = entry.split_once(':').map_or((entry, ""), |(key, value)| (key.trim(), value.trim()));
            let digits = value.replace('_', "");
            match digits.parse() {
                Ok(count) if digits.bytes().all(|b| b.is_ascii_digit()) => counts.push((key.to_owned(), count)),
                // A configuration of the hub is a folder of its repository.
                _ if key == "name" && !value.is_empty() && hub::is_dataset(Path::new(&path)) => {
                    let scheme = if path.starts_with(hub::SCHEME) { "" } else { "hf://datasets/" };
                    path = format!("{scheme}{path}/{value}");
                }
                _ if key == "name" && !value.is_empty() => path = format!("{path}/{value}"),
                _ => {
                    return Err(Error::Usage(format!(
                        "{text}: {entry:?} is not a split with the number of its first rows, such as train:1000, nor \
                         name:FOLDER; write those, or leave it out"
                    )));
                }
            }
        }
        Ok(Self { given: PathBuf::from(text), path: PathBuf::from(path), counts })
    }

    /// The number of first rows that are used of a split; `None` for all of them.
    ///
    /// # Errors
    /// Counts of other splits alone.
    pub fn count(&self, split: &str) -> Result<Option<usize>> {
        let found = self.counts.iter().rev().find(|(of, _)| of == split).map(|(_, count)| *count);
        match self.counts.first() {
            Some((other, count)) if found.is_none() => Err(Error::Usage(format!(
                "{} counts rows of the split {other}, and the split that is read is {split}; write {split}:{count}, or \
                 set the split to {other:?}",
                self.given.display()
            ))),
            _ => Ok(found),
        }
    }

    /// The files in the order in which they are read; those of the hub are downloaded first.
    ///
    /// # Errors
    /// A pattern that matches nothing; the errors of [`super::sources::Source::files`].
    pub fn files(&self, split: &str) -> Result<Vec<PathBuf>> {
        let is_pattern = self.path.to_str().is_some_and(|path| path.contains(WILD)) && !with_home(&self.path).exists();
        let found = if is_pattern { self.matches()? } else { vec![self.path.clone()] };
        let mut files = vec![];
        for path in found {
            let path = hub::rows(&path, &|names| names_needed(names, split))?;
            match path.is_dir() {
                true => files.extend(files_of_split(&path, split)?),
                // A stream may never end, so the extension is checked before anything is read.
                false => files.extend(kind(&path).map(|_| [path])?),
            }
        }
        Ok(files)
    }

    /// The files and folders that match the pattern, in the order of their names. A pattern within a data set of the hub
    /// has its files downloaded.
    fn matches(&self) -> Result<Vec<PathBuf>> {
        let refuse = |reason: String| Error::Config { path: self.given.clone(), reason };
        let text = self.path.to_string_lossy();
        let fixed = text.find(WILD).and_then(|wild| text[..wild].rfind('/')).map_or("", |end| &text[..=end]);
        let within = &text[fixed.len()..];
        let mut folder = with_home(Path::new(fixed)).into_owned();
        if fixed.starts_with(hub::SCHEME) {
            let wanted = glob::Pattern::new(within).map_err(|e| refuse(format!("the pattern can't be read ({e})")))?;
            let is_wanted = |name: &&String| wanted.matches_with(name, MATCHING) && is_shown(name, within);
            let choose = |names: &[String]| {
                let chosen: Vec<String> = names.iter().filter(is_wanted).cloned().collect();
                if chosen.is_empty() { Err(format!("none of its files matches {within}")) } else { Ok(chosen) }
            };
            folder = hub::rows(Path::new(fixed), &choose)?;
        }
        let pattern = format!("{}/{within}", glob::Pattern::escape(folder.to_string_lossy().trim_end_matches('/')));
        let pattern = if fixed.is_empty() { within } else { &pattern };
        let found = glob::glob_with(pattern, MATCHING).map_err(|e| {
            refuse(format!("the pattern can't be read ({e}); a bracket that is part of a name is written [[]"))
        })?;
        let mut paths = vec![];
        for path in found {
            let path = path.map_err(|e| Error::Read { path: e.path().to_owned(), source: e.into() })?;
            let own = path.strip_prefix(&folder).unwrap_or(&path).to_string_lossy();
            if is_shown(&own, within) {
                paths.push(path);
            }
        }
        paths.sort();
        match paths.is_empty() {
            false => Ok(paths),
            true => Err(refuse(nothing(&text, fixed))),
        }
    }
}

/// How patterns match: `*` and `?` stop at a slash. The crate `glob` panics on names that aren't UTF-8 if it is set to
/// leave out names that begin with a dot, so [`is_shown`] does that.
const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Whether a path may match a pattern: names that begin with a dot are hidden unless the pattern names one.
fn is_shown(path: &str, pattern: &str) -> bool {
    let is_hidden = |text: &str| text.split('/').any(|name| name.starts_with('.') && ![".", ".."].contains(&name));
    !is_hidden(path) || is_hidden(pattern)
}

/// The largest number of names that an error lists.
const LISTED: usize = 5;

/// The error for a pattern that nothing matches, with the files of rows in its fixed folder.
fn nothing(pattern: &str, fixed: &str) -> String {
    if let Some((name, split)) = pattern.strip_suffix(']').and_then(|pattern| pattern.split_once('[')) {
        return format!(
            "no file matches this pattern; for the first rows of a split write their number: {name}[{split}:1000]"
        );
    }
    let folder = with_home(Path::new(if fixed.is_empty() { "." } else { fixed })).into_owned();
    let Ok(entries) = folder.read_dir() else {
        return format!("no file matches this pattern: there is no folder {}", folder.display());
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| is_named_as_rows(Path::new(name)));
    names.sort();
    let more = if names.len() > LISTED { ", ..." } else { "" };
    names.truncate(LISTED);
    match names.is_empty() {
        true => format!("no file matches this pattern; {} holds no files of rows", folder.display()),
        false => format!("no file matches this pattern; {} holds {}{more}", folder.display(), names.join(", ")),
    }
}
