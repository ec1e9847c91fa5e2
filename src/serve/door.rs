//! Routes a request and checks whether it is allowed, by its path, method, host, origin and key. All of this is a pure
//! function of the request's head, so that it can be tested and fuzzed without a socket.

use super::refusal::{Refusal, quoted};

/// The parts of a request's head that matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// The method, such as `POST`.
    pub method: &'a str,
    /// The path, and the query if there is one.
    pub target: &'a str,
    /// The header `Host`.
    pub host: Option<&'a str>,
    /// The header `Origin`, which browsers send.
    pub origin: Option<&'a str>,
    /// The header `Sec-Fetch-Site`, which browsers send.
    pub fetch_site: Option<&'a str>,
    /// The header `Authorization`.
    pub authorization: Option<&'a str>,
    /// The header `Content-Type`.
    pub content_type: Option<&'a str>,
}

/// What a request can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A file of the playground, by its path.
    File(&'static str),
    /// The health check: whether the server accepts requests.
    Health,
    /// The list of models.
    Models,
    /// One model, by its name.
    Model(String),
    /// An answer to the request's body.
    Answer(Endpoint),
}

/// A path that answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/api/denoise`: a chat's answer with the states of its canvas, for the playground.
    Denoise,
}

/// Decides which requests are let in.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// Whether only programs on the same machine can connect.
    pub is_loopback: bool,
    /// The key that requests must have.
    pub api_key: Option<String>,
}

/// The paths of the playground's files.
const FILES: [&str; 3] = ["/", "/playground.css", "/playground.js"];
/// The names by which a browser on the same machine reaches the server.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const PATHS: &str = "/v1/models, /v1/chat/completions, /v1/completions, /health and / (the playground)";

impl Door {
    /// What the request asks for.
    ///
    /// # Errors
    /// A request that isn't let in, or whose path or method the server doesn't have.
    pub fn route(&self, head: &Head) -> Result<Route, Refusal> {
        let host = self.host(head)?;
        let (path, query) = head.target.split_once('?').unwrap_or((head.target, ""));
        let route = route(path)?;
        // Pages of other sites may link to the playground.
        let is_open = matches!(route, Route::File(_) | Route::Health);
        if !is_open {
            check_origin(head, host)?;
        }
        let reads = if matches!(route, Route::Answer(_)) { "POST" } else { "GET, HEAD" };
        if !reads.split(", ").any(|method| method == head.method) {
            let message = format!("{} takes {reads}, not {}", quoted(path), quoted(head.method));
            return Err(Refusal { allow: Some(reads), ..Refusal::new(405, message) });
        }
        if is_open {
            return Ok(route);
        }
        self.check_key(head)?;
        if !query.is_empty() {
            return Err(Refusal::new(400, format!("the query {} is not read; leave it out", quoted(query))));
        }
        let media = head.content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if reads == "POST" && !media.eq_ignore_ascii_case("application/json") {
            // This also keeps pages of other sites from sending requests without CORS preflight.
            return Err(Refusal::new(
                415,
                format!(
                    "the body's type is {}; send JSON with the header Content-Type: application/json",
                    quoted(media)
                ),
            ));
        }
        Ok(route)
    }

    /// The host that the request names. A server that only this machine can reach refuses any name but this machine's.
    fn host<'a>(&self, head: &Head<'a>) -> Result<&'a str, Refusal> {
        let Some(host) = head.host else {
            return Err(Refusal::new(400, "the header Host is missing; send it, as HTTP/1.1 requires"));
        };
        // DNS rebinding: if another site's name resolved to this machine, that site's pages could read the answers.
        if self.is_loopback && !LOOPBACK.contains(&&*without_port(host).to_ascii_lowercase()) {
            return Err(Refusal::new(
                403,
                format!(
                    "the host {} is not this machine; use localhost or 127.0.0.1, or start with --host",
                    quoted(host)
                ),
            ));
        }
        Ok(host)
    }

    fn check_key(&self, head: &Head) -> Result<(), Refusal> {
        let Some(key) = &self.api_key else { return Ok(()) };
        let given = head.authorization.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let message = match given {
            Some(given) if are_equal(given, key) => return Ok(()),
            Some(_) => "the API key is wrong; send the server's as Authorization: Bearer KEY",
            None => "the API key is missing; send it as Authorization: Bearer KEY",
        };
        Err(Refusal::new(401, message).with_code("invalid_api_key"))
    }
}

/// Refuses requests that a page of another site sent.
fn check_origin(head: &Head, host: &str) -> Result<(), Refusal> {
    let is_own =
        |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
    let foreign = head.origin.filter(|origin| !is_own(origin));
    match foreign.or(head.fetch_site.filter(|site| *site == "cross-site")) {
        Some(origin) => Err(Refusal::new(
            403,
            format!(
                "requests from pages of other sites ({}) are refused; use the playground, or a program of your own",
                quoted(origin)
            ),
        )),
        None => Ok(()),
    }
}

