//! The topologies of the repository on a broker, as README.md and docs/getting-started.md tell a user: `produce` feeds the topics,
//! `run` consumes them, `consume` shows what came. Only the names of the job and its topics are the test's own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::service::{Service, address, get, scrape, sum};
use super::*;
use crate::flights::{STREAMS, before, year};
use crate::program::{read_summary, records, root, said, total, until_well};
use millstream::metrics::scrape::samples;

/// The flights of two weeks.
const UNTIL: &str = "01-15";

/// `millstream produce FILE`, into a topic that is made.
fn produce(job: &Service, file: &std::path::Path, topic: &str, options: &[&str]) {
    let mut command = job.command();
    command.arg("produce").arg(file).args(["--topic", &job.topic(topic), "--create", "4"]).args(options);
    said(&mut command);
}

/// The values of messages, by one of their fields, each of which is there once.
fn by<'a>(messages: &'a [Value], field: &str) -> BTreeMap<&'a str, &'a Value> {
    let values = messages.iter().map(|message| &message["value"]);
    let found: BTreeMap<_, _> = values.map(|value| (value[field].as_str().expect("a text"), value)).collect();
    assert_eq!(found.len(), messages.len(), "each `{field}` once");
    found
}

#[test]
fn the_smallest_topology_scores_a_topic() {
    let example = root().join("topologies/score");
    let job = Service::shipped(brokers(), "score").create([("predictions", 4), ("payments.rejected", 1)]);
    produce(&job, &example.join("input.jsonl"), "payments", &[]);
    said(job.command().arg("check").arg(job.topology()));
    let mut running = job.run(&["--http", "off"]);
    job.until("predictions", 8, &mut running);
    job.until("payments.rejected", 4, &mut running);
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!((total(&summary["events"]), total(&summary["predictions"])), (12, 8), "{summary}");

    let lines = |name: &str| std::fs::read_to_string(example.join(name)).expect("the example's files");
    let predictions = job.consume("predictions");
    let found = by(&predictions, "id");
    let expected = records(&lines("expected.jsonl"));
    assert_eq!(found.len(), expected.len());
    for expected in &expected {
        let found = found[expected["id"].as_str().expect("a text")];
        assert_eq!(found["label"], expected["label"], "{found}");
        let [found, expected] = [found, expected].map(|value| value["score"].as_f64().expect("a number"));
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    // The offsets are those of four partitions: a dead letter is known by its bytes, which are those of a line.
    let input = lines("input.jsonl");
    let input: Vec<&str> = input.lines().collect();
    let reason = |message: &Value| {
        let headers = message["headers"].as_array().expect("headers");
        headers.iter().find(|header| header[0] == "reason").map(|header| header[1].clone())
    };
    let letters = job.consume("payments.rejected");
    let letters: BTreeMap<String, _> =
        letters.iter().map(|message| (message["value"].to_string(), reason(message))).collect();
    let expected = records(&lines("expected_rejects.jsonl")).into_iter().map(|reject| {
        let line = input[reject["offset"].as_u64().expect("a number") as usize];
        let value = serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
        (value.to_string(), Some(reject["reason"].clone()))
    });
    assert_eq!(letters, expected.collect());
}

#[test]
fn flights_are_predicted_and_judged_on_topics() {
    let data = tempfile::tempdir().unwrap();
    before(UNTIL, &year(), data.path(), |_| {});
    let lines = |stream: &str| std::fs::read_to_string(data.path().join(format!("{stream}.jsonl"))).unwrap();
    let scheduled = records(&lines("schedule"));
    let (flights, labels) = (scheduled.len(), lines("arrivals").lines().count());
    assert!(flights > 10_000 && labels > 10_000, "{flights} flights, {labels} labels");

    let job = Service::shipped(brokers(), "flight_delays");
    let job = job.create([("flights.predictions", 4), ("flights.rejected", 4), ("flights.drift", 4)]);
    for stream in STREAMS {
        let options = ["--event-time", "at", "--key", "origin"];
        produce(&job, &data.path().join(format!("{stream}.jsonl")), &format!("flights.{stream}"), &options);
    }
    let mut running = job.run(&["--http", "127.0.0.1:0"]);
    let address = address(&mut running);
    scrape(&address, &mut running, |text| {
        let samples = samples(text).unwrap();
        let expected = [
            ("millstream_model_predictions_total", vec![("model", "delay")], flights),
            ("millstream_sink_records_total", vec![("sink", "predictions")], flights),
            // Whoever comes first, prediction or label, waits for the other.
            ("millstream_outcome_joined", vec![("slice", "all")], labels),
        ];
        let differs = expected.iter().filter_map(|(name, labels, expected)| {
            let found = sum(&samples, name, labels);
            (found != *expected as f64).then(|| format!("{name} is {found}, not {expected}"))
        });
        differs.collect()
    });
    for path in ["/v1/features/origin/JFK", "/v1/features/carrier_origin/AA%7CJFK"] {
        let served: Value = serde_json::from_str(&get(&address, path)).unwrap();
        assert!(served["features"].as_object().is_some_and(|features| !features.is_empty()), "{path}: {served}");
    }
    until_well(&address, "/readyz", &mut running);
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!(summary["ended"], "stopped");
    assert_eq!(summary["predictions"]["delay"], flights);
    assert_eq!(total(&summary["rejects"]) + total(&summary["late"]), 0, "{summary}");
    assert_eq!(summary["quality"]["delayed"]["all"]["joined"], labels);

    let predictions = job.consume("flights.predictions");
    let found: BTreeSet<&str> = by(&predictions, "flight_id").into_keys().collect();
    let expected = scheduled.iter().map(|flight| flight["flight_id"].as_str().expect("a text")).collect();
    assert!(found == expected, "{} flights are predicted, {flights} were scheduled", found.len());
    assert_eq!(by(&predictions, "prediction_id").len(), flights);
    let shown = said(job.command().args(["consume", &job.topic("flights.predictions"), "--max", "5"]));
    assert_eq!(shown.lines().count(), 5, "{shown}");
}
