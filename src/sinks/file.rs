//! JSON lines in a file.
use millstream_operators::kinds::Kind;

/// JSON lines in a file.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    /// The file, relative to the topology's folder. A new job starts it anew; a job that goes on cuts it back to its
    /// checkpoint and appends.
    pub path: String,
}

impl Kind for FileSink {
    const EXAMPLE: &'static str = "{ path: out/predictions.jsonl }";
}
