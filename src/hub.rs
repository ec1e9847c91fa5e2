//! Ids of models, adapters and rows on the Hugging Face hub: decides which strings are ids. `model` and `data` choose
//! which files of a repository are needed, `cache` knows where files lie, and `download` is the only code that uses the
//! network. Without the feature `hub`, an id is an error that says so.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod download;

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::files::{is_named_as_rows, with_home};

/// The prefix of explicit ids.
pub(crate) const SCHEME: &str = "hf://";
/// What follows the prefix in the ids of data sets.
const DATASETS: &str = "datasets/";
/// The default revision.
const MAIN: &str = "main";
/// The longest part of an id.
const MAX_PART: usize = 96;

/// The two kinds of repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// The plural that the hub's API and the cache's folders use.
    #[cfg(feature = "hub")]
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// The beginning of the URL path of a repository's page and files.
    #[cfg(feature = "hub")]
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => DATASETS,
        }
    }
}

/// A repository of the hub, or a folder or file inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
struct Id {
    kind: Kind,
    /// `ORG/NAME`.
    name: String,
    /// A branch, tag or commit.
    revision: String,
    /// The folder or file inside the repository; empty for all of it.
    inside: String,
    /// The id as the user wrote it.
    given: String,
}

/// Chooses the needed files among the names of a repository; the error says what the repository lacks.
pub(crate) type Choose<'a> = &'a dyn Fn(&[String]) -> std::result::Result<Vec<String>, String>;

/// What is needed of a model's repository.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
pub(crate) struct Needs<'a> {
    /// Chooses the files that are downloaded first.
    pub files: Choose<'a>,
    /// Chooses further files once the first ones are in a folder.
    pub behind: Option<ChooseBehind<'a>>,
    /// What an error suggests besides a folder and an id of the hub: nothing, or text that begins with a comma.
    pub alternative: &'static str,
}

/// Chooses files like [`Choose`], but also reads the folder with the first files.
pub(crate) type ChooseBehind<'a> = &'a dyn Fn(&[String], &Path) -> Result<std::result::Result<Vec<String>, String>>;

/// A model's folder: the path itself, or the folder with the hub's files once all of them are downloaded.
///
/// # Errors
/// A folder that doesn't exist; an id of the hub whose files can't be downloaded.
pub(crate) fn model(path: &Path, needs: Needs) -> Result<PathBuf> {
    let path = &*with_home(path);
    match Id::of(path, Kind::Model)? {
        None if !path.exists() => Err(Error::Usage(format!(
            "there is no folder {}; give one, or a model of the hub (ORG/NAME){}",
            path.display(),
            needs.alternative
        ))),
        None => Ok(path.to_owned()),
        Some(id) => fetch(&id, needs),
    }
}

/// A file or folder of rows: the path itself, or that of the hub's files once all of them are downloaded.
///
/// # Errors
/// An id of the hub whose files can't be downloaded.
pub(crate) fn rows(path: &Path, files: Choose) -> Result<PathBuf> {
    let path = &*with_home(path);
    match Id::of(path, Kind::Dataset)? {
        None => Ok(path.to_owned()),
        Some(id) => fetch(&id, Needs { files, behind: None, alternative: "" }),
    }
}

/// Whether a path of rows names a data set of the hub, or a folder in one.
pub(crate) fn is_dataset(path: &Path) -> bool {
    matches!(Id::of(path, Kind::Dataset), Ok(Some(id)) if !is_named_as_rows(Path::new(&id.inside)))
}

/// A base's name and revision as PEFT writes them into adapter_config.json.
pub fn name_and_revision(base: &str) -> (String, Option<String>) {
    match Id::of(Path::new(base), Kind::Model) {
        Ok(Some(id)) => (id.name, (id.revision != MAIN).then_some(id.revision)),
        _ => (base.to_owned(), None),
    }
}

static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Turns off all messages about downloads and caches.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Whether messages about downloads and caches are off.
pub(crate) fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::Relaxed)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &Id, _: Needs) -> Result<PathBuf> {
    let reason = "there is no such file or folder, and this build has no hub support; pass a folder or build with \
                  --features hub";
    Err(id.error(reason.to_owned()))
}

#[cfg(feature = "hub")]
fn fetch(id: &Id, needs: Needs) -> Result<PathBuf> {
    let repository = cache::Repository::open(id)?;
    let fetched = fetch_from(&repository, id, needs);
    match fetched {
        // The recorded list of files may be older than the hub's.
        Err(_) if repository.is_from_record() => match repository.renewed()? {
            Some(renewed) => fetch_from(&renewed, id, needs),
            None => fetched,
        },
        fetched => fetched,
    }
}

