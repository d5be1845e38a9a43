//! What scripts rely on: every command that prints results has `--json`, and readers that go away (`| head`) are no error. And what a
//! person sees in a terminal.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::program::{Running, millstream, replay, root};

fn score() -> String {
    root().join("topologies/score/topology.yaml").display().to_string()
}

/// What a command prints, which must be one JSON value.
fn json(args: &[&str]) -> Value {
    let said = Running::start(millstream().args(args)).end();
    assert!(said.status.success(), "{args:?}: {}", said.err);
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", said.out))
}

#[test]
fn every_command_that_prints_results_prints_json() {
    let score = score();
    let checked = json(&["check", &score, "--json"]);
    assert_eq!((&checked["ok"], &checked["problems"]), (&true.into(), &Value::Array(Vec::new())));

    let graph = json(&["graph", &score, "--json"]);
    assert_eq!(graph["job"], "score");
    assert_eq!(graph["nodes"][0], serde_json::json!({ "kind": "source", "name": "payments", "detail": "kafka" }));
    let edge = serde_json::json!({ "from": "payments", "to": "fraud" });
    assert!(graph["edges"].as_array().is_some_and(|edges| edges.contains(&edge)), "{graph}");

    let kinds = json(&["kinds", "--json"]);
    let named = |family: &str, name: &str| {
        let all = kinds.as_array().expect("a list of kinds");
        all.iter().any(|kind| kind["family"] == family && kind["name"] == name)
    };
    assert!(named("source", "kafka") && named("sink", "kafka") && named("detector", "adwin"), "{kinds}");
    let kafka = json(&["kinds", "kafka", "--json"]);
    assert_eq!(kafka.as_array().map(Vec::len), Some(2), "source and sink: {kafka}");
    assert!(kafka[0]["settings"]["properties"]["topics"].is_object(), "{kafka}");

    let stddev = json(&["kinds", "stddev", "--json"]);
    assert_eq!((&stddev[0]["family"], &stddev[0]["name"]), (&"aggregate".into(), &"stddev".into()), "{stddev}");

    assert_eq!(json(&["schema", "--json"])["title"], "Topology");
    assert!(json(&["plan", &score, "--json"])["nodes"].is_array());

    let out = tempfile::tempdir().expect("a folder");
    let said = Running::start(&mut replay(score.as_ref(), 1, out.path())).end();
    let summary: Value = serde_json::from_str(&said.out).expect("a summary is JSON");
    assert_eq!((&summary["job"], &summary["predictions"]["fraud"]), (&"score".into(), &8.into()));
}

#[test]
fn a_wrong_file_is_told_in_json_too() {
    let wrong = root().join("tests/errors/unknown_key.yaml").display().to_string();
    let said = Running::start(millstream().args(["check", &wrong, "--json"])).end();
    assert_eq!(said.status.code(), Some(1));
    let checked: Value = serde_json::from_str(&said.out).expect("the answer is JSON");
    let problem = &checked["problems"][0];
    assert_eq!((&checked["ok"], &problem["severity"]), (&false.into(), &"error".into()));
    assert!(problem["line"].is_u64() && problem["column"].is_u64() && problem["hint"].is_string(), "{checked}");
}

/// Runs a command whose output nobody reads; gives its exit code.
pub fn unread(command: &mut Command) -> Option<i32> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().expect("a child can be waited for").code()
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let score = score();
    let wrong = root().join("tests/errors/unknown_key.yaml").display().to_string();
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().display().to_string();
    let commands: [(&[&str], i32); 8] = [
        (&["check", &score], 0),
        (&["check", &wrong], 1),
        (&["check", &wrong, "--json"], 1),
        (&["graph", &score], 0),
        (&["kinds"], 0),
        (&["schema"], 0),
        (&["replay", &score, "--out", &folder, "--http", "off"], 0),
        (&["replay", &wrong, "--out", &folder, "--http", "off"], 2),
    ];
    for (args, code) in commands {
        assert_eq!(unread(millstream().args(args)), Some(code), "{args:?}");
    }
}

#[test]
fn a_terminal_shows_how_far_a_replay_is_and_how_long_predictions_take() {
    let out = tempfile::tempdir().expect("a folder");
    let topology = root().join("tests/run/outcomes/topology.yaml");
    // Some six hours in two seconds: time to draw. `script` gives the program a terminal.
    let line = format!(
        "'{}' replay '{}' --out '{}' --http off --speed 10000",
        env!("CARGO_BIN_EXE_millstream"),
        topology.display(),
        out.path().display()
    );
    let said = Running::start(Command::new("script").args(["-qec", &line, "/dev/null"])).end();
    assert!(said.status.success(), "{}{}", said.out, said.err);
    let drawn = said.out.split(['\r', '\n']).find(|line| line.contains(" records out, latency p50 "));
    assert!(drawn.is_some_and(|line| line.contains(" events in, ") && line.contains(" ms, p99 ")), "{}", said.out);
    assert!(said.out.contains("predictions: p50 ") && said.out.contains(" from arrival to sink"), "{}", said.out);
}

#[test]
fn processes_that_can_not_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let score = std::fs::read_to_string(score()).expect("the topology can be read");
    let model = root().join("topologies/score/model.onnx");
    let plain = folder.path().join("plain.yaml");
    std::fs::write(&plain, score.replace("model.onnx", &model.display().to_string())).expect("a file");
    let hosts = folder.path().join("hosts.yaml");
    let cluster = "\nengine: { cluster: { hosts: [\"127.0.0.1:1\", \"127.0.0.1:2\"], secret: 0123456789abcdef } }\n";
    std::fs::write(&hosts, std::fs::read_to_string(&plain).expect("a file") + cluster).expect("a file");
    let cases: [(&std::path::Path, &[&str], &str); 6] = [
        (&plain, &["--process", "0"], "--process needs the addresses of all processes (engine.cluster.hosts)"),
        (&plain, &["--processes", "0"], "0 is not in 1..=64"),
        (&plain, &["--processes", "2", "--process", "1"], "cannot be used with"),
        (&hosts, &[], "say which one this is, --process 0 to 1"),
        (&hosts, &["--process", "2"], "there is no process 2"),
        (&hosts, &["--processes", "2"], "the topology names hosts (engine.cluster): use --process on each"),
    ];
    for (file, options, expected) in cases {
        let said = Running::start(millstream().arg("run").arg(file).args(options)).end();
        assert_eq!(said.status.code(), Some(2), "{options:?}: {}", said.err);
        assert!(said.err.contains(expected), "{options:?}: {}", said.err);
    }
}
