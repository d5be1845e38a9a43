//! A graph as a Mermaid flowchart, for pages that draw them (GitHub, GitLab, wikis).

use super::Graph;

/// The flowchart.
pub fn draw(graph: &Graph) -> String {
    let mut text = format!("---\ntitle: {}\n---\nflowchart LR\n", graph.title);
    for (i, node) in graph.nodes.iter().enumerate() {
        let (open, close) = match node.what {
            "source" => ("([", "])"),
            "sink" | "offline" => ("[/", "/]"),
            "features" => ("[(", ")]"),
            "model" => ("{{", "}}"),
            _ => ("[", "]"),
        };
        let detail = if node.detail.is_empty() { String::new() } else { format!("<br>{}", escaped(&node.detail)) };
        text.push_str(&format!("    n{i}{open}\"{}: {}{detail}\"{close}\n", node.what, escaped(&node.name)));
    }
    for (from, to) in &graph.edges {
        text.push_str(&format!("    n{from} --> n{to}\n"));
    }
    text
}

/// A text without the characters that end a label.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}