#[cfg(feature = "hub")]
fn fetch_from(repository: &cache::Repository, id: &Id, needs: Needs) -> Result<PathBuf> {
    let names = id.names(repository.names());
    let first = match (id.kind, names.as_slice()) {
        // The id names a file.
        (Kind::Dataset, [name]) if name.is_empty() => Ok(names.clone()),
        (Kind::Dataset, []) => Err(format!("it has no {}", id.inside)),
        _ => (needs.files)(&names),
    };
    repository.complete(&id.paths(&first.map_err(|reason| repository.lacking(&reason))?))?;
    let folder = repository.folder().join(&id.inside);
    if let Some(choose) = needs.behind {
        let behind = choose(&names, &folder)?.map_err(|reason| repository.lacking(&reason))?;
        repository.complete(&id.paths(&behind))?;
    }
    Ok(folder)
}

impl Id {
    /// The id that a path stands for: one that begins with `hf://`, or `ORG/NAME` with or without `@REVISION` if no
    /// such file or folder exists. A name with an extension of rows is a file, and another scheme is refused.
    fn of(path: &Path, kind: Kind) -> Result<Option<Self>> {
        let Some(given) = path.to_str() else { return Ok(None) };
        let form = match kind {
            Kind::Model => "hf://ORG/NAME",
            Kind::Dataset => "hf://datasets/ORG/NAME",
        };
        let Some(explicit) = given.strip_prefix(SCHEME) else {
            if path.exists() || is_named_as_rows(path) && !given.contains("://") {
                return Ok(None);
            }
            if let Some((scheme, _)) = given.split_once("://") {
                return Err(Error::Usage(format!(
                    "{given} begins with {scheme}://, which Weft doesn't fetch; write an id of the hub, {form}"
                )));
            }
            let (name, revision) = given.split_once('@').unwrap_or((given, MAIN));
            let [name, revision] = [name, revision].map(|part| part.trim_end_matches('/'));
            let plain = || Self::new(kind, name, revision, "", given);
            return Ok(name.split_once('/').and_then(|_| plain()));
        };
        let refuse = || {
            let kind = kind.name();
            Error::Usage(format!(
                "{given} is not the id of a {kind}: write {form}, then @REVISION and /FOLDER where needed"
            ))
        };
        let dataset = explicit.strip_prefix(DATASETS);
        let rest = match kind {
            Kind::Model => dataset.is_none().then_some(explicit),
            Kind::Dataset => dataset,
        };
        let mut parts = rest.ok_or_else(refuse)?.trim_end_matches('/').splitn(3, '/');
        let (org, name) = parts.next().zip(parts.next()).ok_or_else(refuse)?;
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        // A slash in a revision would start the folder.
        let revision = revision.replace("%2F", "/");
        let inside = parts.next().unwrap_or_default();
        Self::new(kind, &format!("{org}/{name}"), &revision, inside, given).map(Some).ok_or_else(refuse)
    }

    /// Builds an id; `None` if a part is invalid.
    fn new(kind: Kind, name: &str, revision: &str, inside: &str, given: &str) -> Option<Self> {
        let is_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_part = |part: &str| {
            let ends = [part.chars().next(), part.chars().last()];
            (1..=MAX_PART).contains(&part.len())
                && part.chars().all(is_char)
                && !ends.into_iter().flatten().any(|c| matches!(c, '-' | '.'))
                && !part.contains("--")
                && !part.contains("..")
        };
        let (org, own) = name.split_once('/')?;
        let is_whole = is_part(org)
            && is_part(own)
            && !own.ends_with(".git")
            && !revision.is_empty()
            && is_inside(revision)
            && is_inside(inside);
        let [name, revision, inside, given] = [name, revision, inside, given].map(str::to_owned);
        is_whole.then_some(Self { kind, name, revision, inside, given })
    }

    fn error(&self, reason: String) -> Error {
        Error::Hub { id: self.given.clone(), reason }
    }

    /// The names inside the id's folder, relative to it.
    #[cfg(feature = "hub")]
    fn names<'a>(&self, all: impl Iterator<Item = &'a str>) -> Vec<String> {
        let below = |name: &'a str| match self.inside.as_str() {
            "" => Some(name),
            inside if name == inside => Some(""),
            inside => name.strip_prefix(inside)?.strip_prefix('/'),
        };
        all.filter_map(below).map(str::to_owned).collect()
    }

    /// The names in the repository of these relative names.
    #[cfg(feature = "hub")]
    fn paths(&self, names: &[String]) -> Vec<String> {
        let join = |name: &String| match (self.inside.as_str(), name.as_str()) {
            ("", name) => name.to_owned(),
            (inside, "") => inside.to_owned(),
            (inside, name) => format!("{inside}/{name}"),
        };
        names.iter().map(join).collect()
    }
}

/// Whether a relative path stays inside its folder.
fn is_inside(path: &str) -> bool {
    !path.contains('\\') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}
