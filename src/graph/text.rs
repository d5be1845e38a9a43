//! A graph as a table for a terminal: a line for each node, with what it reads and what reads it.

use super::Graph;

/// The table.
pub fn draw(graph: &Graph) -> String {
    let head = ["", "name", "does", "reads", "read by"].map(str::to_string);
    let mut rows = vec![head];
    for (i, node) in graph.nodes.iter().enumerate() {
        let names = |nodes: Vec<&super::Node>| match nodes.is_empty() {
            true => "-".to_string(),
            false => nodes.into_iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        let reads = names(graph.inputs(i).collect());
        rows.push([
            node.what.to_string(),
            node.name.clone(),
            node.detail.clone(),
            reads,
            names(graph.readers(i).collect()),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = format!("{}\n\n", graph.title);
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
