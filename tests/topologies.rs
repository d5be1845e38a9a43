//! Every topology of the repository can be planned, and its graph drawn.

use std::path::Path;

use millstream::graph::{Graph, mermaid, svg, text};
use millstream::plan::Plan;
use millstream::topology::file::File;

#[test]
fn topologies_pass_check() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).expect("there are topologies") {
        let path = entry.expect("a topology can be listed").path().join("topology.yaml");
        if !path.exists() {
            continue;
        }
        let file = File::open(&path);
        let topology = file.topology.as_ref().unwrap_or_else(|| panic!("{}", file.report(&[], &[])));
        let folder = path.parent().expect("a file stands in a folder");
        if let Err(errors) = Plan::around(topology, folder, &file.doubtful) {
            panic!("{}", file.report(&errors, &[]));
        }
        assert!(file.is_whole(), "{}", file.report(&[], &[]));
        let graph = Graph::of(topology);
        for drawn in [text::draw(&graph), mermaid::draw(&graph), svg::draw(&graph)] {
            for node in &graph.nodes {
                assert!(drawn.contains(&node.name), "{} is missing in\n{drawn}", node.name);
            }
        }
        checked += 1;
    }
    assert!(checked > 0, "no topology was found");
}

#[test]
fn the_smallest_topology_is_small() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/score/topology.yaml");
    let text = std::fs::read_to_string(path).expect("the topology can be read");
    assert!(text.lines().count() <= 25, "{} lines", text.lines().count());
}