fn route(path: &str) -> Result<Route, Refusal> {
    if let Some(file) = FILES.into_iter().find(|file| *file == path) {
        return Ok(Route::File(file));
    }
    match path {
        "/health" => Ok(Route::Health),
        "/v1/models" => Ok(Route::Models),
        "/v1/chat/completions" => Ok(Route::Answer(Endpoint::Chat)),
        "/v1/completions" => Ok(Route::Answer(Endpoint::Completions)),
        "/api/denoise" => Ok(Route::Answer(Endpoint::Denoise)),
        _ => match path.strip_prefix("/v1/models/") {
            Some(id) if !id.is_empty() => Ok(Route::Model(decoded(id))),
            _ => Err(Refusal::new(404, format!("there is nothing at {}; there are {PATHS}", quoted(path)))),
        },
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// Whether two keys are equal, compared in a time that doesn't depend on where they differ.
fn are_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

/// Decodes the percent-encoding (`%2F`) in a part of a path.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, more @ ..] = rest {
        let digits = more.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let coded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(coded.unwrap_or(*first));
        rest = &more[if coded.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'a>(method: &'a str, target: &'a str) -> Head<'a> {
        Head { method, target, host: Some("127.0.0.1:8000"), content_type: Some("application/json"), ..Head::default() }
    }

    fn status(door: &Door, head: Head) -> u16 {
        door.route(&head).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn paths_and_methods() {
        let door = Door { is_loopback: true, api_key: None };
        assert_eq!(door.route(&head("GET", "/")), Ok(Route::File("/")));
        assert_eq!(door.route(&head("HEAD", "/health?x=1")), Ok(Route::Health));
        assert_eq!(door.route(&head("POST", "/v1/completions")), Ok(Route::Answer(Endpoint::Completions)));
        assert_eq!(door.route(&head("GET", "/v1/models/org%2Fname%2")), Ok(Route::Model("org/name%2".to_owned())));
        for (method, target, expected) in [
            ("GET", "/v1/completions", 405),
            ("OPTIONS", "/v1/chat/completions", 405),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/models?x", 400),
            ("GET", "/v1/models/", 404),
            ("GET", "/../etc/passwd", 404),
            ("", "", 404),
        ] {
            assert_eq!(status(&door, head(method, target)), expected, "{method} {target}");
        }
        let form = Head { content_type: Some("text/plain"), ..head("POST", "/v1/completions") };
        assert_eq!(status(&door, form), 415);
        let charset = Head { content_type: Some("Application/JSON; charset=utf-8"), ..form };
        assert_eq!(status(&door, charset), 200);
    }

    #[test]
    fn other_sites_are_refused() {
        let (local, public) = (Door { is_loopback: true, api_key: None }, Door::default());
        for host in ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "[::1]"] {
            assert_eq!(status(&local, Head { host: Some(host), ..head("GET", "/") }), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost:80:80", "", "::1"] {
            assert_eq!(status(&local, Head { host: Some(host), ..head("GET", "/") }), 403, "{host}");
            assert_eq!(status(&public, Head { host: Some(host), ..head("GET", "/") }), 200, "{host}");
        }
        assert_eq!(status(&local, Head { host: None, ..head("GET", "/") }), 400);
        let from = |origin| Head { origin: Some(origin), ..head("POST", "/v1/completions") };
        assert_eq!(status(&local, from("http://127.0.0.1:8000")), 200);
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9000"] {
            assert_eq!(status(&local, from(origin)), 403, "{origin}");
            assert_eq!(status(&public, from(origin)), 403, "{origin}");
        }
        assert_eq!(status(&local, Head { fetch_site: Some("cross-site"), ..head("POST", "/api/denoise") }), 403);
        assert_eq!(status(&local, Head { fetch_site: Some("cross-site"), ..head("GET", "/") }), 200, "a link");
    }

    #[test]
    fn keys_are_asked_for() {
        let door = Door { is_loopback: false, api_key: Some("secret".to_owned()) };
        let with = |key| Head { authorization: Some(key), ..head("GET", "/v1/models") };
        for (key, expected) in [
            ("Bearer secret", 200),
            ("bearer  secret", 200),
            ("Bearer secre", 401),
            ("Basic secret", 401),
            ("secret", 401),
        ] {
            assert_eq!(status(&door, with(key)), expected, "{key}");
        }
        assert_eq!(status(&door, head("GET", "/v1/models")), 401);
        assert_eq!(status(&door, head("GET", "/health")), 200);
        assert_eq!(status(&door, head("GET", "/")), 200);
    }
}
