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
    /// The table in a page, below its title.
    pub fn as_html(&self) -> String {
        let mut html = format!("<h2>{}</h2>\n", escape(&self.title));
        if let Some((head, rows)) = self.rows.split_first() {
            let stacked = if head.len() > MOST_COLUMNS { " class=\"stacked\"" } else { "" };
            let names: String = head.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
            let _ = writeln!(html, "<div class=\"table\"><table{stacked}>\n<thead><tr>{names}</tr></thead>\n<tbody>");
            for row in rows {
                let cell = |(cell, name): (&String, &String)| match name.is_empty() {
                    true => format!("<td>{}</td>", escape(cell)),
                    false => format!("<td data-name=\"{}\">{}</td>", escape(name), escape(cell)),
                };
                let cells: String = row.iter().zip(head).map(cell).collect();
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
