//! Fits text into a terminal's window: sentences are broken between words, and tables between columns. Output that doesn't go
//! to a terminal stays as it is.

use console::{Term, measure_text_width};
use weft::report::table::Table;
use weft::report::visible::visible;

/// The narrowest window that text is fitted into.
const NARROWEST: usize = 20;
/// The space between two columns of a table, and before the first.
const SPACE: usize = 2;

/// Prints a table with its title and note.
pub fn print(Table { title, rows, note }: &Table) {
    say!("{}", said(title, SPACE));
    let shown: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell).into_owned()).collect()).collect();
    table(&shown, columns_of(&Term::stdout())).iter().for_each(|line| say!("{line}"));
    if !note.is_empty() {
        say!("{}", said(&format!("  ({note})"), SPACE + 1));
    }
}

/// A text for standard error, broken to fit its window.
pub fn told(text: &str) -> String {
    fitted(text, columns_of(&Term::stderr()), 0)
}

/// A text for standard output, broken to fit its window; the lines that follow a break are indented.
pub fn said(text: &str, indent: usize) -> String {
    fitted(text, columns_of(&Term::stdout()), indent)
}

/// The columns of a terminal's window; `None` if it isn't a terminal or doesn't say.
fn columns_of(term: &Term) -> Option<usize> {
    let (_, columns) = term.features().is_attended().then(|| term.size_checked()).flatten()?;
    Some(usize::from(columns)).filter(|columns| *columns >= NARROWEST)
}

fn fitted(text: &str, width: Option<usize>, indent: usize) -> String {
    match width {
        Some(width) => text.split('\n').map(|line| broken(line, width, indent)).collect::<Vec<_>>().join("\n"),
        None => text.to_owned(),
    }
}

/// A line that is broken between words. A word that is longer than the window has a line of its own.
fn broken(line: &str, width: usize, indent: usize) -> String {
    if measure_text_width(line) <= width {
        return line.to_owned();
    }
    let (mut lines, mut last) = (String::new(), String::new());
    for word in line.split_inclusive(' ') {
        let is_new = last.trim().is_empty();
        if !is_new && measure_text_width(&last) + measure_text_width(word.trim_end()) > width {
            lines.extend([last.trim_end(), "\n"]);
            last = " ".repeat(indent);
        }
        last.push_str(word);
    }
    lines + &last
}

/// The lines of a table. The first column is aligned to the left and the others to the right. If a table is wider than the
/// window, its columns are divided into several tables, each of which begins with the first column.
fn table(rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let Some(count) = rows.first().map(Vec::len) else { return vec![] };
    let widest = |column: usize| rows.iter().map(|row| measure_text_width(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(widest).collect();
    let mut lines = vec![];
    let mut start = 1;
    while start < count || lines.is_empty() {
        let mut used = SPACE + widths[0];
        let fits = |column: &usize| {
            used += SPACE + widths[*column];
            *column == start || width.is_none_or(|width| used <= width)
        };
        let end = start + (start..count).take_while(fits).count();
        if start > 1 {
            lines.push(String::new());
        }
        lines.extend(rows.iter().map(|row| line(row, &widths, start..end)));
        start = end.max(start + 1);
    }
    lines
}

/// A row's first cell and those of some columns.
fn line(row: &[String], widths: &[usize], columns: std::ops::Range<usize>) -> String {
    let space = |column: usize| " ".repeat(widths[column] - measure_text_width(&row[column]));
    let gap = " ".repeat(SPACE);
    let mut line = format!("{gap}{}{}", row[0], space(0));
    columns.for_each(|column| line.extend([&gap, &space(column), &row[column]].map(String::as_str)));
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(broken("one two three", 13, 2), "one two three");
        assert_eq!(broken("one two three", 12, 2), "one two\n  three");
        assert_eq!(broken("one a-word-of-many-letters two", 12, 2), "one\n  a-word-of-many-letters\n  two");
        assert_eq!(broken("  indented, and long", 12, 4), "  indented,\n    and long");
        assert_eq!(fitted("a b c\nd e f", Some(3), 0), "a b\nc\nd e\nf");
        assert_eq!(fitted("a b c", None, 0), "a b c");
    }

    #[test]
    fn a_wide_table_is_divided_between_columns() {
        let rows: Vec<Vec<String>> = [["", "one", "two", "three"], ["a", "1", "22", "3"], ["bb", "1", "2", "333333"]]
            .map(|r| r.map(str::to_owned).to_vec())
            .to_vec();
        let whole = ["      one  two   three", "  a     1   22       3", "  bb    1    2  333333"];
        assert_eq!(table(&rows, None), whole);
        assert_eq!(table(&rows, Some(22)), whole);
        let divided =
            ["      one  two", "  a     1   22", "  bb    1    2", "", "       three", "  a        3", "  bb  333333"];
        assert_eq!(table(&rows, Some(21)), divided);
        assert_eq!(table(&rows, Some(1)).len(), 3 * 3 + 2, "a column each");
        assert_eq!(table(&[vec!["alone".to_owned()]], Some(30)), ["  alone"]);
    }
}
