//! Charts as self-contained SVG: curves with bands, and intervals one below the other. The colours follow the reader's
//! light or dark scheme; a point shows its numbers when the pointer rests on it.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 704.0;
const TOP: f64 = 40.0;
/// The height of a chart's plot area, and of a row of intervals.
const PLANE: f64 = 280.0;
const ROW: f64 = 26.0;

/// Colours that are visible on white and on black, and distinguishable for most colour-blind readers.
///
/// # Source
/// Okabe and Ito, Color Universal Design (2008), two of them darkened or lightened.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#7f7f7f"];

const STYLE: &str = "<style>svg{color-scheme:light dark;font:12px system-ui,sans-serif}\
.ink{fill:#222}.line{stroke:#222}.grid{stroke:#ddd}.paper{fill:#fff}\
@media(prefers-color-scheme:dark){.ink{fill:#ddd}.line{stroke:#ddd}.grid{stroke:#444}.paper{fill:#181818}}</style>";

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// The points: x, y, and the ends of y's interval.
    pub points: Vec<[f64; 4]>,
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
    let all = || curves.iter().flat_map(|c| &c.points);
    let x = Axis::between(all().map(|p| p[0]), [LEFT, RIGHT]);
    let y = Axis::over(all().flat_map(|p| &p[1..]).copied(), [TOP + PLANE, TOP]);
    let mut svg = open(titles.title, TOP + PLANE + 64.0 + 18.0 * curves.len().div_ceil(4) as f64);
    grid(&mut svg, &x, Some(&y), TOP + PLANE);
    let (middle, below) = ((LEFT + RIGHT) / 2.0, TOP + PLANE + 34.0);
    text(&mut svg, [middle, below], "middle", titles.x);
    let _ = write!(
        svg,
        r#"<text class="ink" transform="translate(14 {:.0}) rotate(-90)" text-anchor="middle">{}</text>"#,
        TOP + PLANE / 2.0,
        escape(titles.y)
    );
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let at = |p: &[f64; 4], k: usize| format!("{:.1},{:.1}", x.place(p[0]), y.place(p[k]));
        let band: Vec<String> =
            curve.points.iter().map(|p| at(p, 2)).chain(curve.points.iter().rev().map(|p| at(p, 3))).collect();
        let line: Vec<String> = curve.points.iter().map(|p| at(p, 1)).collect();
        let _ = write!(svg, r#"<polygon points="{}" fill="{colour}" opacity="0.15"/>"#, band.join(" "));
        let _ =
            write!(svg, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, line.join(" "));
        for [px, py, low, high] in &curve.points {
            let words =
                format!("{}: {} at {} ({} to {})", curve.name, short(*py), short(*px), short(*low), short(*high));
            dot(&mut svg, [x.place(*px), y.place(*py)], colour, &words);
        }
        let (column, row) = (i % 4, i / 4);
        let [lx, ly] = [LEFT + 160.0 * column as f64, below + 22.0 + 18.0 * row as f64];
        let _ = write!(svg, r#"<rect x="{lx:.0}" y="{:.0}" width="14" height="4" fill="{colour}"/>"#, ly - 6.0);
        text(&mut svg, [lx + 20.0, ly], "start", &curve.name);
    }
    svg + "</svg>\n"
}

/// Draws named intervals (middle, low, high) one below the other, with a line at zero.
pub fn intervals(titles: Titles, rows: &[(String, [f64; 3])]) -> String {
    let left = LEFT + 150.0;
    let x = Axis::over(rows.iter().flat_map(|r| r.1).chain([0.0]), [left, RIGHT]);
    let bottom = TOP + ROW * rows.len() as f64;
    let mut svg = open(titles.title, bottom + 48.0);
    grid(&mut svg, &x, None, bottom);
    let zero = x.place(0.0);
    let _ = write!(svg, r#"<line class="line" x1="{zero:.1}" x2="{zero:.1}" y1="{TOP}" y2="{bottom}"/>"#);
    text(&mut svg, [(left + RIGHT) / 2.0, bottom + 36.0], "middle", titles.x);
    for (i, (name, [middle, low, high])) in rows.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        text(&mut svg, [left - 10.0, y + 4.0], "end", name);
        let colour = COLOURS[0];
        let [a, b] = [low, high].map(|v| x.place(*v));
        let _ = write!(
            svg,
            r#"<line x1="{a:.1}" x2="{b:.1}" y1="{y:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="2"/>"#
        );
        let words = format!("{name}: {} ({} to {})", short(*middle), short(*low), short(*high));
        dot(&mut svg, [x.place(*middle), y], colour, &words);
    }
    svg + "</svg>\n"
}

