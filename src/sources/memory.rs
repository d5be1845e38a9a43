//! Records written in the topology: for tests and examples.
use millstream_operators::kinds::Kind;

/// Records written in the topology itself, as JSON texts: for tests and examples.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySource {
    /// The messages, in order.
    pub messages: Vec<String>,
}

impl Kind for MemorySource {
    const EXAMPLE: &'static str = "{ messages: ['{\"id\": 1}', '{\"id\": 2}'] }";
}
