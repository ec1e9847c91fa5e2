//! Tables that `weft compare` prints and pages show.

use std::fmt::Write;

use super::chart::escape;

/// A table. The first column is a name.
pub struct Table {
    /// The title, with the unit.
    pub title: String,
    /// The names of the columns and the rows.
    pub rows: Vec<Vec<String>>,
    /// A note that explains how to read it; may be empty.
    pub note: String,
}

/// The largest number of columns that a phone shows side by side. It shows the cells of a wider table's rows one below the
/// other.
const MOST_COLUMNS: usize = 3;

impl Table {
    /// The table in a page, below its title. Names break at their dots and strokes only, and a table that is wider than the
    /// page scrolls in a box of its own, also by the arrow keys.
    pub fn as_html(&self) -> String {
        let mut html = format!("<h2>{}</h2>\n", escape(&self.title));
        if let Some((head, rows)) = self.rows.split_first() {
            let stacked = if head.len() > MOST_COLUMNS { " class=\"stacked\"" } else { "" };
            let names: String = head.iter().map(|name| format!("<th>{}</th>", breakable(name))).collect();
            let _ = writeln!(
                html,
                "<div class=\"table\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table{stacked}>\n\
                 <thead><tr>{names}</tr></thead>\n<tbody>",
                escape(&self.title)
            );
            for row in rows {
                let cell = |(i, (cell, name)): (usize, (&String, &String))| {
                    let named =
                        if name.is_empty() { String::new() } else { format!(" data-name=\"{}\"", escape(name)) };
                    // The first cell is a name.
                    let cell = if i == 0 { breakable(cell) } else { escape(cell) };
                    format!("<td{named}>{cell}</td>")
                };
                let cells: String = row.iter().zip(head).enumerate().map(cell).collect();
                let _ = writeln!(html, "<tr>{cells}</tr>");
            }
            html.push_str("</tbody></table></div>\n");
        }
        if !self.note.is_empty() {
            let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&self.note));
        }
        html
    }
}

/// A name for HTML that may be broken after its dots, underscores and slashes; a browser breaks it after hyphens anyway.
fn breakable(name: &str) -> String {
    let parts: Vec<String> = name.split_inclusive(['.', '_', '/']).map(escape).collect();
    parts.join("<wbr>")
}