/// Escapes a text for HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
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

/// An axis: maps values to positions, and has ticks.
struct Axis {
    values: [f64; 2],
    places: [f64; 2],
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis that includes all values and ends on ticks.
    fn over(values: impl Iterator<Item = f64>, places: [f64; 2]) -> Self {
        let [mut low, mut high] = values
            .filter(|v| v.is_finite())
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
        if low > high {
            [low, high] = [0.0, 1.0];
        }
        if high - low < 1e-12 * high.abs().max(1e-12) {
            [low, high] = [low - 0.5, high + 0.5];
        }
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(power);
        let [first, last] = [(low / step).floor(), (high / step).ceil()];
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { values: [first * step, last * step], places, ticks }
    }

    /// An axis that ends where the values end.
    fn between(values: impl Iterator<Item = f64> + Clone, places: [f64; 2]) -> Self {
        let wide = Self::over(values.clone(), places);
        let is_counted = values.clone().all(|value| value.fract() == 0.0);
        let ends = values
            .filter(|v| v.is_finite())
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
        match ends {
            [low, high] if low < high => {
                // Integers such as steps get no fractional ticks.
                let is_tick = |tick: &f64| (low..=high).contains(tick) && (!is_counted || tick.fract() == 0.0);
                let ticks = wide.ticks.into_iter().filter(is_tick).collect();
                Self { values: ends, places, ticks }
            }
            _ => wide,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let [from, to] = self.values;
        self.places[0] + (value - from) / (to - from) * (self.places[1] - self.places[0])
    }
}

fn open(title: &str, height: f64) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#,
        escape(title)
    );
    svg.push_str(STYLE);
    svg.push_str(r#"<rect class="paper" width="100%" height="100%"/>"#);
    let _ = write!(svg, r#"<text class="ink" x="{LEFT}" y="24" font-size="15">{}</text>"#, escape(title));
    svg
}

fn grid(svg: &mut String, x: &Axis, y: Option<&Axis>, bottom: f64) {
    for tick in &x.ticks {
        let at = x.place(*tick);
        let _ = write!(svg, r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/>"#);
        text(svg, [at, bottom + 16.0], "middle", &short(*tick));
    }
    for tick in y.iter().flat_map(|y| &y.ticks) {
        let at = y.map_or(0.0, |y| y.place(*tick));
        let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1}" y2="{at:.1}"/>"#);
        text(svg, [LEFT - 8.0, at + 4.0], "end", &short(*tick));
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, words: &str) {
    let _ = write!(svg, r#"<text class="ink" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escape(words));
}

fn dot(svg: &mut String, [x, y]: [f64; 2], colour: &str, words: &str) {
    let words = escape(words);
    let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{colour}"><title>{words}</title></circle>"#);
}

/// A number with at most four significant digits.
fn short(value: f64) -> String {
    if value == 0.0 || value.abs() < 1e-12 {
        return "0".to_owned();
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

    #[test]
    fn an_axis_ends_on_ticks_around_its_values() {
        let axis = Axis::over([3.0, 47.0].into_iter(), [0.0, 100.0]);
        assert_eq!(axis.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!([axis.place(0.0), axis.place(25.0), axis.place(50.0)], [0.0, 50.0, 100.0]);
        let middle = Axis::over([2.0].into_iter(), [0.0, 1.0]).place(2.0);
        assert!((middle - 0.5).abs() < 1e-9, "one value lies at {middle}, not in the middle");
        assert!(Axis::over([].into_iter(), [0.0, 1.0]).place(0.5).is_finite());
        let tight = Axis::between([3.0, 47.0].into_iter(), [0.0, 100.0]);
        assert_eq!(tight.ticks, [10.0, 20.0, 30.0, 40.0], "no tick lies outside");
        assert_eq!([tight.place(3.0), tight.place(25.0), tight.place(47.0)], [0.0, 50.0, 100.0]);
        assert_eq!(Axis::between([1.0, 2.0].into_iter(), [0.0, 1.0]).ticks, [1.0, 2.0], "steps have no parts");
        assert_eq!(Axis::between([2.0].into_iter(), [0.0, 1.0]).place(2.0), middle);
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (12.0, "12"), (0.123_456, "0.1235"), (98_765.4, "98765"), (-1.5, "-1.5"), (1e-3, "0.001")];
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
