//! JSON lines on standard output.
use millstream_operators::kinds::Kind;

/// JSON lines on standard output.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StdoutSink {}

impl Kind for StdoutSink {
    const EXAMPLE: &'static str = "{}";
}
