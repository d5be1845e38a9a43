//! A graph as a table for a terminal: each node with what it reads and what reads it.

use super::{Graph, Node};

/// Longest line of names in a cell; longer lists go on below.
const NAMES_MAX: usize = 36;

/// The table.
pub fn draw(graph: &Graph) -> String {
    let mut rows: Vec<[Vec<String>; 5]> =
        vec![["", "name", "does", "reads", "read by"].map(|head| vec![head.to_string()])];
    for (i, node) in graph.nodes.iter().enumerate() {
        let one = |text: &str| vec![text.to_string()];
        let (reads, readers) = (names(graph.inputs(i)), names(graph.readers(i)));
        rows.push([one(node.what), one(&node.name), one(&node.detail), reads, readers]);
    }
    let longest = |cell: &Vec<String>| cell.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = |column: usize| rows.iter().map(|row| longest(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = format!("{}\n\n", graph.title);
    for row in &rows {
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let part = cell.get(line).map(String::as_str).unwrap_or_default();
                format!("{part:width$}")
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
    }
    text
}

/// A list of nodes in lines of names. What gives no stream may be called like a stream, so it says what it is.
fn names<'g>(nodes: impl Iterator<Item = &'g Node>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for node in nodes {
        let name = match node.what {
            "sink" | "offline" | "drift" | "outcomes" => format!("{} {}", node.what, node.name),
            _ => node.name.clone(),
        };
        match lines.last_mut() {
            Some(line) if line.chars().count() + name.chars().count() + 2 <= NAMES_MAX => {
                line.push_str(", ");
                line.push_str(&name);
            }
            Some(line) => {
                line.push(',');
                lines.push(name);
            }
            None => lines.push(name),
        }
    }
    if lines.is_empty() { vec!["-".to_string()] } else { lines }
}
