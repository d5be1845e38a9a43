//! Where the boxes of a picture stand: layers from left to right, and room in every layer for the edges that pass it.
//!
//! ```text
//! layer 0     layer 1     layer 2
//! [source] ─▶ [group]  ─▶ [vector]
//!        └──── pass ────▶ [  ..  ]
//! ```

use super::Graph;

/// Room between the layers.
const GAP: f64 = 64.0;
/// Room between two boxes of a layer.
const SPACE: f64 = 20.0;
/// Room that an edge takes which passes a layer.
const PASS: f64 = 16.0;

/// A box.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Place {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub width: f64,
}

/// A layout.
#[derive(Debug)]
pub struct Layout {
    /// The box of each node.
    pub boxes: Vec<Place>,
    /// For each edge the points it goes through, from box to box: in pairs, a straight line within a layer, a bend between.
    pub edges: Vec<Vec<(f64, f64)>>,
    /// Width of it all.
    pub width: f64,
    /// Height of it all.
    pub height: f64,
}

/// What stands in a layer: a node, or an edge on its way past.
#[derive(Clone, Copy, PartialEq)]
enum Item {
    Node(usize),
    Pass(usize),
}

/// Lays a graph out; `widths` are those of the boxes, all `height` high.
pub fn layout(graph: &Graph, widths: &[f64], height: f64) -> Layout {
    let layers = graph.layers();
    let columns = columns(graph, &layers);
    let item_height = |item: &Item| match item {
        Item::Node(_) => height + SPACE,
        Item::Pass(_) => PASS,
    };
    let column_height = |column: &Vec<Item>| column.iter().map(item_height).sum::<f64>();
    let tallest = columns.iter().map(column_height).fold(0.0, f64::max);
    let mut boxes = vec![Place::default(); graph.nodes.len()];
    let mut passes: Vec<Vec<(f64, f64)>> = vec![Vec::new(); graph.edges.len()];
    let mut x = 0.0;
    for column in &columns {
        let node_width = |item: &Item| if let Item::Node(i) = item { widths[*i] } else { 0.0 };
        let width = column.iter().map(node_width).fold(0.0, f64::max);
        let mut y = (tallest - column_height(column)) / 2.0;
        for item in column {
            match item {
                Item::Node(i) => boxes[*i] = Place { x, y: y + SPACE / 2.0, width },
                Item::Pass(edge) => passes[*edge].extend([(x, y + PASS / 2.0), (x + width, y + PASS / 2.0)]),
            }
            y += item_height(item);
        }
        x += width + GAP;
    }
    let ends = graph.edges.iter().zip(passes).map(|((from, to), passes)| {
        let (from, to) = (boxes[*from], boxes[*to]);
        let (start, end) = ((from.x + from.width, from.y + height / 2.0), (to.x, to.y + height / 2.0));
        std::iter::once(start).chain(passes).chain([end]).collect()
    });
    Layout { edges: ends.collect(), boxes, width: (x - GAP).max(0.0), height: tallest }
}

/// The items of each layer, ordered so that edges cross little: each near the middle of what it comes from.
fn columns(graph: &Graph, layers: &[usize]) -> Vec<Vec<Item>> {
    let count = layers.iter().max().map_or(0, |last| last + 1);
    let mut columns: Vec<Vec<Item>> = vec![Vec::new(); count];
    for (i, layer) in layers.iter().enumerate() {
        columns[*layer].push(Item::Node(i));
    }
    for (edge, (from, to)) in graph.edges.iter().enumerate() {
        for column in columns.iter_mut().take(layers[*to]).skip(layers[*from] + 1) {
            column.push(Item::Pass(edge));
        }
    }
    for layer in 1..count {
        let (before, after) = columns.split_at_mut(layer);
        let earlier = &before[layer - 1];
        let place = |item: Item| earlier.iter().position(|other| *other == item);
        // In the layer before, an edge is its own pass, or the node that it starts from.
        let source = |edge: usize| place(Item::Pass(edge)).or_else(|| place(Item::Node(graph.edges[edge].0)));
        let middle = |item: &Item| {
            let sources: Vec<usize> = match item {
                Item::Pass(edge) => source(*edge).into_iter().collect(),
                Item::Node(i) => {
                    let into = graph.edges.iter().enumerate().filter(|(_, (_, to))| to == i);
                    into.filter_map(|(edge, _)| source(edge)).collect()
                }
            };
            sources.iter().sum::<usize>() as f64 / sources.len().max(1) as f64
        };
        let mut ordered: Vec<(f64, Item)> = after[0].iter().map(|item| (middle(item), *item)).collect();
        ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
        after[0] = ordered.into_iter().map(|(_, item)| item).collect();
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;

    #[test]
    fn edges_pass_beside_boxes() {
        let node = |name: &str| Node { what: "prepare", name: name.into(), detail: String::new() };
        // a -> b -> c, and a -> c past b.
        let nodes = ["a", "b", "c"].map(node).to_vec();
        let graph = Graph { title: "t".into(), nodes, edges: vec![(0, 1), (1, 2), (0, 2)] };
        let Layout { boxes, edges, width, height } = layout(&graph, &[50.0, 60.0, 70.0], 40.0);
        assert_eq!(edges[2].len(), 4);
        let beside = |(_, y): &(f64, f64)| *y < boxes[1].y || *y > boxes[1].y + 40.0;
        assert!(edges[2][1..3].iter().all(beside), "{edges:?} {boxes:?}");
        assert!(boxes.iter().all(|b| b.x + b.width <= width && b.y + 40.0 <= height));
    }
}
