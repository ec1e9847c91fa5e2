//! Charts as self-contained SVG: curves with bands, and intervals one below the other. The colours follow the reader's
//! light or dark scheme; a point shows its numbers when the pointer rests on it. A chart is small and its letters are
//! large, so that it can be read on a phone and fits beside others on a wide screen.

use std::fmt::Write;

use super::axis::Axis;
use super::visible::visible;

const WIDTH: f64 = 480.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 462.0;
/// The position of the first line of a title, and the height of a line of text.
const TITLE: f64 = 24.0;
const LINE: f64 = 21.0;
/// The height of a chart's plot area, and of a row of intervals.
const PLANE: f64 = 240.0;
const ROW: f64 = 28.0;
/// The approximate width of a character, in a title and elsewhere.
const TITLE_CHARACTER: f64 = 8.8;
const CHARACTER: f64 = 8.0;
/// The smallest distance between dots that don't touch.
const APART: f64 = 10.0;
/// The number of colours in [`STYLE`].
const COLOURS: usize = 8;

/// The style of a chart. The colours `k0` to `k7` are distinguishable for most colour-blind readers; on a dark page they
/// are lighter and bands are stronger.
///
/// # Source
/// Okabe and Ito, Color Universal Design (2008), two of them darkened or lightened.
const STYLE: &str = "<style>svg{color-scheme:light dark;font:15px system-ui,sans-serif}\
.ink{fill:#222}.line{stroke:#222}.grid{stroke:#ddd}.paper{fill:#fff}.band{fill:currentColor;opacity:.2}.several .band{opacity:.1}\
.hit{opacity:0}.hit:hover{opacity:1}\
.k0{color:#0072b2}.k1{color:#d55e00}.k2{color:#009e73}.k3{color:#cc79a7}.k4{color:#e69f00}.k5{color:#56b4e9}\
.k6{color:#8a6fd1}.k7{color:#7f7f7f}\
@media(prefers-color-scheme:dark){.ink{fill:#ddd}.line{stroke:#ddd}.grid{stroke:#3c3c3c}.paper{fill:#181818}\
.band{opacity:.38}.several .band{opacity:.17}.k0{color:#4db1e8}.k1{color:#ff8a4c}.k2{color:#2fc99a}.k3{color:#e6a3c9}.k4{color:#f5b93d}\
.k5{color:#8fd0f5}.k6{color:#b09cf0}.k7{color:#b0b0b0}}</style>";

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// The points: x, y, and the ends of y's interval. A point whose y is not a number is a gap, and on a logarithmic axis
    /// so is one that isn't positive.
    pub points: Vec<[f64; 4]>,
}

impl Curve {
    /// The stretches of points between gaps.
    fn stretches<'a>(&'a self, y: &'a Axis) -> impl Iterator<Item = &'a [[f64; 4]]> {
        self.points.split(|point| !y.has_place(point[1])).filter(|stretch| !stretch.is_empty())
    }
}

/// The labels of a chart.
#[derive(Clone, Copy, Debug)]
pub struct Titles<'a> {
    /// The title.
    pub title: &'a str,
    /// The quantity on the x axis, with its unit.
    pub x: &'a str,
    /// The quantity on the y axis, with its unit.
    pub y: &'a str,
}

/// Draws curves over x with their intervals.
pub fn curves(titles: Titles, curves: &[Curve]) -> String {
    curves_over_bands(titles, &[], curves)
}

