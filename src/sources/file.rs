//! Files: JSON lines, CSV or Parquet; one, many or a glob.
use millstream_operators::kinds::Kind;

/// Files: JSON lines (`.jsonl`, `.ndjson`, `.json`), CSV with a header line (`.csv`) or Parquet (`.parquet`), read once
/// from beginning to end.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// Paths or globs, relative to the topology's folder; read in the order of their names.
    pub paths: Vec<String>,
}

impl Kind for FileSource {
    const EXAMPLE: &'static str = "{ paths: [\"data/departures-*.jsonl\"] }";
}
