//! Records kept in the process: for tests.
use millstream_operators::kinds::Kind;

/// Records kept in the process under a name: for tests of a program that embeds Millstream.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySink {
    /// The name under which the records are found.
    pub name: String,
}

impl Kind for MemorySink {
    const EXAMPLE: &'static str = "{ name: predictions }";
}
