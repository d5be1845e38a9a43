//! Kafka topics.
use millstream_operators::kinds::Kind;
use std::collections::BTreeMap;

/// A Kafka topic, written by an idempotent producer with `acks=all`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSink {
    /// Addresses of some brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// How long the producer waits to fill a batch. Longer is more throughput and as much more latency.
    #[serde(default = "linger")]
    pub linger: millstream_operators::units::Millis,
    /// Whether records carry headers (`prediction_id`, `epoch`, `model`, ...). Rejects always do.
    #[serde(default = "yes")]
    pub headers: bool,
    /// More settings of librdkafka. Settings that the engine owns are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

fn linger() -> millstream_operators::units::Millis {
    millstream_operators::units::Millis(1)
}
fn yes() -> bool {
    true
}

impl Kind for KafkaSink {
    const EXAMPLE: &'static str = "{ brokers: \"localhost:9092\", topic: predictions }";
}
