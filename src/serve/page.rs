//! The playground's files, which are part of the program, and the content security policy that isolates them.

/// The playground's content security policy: it may load its own files, and send requests to its own server.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri \
                          'none'; form-action 'none'; frame-ancestors 'none'";

/// The content and the type of a file of the playground; `None` if there is none at this path.
pub fn file(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        "/" => Some((include_str!("page/index.html"), "text/html; charset=utf-8")),
        "/playground.css" => Some((include_str!("page/playground.css"), "text/css; charset=utf-8")),
        "/playground.js" => Some((include_str!("page/playground.js"), "text/javascript; charset=utf-8")),
        _ => None,
    }
}
