//! Requests to the hub: lists a commit's files and downloads files, resuming interrupted downloads and checking hashes.
//! The token is sent only to the endpoint, never to where it redirects.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::cache::{RemoteFile, is_hash};
use super::{Id, is_inside};
use crate::error::Error;
use crate::progress::Progress;

/// The endpoint unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";
/// The timeout for a connection, a response or the next byte.
const PATIENCE: Duration = Duration::from_secs(15);
/// The number of attempts in a row without any data before a download is given up.
const ATTEMPTS: u32 = 5;
/// The wait after the first such attempt; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The wait at which no further attempt is made to get a list of files.
const LONGEST_LIST_WAIT: Duration = Duration::from_secs(2);
/// The largest number of redirects that are followed; the hub needs two.
const MAX_REDIRECTS: usize = 5;
/// The largest list of files that is read.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Why a request failed.
pub(super) enum Failure {
    /// The endpoint can't be reached or is out of order; with a sentence.
    Unreachable(String),
    /// The endpoint can't answer at the moment; with a sentence.
    Busy(String),
    /// The endpoint refuses the request: status, the hub's error code, URL.
    Refused(u16, String, String),
    /// The response makes no sense.
    Wrong(String),
    /// The file can't be written to disk.
    Unwritable(io::Error),
}

