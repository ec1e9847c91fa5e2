//! A hub on this machine for tests: lists of files, files by redirects as the hub sends them, ranges, and what can go
//! wrong on the way. It keeps every request and ends with the value that holds it. And the command on such a hub.
#![allow(dead_code)] // each test binary uses a part

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::json;

/// A commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What comes over the network of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// How a file's transfer goes wrong, once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// Nothing follows so many bytes, until the other side ends the connection.
    Stall(usize),
    /// The range is ignored.
    Whole,
    /// Another content.
    Garbage,
}

/// A repository's files.
#[derive(Clone, Default)]
pub struct Files(Vec<(String, Vec<u8>)>);

#[derive(Default)]
struct State {
    /// By `models/ORG/NAME` or `datasets/ORG/NAME`.
    repositories: HashMap<String, Files>,
    /// Status and code of the answer to requests whose path holds the key.
    refusals: HashMap<String, (u16, &'static str)>,
    /// By a file's name, the first first.
    faults: HashMap<String, Vec<Fault>>,
    /// Where large files are; here where absent.
    store: Option<String>,
    requests: Vec<Request>,
}

/// The hub.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Files {
    /// A folder's files, those of folders below included.
    pub fn of(folder: &Path) -> Self {
        let mut files = Self::default();
        files.add_folder(folder, "");
        files
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).expect("the folder is there").flatten() {
            let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
            match path.is_dir() {
                true => self.add_folder(&path, &format!("{name}/")),
                false => self.0.push((name, fs::read(path).expect("the file is there"))),
            }
        }
    }

    pub fn with(mut self, name: &str, content: &[u8]) -> Self {
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.to_owned(), content.to_vec()));
        self
    }

    pub fn content(&self, name: &str) -> &[u8] {
        self.get(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, content)| content.as_slice())
    }
}

/// The hub keeps such files outside of git.
fn is_large(name: &str) -> bool {
    [".safetensors", ".parquet", ".bin"].iter().any(|end| name.ends_with(end))
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of large files, git's hash of others.
pub fn hash(name: &str, content: &[u8]) -> String {
    let mut context = Context::new(if is_large(name) { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY });
    if !is_large(name) {
        context.update(format!("blob {}\0", content.len()).as_bytes());
    }
    context.update(content);
    hex(context)
}

impl Hub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("it has an address"));
        let (state, ends) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (state.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                // Who went away is no concern of a hub's.
                let _ = answer(stream, &shared);
            }
        });
        Self { endpoint, state, ends, thread: Some(thread) }
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().expect("no request panicked"));
    }

    pub fn serve(&self, repository: &str, files: Files) {
        self.change(|state| {
            state.repositories.insert(repository.to_owned(), files);
        });
    }

    pub fn refuse(&self, part: &str, status: u16, code: &'static str) {
        self.change(|state| {
            state.refusals.insert(part.to_owned(), (status, code));
        });
    }

    pub fn fail(&self, file: &str, faults: &[Fault]) {
        self.change(|state| {
            state.faults.insert(file.to_owned(), faults.to_vec());
        });
    }

    pub fn keep_large_files_at(&self, other: &Self) {
        self.change(|state| state.store = Some(other.endpoint.clone()));
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().expect("no request panicked").requests)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the hub panicked: {panic:?}");
        }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => range = Some(value.to_owned()),
            "authorization" => token = Some(value.to_owned()),
            _ => (),
        }
    }
    if target.is_empty() {
        return Ok(());
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut state = state.lock().expect("no request panicked");
    state.requests.push(Request { path: path.clone(), range: range.clone(), token });
    let refusal = state.refusals.iter().find(|(part, _)| path.contains(part.as_str())).map(|(_, refusal)| *refusal);
    if let Some((status, code)) = refusal {
        return write!(
            stream,
            "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let Some(reply) = reply(&mut state, &path) else {
        let code = "X-Error-Code: RepoNotFound\r\n";
        return write!(stream, "HTTP/1.1 404 Not Found\r\n{code}Content-Length: 0\r\nConnection: close\r\n\r\n");
    };
    // A stalled transfer must not hold what the test asks.
    drop(state);
    match reply {
        Reply::Redirect(to) => {
            write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {to}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        }
        Reply::Content(content, fault) => send(stream, &content, range.as_deref(), fault),
    }
}

enum Reply {
    Redirect(String),
    Content(Vec<u8>, Option<Fault>),
}

fn reply(state: &mut State, path: &str) -> Option<Reply> {
    if let Some(rest) = path.strip_prefix("/api/resolve-cache/").or_else(|| path.strip_prefix("/store/")) {
        let (repository, rest) = rest.split_once("/at/")?;
        let name = rest.replace("%20", " ");
        let content = state.repositories.get(repository)?.get(&name)?.to_vec();
        let faults = state.faults.get_mut(&name).filter(|faults| !faults.is_empty());
        return Some(Reply::Content(content, faults.map(|faults| faults.remove(0))));
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repository, revision) = rest.split_once("/revision/")?;
        let files = state.repositories.get(repository)?;
        // The commit, main and one branch.
        if ![COMMIT, "main", "refs%2Fpr%2F1"].contains(&revision) {
            return None;
        }
        let sibling = |(name, content): &(String, Vec<u8>)| {
            let (size, hash) = (content.len(), hash(name, content));
            match is_large(name) {
                true => json!({ "rfilename": name, "size": size, "blobId": "f".repeat(40),
                                "lfs": { "sha256": hash, "size": size, "pointerSize": 135 } }),
                false => json!({ "rfilename": name, "size": size, "blobId": hash }),
            }
        };
        let siblings: Vec<_> = files.0.iter().map(sibling).collect();
        return Some(Reply::Content(json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes(), None));
    }
    let (repository, file) = path[1..].split_once(&format!("/resolve/{COMMIT}/"))?;
    let repository =
        if repository.starts_with("datasets/") { repository.to_owned() } else { format!("models/{repository}") };
    state.repositories.get(&repository)?.get(&file.replace("%20", " "))?;
    Some(Reply::Redirect(match is_large(file) {
        true => format!("{}/store/{repository}/at/{file}?signature=1", state.store.as_deref().unwrap_or_default()),
        false => format!("/api/resolve-cache/{repository}/at/{file}"),
    }))
}

