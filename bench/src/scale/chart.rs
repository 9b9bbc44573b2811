//! Line charts as SVG.

use std::fmt::{self, Write as _};

/// One of the charts, which are drawn one below the other.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Whether the horizontal axis is logarithmic.
    pub(crate) is_log: bool,
    /// Whether a dashed line shows y = x.
    pub(crate) has_ideal: bool,
    pub(crate) lines: Vec<Line<'a>>,
}

/// The points of a variant, from left to right.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 340.0;
/// The edges of the plot in its panel.
const LEFT: f64 = 62.0;
const RIGHT: f64 = WIDTH - 205.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = HEIGHT - 56.0;
/// The minimum distance between two labels.
const LABEL: f64 = 17.0;

const OURS: &str = "longrunning";
const GREY: &str = "#767676";

/// Colours from the palettes of Okabe and Ito and of Paul Tol, which colour-blind readers can tell apart.
const COLOURS: [(&str, &str); 9] = [
    (OURS, "#0072b2"),
    ("raw tonic stub", "#d55e00"),
    ("longrunning, patched h2", "#332288"),
    ("longrunning on a Channel", "#56b4e9"),
    ("gcloud-longrunning", "#e69f00"),
    ("google-cloud-longrunning", "#009e73"),
    ("google-api-core", "#cc79a7"),
    ("grpc-go", "#882255"),
    ("h2 alone", "#000000"),
];

/// Returns the SVG document. The output is deterministic.
pub(crate) fn svg(panels: &[Panel<'_>]) -> Result<String, fmt::Error> {
    let mut svg = String::new();
    let height = HEIGHT * panels.len() as f64;
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13" fill="#222222">
<rect width="100%" height="100%" fill="#ffffff"/>"##
    )?;
    for (number, panel) in panels.iter().enumerate() {
        let top = HEIGHT * number as f64;
        writeln!(svg, r#"<g transform="translate(0 {top})">"#)?;
        panel.draw(&mut svg)?;
        writeln!(svg, "</g>")?;
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String) -> fmt::Result {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let mut loads: Vec<_> = points().map(|point| point.0).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        let (Some(&least), Some(&most)) = (loads.first(), loads.last()) else {
            return Ok(());
        };
        let highest = points().map(|point| point.1).fold(1.0, f64::max);
        let y_ticks = ticks(highest);
        let y_end = y_ticks.last().copied().unwrap_or(highest);
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * value / y_end;
        let x = |value: f64| {
            let share = match self.is_log {
                true => (value / least).ln() / (most / least).ln().max(1.0),
                false => value / most,
            };
            LEFT + (RIGHT - LEFT) * share
        };

        let Self { title, .. } = self;
        let (middle, axis) = ((LEFT + RIGHT) / 2.0, BOTTOM + 40.0);
        writeln!(
            svg,
            r#"<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{title}</text>
<text x="{LEFT}" y="46" fill="{GREY}">{}</text>
<text x="{middle}" y="{axis}" fill="{GREY}" text-anchor="middle">{}</text>"#,
            self.y, self.x
        )?;
        for &tick in &y_ticks {
            let (at, colour) = (y(tick), if tick == 0.0 { GREY } else { "#e4e4e4" });
            let (text, below) = (thousands(tick), at + 4.5);
            writeln!(
                svg,
                r#"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="{colour}"/>
<text x="{}" y="{below:.1}" text-anchor="end">{text}</text>"#,
                LEFT - 8.0
            )?;
        }
        let x_ticks = if self.is_log { loads } else { ticks(most) };
        for tick in x_ticks.into_iter().filter(|tick| *tick <= most) {
            let (at, text, below) = (x(tick), thousands(tick), BOTTOM + 20.0);
            writeln!(
                svg,
                r#"<path d="M{at:.1} {BOTTOM}v5" stroke="{GREY}"/>
<text x="{at:.1}" y="{below}" text-anchor="middle">{text}</text>"#
            )?;
        }
        if self.has_ideal {
            let end = most.min(y_end);
            writeln!(
                svg,
                r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{GREY}" stroke-dasharray="5 4"/>
<text x="{:.1}" y="{:.1}" fill="{GREY}" text-anchor="end">ideal</text>"#,
                x(0.0),
                y(0.0),
                x(end),
                y(end),
                x(end * 0.8) - 8.0,
                y(end * 0.8)
            )?;
        }

        // Draw the widest line first, so that it does not hide the others.
        let mut widest_first: Vec<_> = self.lines.iter().collect();
        widest_first.sort_by(|a, b| b.width().total_cmp(&a.width()));
        for line in widest_first {
            let (colour, width) = (line.colour(), line.width());
            let path = line.points.iter().enumerate().map(|(number, point)| {
                let command = if number == 0 { 'M' } else { 'L' };
                format!("{command}{:.1} {:.1}", x(point.0), y(point.1))
            });
            let path: String = path.collect();
            writeln!(
                svg,
                r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>"#
            )?;
            for point in &line.points {
                let (x, y) = (x(point.0), y(point.1));
                writeln!(
                    svg,
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="{}" fill="{colour}"/>"#,
                    width + 1.0
                )?;
            }
        }

        // Each label is at the end of its line, or below the label above it.
        let mut lines: Vec<_> = self.lines.iter().filter_map(Line::last).collect();
        lines.sort_by(|(_, a), (_, b)| b.1.total_cmp(&a.1));
        let mut label = f64::MIN;
        let mut left = lines.len() as f64;
        for (line, (last_x, last_y)) in lines {
            left -= 1.0;
            label = y(last_y).max(label + LABEL).min(BOTTOM - left * LABEL);
            let colour = line.colour();
            let (from_x, from_y) = (x(last_x) + 6.0, y(last_y));
            let weight = if line.name == OURS { "bold" } else { "normal" };
            writeln!(
                svg,
                r#"<path d="M{from_x:.1} {from_y:.1}L{:.1} {label:.1}" stroke="{colour}"/>
<text x="{:.1}" y="{:.1}" font-weight="{weight}">{}</text>"#,
                RIGHT + 17.0,
                RIGHT + 21.0,
                label + 4.5,
                line.name
            )?;
        }
        Ok(())
    }
}

impl Line<'_> {
    fn last(&self) -> Option<(&Self, (f64, f64))> {
        Some((self, *self.points.last()?))
    }

    fn colour(&self) -> &'static str {
        let found = COLOURS.iter().find(|(name, _)| *name == self.name);
        found.map_or(GREY, |(_, colour)| colour)
    }

    fn width(&self) -> f64 {
        if self.name == OURS { 3.0 } else { 1.8 }
    }
}

/// Returns up to seven round values from 0 to about the highest value, or above it.
fn ticks(highest: f64) -> Vec<f64> {
    let power = 10_f64.powf((highest / 6.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    let step = steps.into_iter().find(|step| step * 6.0 >= highest);
    let step = step.unwrap_or(10.0 * power);
    let count = (highest / step - 0.05).ceil() as usize;
    (0..=count).map(|number| number as f64 * step).collect()
}

fn thousands(value: f64) -> String {
    if value < 1e3 {
        return value.to_string();
    }
    format!("{}k", value / 1e3)
}
