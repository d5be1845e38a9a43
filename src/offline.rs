//! The offline store: tables of events, vectors and predictions for training.

use millstream_operators::kinds;
use millstream_operators::units::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod delta;

kinds! {
    /// How a table is kept.
    pub enum TableKind("offline store") {
        "delta" => Delta(delta::DeltaConfig),
    }
}

/// A table that gets every row of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfflineConfig {
    /// The stream: a source (raw events), vector or model (feature vectors with their predictions).
    pub from: String,
    /// The table.
    pub table: TableKind,
    /// How often rows are committed, at the end of an epoch. Shorter is fresher and gives more, smaller files.
    #[serde(default = "every")]
    pub every: Millis,
}

fn every() -> Millis {
    Millis(60_000)
}
