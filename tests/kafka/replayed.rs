//! One topology, one input, two ways: a job on a topic and the replay of the file that was written to it. Ids, features and
//! scores are the same.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::program::{Running, millstream, records, replay, root, sink_files, summary};

const PAYMENTS: usize = 400;

/// Payments a minute apart, of seven cards.
fn payments() -> String {
    let line = |n: usize| {
        let (at, card, amount) = (1_709_251_200_000 + n * 60_000, n * n % 7, (n * 37 % 101) as f64 / 4.0);
        format!("{{\"at\":{at},\"id\":\"p{n}\",\"card\":\"c{card}\",\"amount\":{amount},\"age\":{n}}}\n")
    };
    (0..PAYMENTS).map(line).collect()
}

fn topology(brokers: &str, topic: &str, predictions: &str) -> String {
    let model = root().join("topologies/score/model.onnx");
    format!(
        "
version: 1
name: {topic}
sources:
  payments:
    from: {{ kafka: {{ brokers: \"{brokers}\", topics: [{topic}] }} }}
    schema: {{ at: int64, id: string, card: string, amount: float64, age: float64 }}
    event_time: {{ column: at }}
    history: {{ files: payments.jsonl, sorted: true }}
prepare:
  paid: {{ from: payments, where: amount > 0 }}
features:
  card:
    from: paid
    key: [card]
    aggregates:
      - {{ ops: [count, time_since_last], windows: [1h] }}
      - {{ of: amount, ops: [mean, stddev, range], windows: [1h, 24h] }}
    as_of:
      before: {{ column: amount, max_age: 7d }}
vectors:
  payment:
    spine: paid
    join: [{{ features: card, exclude_self: true }}]
    derive:
      usual: coalesce(card.amount_mean_1h, 0)
      spread: coalesce(card.amount_range_24h, 0)
models:
  fraud:
    from: payment
    onnx: {}
    version: v1
    features: [amount, usual, age, spread]
sinks:
  predictions: {{ from: fraud, to: {{ kafka: {{ brokers: \"{brokers}\", topic: {predictions} }} }} }}
",
        model.display()
    )
}

/// What a prediction says that does not depend on the run: all but the file or topic, the epoch, and the last digits of the
/// score (float32 sums depend on how many rows ONNX Runtime is given at once).
fn lasting(record: &Value) -> (String, Value) {
    let mut record = record.clone();
    let fields = record.as_object_mut().unwrap();
    for changing in ["topic", "epoch"] {
        assert!(fields.remove(changing).is_some(), "no {changing} in {fields:?}");
    }
    let score = fields["score"].as_f64().unwrap();
    fields.insert("score".into(), format!("{score:.5}").into());
    (fields["prediction_id"].as_str().unwrap().to_owned(), record)
}

#[test]
fn a_job_on_a_topic_and_its_replay_write_the_same() {
    let (brokers, topic, predictions) = (brokers(), unique("replayed"), unique("replayed-out"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topology.yaml");
    std::fs::write(&path, topology(&brokers, &topic, &predictions)).unwrap();
    std::fs::write(folder.path().join("payments.jsonl"), payments()).unwrap();
    create(&brokers, &topic, 1, &[]);
    create(&brokers, &predictions, 1, &[]);

    let out = folder.path().join("out");
    summary(&mut replay(&path, 2, &out));
    let replayed: BTreeMap<_, _> = records(&sink_files(&out)["predictions"]).iter().map(lasting).collect();
    let free = payments().matches("\"amount\":0,").count();
    assert!(free > 0 && replayed.len() == PAYMENTS - free, "{} of {PAYMENTS}", replayed.len());

    let said = |args: &[&str]| {
        let said = Running::start(millstream().args(args).env("KAFKA_BROKERS", &brokers)).end();
        assert!(said.status.success(), "{}", said.err);
        said.out
    };
    said(&["produce", folder.path().join("payments.jsonl").to_str().unwrap(), "--topic", &topic]);
    let mut running = Running::start(millstream().arg("run").arg(&path).args(["--workers", "2", "--http", "off"]));
    let live = loop {
        let live = said(&["consume", &predictions, "--until-end", "--json"]);
        if live.lines().count() >= replayed.len() {
            break live;
        }
        assert!(running.runs(), "{}", running.err());
    };
    running.terminate();
    running.end();
    let live: BTreeMap<_, _> = records(&live).iter().map(|message| lasting(&message["value"])).collect();
    assert_eq!(live.len(), replayed.len());
    for (id, replayed) in &replayed {
        assert_eq!(&live[id], replayed);
    }
}
