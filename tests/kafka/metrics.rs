//! What a running job says about itself: a scrape of `/metrics` against the catalogue, both ways, and its figures
//! against what the job was given.

use std::collections::BTreeSet;

use millstream::metrics::catalogue::CATALOGUE;
use millstream::metrics::scrape::{problems, samples};
use millstream::metrics::{Part, Seen};

use super::brokers;
use super::service::{Service, address, get, scrape, sum};
use crate::program::read_summary;

/// Payments of `ids`, a minute apart, the amount rising.
fn payments(ids: std::ops::Range<u32>, country: &str) -> impl Iterator<Item = String> {
    ids.map(move |id| {
        let (day, hour, minute) = (1 + id / 1440, id / 60 % 24, id % 60);
        format!(
            "{{\"at\":\"2024-03-{day:02}T{hour:02}:{minute:02}:00Z\",\"id\":\"p{id}\",\"country\":\"{country}\",\
             \"amount\":{id}.5,\"balance\":100,\"age_days\":3,\"hour\":12}}"
        )
    })
}

/// Labels of the payments of `ids`, one of two fraud.
fn labels(ids: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    ids.map(|id| format!("{{\"at\":\"2024-03-02T00:00:00Z\",\"id\":\"p{id}\",\"fraud\":{}}}", id % 2))
}

const PARTS: [Part; 10] = [
    Part::Sources,
    Part::Kafka,
    Part::Operators,
    Part::OnlineStore,
    Part::Models,
    Part::Drift,
    Part::Outcomes,
    Part::Sinks,
    Part::OfflineStore,
    Part::Http,
];

/// Metrics that have a series only when something goes wrong, or at the end of a run.
const NOT_HERE: [&str; 5] = [
    "millstream_kafka_client_errors_total",
    "millstream_kafka_commit_errors_total",
    "millstream_sink_errors_total",
    "millstream_source_gaps_total",
    "millstream_source_missed_offsets_total",
];

/// What is wrong with a scrape: series against the catalogue, and metrics of the catalogue without a series.
fn against_catalogue(text: &str) -> Vec<String> {
    let mut wrong = problems(text, &PARTS);
    let later =
        CATALOGUE.iter().filter(|metric| metric.seen == Seen::OnceItHappens && !NOT_HERE.contains(&metric.name));
    let missing = later.filter(|metric| !text.contains(&format!("# TYPE {} ", metric.name)));
    wrong.extend(missing.map(|metric| format!("`{}` has not happened", metric.name)));
    wrong
}

