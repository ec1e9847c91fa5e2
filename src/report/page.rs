//! The frame of every page: one HTML file that contains its style and its script.

use super::chart::escape;
use crate::data::Message;

/// A page with a title and a body, which is already HTML.
pub fn page(title: &str, body: &str) -> String {
    let (title, style, script) = (escape(title), include_str!("page.css"), include_str!("page.js"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{style}</style>\n<body>\n{body}\
         <div id=\"tip\" role=\"status\"></div>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
}

/// The turns of a chat, each below the name of who speaks.
pub fn turns(turns: &[Message]) -> String {
    let turn = |Message { role, content }: &Message| {
        let name = if role.is_empty() { String::new() } else { format!("<h4>{}</h4>", escape(role)) };
        format!("<div class=\"turn\">{name}<pre>{}</pre></div>\n", escape(content))
    };
    turns.iter().map(turn).collect()
}

/// A number with its name below it.
pub fn tile(value: &str, name: &str) -> String {
    format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape(value), escape(name))
}
