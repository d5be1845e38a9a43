//! Kafka topics, by manual assignment.
use millstream_operators::kinds::Kind;
use std::collections::BTreeMap;

/// Kafka topics. Partitions are assigned by hand, offsets live in the checkpoint; the group's offsets are committed for
/// lag tools only.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Addresses of some brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics.
    pub topics: Vec<String>,
    /// Where to start a partition that has no position yet.
    #[serde(default)]
    pub start: StartAt,
    /// More settings of librdkafka (`security.protocol`, `sasl.username` ...). Settings that the engine owns are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Where to start a partition that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the oldest message there is.
    #[default]
    Earliest,
    /// At the end: only messages that come after the start.
    Latest,
}

impl Kind for KafkaSource {
    const EXAMPLE: &'static str = "{ brokers: \"localhost:9092\", topics: [card.txn], start: latest }";
}