fn send(mut stream: TcpStream, content: &[u8], range: Option<&str>, fault: Option<Fault>) -> std::io::Result<()> {
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|_| fault != Some(Fault::Whole));
    let total = content.len();
    if from.is_some_and(|from| from >= total) {
        return write!(stream, "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let body = match fault {
        Some(Fault::Garbage) => vec![b'x'; total - from.unwrap_or(0)],
        _ => content[from.unwrap_or(0)..].to_vec(),
    };
    let (status, header) = match from {
        Some(from) => ("206 Partial Content", format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1)),
        None => ("200 OK", String::new()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    match fault {
        Some(Fault::Cut(bytes)) => stream.write_all(&body[..bytes.min(length)]),
        Some(Fault::Stall(bytes)) => {
            stream.write_all(&body[..bytes.min(length)])?;
            // Until the other side is gone, a minute at most.
            stream.read(&mut [0]).map(|_| ())
        }
        _ => stream.write_all(&body),
    }
}

/// The command with a home of its own on a hub.
pub fn weft(home: &Path, endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        if upper.starts_with("HF_")
            || upper.starts_with("HUGGING")
            || upper.ends_with("_PROXY")
            || upper == "TRANSFORMERS_OFFLINE"
        {
            command.env_remove(name);
        }
    }
    command.current_dir(home).args(args).stdin(Stdio::null());
    command.env("HF_HOME", home.join("hf")).env("HF_ENDPOINT", endpoint).env("WEFT_CACHE", "");
    command
}

pub fn run(mut command: Command) -> Output {
    command.output().expect("weft starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is printed, after success.
pub fn told(output: Output) -> String {
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// The error's last line, after exit status 2.
pub fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    stderr(output).lines().last().expect("an error is told").to_owned()
}

const ASK: [&str; 8] = ["--prompt", "hi", "--gen-length", "8", "--block-length", "8", "--diffusion-steps", "4"];

pub fn ask<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--model", model][..], &ASK, more].concat()
}

pub fn repository(home: &Path, name: &str) -> PathBuf {
    home.join("hf/hub").join(name)
}

pub fn snapshot(home: &Path, name: &str) -> PathBuf {
    repository(home, name).join("snapshots").join(COMMIT)
}
