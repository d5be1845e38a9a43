//! Whole topologies on small files: every folder of `tests/run` holds a topology, its inputs, and in `expected` what
//! each sink writes and what the summary says. The bytes are the same with 1, 2 and 4 workers. `UPDATE=1` rewrites what is
//! expected; read the difference before you commit it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use millstream::cluster::{Joined, Shape};
use millstream::plan::Plan;
use millstream::replay::Pace;
use millstream::runtime::job::{Job, Mode};
use millstream::runtime::repeats::Wanted;
use millstream::sinks::SinkKind;
use millstream::sinks::memory::{self, MemorySink};
use millstream::topology::Topology;
use serde_json::Value;

use super::program::{lasting, millstream, records, replay, root, said, sink_files, summary, total};

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
fn of_events_that_are_sent_twice_the_first_counts() {
    let (sinks, summary) = check("duplicates");
    for (node, sink, all) in [("once", "vectors", 12), ("once_of_all", "of_all", 13)] {
        let left = records(&sinks[sink]).len() as u64;
        let rejected = total(&summary["rejects"][node]);
        assert_eq!(left + rejected + summary["duplicates"][node].as_u64().unwrap(), all, "{node}");
    }
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

/// Records that stand in the topology itself, in no order, and one that is none; a sink of each kind that needs no broker.
const RECORDS: &str = r#"
version: 1
name: records
sources:
  payments:
    from:
      memory:
        messages:
          - '{"at": 3000, "id": "c", "amount": 2.5}'
          - '{"at": 1000, "id": "a", "amount": 1}'
          - 'no JSON'
          - '{"at": 2000, "id": "b", "amount": null}'
    schema: { at: int64, id: string, amount: float64? }
    event_time: { column: at }
sinks:
  written: { from: payments, to: { file: { path: written.jsonl } }, key: [id] }
  shown: { from: payments, to: stdout }
  kept: { from: payments, to: { memory: { name: records } }, key: [id] }
  dead_letters: { from: rejects, to: { file: { path: rejected.jsonl } } }
engine: { workers: 2, http: "off" }
"#;

/// Runs a bounded topology in this process.
fn run_here(topology: &Topology, folder: &Path) {
    let plan = Plan::new(topology, folder).expect("a plan");
    let shape = Shape::single(plan.engine.workers);
    let (wanted, joined) = (Wanted::default(), Joined::default());
    let mut job = Job::start(Arc::new(plan), Mode::Bounded(Pace::Fastest), &wanted, shape, joined).expect("a job");
    while !job.ended() {
        job.look_after();
        std::thread::yield_now();
    }
    job.finish().expect("it ends well");
}

#[test]
fn sinks_without_a_broker_get_the_same_records_in_order() {
    let expected = [
        r#"{"at":1000,"id":"a","amount":1.0}"#,
        r#"{"at":2000,"id":"b","amount":null}"#,
        r#"{"at":3000,"id":"c","amount":2.5}"#,
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("topology.yaml");
    std::fs::write(&path, RECORDS).expect("a file");
    let lines = |file: &str| std::fs::read_to_string(folder.path().join(file)).expect("a sink's file");
    let shown = said(millstream().arg("run").arg(&path));
    assert_eq!((&shown, &lines("written.jsonl")), (&(expected.join("\n") + "\n"), &shown));
    let rejected = records(&lines("rejected.jsonl"));
    assert_eq!((rejected.len(), &rejected[0]["payload"]), (1, &"no JSON".into()));
    assert_eq!((&rejected[0]["offset"], &rejected[0]["event_time"]), (&2.into(), &Value::Null));

    let (mut topology, _) = millstream::cli::load(&path).expect("a topology");
    topology.sinks.shift_remove("shown");
    topology.sinks.shift_remove("written");
    topology.engine.state = "state-here".into();
    topology.sinks["dead_letters"].to = SinkKind::Memory(MemorySink { name: "records rejected".into() });
    run_here(&topology, folder.path());
    let kept = memory::take("records");
    let texts: Vec<_> = kept.iter().map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect();
    assert_eq!(texts, expected);
    let keys: Vec<_> = kept.iter().map(|record| record.key.as_deref()).collect();
    assert_eq!(keys, [Some(b"a".as_slice()), Some(b"b"), Some(b"c")]);
    assert_eq!(kept.iter().map(|record| record.event_time).collect::<Vec<_>>(), [1_000, 2_000, 3_000]);
    assert_eq!(memory::take("records rejected").len(), 1);
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
