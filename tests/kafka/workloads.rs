//! The workloads of the benches, `benches/kafka/w0.yaml` and `w1.yaml`, from topic to topic: every result against a second
//! computation that shares nothing with the engine. Events are further apart than in the benches, so that all windows
//! fill and slide.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::program::{Running, millstream, python, root, said};

const EVENTS: usize = 10_000;
/// Nine seconds between events: 25 hours together, of 25 cards.
const OPTIONS: [&str; 6] = ["--keys", "25", "--count", "10000", "--step", "9000"];

/// Runs a workload's topology over the events; gives its results, a line of JSON each.
fn results(workload: &str, folder: &Path) -> Vec<String> {
    let (brokers, job) = (brokers(), unique(workload));
    let (events, results) = (format!("{job}-in"), format!("{job}-out"));
    for topic in [&events, &results] {
        create(&brokers, topic, 4, &[]);
    }
    let file = folder.join("events.jsonl");
    std::fs::write(&file, said(python("recompute_workloads.py").arg("events").args(OPTIONS))).unwrap();
    let feed = ["--topic", &events, "--key", "card", "--brokers", &brokers];
    said(millstream().arg("produce").arg(&file).args(feed));

    let mut command = millstream();
    command.arg("run").arg(root().join(format!("benches/kafka/{workload}.yaml"))).args(["--workers", "2", "--json"]);
    command.env("KAFKA_BROKERS", &brokers).env("GROUP", &job).env("STATE", folder.join("state"));
    command.env("TOPIC_IN", &events).env("TOPIC_OUT", &results).env_remove("MODELS");
    let mut running = Running::start(&mut command);
    let deadline = Instant::now() + LONG;
    let consume = || said(millstream().args(["consume", &results, "--until-end", "--json", "--brokers", &brokers]));
    while consume().lines().count() < EVENTS {
        assert!(running.runs() && Instant::now() < deadline, "less than {EVENTS} results: {}", running.err());
    }
    running.terminate();
    assert!(running.end().status.success());
    let records = consume();
    let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let values = records.map(|record| {
        assert!(record["value"].get("card").is_none_or(|card| *card == record["key"]), "{record}");
        record["value"].to_string()
    });
    values.collect()
}

/// Holds results against the second computation; gives what it said, `Err` when it found a difference.
fn check(workload: &str, folder: &Path, results: &[String]) -> Result<String, String> {
    let file = folder.join("results.jsonl");
    std::fs::write(&file, results.join("\n")).unwrap();
    let mut command = python("recompute_workloads.py");
    let said = Running::start(command.args(["check", workload]).arg(file).args(OPTIONS)).end();
    if said.status.success() { Ok(said.out) } else { Err(said.out + &said.err) }
}

fn agree(workload: &str) -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let results = results(workload, folder.path());
    let said = check(workload, folder.path(), &results).unwrap_or_else(|differences| panic!("{differences}"));
    assert_eq!(said.trim(), format!("{EVENTS} of {EVENTS} results of {workload} agree"));
    (folder, results)
}

#[test]
fn events_are_scored_one_by_one() {
    agree("w0");
}

#[test]
fn twenty_windows_and_trees() {
    let (folder, results) = agree("w1");
    // The comparison sees one wrong number, one missing and one repeated result among ten thousand.
    let changed = |name: &str, by: f64| {
        let mut result: Value = serde_json::from_str(&results[4_321]).unwrap();
        let number = result[name].as_f64().expect("the results hold numbers");
        result[name] = if result[name].is_u64() { (number as u64 + 1).into() } else { (number + by).into() };
        let mut changed = results.clone();
        changed[4_321] = result.to_string();
        changed
    };
    let mut repeated = results.clone();
    repeated.push(results[0].clone());
    let wrong = [
        (changed("score", 1e-5), "must be"),
        (changed("count_1h", 1.0), "must be"),
        (changed("mean_24h", 0.01), "must be"),
        (results[1..].to_vec(), "is missing"),
        (repeated, "a second time"),
    ];
    for (results, said) in wrong {
        let differences = check("w1", folder.path(), &results).expect_err("there is a difference");
        assert!(differences.contains(said) && differences.contains(" 1 differences in 10000"), "{differences}");
    }
}