/// Draws curves like [`curves`], over named bands, of which only the interval is drawn. The y axis is logarithmic if single
/// values are far above the others and there are no bands.
pub(crate) fn curves_over_bands(titles: Titles, bands: &[Curve], curves: &[Curve]) -> String {
    let all = || bands.iter().chain(curves).flat_map(|c| &c.points);
    let title = lines(titles.title, ((RIGHT - 8.0) / TITLE_CHARACTER) as usize);
    let top = TITLE + LINE * title.len() as f64 - 7.0;
    let bottom = top + PLANE;
    let x = Axis::between(all().map(|p| p[0]), [LEFT, RIGHT]);
    let values = || all().flat_map(|p| &p[1..]).copied();
    let y = match bands.is_empty() && Axis::has_spikes(all().map(|p| p[1]).chain(all().map(|p| p[3]))) {
        true => Axis::log_over(values(), [bottom, top]),
        false => Axis::over(values(), [bottom, top]),
    };
    let names: Vec<&str> = bands.iter().chain(curves).map(|c| c.name.as_str()).collect();
    let (legend, rows) = legend(if names.len() > 1 { &names } else { &[] }, bands.len(), bottom + 64.0);
    let mut svg = open(&title, titles.title, bottom + 48.0 + LINE * rows as f64);
    grid(&mut svg, (&x, Some(&y)), LEFT, [top, bottom]);
    text(&mut svg, [(LEFT + RIGHT) / 2.0, bottom + 38.0], "middle", titles.x);
    let of_y = if y.is_log { format!("{}, log scale", titles.y) } else { titles.y.to_owned() };
    let _ = write!(
        svg,
        r#"<text class="ink" transform="translate(16 {:.0}) rotate(-90)" text-anchor="middle">{}</text>"#,
        top + PLANE / 2.0,
        escape(&of_y)
    );
    for curve in bands {
        svg.push_str(r#"<g class="k0">"#);
        band(&mut svg, (&x, &y), curve);
        svg.push_str("</g>");
    }
    // The bands are drawn first, so that they hide no line, and are fainter if there are several.
    let several = if curves.len() > 1 { r#"<g class="several">"# } else { "<g>" };
    for (opening, draw) in [(several, band as fn(&mut String, (&Axis, &Axis), &Curve)), ("<g>", line)] {
        svg.push_str(opening);
        for (i, curve) in curves.iter().enumerate() {
            let _ = write!(svg, r#"<g {}>"#, look(i));
            draw(&mut svg, (&x, &y), curve);
            svg.push_str("</g>");
        }
        svg.push_str("</g>");
    }
    svg + &legend + "</svg>\n"
}

/// The interval of a curve.
fn band(svg: &mut String, (x, y): (&Axis, &Axis), curve: &Curve) {
    if curve.points.iter().all(|[_, _, low, high]| low == high) {
        return;
    }
    let at = |p: &[f64; 4], k: usize| format!("{:.1},{:.1}", x.place(p[0]), y.place(p[k]));
    for points in curve.stretches(y) {
        let ends = points.iter().map(|p| at(p, 2)).chain(points.iter().rev().map(|p| at(p, 3)));
        let _ = write!(svg, r#"<polygon class="band" points="{}"/>"#, ends.collect::<Vec<_>>().join(" "));
    }
}

/// The line of a curve and its points. Points that would touch each other show only when the pointer rests on them, except
/// for a point between two gaps, which no line shows.
fn line(svg: &mut String, (x, y): (&Axis, &Axis), curve: &Curve) {
    let at = |p: &[f64; 4]| [x.place(p[0]), y.place(p[1])];
    let apart = curve.points.windows(2).map(|pair| x.place(pair[1][0]) - x.place(pair[0][0])).fold(WIDTH, f64::min);
    for points in curve.stretches(y) {
        let line: Vec<String> = points.iter().map(at).map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let line = line.join(" ");
        let _ = write!(svg, r#"<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2"/>"#);
        for point in points {
            let [px, py, low, high] = *point;
            let range = if low == high { String::new() } else { format!(" ({} to {})", short(low), short(high)) };
            let is_shown = apart >= APART || points.len() == 1;
            dot(svg, at(point), is_shown, &format!("{}: {} at {}{range}", curve.name, short(py), short(px)));
        }
    }
}

/// Draws named intervals (middle, low, high) one below the other, with a line at zero.
pub fn intervals(titles: Titles, rows: &[(String, [f64; 3])]) -> String {
    let longest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * CHARACTER + 24.0).clamp(LEFT, WIDTH / 2.0);
    let title = lines(titles.title, ((RIGHT - 8.0) / TITLE_CHARACTER) as usize);
    let top = TITLE + LINE * title.len() as f64 - 7.0;
    let x = Axis::over(rows.iter().flat_map(|r| r.1).chain([0.0]), [left, RIGHT]);
    let bottom = top + ROW * rows.len() as f64;
    let mut svg = open(&title, titles.title, bottom + 48.0);
    grid(&mut svg, (&x, None), left, [top, bottom]);
    let zero = x.place(0.0);
    let _ = write!(svg, r#"<line class="line" x1="{zero:.1}" x2="{zero:.1}" y1="{top}" y2="{bottom}"/>"#);
    text(&mut svg, [(left + RIGHT) / 2.0, bottom + 38.0], "middle", titles.x);
    svg.push_str(r#"<g class="k0">"#);
    for (i, (name, [middle, low, high])) in rows.iter().enumerate() {
        let y = top + ROW * (i as f64 + 0.5);
        text(&mut svg, [left - 10.0, y + 5.0], "end", &shortened(name, ((left - 18.0) / CHARACTER) as usize));
        let [a, b] = [low, high].map(|v| x.place(*v));
        let _ = write!(
            svg,
            r#"<line x1="{a:.1}" x2="{b:.1}" y1="{y:.1}" y2="{y:.1}" stroke="currentColor" stroke-width="2"/>"#
        );
        let words = format!("{name}: {} ({} to {})", short(*middle), short(*low), short(*high));
        dot(&mut svg, [x.place(*middle), y], true, &words);
    }
    svg + "</g></svg>\n"
}

/// Escapes a text for HTML and SVG. Control characters and marks that change the direction of writing are made visible.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Breaks a text at spaces into lines of at most this many characters.
fn lines(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shortened(word, most)),
        }
    }
    lines
}

/// Shortens a text to at most this many characters, and keeps its end, which distinguishes paths.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    match count <= most {
        true => text.to_owned(),
        false => format!("\u{2026}{}", text.chars().skip(count + 1 - most.max(1)).collect::<String>()),
    }
}

fn open(title: &[String], whole: &str, height: f64) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#,
        escape(whole)
    );
    svg.push_str(STYLE);
    svg.push_str(r#"<rect class="paper" width="100%" height="100%"/>"#);
    for (i, line) in title.iter().enumerate() {
        let y = TITLE + LINE * i as f64;
        let _ = write!(svg, r#"<text class="ink" x="8" y="{y}" font-size="17">{}</text>"#, escape(line));
    }
    svg
}

/// The colour of a curve; once all colours are used, the lines are dashed.
fn look(index: usize) -> String {
    let dashes = if index < COLOURS { "" } else { r#" stroke-dasharray="6 3""# };
    format!(r#"class="k{}"{dashes}"#, index % COLOURS)
}

/// The legend of curves, the first `bands` of which are bands, with its first line at this height, and the number of its
/// lines. A band lies over the earlier ones, so its key is drawn over theirs.
fn legend(names: &[&str], bands: usize, y: f64) -> (String, usize) {
    let (mut svg, mut row, mut x) = (String::new(), 0, 8.0);
    for (i, name) in names.iter().enumerate() {
        let name = shortened(name, ((RIGHT - 28.0) / CHARACTER) as usize);
        let width = 40.0 + name.chars().count() as f64 * CHARACTER;
        if x > 8.0 && x + width > WIDTH {
            (row, x) = (row + 1, 8.0);
        }
        let y = y + LINE * row as f64;
        let at = y - 5.0;
        let key = match i.checked_sub(bands) {
            Some(line) => format!(
                r#"<line {} x1="{x:.0}" x2="{:.0}" y1="{at:.0}" y2="{at:.0}" stroke="currentColor" stroke-width="4"/>"#,
                look(line),
                x + 16.0
            ),
            None => {
                let one = format!(r#"<rect class="band" x="{x:.0}" y="{:.0}" width="16" height="12"/>"#, at - 6.0);
                format!(r#"<g class="k0">{}</g>"#, one.repeat(i + 1))
            }
        };
        let _ = write!(svg, "<g data-key=\"{i}\">{key}</g>");
        text(&mut svg, [x + 22.0, y], "start", &name);
        x += width;
    }
    (svg, if names.is_empty() { 0 } else { row + 1 })
}

fn grid(svg: &mut String, (x, y): (&Axis, Option<&Axis>), left: f64, [top, bottom]: [f64; 2]) {
    for tick in &x.ticks {
        let at = x.place(*tick);
        let _ = write!(svg, r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{top}" y2="{bottom}"/>"#);
        // The last label may be a long step number, and must not leave the chart.
        let half = short(*tick).len() as f64 * CHARACTER / 2.0;
        text(svg, [at.min(WIDTH - half - 4.0), bottom + 18.0], "middle", &short(*tick));
    }
    for tick in y.iter().flat_map(|y| &y.ticks) {
        let at = y.map_or(0.0, |y| y.place(*tick));
        let _ = write!(svg, r#"<line class="grid" x1="{left}" x2="{RIGHT}" y1="{at:.1}" y2="{at:.1}"/>"#);
        text(svg, [left - 8.0, at + 5.0], "end", &short(*tick));
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, words: &str) {
    let _ = write!(svg, r#"<text class="ink" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escape(words));
}

fn dot(svg: &mut String, [x, y]: [f64; 2], is_shown: bool, words: &str) {
    let words = escape(words);
    let class = if is_shown { "" } else { r#" class="hit""# };
    let _ = write!(
        svg,
        r#"<circle{class} cx="{x:.1}" cy="{y:.1}" r="4" fill="currentColor"><title>{words}</title></circle>"#
    );
}

/// A number with at most four significant digits; a very small or large one with an exponent.
pub(super) fn short(value: f64) -> String {
    if value == 0.0 || value.abs() < 1e-12 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&value.abs()) {
        let text = format!("{value:.3e}");
        let (digits, exponent) = text.split_once('e').expect("it has an exponent");
        return format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    let decimals = (3 - value.abs().log10().floor() as i32).clamp(0, 8) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve through these values at steps 1, 2 and so on.
    fn curve(name: &str, values: impl Iterator<Item = f64>) -> Curve {
        let points = values.zip(1..).map(|(y, step)| [f64::from(step), y, y, y]).collect();
        Curve { name: name.to_owned(), points }
    }

    #[test]
    fn dots_that_would_touch_are_hidden_until_the_pointer_rests_on_them() {
        let titles = Titles { title: "a", x: "step", y: "nats" };
        let few = curves(titles, &[curve("few", (0..8).map(f64::from))]);
        assert_eq!((few.matches("<circle").count(), few.matches("class=\"hit\"").count()), (8, 0));
        let many = curves(titles, &[curve("many", (0..90).map(f64::from))]);
        assert_eq!((many.matches("<circle").count(), many.matches("class=\"hit\"").count()), (90, 90));
    }

    #[test]
    fn a_spike_makes_the_axis_logarithmic() {
        let titles = Titles { title: "a", x: "step", y: "nats" };
        let calm = curves(titles, &[curve("calm", (0..50).map(|i| 2.0 + f64::from(i % 5)))]);
        assert!(calm.contains(">nats<"), "{calm}");
        let spiky = curves(titles, &[curve("spiky", (0..50).map(|i| if i == 9 { 1000.0 } else { 2.0 }))]);
        assert!(spiky.contains(">nats, log scale<") && spiky.contains(">1000<"), "{spiky}");
    }

    #[test]
    fn what_has_no_value_is_a_gap() {
        let titles = Titles { title: "a", x: "step", y: "nats" };
        let value = |i: usize| [f64::NAN, 0.0, 1000.0].get(i).copied().unwrap_or(2.0);
        let drawn = |order: [usize; 6]| curves(titles, &[curve("gaps", order.into_iter().map(value))]);
        let count = |svg: &str, what: &str| svg.matches(what).count();
        let linear = drawn([3, 0, 3, 1, 3, 3]);
        assert_eq!((count(&linear, "<polyline"), count(&linear, "<circle")), (2, 5), "zero has its place");
        // A logarithmic axis has no place for zero.
        let log = drawn([2, 3, 1, 3, 3, 3]);
        assert!(log.contains("log scale") && !log.contains("gaps: 0 at"), "{log}");
        assert_eq!((count(&log, "<polyline"), count(&log, "<circle")), (2, 5));
        let alone = (0..90).map(|i| if [1, 3].contains(&i) { f64::NAN } else { 2.0 });
        let svg = curves(titles, &[curve("alone", alone)]);
        assert_eq!((count(&svg, "<circle cx"), count(&svg, "<circle class=\"hit\"")), (2, 86), "points without a line");
    }

    #[test]
    fn a_legend_stands_where_there_are_several_curves() {
        let titles =
            Titles { title: "a title that is too long for one line of the chart, so it has two", x: "", y: "" };
        let one = || curve("one", (0..4).map(f64::from));
        assert!(!curves(titles, &[one()]).contains("data-key"));
        let svg = curves(
            titles,
            &[one(), curve("a name of many letters, so the legend has a row more", (0..2).map(f64::from))],
        );
        assert_eq!(svg.matches("data-key").count(), 2);
        let band = || Curve { name: "band".to_owned(), points: vec![[0.0, 1.0, 0.5, 1.5], [1.0, 2.0, 1.5, 2.5]] };
        let svg = curves_over_bands(titles, &[band(), band()], &[one()]);
        assert_eq!((svg.matches("<polygon").count(), svg.matches("<polyline").count()), (2, 1));
        assert_eq!(svg.matches("class=\"band\" x").count(), 3, "the second band's key has both colours");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (2e-5, "2e-5"),
            (-1.25e7, "-1.25e7"),
            (12.0, "12"),
            (0.123_456, "0.1235"),
            (98_765.4, "98765"),
            (-1.5, "-1.5"),
            (1e-3, "0.001"),
        ];
        cases.into_iter().for_each(|(value, expected)| assert_eq!(short(value), expected));
    }

    #[test]
    fn names_stay_text() {
        let evil = r#"<script>"&'"#.to_owned();
        let titles = Titles { title: &evil, x: &evil, y: &evil };
        let curve = Curve { name: evil.clone(), points: vec![[0.0, 1.0, 0.5, 1.5], [1.0, 2.0, 1.5, 2.5]] };
        for svg in [curves(titles, &[curve]), intervals(titles, &[(evil.clone(), [1.0, 0.0, 2.0])])] {
            assert!(!svg.contains("<script>"), "{svg}");
            assert!(svg.contains("&lt;script&gt;&quot;&amp;&#39;"));
        }
    }
}
