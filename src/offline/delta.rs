//! Delta Lake tables.
use millstream_operators::kinds::Kind;

/// A Delta Lake table, partitioned by the date of the event time (column `date`).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaConfig {
    /// The table's folder, relative to the topology's folder.
    pub path: String,
}

impl Kind for DeltaConfig {
    const EXAMPLE: &'static str = "{ path: lake/predictions }";
}
