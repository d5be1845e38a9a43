//! A graph as one self-contained SVG: layers from left to right, readable on a light and on a dark page.

use super::Graph;
use super::layout::{Place, layout};

/// Width of a letter, at the size of names.
const LETTER: f64 = 7.4;
const PADDING: f64 = 14.0;
const HEIGHT: f64 = 46.0;
const MARGIN: f64 = 20.0;
const TITLE: f64 = 34.0;

/// The picture.
pub fn draw(graph: &Graph) -> String {
    let letters = |node: &super::Node| node.name.chars().count().max(caption(node).chars().count());
    let widths = graph.nodes.iter().map(|node| letters(node) as f64 * LETTER + 2.0 * PADDING);
    let layout = layout(graph, &widths.collect::<Vec<_>>(), HEIGHT);
    let title = graph.title.chars().count() as f64 * 10.0;
    let (width, height) = (layout.width.max(title) + 2.0 * MARGIN, layout.height + TITLE + MARGIN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"topology {title}\">\n{STYLE}\
         <text class=\"title\" x=\"{MARGIN}\" y=\"26\">{title}</text>\n<g transform=\"translate({MARGIN} {TITLE})\">\n",
        title = escaped(&graph.title)
    );
    for points in &layout.edges {
        text.push_str(&edge(points));
    }
    for (node, place) in graph.nodes.iter().zip(&layout.boxes) {
        text.push_str(&boxed(node, place));
    }
    text + "</g>\n</svg>\n"
}

/// An edge: a bend between two layers, a straight line past a layer.
fn edge(points: &[(f64, f64)]) -> String {
    let Some((x, y)) = points.first() else { return String::new() };
    let mut path = format!("M{x:.1} {y:.1}");
    for (i, pair) in points.windows(2).enumerate() {
        let ((x1, y1), (mut x2, y2)) = (pair[0], pair[1]);
        if i + 2 == points.len() {
            // The arrow's head stands in front of the box.
            x2 -= 5.0;
        }
        let bend = (x1 + x2) / 2.0;
        path += &match i % 2 {
            0 => format!(" C{bend:.1} {y1:.1} {bend:.1} {y2:.1} {x2:.1} {y2:.1}"),
            _ => format!(" L{x2:.1} {y2:.1}"),
        };
    }
    format!("<path class=\"edge\" marker-end=\"url(#arrow)\" d=\"{path}\"/>\n")
}

fn boxed(node: &super::Node, Place { x, y, width }: &Place) -> String {
    let (middle, name_y, detail_y, what) = (x + width / 2.0, y + 19.0, y + 36.0, node.what);
    format!(
        "<g class=\"{what}\"><title>{what}: {name}</title>\
         <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" rx=\"7\"/>\
         <text class=\"name\" x=\"{middle:.1}\" y=\"{name_y:.1}\">{name}</text>\
         <text class=\"detail\" x=\"{middle:.1}\" y=\"{detail_y:.1}\">{detail}</text></g>\n",
        name = escaped(&node.name),
        detail = escaped(&caption(node))
    )
}

/// The second line of a box: what the node is, and what it does as far as it fits.
fn caption(node: &super::Node) -> String {
    const LONGEST: usize = 30;
    let whole = match node.detail.is_empty() {
        true => node.what.to_string(),
        false => format!("{} · {}", node.what, node.detail),
    };
    match whole.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &whole[..cut]),
        None => whole,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Colours for light and dark pages; the background stays the page's.
const STYLE: &str = "<style>
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-anchor: middle; fill: #1f2933 }
.title { font-size: 16px; font-weight: 600; text-anchor: start }
.name { font-size: 12px; font-weight: 600 }
.detail { font-size: 11px; opacity: .75 }
rect { fill: #f5f7fa; stroke: #7b8794; stroke-width: 1.2 }
.source rect { fill: #e3f2e6; stroke: #3f8f54 }
.features rect { fill: #e5effb; stroke: #3d76b8 }
.vector rect { fill: #ece9fb; stroke: #6b5cc4 }
.model rect { fill: #fdf0da; stroke: #b9812a }
.sink rect, .offline rect { fill: #fbe6e6; stroke: #b85050 }
.edge { fill: none; stroke: #7b8794; stroke-width: 1.4 }
.head { fill: #7b8794 }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb }
  rect { fill: #2b333d; stroke: #9aa5b1 }
  .source rect { fill: #1d3a26; stroke: #63b57a }
  .features rect { fill: #1c3047; stroke: #6aa3e0 }
  .vector rect { fill: #2b2650; stroke: #9a8cf0 }
  .model rect { fill: #42320f; stroke: #d9a54c }
  .sink rect, .offline rect { fill: #4a2323; stroke: #df8080 }
  .edge { stroke: #9aa5b1 }
  .head { fill: #9aa5b1 }
}
</style>
<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"4\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path class=\"head\" d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>
";
