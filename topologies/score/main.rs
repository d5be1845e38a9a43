//! The topology of `topology.yaml`, written in Rust: `cargo run --example score -- run`.

use std::path::Path;
use std::process::ExitCode;

use millstream::cli;
use millstream::sinks::{SinkKind, kafka::KafkaSink};
use millstream::sources::{SourceKind, kafka::KafkaSource};
use millstream::topology::{Model, Sink, Source, Topology};
use millstream_operators::schema::ColumnType;

/// Scores every payment of a topic and writes the predictions to another topic.
pub fn topology() -> Topology {
    let brokers = std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| "localhost:9092".into());
    let topic = |topic: &str| SinkKind::Kafka(KafkaSink::new(&brokers, topic));
    let payments = Source::new(SourceKind::Kafka(KafkaSource::new(&brokers, ["payments"])))
        .column("id", ColumnType::STRING)
        .column("amount", ColumnType::FLOAT64)
        .column("balance", ColumnType::FLOAT64)
        .column("age_days", ColumnType::FLOAT64)
        .column("hour", ColumnType::FLOAT64)
        .history("input.jsonl");
    Topology::new("score")
        .source("payments", payments)
        .model("fraud", Model::new("payments", "model.onnx").features(["amount", "balance", "age_days", "hour"]))
        .sink("predictions", Sink::new("fraud", topic("predictions")).key(["id"]))
        .sink("dead_letters", Sink::new("rejects", topic("payments.rejected")))
}

#[allow(dead_code, reason = "the tests compare the topology with the file and do not run it")]
fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/score");
    cli::main(|| cli::run_built(topology(), &folder))
}