/// A client of the hub.
#[derive(Clone)]
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Client {
    /// A client with the endpoint and certificates of the environment; the error says what is wrong with them.
    pub(crate) fn of_user(token: Option<String>) -> Result<Self, String> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(str::is_empty) {
            return Err(format!("HF_ENDPOINT is {endpoint:?}; write a URL as {ENDPOINT}, or unset it"));
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(
                "the token (HF_TOKEN, or the token's file) has characters that no token has; log in again".to_owned()
            );
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .tls_config(TlsConfig::builder().root_certs(root_certificates()).build())
            .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), endpoint, token })
    }

    /// The commit of a revision, and its files.
    pub fn list(&self, id: &Id, revision: &str) -> Result<(String, Vec<RemoteFile>), Failure> {
        let kind = id.kind.plural();
        let revision = encoded(revision).replace('/', "%2F");
        let url = format!("{}/api/{kind}/{}/revision/{revision}?blobs=true", self.endpoint, id.name);
        let mut wait = FIRST_WAIT;
        let mut response = loop {
            match self.get(&url, 0) {
                Err(Failure::Busy(_)) if wait < LONGEST_LIST_WAIT => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                answer => break answer?,
            }
        };
        let text = response.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_string();
        let text = text.map_err(|e| unreachable(&url, &e.to_string()))?;
        let wrong = |reason: String| Failure::Wrong(format!("{url} is not a list of files: {reason}; is it a hub?"));
        let Listing { sha, siblings } = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if !is_hash(&sha, 40) {
            return Err(wrong(format!("the commit {sha:?} is not a hash")));
        }
        let file = |sibling: Sibling| -> Result<RemoteFile, Failure> {
            let Sibling { rfilename: name, size, blob_id, lfs } = sibling;
            let blob = lfs.as_ref().map(|lfs| lfs.sha256.clone()).or(blob_id).unwrap_or_default();
            let size = lfs.map(|lfs| lfs.size).or(size);
            let file = size.map(|size| RemoteFile { name: name.clone(), size, blob }).filter(RemoteFile::is_valid);
            file.ok_or_else(|| wrong(format!("the size or hash of {name:?} is missing or invalid")))
        };
        // Files whose names lead elsewhere are left out; Weft needs none of them.
        let inside = siblings.into_iter().filter(|sibling| is_inside(&sibling.rfilename));
        Ok((sha, inside.map(file).collect::<Result<_, _>>()?))
    }

    /// Downloads a file of a commit into `partial`, continuing at its end. Only a few attempts may bring no data; those
    /// that bring some are at most as many as the file has bytes.
    pub fn download(
        &self,
        (id, commit): (&Id, &str),
        file: &RemoteFile,
        partial: &Path,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let kind = id.kind.prefix();
        let url = format!("{}/{kind}{}/resolve/{commit}/{}", self.endpoint, id.name, encoded(&file.name));
        let (mut wait, mut failures, mut damages) = (FIRST_WAIT, 0, 0);
        let start = progress.position();
        loop {
            let before = len(partial);
            progress.set_position(start);
            match self.attempt(&url, file, partial, progress) {
                Err(Failure::Wrong(_)) if damages == 0 => damages += 1,
                Err(Failure::Unreachable(_)) if len(partial) > before => (wait, failures) = (FIRST_WAIT, 0),
                Err(Failure::Unreachable(_) | Failure::Busy(_)) if failures + 1 < ATTEMPTS => {
                    failures += 1;
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                done => return done,
            }
        }
    }

    /// Makes one request for the missing part of a file.
    fn attempt(&self, url: &str, file: &RemoteFile, partial: &Path, progress: &Progress) -> Result<(), Failure> {
        let io = Failure::Unwritable;
        let mut out =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial).map_err(io)?;
        if len(partial) > file.size {
            out.set_len(0).map_err(io)?;
        }
        let (mut have, mut hash) = resumed(&mut out, file, progress).map_err(io)?;
        if have < file.size {
            let mut response = self.get(url, have)?;
            if have > 0 && !goes_on(&response, have) {
                out.set_len(0).map_err(io)?;
                progress.set_position(progress.position().saturating_sub(have));
                out.rewind().map_err(io)?;
                (have, hash) = (0, hash_of(file));
                // A response that isn't the whole file either has to be requested again.
                if response.status().as_u16() != 200 {
                    response = self.get(url, 0)?;
                }
            }
            let mut body = response.body_mut().as_reader();
            let mut buffer = vec![0; 1 << 20];
            while have < file.size {
                let read = body.read(&mut buffer).map_err(|e| unreachable(url, &e.to_string()))?;
                if read == 0 {
                    break;
                }
                // Bytes beyond the announced size don't belong to the file.
                let bytes = &buffer[..read.min((file.size - have) as usize)];
                out.write_all(bytes).map_err(io)?;
                hash.update(bytes);
                have += bytes.len() as u64;
                progress.add(bytes.len() as u64);
            }
        }
        if have < file.size {
            return Err(unreachable(url, &format!("it ended after {have} of {} bytes", file.size)));
        }
        let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != file.blob {
            out.set_len(0).map_err(io)?;
            let name = &file.name;
            return Err(Failure::Wrong(format!(
                "{url} sent content other than {name}'s: its hash is {found}, not {}",
                file.blob
            )));
        }
        out.sync_all().map_err(io)
    }

    /// The response to a request for a file from byte `from` on, after redirects. A refusal is an error, except for a
    /// range that doesn't exist.
    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            // The content is requested as it is stored, so that ranges and hashes refer to it.
            let mut request = self.agent.get(&at).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| origin(&at) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| match e {
                ureq::Error::Io(e) => unreachable(&at, &e.to_string()),
                other => unreachable(&at, &other.to_string()),
            })?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            match response.status().as_u16() {
                200 | 206 => return Ok(response),
                416 if from > 0 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    let to = header("location").unwrap_or_default();
                    let nowhere = || Failure::Wrong(format!("{at} redirects to {to:?}, which is not a URL"));
                    at = match to.starts_with('/') {
                        true => format!("{}{to}", origin(&at)),
                        false if to.starts_with("https://") || to.starts_with("http://") => to.to_owned(),
                        false => return Err(nowhere()),
                    };
                }
                status @ (408 | 429 | 500..) => {
                    return Err(Failure::Busy(format!("cannot fetch {url}: it answers {status}")));
                }
                status => {
                    let code = header("x-error-code").unwrap_or_default().to_owned();
                    return Err(Failure::Refused(status, code, url.to_owned()));
                }
            }
        }
        Err(Failure::Wrong(format!("{url} redirects more than {MAX_REDIRECTS} times")))
    }

    /// The error that says why a request failed and what to do.
    pub(crate) fn explain(&self, id: &Id, failure: Failure) -> Error {
        let (endpoint, kind) = (&self.endpoint, id.kind.name());
        let path = id.kind.prefix();
        let page = format!("{endpoint}/{path}{}", id.name);
        let log_in = "log in (\"hf auth login\", or HF_TOKEN)";
        id.error(match failure {
            Failure::Wrong(reason) => reason,
            Failure::Unwritable(source) => source.to_string(),
            Failure::Unreachable(reason) | Failure::Busy(reason) => {
                format!("{reason}; try again; the part already downloaded is kept")
            }
            Failure::Refused(status, code, url) => match (code.as_str(), status, &self.token) {
                ("GatedRepo", _, None) | ("", 403, None) => {
                    format!("the {kind} is gated: ask for access on {page}, then {log_in}")
                }
                ("GatedRepo", ..) | ("", 403, _) => {
                    format!("the {kind} is gated, and your token's account has no access: ask for it on {page}")
                }
                ("RevisionNotFound", ..) => {
                    format!("the {kind} has no branch, tag or commit {:?}; {page} lists them", id.revision)
                }
                ("EntryNotFound", ..) | ("", 404, _) if url.contains("/resolve/") => {
                    format!("{url} doesn't exist, although the {kind}'s list names it; try again later, or see {page}")
                }
                ("RepoNotFound", ..) | ("", 404, _) | (_, 401, None) => format!(
                    "there is no such file or folder, and {endpoint} shows no {kind} of that name; check the spelling, or \
                     {log_in} if it is private"
                ),
                (_, 401, Some(_)) => format!("{endpoint} rejects your token; {log_in} again"),
                _ => format!("{url} answers {status} {code}; see {page}"),
            },
        })
    }
}

