//! A topology as a picture: its nodes, what each reads, and three ways to draw them.

use std::collections::HashMap;

use serde_json::json;

use crate::topology::Topology;

pub mod layout;
pub mod mermaid;
pub mod svg;
pub mod text;

/// What a picture shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Name of the job.
    pub title: String,
    /// The nodes, section by section in the order of the file.
    pub nodes: Vec<Node>,
    /// From node to node, by index: the way of the data.
    pub edges: Vec<(usize, usize)>,
}

/// A node of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is: `source`, `prepare`, `features`, `vector`, `model`, `drift`, `outcomes`, `sink`, `offline`, or
    /// `engine` for the streams of the engine's own.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// What it does, in a few words.
    pub detail: String,
}

impl Graph {
    /// The picture of a topology. References that lead nowhere are left out.
    pub fn of(topology: &Topology) -> Graph {
        let mut graph = Builder::default();
        for (name, source) in &topology.sources {
            graph.node("source", name, source.from.kind_name().to_string(), &[]);
        }
        for (name, prepare) in &topology.prepare {
            graph.node("prepare", name, prepare_detail(prepare), &[&prepare.from]);
        }
        for (name, group) in &topology.features {
            graph.node("features", name, format!("by {}", group.key.join(", ")), &[&group.from]);
        }
        for (name, vector) in &topology.vectors {
            let mut reads = vec![vector.spine.as_str()];
            reads.extend(vector.join.iter().map(|join| join.features.as_str()));
            graph.node("vector", name, format!("spine {}", vector.spine), &reads);
        }
        for (name, model) in &topology.models {
            graph.node("model", name, model.onnx.clone(), &[&model.from]);
        }
        for (name, drift) in &topology.drift {
            graph.node("drift", name, format!("{} on {}", drift.detector.kind_name(), drift.column), &[&drift.from]);
        }
        for (name, outcomes) in &topology.outcomes {
            let detail = format!("on {}", outcomes.on.join(", "));
            graph.node("outcomes", name, detail, &[&outcomes.model, &outcomes.label]);
        }
        for (name, sink) in &topology.sinks {
            graph.node("sink", name, sink.to.kind_name().to_string(), &[&sink.from]);
        }
        for (name, table) in &topology.offline {
            graph.node("offline", name, table.table.kind_name().to_string(), &[&table.from]);
        }
        graph.finish(topology.name.clone())
    }

    /// The picture for scripts: `nodes` with `kind`, `name` and `detail`, `edges` from name to name.
    pub fn to_json(&self) -> serde_json::Value {
        let node = |node: &Node| json!({ "kind": node.what, "name": node.name, "detail": node.detail });
        let edge = |(from, to): &(usize, usize)| json!({ "from": self.nodes[*from].name, "to": self.nodes[*to].name });
        let nodes: Vec<_> = self.nodes.iter().map(node).collect();
        let edges: Vec<_> = self.edges.iter().map(edge).collect();
        json!({ "job": self.title, "nodes": nodes, "edges": edges })
    }

    /// The nodes that read node `i`.
    pub fn readers(&self, i: usize) -> impl Iterator<Item = &Node> {
        self.edges.iter().filter(move |(from, _)| *from == i).map(|(_, to)| &self.nodes[*to])
    }

    /// The nodes that node `i` reads.
    pub fn inputs(&self, i: usize) -> impl Iterator<Item = &Node> {
        self.edges.iter().filter(move |(_, to)| *to == i).map(|(from, _)| &self.nodes[*from])
    }

    /// The layer of each node: 0 for one that reads nothing, else one more than the furthest that it reads.
    pub fn layers(&self) -> Vec<usize> {
        let mut layers = vec![0; self.nodes.len()];
        // Each round moves every node behind its inputs; a graph without cycles settles within as many rounds as nodes.
        for _ in 0..self.nodes.len() {
            let mut settled = true;
            for (from, to) in &self.edges {
                if layers[*to] <= layers[*from] {
                    layers[*to] = layers[*from] + 1;
                    settled = false;
                }
            }
            if settled {
                break;
            }
        }
        layers
    }
}

fn prepare_detail(prepare: &crate::topology::Prepare) -> String {
    let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}"));
    let parts = [
        prepare.filter.as_ref().map(|_| "filter".to_string()),
        count(prepare.checks.len(), "checks"),
        count(prepare.derive.len(), "derived"),
        count(prepare.select.len(), "selected"),
        prepare.deduplicate.as_ref().map(|deduplicate| format!("once by {}", deduplicate.by.join(", "))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A graph while it grows.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    reads: Vec<(String, usize)>,
}

impl Builder {
    fn node(&mut self, what: &'static str, name: &str, detail: String, reads: &[&str]) {
        self.reads.extend(reads.iter().map(|read| (read.to_string(), self.nodes.len())));
        self.nodes.push(Node { what, name: name.to_string(), detail });
    }

    fn finish(mut self, title: String) -> Graph {
        for (name, detail) in [("rejects", "records that failed"), ("drift", "all drift signals")] {
            if self.reads.iter().any(|(read, _)| read == name) {
                self.node("engine", name, detail.to_string(), &[]);
            }
        }
        // Only what can be read has its name here: a sink may be called like the stream that it writes.
        let readable = |node: &Node| !matches!(node.what, "sink" | "offline" | "drift" | "outcomes");
        let numbered = self.nodes.iter().enumerate().filter(|(_, node)| readable(node));
        let by_name: HashMap<&str, usize> = numbered.map(|(i, node)| (node.name.as_str(), i)).collect();
        let mut edges = Vec::new();
        for (read, reader) in &self.reads {
            let edge = by_name.get(read.as_str()).map(|from| (*from, *reader));
            edges.extend(edge.filter(|edge| !edges.contains(edge)));
        }
        if let Some(signals) = by_name.get("drift") {
            let detectors = self.nodes.iter().enumerate().filter(|(_, node)| node.what == "drift");
            edges.extend(detectors.map(|(i, _)| (i, *signals)));
        }
        Graph { title, nodes: self.nodes, edges }
    }
}
