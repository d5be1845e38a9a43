//! Whole topologies on small files: every folder of `tests/run` holds a topology, its inputs, and in `expected` what
//! each sink writes and what the summary says. The bytes are the same with 1, 2 and 4 workers. `UPDATE=1` rewrites what is
//! expected; read the difference before you commit it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::program::{lasting, records, replay, root, sink_files, summary, total};

/// Numbers of workers that must give the same bytes.
const WORKERS: [usize; 3] = [1, 2, 4];

/// Runs a topology with each number of workers; gives what all of them wrote and said.
fn run(topology: &Path) -> (BTreeMap<String, String>, Value) {
    let mut first = None;
    for workers in WORKERS {
        let out = tempfile::tempdir().expect("a folder");
        let summary = summary(&mut replay(topology, workers, out.path()));
        let wrote = (sink_files(out.path()), lasting(&summary));
        let expected = first.get_or_insert_with(|| wrote.clone());
        for (sink, text) in &wrote.0 {
            same(&format!("{}, {sink}, with {workers} workers", topology.display()), &expected.0[sink], text);
        }
        assert_eq!(expected.0.len(), wrote.0.len(), "{} with {workers} workers: sinks", topology.display());
        assert_eq!(expected.1, wrote.1, "{} with {workers} workers", topology.display());
    }
    first.expect("there are numbers of workers")
}

/// Compares texts line by line, so that a difference can be read.
fn same(what: &str, expected: &str, found: &str) {
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "{what}: line {}", number + 1);
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "{what}: lines");
    assert_eq!(expected, found, "{what}");
}

/// Compares with a file, or writes it.
fn compare(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file stands in a folder")).expect("a folder");
        std::fs::write(path, found).expect("the file can be written");
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    same(&path.display().to_string(), &expected, found);
}

/// Runs a folder's topology and compares everything it gives.
fn check(name: &str) -> (BTreeMap<String, String>, Value) {
    let folder = root().join("tests/run").join(name);
    let (sinks, summary) = run(&folder.join("topology.yaml"));
    for (sink, text) in &sinks {
        compare(&folder.join(format!("expected/{sink}.jsonl")), text);
    }
    let text = serde_json::to_string_pretty(&summary).expect("a summary is JSON") + "\n";
    compare(&folder.join("expected/summary.json"), &text);
    (sinks, summary)
}

/// Every event of the only source is in `sink`, among the rejects, filtered or dropped as late.
fn conserved(summary: &Value, sink: &str) {
    let (events, out) = (total(&summary["events"]), total(&summary["sinks"][sink]));
    let rest = [&summary["rejects"], &summary["filtered"], &summary["late"]].map(total);
    assert_eq!(events, out + rest.iter().sum::<u64>(), "events, and {out} out, {rest:?} rejected, filtered, late");
}

#[test]
fn features_of_several_groups() {
    check("features");
}

#[test]
fn a_dead_letter_for_each_reason() {
    let (sinks, summary) = check("rejects");
    conserved(&summary, "vectors");
    assert_eq!(total(&summary["rejects"]), total(&summary["sinks"]["dead_letters"]));
    assert_eq!(records(&sinks["dead_letters"]).len() as u64, total(&summary["rejects"]));
}

#[test]
fn outcomes_and_drift() {
    let (_, summary) = check("outcomes");
    assert_eq!(summary["predictions"]["fraud"], 400);
    assert!(summary["drift_signals"]["amount_level"].as_u64() > Some(0), "{summary}");
}

#[test]
fn csv_and_parquet() {
    check("files");
}

/// The example that everybody starts with, against what ONNX Runtime for Python says.
#[test]
fn score() {
    let folder = root().join("topologies/score");
    let (sinks, summary) = run(&folder.join("topology.yaml"));
    conserved(&summary, "predictions");
    let expected = |file: &str| records(&std::fs::read_to_string(folder.join(file)).expect("the example's files"));
    let (found, expected_scores) = (records(&sinks["predictions"]), expected("expected.jsonl"));
    assert_eq!(found.len(), expected_scores.len());
    for (found, expected) in found.iter().zip(&expected_scores) {
        assert_eq!((&found["id"], &found["label"]), (&expected["id"], &expected["label"]));
        let [found, expected] = [found, expected].map(|record| record["score"].as_f64().expect("a score is a number"));
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
    let rejects = records(&sinks["dead_letters"]);
    let reasons: Vec<Value> = rejects
        .iter()
        .map(|reject| serde_json::json!({ "offset": reject["offset"], "reason": reject["reason"] }))
        .collect();
    assert_eq!(reasons, expected("expected_rejects.jsonl"));
}
