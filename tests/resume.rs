//! A run that is stopped and started again writes what an uninterrupted one writes: the same bytes in the sinks, the same
//! figures in the summary. The stops are at random times, the number of workers changes in between.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::program::{Running, read_summary, records, replay, root, sink_files, summary};
use super::random::{Random, seed};

const PAYMENTS: u64 = 6_000;

/// Payments, a second apart on average and out of order; labels an hour later; a third of them are corrected.
fn write_events(folder: &Path) {
    let mut random = Random(1);
    let start = 1_709_251_200_000_u64;
    let (mut payments, mut labels) = (String::new(), Vec::new());
    for i in 0..PAYMENTS {
        let at = start + i * 1_000 + random.below(40_000);
        let level = if i > PAYMENTS / 2 { 3 } else { 1 };
        let (card, amount) = (random.below(50), (1 + random.below(20_000) * level) as f64 / 100.0);
        let age = random.below(1_000);
        payments += &format!("{{\"at\":{at},\"id\":\"p{i}\",\"card\":{card},\"amount\":{amount},\"age\":{age}}}\n");
        let fraud = u64::from(amount > 150.0) ^ u64::from(random.below(10) == 0);
        labels.push((at + random.below(1_800_000), i, fraud));
        if i % 3 == 0 {
            labels.push((at + 1_800_000 + random.below(60_000), i, 1 - fraud));
        }
    }
    labels.sort();
    let line = |(at, i, fraud): (u64, u64, u64)| format!("{{\"at\":{at},\"id\":\"p{i}\",\"fraud\":{fraud}}}\n");
    std::fs::write(folder.join("payments.jsonl"), payments).expect("a file");
    std::fs::write(folder.join("labels.jsonl"), labels.into_iter().map(line).collect::<String>()).expect("a file");
}

const TOPOLOGY: &str = r#"
version: 1
name: resume
sources:
  payments:
    from: { file: { paths: [payments.jsonl] } }
    schema: { at: int64, id: string, card: int64, amount: float64, age: float64 }
    event_time: { column: at }
    checks: [card <> 7]
  labels:
    from: { file: { paths: [labels.jsonl], sorted: true } }
    schema: { at: int64, id: string, fraud: int64 }
    event_time: { column: at }
prepare:
  known: { from: payments, where: card <> 8 }
features:
  card:
    from: known
    key: [card]
    aggregates:
      - { ops: [count], windows: [5m] }
      - { of: amount, ops: [mean, stddev, last], windows: [5m, 1h] }
  tiled:
    from: known
    key: [card]
    tiles: 60
    aggregates:
      - { of: amount, ops: [sum, max], windows: [1h] }
vectors:
  payment:
    spine: known
    join:
      - { features: card, exclude_self: true }
      - { features: tiled }
    derive: { hour: "12.0" }
models:
  fraud:
    from: payment
    onnx: MODEL
    version: "1"
    features: [amount, tiled.amount_sum_1h, age, hour]
drift:
  amount: { from: known, column: amount, detector: { adwin: {} } }
  score: { from: fraud, column: score, detector: { page_hinkley: { threshold: 20 } } }
outcomes:
  fraudulent: { model: fraud, label: labels, on: [id], value: fraud, window: 1h, slices: [card] }
sinks:
  predictions: { from: fraud, to: { kafka: { brokers: "localhost:9092", topic: predictions } } }
  dead_letters: { from: rejects, to: { kafka: { brokers: "localhost:9092", topic: rejects } } }
  drift_signals: { from: drift, to: { kafka: { brokers: "localhost:9092", topic: drift } } }
"#;

/// The counts of a summary that belong to one run and add up over its parts.
fn counted(summary: &Value, into: &mut Value) {
    for part in ["events", "predictions", "rejects", "filtered", "sinks"] {
        add(&summary[part], &mut into[part]);
    }
}

fn add(from: &Value, into: &mut Value) {
    match from {
        Value::Object(entries) => entries.iter().for_each(|(name, value)| add(value, &mut into[name])),
        number => {
            *into = (into.as_u64().unwrap_or(0) + number.as_u64().unwrap_or(0)).into();
        }
    }
}

#[test]
fn a_stopped_run_goes_on_as_if_nothing_had_happened() {
    let mut random = Random(seed());

    let folder = tempfile::tempdir().expect("a folder");
    let model = root().join("topologies/score/model.onnx");
    let topology = folder.path().join("topology.yaml");
    std::fs::write(&topology, TOPOLOGY.replace("MODEL", &model.to_string_lossy())).expect("a file");
    write_events(folder.path());

    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let uninterrupted = summary(&mut replay(&topology, 2, &whole));
    assert!(uninterrupted["drift_signals"]["amount"].as_u64() > Some(0), "{uninterrupted}");

    let mut sums = Value::Null;
    let mut stops = 0;
    let last = loop {
        let workers = 1 + random.below(3) as usize;
        let mut command = replay(&topology, workers, &parts);
        if stops == 3 {
            break summary(&mut command);
        }
        // The whole takes about eight seconds at this pace.
        let running = Running::start(command.args(["--speed", "1000"]));
        let pause = Duration::from_millis(500 + random.below(2_000));
        std::thread::sleep(pause);
        running.terminate();
        let stopped = read_summary(&running.end());
        println!("stopped after {pause:?} with {workers} workers: {}", stopped["events"]);
        assert_eq!(stopped["ended"], "stopped");
        counted(&stopped, &mut sums);
        stops += 1;
    };
    counted(&last, &mut sums);

    let mut expected = Value::Null;
    counted(&uninterrupted, &mut expected);
    assert_eq!(sums, expected, "what all parts did, and what the whole did");
    let (whole, parts) = (sink_files(&whole), sink_files(&parts));
    assert_eq!(whole.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>());
    for (sink, expected) in &whole {
        let (expected, found) = (records(expected), records(&parts[sink]));
        assert_eq!(expected.len(), found.len(), "{sink}: records");
        for (at, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert!(alike(expected, found), "{sink}: record {at} is {found}, not {expected}");
        }
    }
    let (last, whole) = (&last["quality"], &uninterrupted["quality"]);
    assert!(alike(last, whole), "the quality is {last}, not {whole}");
}

/// Whether two records are the same but for what a stop may change: the number of the epoch (a stop ends one), and the last
/// digits of a score (ONNX Runtime's sums in float32 depend on how many rows it is given at once) and what follows from it.
fn alike(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let same = |(name, value): (&String, &Value)| match name.as_str() {
                "epoch" | "evidence" => found.contains_key(name),
                _ => found.get(name).is_some_and(|other| alike(value, other)),
            };
            expected.len() == found.len() && expected.iter().all(same)
        }
        (Value::Number(expected), Value::Number(found)) => {
            let (expected, found) = (expected.as_f64().unwrap_or(f64::NAN), found.as_f64().unwrap_or(f64::NAN));
            (expected - found).abs() <= 1e-6 * expected.abs().max(1.0)
        }
        (expected, found) => expected == found,
    }
}
