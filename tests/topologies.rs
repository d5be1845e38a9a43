//! Every topology of the repository can be planned, and its graph drawn.

use std::path::Path;

#[path = "../topologies/flight_delays/main.rs"]
mod flight_delays;
#[path = "../topologies/score/main.rs"]
mod score;

use millstream::graph::{Graph, mermaid, svg, text};
use millstream::plan::Plan;
use millstream::topology::Topology;
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

#[test]
fn a_topology_in_rust_equals_its_file() {
    check_twin("score", &score::topology());
    check_twin("flight_delays", &flight_delays::topology());
}

fn check_twin(name: &str, twin: &Topology) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies").join(name).join("topology.yaml");
    let file = File::open(&path).topology.expect("the file can be read");
    // As text, because the order of columns counts, and maps with the same entries are equal in any order.
    let written = |topology: &Topology| serde_json::to_string_pretty(topology).expect("a topology is JSON");
    assert_eq!(written(twin), written(&file));
    assert_eq!(*twin, file);
}
