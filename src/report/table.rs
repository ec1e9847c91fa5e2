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
/// The longest value in characters that stays in one line; a longer one, such as a list of layers, wraps.
const LONGEST: usize = 20;
/// The characters after which a name may be broken.
const NAME_ENDS: [char; 3] = ['.', '_', '/'];

impl Table {
    /// The table in a page, below its title. Names break at their dots and strokes only, and long values after
    /// commas first. A table that is wider than the page scrolls in a box of its own, also by the arrow keys.
    pub fn as_html(&self) -> String {
        let mut html = format!("<h2>{}</h2>\n", escape(&self.title));
        if let Some((head, rows)) = self.rows.split_first() {
            let stacked = if head.len() > MOST_COLUMNS { " class=\"stacked\"" } else { "" };
            let names: String = head.iter().map(|name| format!("<th>{}</th>", breakable(name, &NAME_ENDS))).collect();
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
                    let is_long = i > 0 && cell.chars().count() > LONGEST;
                    let long = if is_long { " class=\"long\"" } else { "" };
                    let shown = match i {
                        0 => breakable(cell, &NAME_ENDS),
                        _ if is_long => breakable(cell, &[',', '/']),
                        _ => escape(cell),
                    };
                    format!("<td{long}{named}>{shown}</td>")
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

/// A text for HTML that may be broken after each of `ends`; a browser breaks it after hyphens anyway.
fn breakable(text: &str, ends: &[char]) -> String {
    let parts: Vec<String> = text.split_inclusive(ends).map(escape).collect();
    parts.join("<wbr>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_wrap_and_short_ones_do_not() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let list = r#"["q_proj","k_proj","v_proj"]"#;
        let rows = vec![row(["", "one", "two"]), row(["model.lora_targets", list, "-0.1234 [-0.2, 0]"])];
        let html = Table { title: "settings that differ".to_owned(), rows, note: String::new() }.as_html();
        let wraps = "<td class=\"long\" data-name=\"one\">[&quot;q_proj&quot;,<wbr>&quot;k_proj&quot;,<wbr>&quot;v_proj&quot;]</td>";
        assert!(html.contains(wraps) && html.contains("<td data-name=\"two\">-0.1234 [-0.2, 0]</td>"), "{html}");
        assert!(html.contains("<td>model.<wbr>lora_<wbr>targets</td>"), "{html}");
    }
}
