//! A graph as one self-contained SVG: layers from left to right, readable on a light and on a dark page.

use super::Graph;

const GLYPH: f64 = 7.2;
const PADDING: f64 = 14.0;
const HEIGHT: f64 = 46.0;
const ROW: f64 = 66.0;
const GAP: f64 = 64.0;
const MARGIN: f64 = 20.0;
const TITLE: f64 = 34.0;

/// Where a node's box stands.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    width: f64,
}

/// The picture.
pub fn draw(graph: &Graph) -> String {
    let (places, width, height) = places(graph);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"topology {}\">\n{STYLE}",
        escaped(&graph.title)
    );
    text.push_str(&format!("<text class=\"title\" x=\"{MARGIN}\" y=\"26\">{}</text>\n", escaped(&graph.title)));
    for (from, to) in &graph.edges {
        let (a, b) = (places[*from], places[*to]);
        let (x1, y1, x2, y2) = (a.x + a.width, a.y + HEIGHT / 2.0, b.x - 5.0, b.y + HEIGHT / 2.0);
        let bend = ((x2 - x1) / 2.0).max(24.0);
        text.push_str(&format!(
            "<path class=\"edge\" marker-end=\"url(#arrow)\" d=\"M{x1:.1} {y1:.1} C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}\"/>\n",
            x1 + bend,
            x2 - bend
        ));
    }
    for (node, Place { x, y, width }) in graph.nodes.iter().zip(&places) {
        let (middle, name_y, detail_y) = (x + width / 2.0, y + 19.0, y + 36.0);
        let what = node.what;
        text.push_str(&format!(
            "<g class=\"{what}\"><title>{what}: {name}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" rx=\"7\"/>\
             <text class=\"name\" x=\"{middle:.1}\" y=\"{name_y:.1}\">{name}</text>\
             <text class=\"detail\" x=\"{middle:.1}\" y=\"{detail_y:.1}\">{detail}</text></g>\n",
            name = escaped(&node.name),
            detail = escaped(&caption(node))
        ));
    }
    text + "</svg>\n"
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

/// The place of each box, and the size of the picture.
fn places(graph: &Graph) -> (Vec<Place>, f64, f64) {
    let layers = graph.layers();
    let columns = columns(graph, &layers);
    let tallest = columns.iter().map(Vec::len).max().unwrap_or(0) as f64;
    let mut places = vec![Place { x: 0.0, y: 0.0, width: 0.0 }; graph.nodes.len()];
    let mut x = MARGIN;
    for column in &columns {
        let letters = |i: &usize| graph.nodes[*i].name.chars().count().max(caption(&graph.nodes[*i]).chars().count());
        let width = column.iter().map(letters).max().unwrap_or(0) as f64 * GLYPH + 2.0 * PADDING;
        let top = TITLE + MARGIN + (tallest - column.len() as f64) * ROW / 2.0;
        for (row, i) in column.iter().enumerate() {
            places[*i] = Place { x, y: top + row as f64 * ROW, width };
        }
        x += width + GAP;
    }
    let title_width = graph.title.chars().count() as f64 * 10.0 + 2.0 * MARGIN;
    ((places), (x - GAP + MARGIN).max(title_width), TITLE + 2.0 * MARGIN + tallest * ROW - (ROW - HEIGHT))
}

/// The nodes of each layer, ordered so that edges cross little: each node near the middle of those that it reads.
fn columns(graph: &Graph, layers: &[usize]) -> Vec<Vec<usize>> {
    let last = layers.iter().copied().max().map_or(0, |last| last + 1);
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); last];
    for (i, layer) in layers.iter().enumerate() {
        columns[*layer].push(i);
    }
    let mut row = vec![0.0; graph.nodes.len()];
    for column in &mut columns {
        let middle = |i: usize, row: &[f64]| {
            let inputs: Vec<f64> = graph.edges.iter().filter(|(_, to)| *to == i).map(|(from, _)| row[*from]).collect();
            if inputs.is_empty() { f64::MAX } else { inputs.iter().sum::<f64>() / inputs.len() as f64 }
        };
        let mut ordered: Vec<(f64, usize)> = column.iter().map(|i| (middle(*i, &row), *i)).collect();
        ordered.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        *column = ordered.into_iter().map(|(_, i)| i).collect();
        let half = column.len() as f64 / 2.0;
        for (place, i) in column.iter().enumerate() {
            row[*i] = place as f64 - half;
        }
    }
    columns
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