/// What the figures must come to.
fn against_input(text: &str) -> Vec<String> {
    let samples = samples(text).unwrap();
    let expected: [(&str, &[(&str, &str)], f64); 24] = [
        ("millstream_source_records_total", &[("source", "payments")], 203.0),
        ("millstream_source_records_total", &[("source", "labels")], 101.0),
        ("millstream_source_lag_records", &[], 0.0),
        ("millstream_source_partitions_assigned", &[], 2.0),
        ("millstream_operator_records_out_total", &[("operator", "payments")], 201.0),
        ("millstream_records_dropped_total", &[("operator", "checked"), ("reason", "filtered")], 1.0),
        ("millstream_dlq_records_total", &[("stage", "payments"), ("reason", "malformed")], 1.0),
        ("millstream_dlq_records_total", &[("stage", "payments"), ("reason", "late")], 1.0),
        ("millstream_late_records_total", &[("source", "payments"), ("action", "dead_lettered")], 1.0),
        ("millstream_model_predictions_total", &[("model", "fraud"), ("version", "7")], 200.0),
        ("millstream_model_batch_rows_sum", &[("model", "fraud")], 200.0),
        ("millstream_sink_records_total", &[("sink", "predictions")], 200.0),
        ("millstream_sink_records_total", &[("sink", "dead_letters")], 2.0),
        ("millstream_sink_queued_records", &[], 0.0),
        ("millstream_gate_shut", &[], 0.0),
        ("millstream_online_store_keys", &[("feature_set", "spent")], 1.0),
        ("millstream_offline_rows_total", &[("table", "predictions")], 200.0),
        ("millstream_drift_values_total", &[("detector", "amount")], 200.0),
        ("millstream_outcome_joined", &[("slice", "country=AT")], 100.0),
        ("millstream_outcome_joined", &[("slice", "all")], 100.0),
        ("millstream_outcome_pending", &[("outcomes", "fraudulent")], 100.0),
        ("millstream_outcome_unmatched_labels", &[("outcomes", "fraudulent")], 1.0),
        ("millstream_outcome_labels_total", &[("effect", "new")], 101.0),
        ("millstream_kafka_brokers_up", &[("client", "source payments")], 1.0),
    ];
    let differs = expected.iter().filter_map(|(name, labels, expected)| {
        let found = sum(&samples, name, labels);
        (found != *expected).then(|| format!("{name} {labels:?} is {found}, not {expected}"))
    });
    let mut wrong: Vec<String> = differs.collect();
    for (name, labels) in [
        ("millstream_worker_busy_seconds", [("worker", "0")]),
        ("millstream_worker_idle_seconds", [("worker", "1")]),
        ("millstream_drift_alerts_total", [("detector", "amount")]),
        ("millstream_model_inference_duration_seconds_count", [("model", "fraud")]),
        ("millstream_epoch_close_duration_seconds_count", [("le", "")]),
    ] {
        let labels = if labels[0].0 == "le" { &[][..] } else { &labels[..] };
        if sum(&samples, name, labels) <= 0.0 {
            wrong.push(format!("{name} {labels:?} is not above 0"));
        }
    }
    wrong
}

/// The series of a scrape that come from the topology: not from requests, from the values of slices, or from what each
/// Kafka client says every five seconds.
fn series(text: &str) -> BTreeSet<String> {
    let other = ["#", "millstream_http_", "millstream_kafka_"];
    let lines =
        text.lines().filter(|line| !other.iter().any(|start| line.starts_with(start)) && !line.contains("slice="));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

#[test]
fn a_scrape_is_the_catalogue_and_adds_up() {
    let topics = ["payments", "labels", "predictions", "rejects", "signals"];
    let job = Service::new(brokers(), "metrics").create(topics.map(|topic| (topic, 1)));
    // A first start leaves a checkpoint behind, so that the second has one to speak of.
    let mut running = job.run(&[]);
    address(&mut running);
    running.terminate();
    read_summary(&running.end());

    job.send("payments", 1, payments(0..200, "AT"));
    let filtered = "{\"at\":\"2024-03-01T03:00:00Z\",\"id\":\"filtered\",\"country\":\"AT\",\"amount\":1,\"balance\":1,\"age_days\":1,\"hour\":1}";
    let late = filtered.replace("2024-03-01T03", "2024-02-01T03");
    job.send("payments", 1, [filtered.to_owned(), late, "not json".to_owned()]);
    job.send("labels", 1, labels(0..100));
    job.send("labels", 1, ["{\"at\":\"2024-03-02T00:00:00Z\",\"id\":\"nobody\",\"fraud\":1}".to_owned()]);

    let mut running = job.run(&[]);
    let address = address(&mut running);
    scrape(&address, &mut running, |text| [against_input(text), against_catalogue(text)].concat());

    // Other ids and another country are more data, not more series.
    let before = series(&get(&address, "/metrics"));
    job.send("payments", 1, payments(200..300, "CH"));
    let predicted = |text: &str| {
        let predictions = sum(&samples(text).unwrap(), "millstream_offline_rows_total", &[]);
        if predictions == 300.0 { Vec::new() } else { vec![format!("{predictions} rows")] }
    };
    let after = series(&scrape(&address, &mut running, predicted));
    let new: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(new.is_empty(), "series came or went: {new:?}");
    running.terminate();
    read_summary(&running.end());
}