fn unreachable(url: &str, reason: &str) -> Failure {
    Failure::Unreachable(format!("cannot fetch {url}: {reason}"))
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// The length of the existing part of a file, and its hash so far.
fn resumed(out: &mut File, file: &RemoteFile, progress: &Progress) -> io::Result<(u64, Context)> {
    let (mut have, mut hash, mut buffer) = (0, hash_of(file), vec![0; 1 << 20]);
    out.seek(SeekFrom::Start(0))?;
    loop {
        match out.read(&mut buffer)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                have += read as u64;
            }
        }
    }
    progress.add(have);
    // Bytes from an earlier run don't count for the speed and the remaining time.
    progress.restart_clock();
    Ok((have, hash))
}

/// The initial state of the hash that identifies a file's content.
///
/// # Source
/// Git hashes a blob after `blob SIZE` and a zero byte; the hub identifies files outside of git by their SHA-256.
fn hash_of(file: &RemoteFile) -> Context {
    match is_hash(&file.blob, 64) {
        true => Context::new(&SHA256),
        false => {
            let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(format!("blob {}\0", file.size).as_bytes());
            hash
        }
    }
}

/// Whether a response begins at this byte.
fn goes_on(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    response.status().as_u16() == 206 && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

/// The scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |i| host + i);
    &url[..end]
}

/// Percent-encodes a path for a URL.
fn encoded(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let one = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.bytes().map(one).collect()
}

/// The certificates of `SSL_CERT_FILE`, which a proxy that inspects connections needs; Mozilla's if it names none.
fn root_certificates() -> RootCerts {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).and_then(|path| {
        let tell = |e| eprintln!("warning: SSL_CERT_FILE is {}, which can't be read: {e}", path.display());
        std::fs::read(&path).map_err(tell).ok()
    });
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = named.iter().flat_map(|pem| parse_pem(pem).filter_map(certificate)).collect();
    if found.is_empty() { RootCerts::WebPki } else { RootCerts::from(found) }
}
